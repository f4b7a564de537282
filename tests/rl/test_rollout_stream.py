"""Groups from the feed to the learner, without an engine: a pool whose groups end in any order, and rewards by a rule."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from samepath.model.text.tokenizer import Tokenizer
from samepath.rewards.score import Score
from samepath.rl.batch.refill import trained_groups
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.begun_journal import BegunJournal
from samepath.rl.feed import Feed
from samepath.rl.group_journal import GroupJournal, SampledGroup
from samepath.rl.history import History, step_line
from samepath.rl.loop import Loop
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.rollout_stream import RolloutStream
from samepath.rl.tasks.requests import answered
from samepath.rl.tasks.row import Task, TaskRow
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.pool import PolledPool
from samepath.rollout.types import Group
from tests.rl.sampled import Children, group
from tests.rl.test_group_journal import drawn_by
from tests.rl.test_loop import loop

STEPS, PROMPTS, REFILL = 4, 3, 3


AHEAD = ("runtime=ray", f"rl.prompts_per_step={PROMPTS}", f"rl.steps={STEPS}")


class ScriptedPool(PolledPool):
    """Ends one group a poll, whichever."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng, self.under_way, self.asked = random.Random(seed), list[str](), list[str]()

    def submit(self, requests: Sequence[Request]) -> None:
        self.asked += [request.group_id for request in requests]
        self.under_way += [request.group_id for request in requests]

    def _poll(self, wait_s: float) -> list[Group]:
        assert self.under_way, "waits for something that nobody makes"
        return [group(self.under_way.pop(self.rng.randrange(len(self.under_way))), None, None)]

    def load_weights(self, tensors: Any, version: int) -> None: ...

    def offer_weights(self, tensors: Any, version: int, on_new_weights: Any) -> None: ...


class ByName(Children):
    """Equal rewards for both samples of every group whose name says so."""

    def __init__(self, dull: set[str]) -> None:
        super().__init__(
            {f"{name}/{index}": Score(total=1.0, parts={"one": 1.0}) for name in dull for index in range(2)}
        )

    def submit(self, request: Any) -> Any:
        if request.rollout_key not in self.scores:
            total = float(request.rollout_key.endswith("/1"))
            self.scores[request.rollout_key] = Score(total=total, parts={"one": total})
        return super().submit(request)


def made_stream(recipe: Recipe, tokenizer: Tokenizer, dull: set[str], seed: int) -> RolloutStream:
    rows = [TaskRow(row_id=f"train-{n}", question="", text=f"{n % 9}+2=", dataset="sums", row=n) for n in range(40)]
    feed = Feed(recipe=recipe, task=Task(name="sums", train=rows, held_out=[], seed=0), tokenizer=tokenizer)
    runner: Any = ByName(dull)
    recipe.run_dir.mkdir(parents=True, exist_ok=True)
    return RolloutStream(
        feed=feed,
        pool=ScriptedPool(seed),  # type: ignore[arg-type]
        scorer=GroupScorer(runner),
        on_new_weights="recompute",
        journal=GroupJournal(recipe.run_dir),
        begun=BegunJournal(recipe.run_dir),
        history=History(recipe.run_dir),
    )


def trained(stream: RolloutStream, step: int) -> list[str]:
    """Groups that a step trains."""
    while not stream.complete(step):
        stream.pump(0.0)
    scored = stream.scorer.collect(stream.taken(step))
    return [one.group_id for one in trained_groups(scored, stream.feed.recipe.rl).groups]


DULL = {"s1-g0", "s1-g3", "s2-g0", "s2-g1", "s2-g2", "s2-g3", "s2-g4", "s4-g2"}
WANTED = [
    # Two replaced, one of them by a group that was replaced itself.
    ["s1-g1", "s1-g2", "s1-g4"],
    # Of six groups one has spread: the first of the others fill up.
    ["s2-g0", "s2-g1", "s2-g5"],
    ["s3-g0", "s3-g1", "s3-g2"],
    ["s4-g0", "s4-g1", "s4-g3"],
]


