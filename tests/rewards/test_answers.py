"""Verdicts over about fifteen hundred pairs of right answer and response, by kind, and over the tables of docs/answers.md."""

import logging
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

pytest.importorskip("math_verify", reason="needs samepath[math]")

from samepath.rewards import exact, expression
from samepath.rewards.math import answer
from samepath.rewards.number import read_number
from samepath.rewards.request import RewardRequest
from tests.rewards.answer_pairs import Pair, read_pairs

PAIRS = list(read_pairs())
KINDS = sorted({pair.kind for pair in PAIRS})
PAGE = Path(__file__).resolve().parents[2] / "docs" / "answers.md"
MIN_SHARE = 0.98
"""Of the verdicts of each kind; today all are right."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No verdict depends on how busy the machine is."""
    monkeypatch.setattr(expression, "TIMEOUT_S", 60)


def request(response: str, gold: object) -> RewardRequest:
    return RewardRequest(prompt_text="", response_text=response, answer={"answer": gold})


def wrong_verdicts(pair: Pair, *, strict: bool) -> list[str]:
    right = pair.strict if strict else pair.lenient
    given = {response: answer(request(response, pair.gold), strict=strict) for response in pair.responses}
    return [f"{pair.gold!r}: {text!r} gets {value}" for text, value in given.items() if value != right]


def test_pairs_are_many_and_half_of_each_kind_are_near_misses() -> None:
    assert len(PAIRS) >= 1400
    for kind in KINDS:
        right = Counter(
            pair.lenient if kind == "left unevaluated" else pair.strict for pair in PAIRS if pair.kind == kind
        )
        assert min(right[0.0], right[1.0]) / right.total() > 0.2, (kind, right)


@pytest.mark.parametrize("strict", [True, False])
def test_answer_gives_the_right_verdicts_of_every_kind(strict: bool) -> None:
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    wrong: dict[str, list[str]] = defaultdict(list)
    tried: Counter[str] = Counter()
    for pair in PAIRS:
        wrong[pair.kind] += wrong_verdicts(pair, strict=strict)
        tried[pair.kind] += len(pair.responses)
    shares = {kind: 1 - len(wrong[kind]) / tried[kind] for kind in KINDS}
    print(
        "\n".join(
            f"{'strict' if strict else 'lenient':8}{kind:45}{tried[kind]:5}  {shares[kind]:.3f}" for kind in KINDS
        )
    )
    assert {kind: wrong[kind] for kind in KINDS if shares[kind] < MIN_SHARE} == {}
    assert [line for lines in wrong.values() for line in lines if strict and line.endswith("gets 1.0")] == []


def test_number_agrees_with_the_pairs_whose_right_answer_is_a_number() -> None:
    """Without a box, and with the same verdicts as `math:answer`, though it needs no math-verify."""
    numbers = [
        pair for pair in PAIRS if read_number(str(pair.gold)) and r"\boxed" not in pair.response + str(pair.gold)
    ]
    wrong = [
        (pair.gold, pair.response) for pair in numbers if exact.number(request(pair.response, pair.gold)) != pair.strict
    ]
    assert len(numbers) > 700
    assert wrong == []


def documented() -> list[tuple[str, str, float]]:
    """(answer, right answer, verdict) of every row with these columns."""
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \| ([01]) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [(given, gold, float(verdict)) for given, gold, verdict in rows]


def test_page_has_rows() -> None:
    assert len(documented()) > 60


@pytest.mark.parametrize(("given", "gold", "verdict"), documented())
def test_answer_does_what_the_page_says(given: str, gold: str, verdict: float) -> None:
    assert answer(request(rf"\boxed{{{given}}}", gold)) == verdict
    assert answer(request(given, gold)) == verdict
