"""Frames on the socket between the runner and its children: length, token, payload."""

import struct

TOKEN_BYTES = 16
HEADER = struct.Struct(f">I{TOKEN_BYTES}s")
"""Payload length in bytes, big endian; then the token of the request that the frame is about."""


def packed(token: bytes, payload: bytes) -> bytes:
    """Put length and token in front of a payload."""
    return HEADER.pack(len(payload), token) + payload


class FrameBuffer:
    """Bytes received so far; gives back whole payloads.

    Raises ValueError on a frame above `max_bytes`: the sender no longer speaks the protocol.
    """

    def __init__(self, max_bytes: int) -> None:
        self._data = bytearray()
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> None:
        """Append what a read returned."""
        self._data += data

    def pop(self) -> tuple[bytes, bytes] | None:
        """Take the first whole frame as token and payload, or None if it has not all arrived."""
        if len(self._data) < HEADER.size:
            return None
        size, token = HEADER.unpack_from(self._data)
        if size > self._max_bytes:
            raise ValueError(f"a frame must hold at most {self._max_bytes} bytes; got a header that says {size}")
        end = HEADER.size + size
        if len(self._data) < end:
            return None
        payload = bytes(self._data[HEADER.size : end])
        del self._data[:end]
        return token, payload

    def waiting(self) -> bool:
        """True if bytes have arrived that `pop` has not given back."""
        return bool(self._data)
