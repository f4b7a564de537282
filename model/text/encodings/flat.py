"""Drawn ids as one text in which a control token is one character that no text can hold, so that names spelt in letters are told apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from samepath.model.text.tokenizer import Tokenizer

FIRST, LAST = 0xD800, 0xDFFF
"""Lone surrogates: decoding never gives one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatText:
    """Text with one character for each control token.

    Example: of `17</think>42` where `</think>` is character U+D800
        FlatText(text="17\\ud80042", names={"\\ud800": "</think>"})
    """

    text: str
    """Text and marks."""
    names: Mapping[str, str]
    """Name of the control token that a character stands for."""

    def said(self, text: str) -> str:
        """A part of the text as people read it, control tokens by name."""
        return "".join(self.names.get(one, one) for one in text)

    def marks_in(self, text: str) -> list[str]:
        """Names of the control tokens in a part of the text."""
        return [self.names[one] for one in text if one in self.names]


class Flattener:
    """Makes drawn ids one text."""

    def __init__(self, tokenizer: Tokenizer, marks: Sequence[str]) -> None:
        """`marks` are names of control tokens that the form uses; the tokenizer need not have them all."""
        self._tokenizer = tokenizer
        self._names: Mapping[int, str] = {id_: tokenizer.text([id_]) for id_ in tokenizer.control_ids}
        self.characters: Mapping[str, str] = {mark: chr(FIRST + index) for index, mark in enumerate(marks)}
        """The character of each mark."""
        # Without a token of its own a mark is spelt in letters by the model as by the form.
        self._spelt = {mark: one for mark, one in self.characters.items() if mark not in self._names.values()}
        self._end = tokenizer.text([tokenizer.end_id])

    def flat(self, ids: Sequence[int]) -> FlatText:
        """The ids as one text. Ids that the tokenizer does not know are left out, as decoding leaves them out."""
        parts: list[str] = []
        characters = dict(self.characters)
        for control, run in groupby(ids, key=lambda id_: id_ in self._names):
            if control:
                for id_ in run:
                    # Of more kinds than there are characters the last share one.
                    parts.append(characters.setdefault(self._names[id_], chr(min(FIRST + len(characters), LAST))))
            else:
                text = self._decoded(list(run))
                for mark, character in self._spelt.items():
                    text = text.replace(mark, character)
                parts.append(text)
        return FlatText(text="".join(parts), names={character: name for name, character in characters.items()})

    def _decoded(self, ids: Sequence[int]) -> str:
        """Text behind a control token: some decoders take the first blank of a text away."""
        known = [id_ for id_ in ids if 0 <= id_ < 2**32]
        return self._tokenizer.text([self._tokenizer.end_id, *known])[len(self._end) :]