@pytest.mark.parametrize("lag", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_stream_replaces_groups_without_spread_whatever_ends_first(
    seed: int, lag: int, tiny_recipe, tokenizer: Tokenizer
) -> None:
    recipe = tiny_recipe(
        "runtime=ray",
        f"rl.max_weight_lag={lag}",
        f"rl.refill={REFILL}",
        f"rl.prompts_per_step={PROMPTS}",
        f"rl.steps={STEPS}",
    )
    stream = made_stream(recipe, tokenizer, DULL, seed)
    stream.begin(0)
    for step in range(STEPS):
        assert trained(stream, step) == WANTED[step]
        assert [stream.feed.request(stream.feed.number(name)).group_id for name in WANTED[step]] == WANTED[step]
        stream.offer({}, step + 1)
    pool: Any = stream.pool
    assert not pool.under_way
    assert len(pool.asked) == len(set(pool.asked)) == STEPS * PROMPTS + 2 + 3 + 1
    assert stream.waiting == stream.under_way == 0


def test_synchronous_loop_replaces_the_same_groups(tiny_recipe, tokenizer: Tokenizer) -> None:
    recipe = tiny_recipe(f"rl.refill={REFILL}", f"rl.prompts_per_step={PROMPTS}", f"rl.steps={STEPS}")
    stream = made_stream(recipe, tokenizer, DULL, 0)
    made: Any = loop(Loop, recipe, tokenizer)
    for name, value in (("pool", stream.pool), ("scorer", stream.scorer), ("task", stream.feed.task)):
        object.__setattr__(made, name, value)
    for step in range(STEPS):
        sampled = made._refilled(step, answered(made.pool, made.requests(step), made.scorer.submit))
        groups = trained_groups(made.scorer.collect(sampled), recipe.rl).groups
        assert [one.group_id for one in groups] == WANTED[step]


def test_stream_that_goes_on_takes_replacements_from_the_journal(
    tiny_recipe, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        "runtime=ray",
        "rl.max_weight_lag=1",
        f"rl.refill={REFILL}",
        f"rl.prompts_per_step={PROMPTS}",
        f"rl.steps={STEPS}",
    )
    first = made_stream(recipe, tokenizer, DULL, 0)
    first.begin(0)
    trained(first, 0)
    again = made_stream(recipe, tokenizer, DULL, 1)
    again.begin(0)
    assert trained(again, 0) == WANTED[0]
    pool: Any = again.pool
    assert not [name for name in pool.asked if name.startswith("s1-")]


@pytest.mark.parametrize(("lag", "extra"), [(1, 1), (1, 2), (3, 1)])
@pytest.mark.parametrize("seed", range(6))
def test_stream_with_leftovers_trains_every_group_once_and_leaves_none_over_twice(
    seed: int, lag: int, extra: int, tiny_recipe, tokenizer: Tokenizer
) -> None:
    recipe = tiny_recipe(*AHEAD, f"rl.max_weight_lag={lag}", f"rl.oversample={extra}")
    stream = made_stream(recipe, tokenizer, set(), seed)
    stream.begin(0)
    seen: list[int] = []
    asked_at: dict[str, int] = {}
    pool: Any = stream.pool
    for step in range(STEPS):
        asked_at |= {name: step for name in pool.asked if name not in asked_at}
        names = trained(stream, step)
        numbers = [stream.feed.number(name) for name in names]
        seen += numbers
        assert len(numbers) == PROMPTS
        assert max(numbers) < min((step + 1) * PROMPTS + extra, STEPS * PROMPTS)
        assert all(step - asked_at[name] <= lag for name in names), "as old as its weights may be"
        # All that the steps before asked for is trained by now.
        assert set(range(min(step * PROMPTS + extra, STEPS * PROMPTS) if step else 0)) <= set(seen)
        if seed == 3 and step == 2:
            # Who goes on here knows from the history what was left over, and trains the rest alone.
            stream = made_stream(recipe, tokenizer, set(), 9)
            groups = [group(name, 1.0, 0.0) for name in names]
            stream.history.note(step_line(step, numbers, groups, "w"))
            stream.begin(step + 1)
            pool = stream.pool
        stream.offer({}, step + 1)
    assert sorted(seen) == list(range(STEPS * PROMPTS))
    assert not pool.under_way


def test_batch_does_not_wait_for_its_slowest_group_but_the_next_one_does(tiny_recipe, tokenizer: Tokenizer) -> None:
    stream = made_stream(tiny_recipe(*AHEAD, "rl.max_weight_lag=1", "rl.oversample=1"), tokenizer, set(), 0)
    stream.begin(0)
    pool: Any = stream.pool
    slow = pool.under_way.pop(0)
    assert slow == "s1-g0"
    assert trained(stream, 0) == ["s1-g1", "s1-g2", "s2-g0"]
    stream.offer({}, 1)
    while pool.under_way:
        stream.pump(0.0)
        assert not stream.complete(1)
    pool.under_way.append(slow)
    assert trained(stream, 1) == ["s1-g0", "s2-g1", "s2-g2"]


def test_step_that_is_made_again_trains_what_it_trained(tiny_recipe, tokenizer: Tokenizer) -> None:
    recipe = tiny_recipe(*AHEAD, "rl.max_weight_lag=1", "rl.oversample=1")
    for seed in range(4):
        stream = made_stream(recipe, tokenizer, set(), seed)
        stream.history.note(step_line(0, [0, 1, 3], [group(name, 1.0, 0.0) for name in ("a", "b", "c")], "w"))
        stream.begin(0)
        assert trained(stream, 0) == ["s1-g0", "s1-g1", "s2-g0"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("rl.oversample=1",), r"with max_weight_lag=0 they would have to be dropped.*Set rl\.max_weight_lag=1"),
        (("runtime=ray", "rl.max_weight_lag=1", "rl.oversample=4"), "must be below prompts_per_step=4"),
        (("runtime=ray", "rl.max_weight_lag=1", "rl.oversample=1", "rl.refill=1"), "give one of oversample and refill"),
    ],
)
def test_oversample_that_cannot_be_is_refused(overrides: tuple[str, ...], message: str, tiny_recipe) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(*overrides)


@pytest.mark.parametrize("known", [True, False])
def test_what_later_weights_drew_is_trained_if_they_come_again_and_else_drawn_again(
    known: bool, tiny_recipe, tokenizer: Tokenizer
) -> None:
    stream = made_stream(tiny_recipe(*AHEAD, "rl.max_weight_lag=1"), tokenizer, set(), 0)
    kept = drawn_by(1, "s2-g0")
    stream.journal.append(1, SampledGroup(number=PROMPTS, group=kept))
    stream.begin(0)
    pool: Any = stream.pool
    assert "s2-g0" not in pool.asked, "its weights are not there yet"
    trained(stream, 0)
    assert stream.offer({}, 1, known=known) == (0 if known else 3)
    assert ("s2-g0" in pool.asked) is not known
    assert trained(stream, 1)[0] == "s2-g0"
