"""Control tokens of a tokenizer, and text that is read without them: content never becomes one, whoever wrote it."""

import json
import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as FastTokenizer

Span = tuple[int, int]
"""(start, end) of a part of a text, in characters."""
Spans = Sequence[Span]
"""Parts of a text, ascending."""
Placed = tuple[int, Span]
"""An id and the part of the text that it stands for."""
Edge = Literal["start", "mark", "inside"]
"""What stands before a stretch of text: nothing, a control token, or more of the same text."""
NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Code points that Unicode keeps out of texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place of a text that is to become a control token.

    Example:
        Mark(start=0, end=12, token_id=1)  # of "<|im_start|>user"
    """

    start: int
    """First character."""
    end: int
    """One past the last."""
    token_id: int
    """Id of the control token."""


class ControlTokens:
    """What a tokenizer file adds to its vocabulary: `<|im_start|>`, `<think>`, whether flagged as special or not. Added blanks are text."""

    def __init__(self, fast: FastTokenizer) -> None:
        self._fast = fast
        added = fast.get_added_tokens_decoder()
        self._tokens: dict[int, AddedToken] = {id_: token for id_, token in added.items() if token.content.strip()}
        self.ids = frozenset(self._tokens)
        self._id_of = {token.content: id_ for id_, token in self._tokens.items()}
        contents = sorted(self._id_of, key=len, reverse=True)
        # Of several that begin at one place the longest is meant. An empty class matches nothing.
        self._pattern = re.compile("|".join(map(re.escape, contents)) or r"[^\s\S]")
        self._inside = re.compile(
            "|".join(f"(?<={re.escape(one[0])})(?={re.escape(one[1:])})" for one in contents if len(one) > 1)
            or r"[^\s\S]"
        )
        unknown = getattr(fast.model, "unk_token", None)
        self._unknown_id = fast.token_to_id(unknown) if unknown else None
        self._plains: dict[Edge, FastTokenizer] = {}

    def _plain(self, edge: Edge) -> FastTokenizer:
        """The same tokenizer, to which control tokens are text like any other. Made when it is first needed: that takes as long as loading."""
        if edge not in self._plains:
            state = json.loads(self._fast.to_str())
            for token in state["added_tokens"]:
                token["special"] = token["id"] in self.ids
            _without_prefix(state, edge)
            plain = FastTokenizer.from_str(json.dumps(state))
            plain.encode_special_tokens = True
            self._plains[edge] = plain
        return self._plains[edge]

    def marks(self, text: str, written: Spans) -> list[Mark]:
        """Control tokens that stand wholly in a `written` part, from the left."""
        found, place = [], 0
        while match := self._pattern.search(text, place):
            if _within(match.span(), written):
                found.append(Mark(start=match.start(), end=match.end(), token_id=self._id_of[match.group()]))
                place = match.end()
            else:
                place = match.start() + 1
        return found

    def broken(self, text: str, written: Spans, breaker: str) -> str:
        """The text with `breaker` inside every control token that does not stand wholly in a `written` part."""
        parts, start, place = [], 0, 0
        while match := self._pattern.search(text, place):
            place = match.end() if _within(match.span(), written) else match.start() + 1
            if place == match.start() + 1:
                parts.append(text[start:place])
                start = place
        return breaker.join([*parts, text[start:]])

    def encode(self, text: str, marks: Sequence[Mark]) -> list[Placed]:
        """Ids of the text and where they stand, with control tokens at the marks and nowhere else.

        Raises ValueError if the tokenizer can read the name of a control token as nothing but that token.
        """
        whole = self._fast.encode(text, add_special_tokens=False)
        hits = self._hits(whole, text)
        if len(hits) == len(marks) and all(
            id_ == mark.token_id and start <= mark.start and mark.end <= end
            for (id_, (start, end)), mark in zip(hits, marks, strict=True)
        ):
            return list(zip(whole.ids, whole.offsets, strict=True))
        placed: list[Placed] = []
        place = 0
        for index, mark in enumerate(marks):
            before = self._tokens[marks[index - 1].token_id] if index else None
            placed += self._encode_plain(text, (place, mark.start), before, self._tokens[mark.token_id])
            placed.append((mark.token_id, (mark.start, mark.end)))
            place = mark.end
        last = self._tokens[marks[-1].token_id] if marks else None
        return placed + self._encode_plain(text, (place, len(text)), last, None)

    def _encode_plain(self, text: str, span: Span, before: AddedToken | None, after: AddedToken | None) -> list[Placed]:
        """Ids of a stretch between two control tokens, which may swallow the blanks beside them."""
        start, end = span
        if before is not None and before.rstrip:
            start = end - len(text[start:end].lstrip())
        if after is not None and after.lstrip:
            end = start + len(text[start:end].rstrip())
        edge: Edge = "start" if before is None else "mark"
        placed = self._plain_ids(text, (start, end), edge)
        if placed is None:
            # Some vocabularies can build the name of a control token from its letters; cut in two it cannot be.
            cuts = [start, *(start + match.start() for match in self._inside.finditer(text[start:end])), end]
            pieces = [
                self._plain_ids(text, (left, right), "inside" if index else edge)
                for index, (left, right) in enumerate(pairwise(cuts))
            ]
            if any(piece is None for piece in pieces):
                raise ValueError(
                    f"the tokenizer cannot read a control token's name as text; it is in {text[start:end]!r:.200}"
                )
            placed = [one for piece in pieces for one in piece or ()]
        return placed

    def _plain_ids(self, text: str, span: Span, edge: Edge) -> list[Placed] | None:
        """Ids of a part of the text; None if a control token is among them."""
        part = text[slice(*span)]
        encoded = self._plain(edge).encode(part, add_special_tokens=False)
        if self._hits(encoded, part):
            return None
        shift = span[0]
        return [
            (id_, (start + shift, end + shift)) for id_, (start, end) in zip(encoded.ids, encoded.offsets, strict=True)
        ]

    def _hits(self, encoded: Encoding, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Control tokens among the ids and where they stand. The one for unknown characters is a control token only where its name stands."""
        return [
            (id_, span)
            for id_, span in zip(encoded.ids, encoded.offsets, strict=True)
            if id_ in self.ids and (id_ != self._unknown_id or text[slice(*span)].strip() == self._tokens[id_].content)
        ]


def _within(span: tuple[int, int], spans: Spans) -> bool:
    """True if one of the ascending `spans` holds the whole span."""
    place = bisect(spans, (span[0], float("inf"))) - 1
    return place >= 0 and span[1] <= spans[place][1]


def _without_prefix(state: Any, edge: Edge) -> None:
    """Take out of a tokenizer file's state, in place, the blank that it would put before text that does not begin there."""
    if isinstance(state, list):
        for part in state:
            _without_prefix(part, edge)
    elif isinstance(state, dict):
        if edge != "start" and state.get("prepend_scheme") == "first":
            state["prepend_scheme"] = "never"
        if edge == "inside":
            state |= {"prepend_scheme": "never"} if "prepend_scheme" in state else {}
            state |= {"add_prefix_space": False} if "add_prefix_space" in state else {}
        for key in ("normalizer", "normalizers", "pre_tokenizer", "pretokenizers"):
            if edge == "inside" and isinstance(state.get(key), dict) and state[key].get("type") == "Prepend":
                state[key] = None
            elif edge == "inside" and isinstance(state.get(key), list):
                state[key] = [part for part in state[key] if part.get("type") != "Prepend"]
            _without_prefix(state.get(key), edge)
