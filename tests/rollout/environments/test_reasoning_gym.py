"""Problems of Reasoning Gym as an environment."""

import asyncio
import sys
from typing import Any

import pytest

pytest.importorskip("reasoning_gym")

from samepath.model.text.conversation import Message
from samepath.rewards.score import Score
from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.reasoning_gym import ReasoningGym

SUMS: dict[str, Any] = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}


def gym(**options: Any) -> ReasoningGym:
    return ReasoningGym(**{"dataset": "chain_sum", "params": SUMS, "num_held_out": 20, **options})


async def scored(made: ReasoningGym, row: EnvironmentRow, answers: list[str]) -> list[Score]:
    scores = []
    for answer in answers:
        session = await made.start(row, seed=0)
        assert await session.reply(answer) is None
        scores.append(await session.score())
    return scores


def test_rows_are_the_datasets_with_settings_and_the_same_for_the_same_seed() -> None:
    made, again = gym(seed=3), gym(seed=3)
    rows = made.tasks("train")[:30]
    assert rows == again.tasks("train")[:30] != gym(seed=4).tasks("train")[:30]
    assert made.tasks("held_out") == again.tasks("held_out")
    for row in rows:
        terms = row.text.split(": ")[1].removesuffix(" =")
        assert str(eval(terms)) == row.data["answer"]
        assert len([word for word in terms.split() if word.isdigit()]) == 2


def test_held_out_rows_are_different_and_never_trained_on() -> None:
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    made = gym(params=tiny, num_train=1500, num_held_out=20)
    held_out = {row.text for row in made.tasks("held_out")}
    assert (len(held_out), len(made.tasks("train"))) == (20, 1500)
    assert not held_out & {row.text for row in made.tasks("train")}


def test_too_few_different_rows_are_refused() -> None:
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(ValueError, match="Lower num_held_out, or widen params"):
        gym(params=tiny, num_held_out=200).tasks("held_out")


def test_scores_are_those_of_the_datasets_scorer_strict_or_not() -> None:
    made = gym(system="Only the number.", limits={"num_workers": 1})
    row = made.tasks("train")[0]
    right = str(row.data["answer"])
    strict = asyncio.run(scored(made, row, [right, f"{right} or so", "0"]))
    assert [score.total for score in strict] == [1.0, 0.0, 0.0]
    lenient = asyncio.run(scored(gym(strict=False, limits={"num_workers": 1}), row, [f"{right} or so"]))
    assert 0 < lenient[0].total < 1, "the scorer's own marks"
    session = asyncio.run(made.start(row, seed=0))
    assert session.messages[0] == Message(role="system", content="Only the number.")
    assert session.messages[1:] == (Message(role="user", content=row.text),)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dataset": "codeio"}, "cannot be a task"),
        ({"dataset": "no_such"}, "no_such"),
        ({"params": {"mint_erms": 2}}, "mint_erms"),
        ({"num_train": 0}, "at least 1; got 0 and 20"),
        ({"num_held_out": 0}, "at least 1; got 100000 and 0"),
        ({"limits": {"timeout_s": -1}}, "timeout_s"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        gym(**options)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install samepath\[gym\]"):
        gym()
