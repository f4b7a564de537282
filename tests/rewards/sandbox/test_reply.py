"""Only what a well-behaved worker says is believed."""

import pytest

from samepath.rewards.sandbox.reply import Reply, read_reply


def test_read_reply_each_kind_is_read():
    assert read_reply(b'{"status": "ok", "values": {"p": 0.5}}') == Reply(status="ok", values={"p": 0.5})
    assert read_reply(b'{"status": "error", "detail": "why"}') == Reply(status="error", detail="why")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"status": "great", "values": {"p": 1.0}}',
        b'{"status": "timeout"}',
        b'{"status": ["ok"], "values": {"p": 1.0}}',
        b'{"status": "error", "detail": 1}',
        b'{"status": "error", "values": {"p": 1.0}}',
        b'{"status": "ok"}',
        b'{"status": "ok", "values": {}}',
        b'{"status": "ok", "values": [1.0]}',
        b'{"status": "ok", "values": {"p": 1}}',
        b'{"status": "ok", "values": {"p": true}}',
        b'{"status": "ok", "values": {"p": NaN}}',
        b'{"status": "ok", "values": {"p": Infinity}}',
        b'{"status": "ok", "values": {"' + b"p" * 201 + b'": 1.0}}',
        b'{"status": "ok", "values": {' + b",".join(b'"%d": 1.0' % number for number in range(501)) + b"}}",
    ],
)
def test_read_reply_anything_else_breaks_the_protocol(payload):
    with pytest.raises(ValueError, match=r"."):
        read_reply(payload)


def test_read_reply_long_detail_is_cut():
    assert len(read_reply(b'{"status": "error", "detail": "' + b"x" * 10_000 + b'"}').detail) == 4000
