"""Control tokens of a tokenizer, and text that is read without them: content never becomes one, whoever wrote it."""

import json
import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as FastTokenizer

Spans = Sequence[tuple[int, int]]
"""(start, end) places of a text, in characters, ascending."""
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

    @cached_property
    def _plain(self) -> FastTokenizer:
        """The same tokenizer, to which control tokens are text like any other. Made when it is first needed: that takes as long as loading."""
        state = json.loads(self._fast.to_str())
        for token in state["added_tokens"]:
            token["special"] = token["id"] in self.ids
        plain = FastTokenizer.from_str(json.dumps(state))
        plain.encode_special_tokens = True
        return plain

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

    def encode(self, text: str, marks: Sequence[Mark]) -> list[int]:
        """Ids of the text, with control tokens at the marks and nowhere else.

        Raises ValueError if the tokenizer can read the name of a control token as nothing but that token.
        """
        whole = self._fast.encode(text, add_special_tokens=False)
        hits = self._hits(whole, text)
        if len(hits) == len(marks) and all(
            id_ == mark.token_id and start <= mark.start and mark.end <= end
            for (id_, (start, end)), mark in zip(hits, marks, strict=True)
        ):
            return list(whole.ids)
        ids: list[int] = []
        place = 0
        for index, mark in enumerate(marks):
            before = self._tokens[marks[index - 1].token_id] if index else None
            ids += self._encode_plain(text[place : mark.start], before, self._tokens[mark.token_id])
            ids.append(mark.token_id)
            place = mark.end
        last = self._tokens[marks[-1].token_id] if marks else None
        return ids + self._encode_plain(text[place:], last, None)

    def _encode_plain(self, text: str, before: AddedToken | None, after: AddedToken | None) -> list[int]:
        """Ids of a stretch between two control tokens, which may swallow the blanks beside them."""
        text = text.lstrip() if before is not None and before.rstrip else text
        text = text.rstrip() if after is not None and after.lstrip else text
        ids = self._plain_ids(text)
        if ids is None:
            # Some vocabularies can build the name of a control token from its letters; cut in two it cannot be.
            pieces = [self._plain_ids(piece) for piece in self._inside.split(text)]
            if any(piece is None for piece in pieces):
                raise ValueError(f"the tokenizer cannot read a control token's name as text; it is in {text!r:.200}")
            ids = [id_ for piece in pieces for id_ in piece or ()]
        return ids

    def _plain_ids(self, text: str) -> list[int] | None:
        """Ids of the text; None if a control token is among them."""
        encoded = self._plain.encode(text, add_special_tokens=False)
        return None if self._hits(encoded, text) else list(encoded.ids)

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
