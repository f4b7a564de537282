"""Filters and orders against a twin that looks at one rollout after the other."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.rl.report.inspector.rollout_index import RolloutIndex, Snapshot
from samepath.rl.report.inspector.search import ORDERS, RANGES, Wanted, find, wanted_of
from samepath.rl.tracking.tracked_rollout import TrackedRollout
from tests.rl.report.inspector.made_run import some_rollouts, write

ROLLOUTS = some_rollouts(steps=4)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("run")
    write(folder, ROLLOUTS)
    index = RolloutIndex(folder / "rollouts")
    index.refresh()
    return index.snapshot


def value(one: TrackedRollout, name: str) -> Any:
    match name:
        case "segments":
            return len(one.segment_tokens)
        case "task":
            return one.dataset
        case "status":
            return one.reward_status
        case "group":
            return one.group_id
        case "truncated":
            return one.finish_reason == "length" or one.ended in ("tokens", "time")
    return getattr(one, name)


def passes(one: TrackedRollout, wanted: Wanted) -> bool:
    for name, low, high in wanted.ranges:
        if (name == "reward" and one.failed) or not low <= value(one, name) <= high:
            return False
    texts = (one.prompt_text, one.response_text, one.gold, one.reward_detail)
    return (
        all(value(one, name) == text for name, text in wanted.equals)
        and all(value(one, name) == yes for name, yes in wanted.yes_no)
        and wanted.text.lower() in "\n".join(texts).lower()
    )


def key(one: TrackedRollout, wanted: Wanted) -> Any:
    """What Python's own sort orders by, NaN last."""
    if wanted.order == "worst":
        return (not one.failed, 0 if one.failed else one.reward, -one.step)
    if wanted.order == "best":
        return (one.failed, 0 if one.failed else -one.reward, -one.step)
    if wanted.order == "prompt":
        return one.prompt_text
    if wanted.order in ("task", "status"):
        return value(one, wanted.order)
    number = float(value(one, wanted.order))
    return (math.isnan(number), 0 if math.isnan(number) else -number if wanted.down else number)


def naive(wanted: Wanted) -> list[int]:
    kept = [place for place, one in enumerate(ROLLOUTS) if passes(one, wanted)]
    if wanted.order in ("task", "status", "prompt") and wanted.down:
        # Equals stand as they were made in both directions.
        return sorted(kept, key=lambda place: [-ord(letter) for letter in key(ROLLOUTS[place], wanted)] + [1])
    return sorted(kept, key=lambda place: key(ROLLOUTS[place], wanted))


limits = st.sampled_from([-math.inf, -0.25, 0.0, 0.02, 0.125, 0.5, 1.0, 2.0, 3.0, math.inf])
wanted_ones = st.builds(
    Wanted,
    ranges=st.lists(st.tuples(st.sampled_from(RANGES), limits, limits), max_size=2).map(tuple),
    equals=st.lists(
        st.sampled_from([("task", "sums"), ("task", "Words"), ("status", "ok"), ("status", "timeout"), ("group", "s2-g1"), ("task", "")]),
        max_size=1,
    ).map(tuple),
    yes_no=st.lists(st.tuples(st.sampled_from(["masked", "failed", "truncated"]), st.booleans()), max_size=2).map(tuple),
    text=st.sampled_from(["", "answer 1", "NEEDLE", "needle\u0130", "prompt 2", "within 5 S", "no such", "\n"]),
    order=st.sampled_from(ORDERS),
    down=st.booleans(),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(wanted=wanted_ones)
def test_find_is_what_looking_at_each_gives(snapshot: Snapshot, wanted: Wanted) -> None:
    assert find(snapshot, wanted).tolist() == naive(wanted)


def test_find_by_prompt_takes_equal_prompts_of_all_steps(snapshot: Snapshot) -> None:
    prompt = int(snapshot.numbers["prompt"][5])
    found = find(snapshot, Wanted(prompt=prompt, order="step"))
    wanted = [place for place, one in enumerate(ROLLOUTS) if one.prompt_text == ROLLOUTS[5].prompt_text]
    assert found.tolist() == wanted
    assert len(wanted) == 16


def test_wanted_of_reads_what_the_address_says() -> None:
    asked = {"step": "2..", "reward": "..0.5", "kl": "0.1..0.2", "task": "a b", "masked": "yes", "failed": "no", "text": "x"}  # fmt: skip
    asked |= {"order": "kl", "down": "yes"}
    assert wanted_of(asked) == Wanted(
        ranges=(("step", 2, math.inf), ("reward", -math.inf, 0.5), ("kl", 0.1, 0.2)),
        equals=(("task", "a b"),),
        yes_no=(("masked", True), ("failed", False)),
        text="x",
        order="kl",
        down=True,
    )
    assert wanted_of({}) == Wanted()


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"reward": "0.5"}, "reward must be low..high"),
        ({"reward": "a..b"}, "reward must be low..high"),
        ({"reward": "nan.."}, "reward must be low..high"),
        ({"masked": "maybe"}, "masked must be yes or no"),
        ({"order": "size"}, "order must be one of worst, best, step"),
        ({"sise": "1.."}, "a filter must be one of .*; got 'sise'"),
        ({"prompt": "x"}, "prompt must be a whole number"),
    ],
)
def test_wanted_of_refuses_what_it_cannot_read(asked: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        wanted_of(asked)
