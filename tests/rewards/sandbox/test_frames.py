"""Frames survive any way of cutting the stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rewards.sandbox.frames import FrameBuffer, packed

TOKEN = bytes(range(16))


@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.binary(max_size=20))), st.integers(1, 7))
def test_frame_buffer_any_cut_gives_tokens_and_payloads_back(frames, step):
    stream = b"".join(packed(token, payload) for token, payload in frames)
    buffer, found = FrameBuffer(100), []
    for start in range(0, len(stream), step):
        buffer.feed(stream[start : start + step])
        while (frame := buffer.pop()) is not None:
            found.append(frame)
    assert found == frames
    assert not buffer.waiting()


def test_frame_buffer_too_long_frame_is_refused():
    buffer = FrameBuffer(3)
    buffer.feed(packed(TOKEN, b"1234"))
    assert buffer.waiting()
    with pytest.raises(ValueError, match="at most 3 bytes; got a header that says 4"):
        buffer.pop()
