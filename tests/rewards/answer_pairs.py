"""Reads answers.txt: right answers and responses with the verdicts that are right."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("answers.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One line of the file."""

    kind: str
    gold: object
    response: str
    strict: float
    lenient: float

    @property
    def responses(self) -> tuple[str, ...]:
        """The response as it stands, and in a box unless it is a whole response."""
        whole = self.kind == "whole responses" or r"\boxed" in self.response
        return (self.response,) if whole else (self.response, rf"\boxed{{{self.response}}}")


def read_pairs() -> Iterator[Pair]:
    """All lines, in their order."""
    kind = ""
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            kind = line[3:]
        elif line and not line.startswith("#"):
            verdict, gold, response = re.sub(r"<U\+([0-9A-F]{4})>", lambda match: chr(int(match[1], 16)), line).split(
                " :: "
            )
            strict, _, lenient = verdict.partition("/")
            yield Pair(
                kind=kind,
                gold=json.loads(gold) if kind == "json" else gold,
                response=response,
                strict=float(strict),
                lenient=float(lenient or strict),
            )
