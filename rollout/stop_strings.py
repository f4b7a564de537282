"""Stop strings: whether the last token completed one, from the end of a response alone."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Decode = Callable[[Sequence[int]], str]
"""Text of token ids."""
REPLACED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are no text, or not yet."""
MAX_CHARACTER_TOKENS = 4
"""Tokens that one character can be cut into: bytes of UTF-8."""
MARGIN = 16
"""Characters by which a text that begins in the middle may differ from the whole one there (a blank left out, a character cut in two), or by
which a token may change those before it."""


def completes_stop(decode: Decode, tokens: NDArray[np.int32], stop_strings: Sequence[str]) -> bool:
    """Whether the text of `tokens` holds a stop string, given that the text without the last token held none.

    The same as a search in the whole text, at a cost that does not grow with it: only the end can hold a new one. A find is looked for
    again in the whole text, because tokens can read differently where their beginning is missing.
    """

    def found(text: str) -> bool:
        return any(stop in text for stop in stop_strings)

    needed = max(map(len, stop_strings)) + len(decode(tokens[-1:].tolist())) + MARGIN
    count = needed + 1
    # Bytes that are no text may be written as one or as several of these, by what stands before them.
    while count < len(tokens) and not any(REPLACED in stop for stop in stop_strings):
        start = _start_of_character(decode, tokens, len(tokens) - count)
        if start is not None:
            text = decode(tokens[start:].tolist())
            if len(text) - len(decode(tokens[start : start + 1].tolist())) >= needed:
                return found(text) and found(decode(tokens.tolist()))
        count *= 2
    return found(decode(tokens.tolist()))


def _start_of_character(decode: Decode, tokens: NDArray[np.int32], start: int) -> int | None:
    """The nearest token at or before `start` that begins a character; None if none of the few that can does.

    A decoder of single bytes gives up a whole run of them that begins in the middle of a character.
    """
    for place in range(start, max(start - MAX_CHARACTER_TOKENS, -1), -1):
        for count in range(1, MAX_CHARACTER_TOKENS + 1):
            text = decode(tokens[place : place + count].tolist())
            if text and not text.startswith(REPLACED):
                return place
    return None
