"""Frames survive any way of cutting the stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rewards.sandbox.frames import FrameBuffer, packed


@given(st.lists(st.binary(max_size=20)), st.integers(1, 7))
def test_frame_buffer_any_cut_gives_the_payloads_back(payloads, step):
    stream = b"".join(map(packed, payloads))
    buffer, found = FrameBuffer(100), []
    for start in range(0, len(stream), step):
        buffer.feed(stream[start : start + step])
        while (payload := buffer.pop()) is not None:
            found.append(payload)
    assert found == payloads


def test_frame_buffer_too_long_frame_is_refused():
    buffer = FrameBuffer(3)
    buffer.feed(packed(b"1234"))
    with pytest.raises(ValueError, match="at most 3 bytes; got a header that says 4"):
        buffer.pop()
