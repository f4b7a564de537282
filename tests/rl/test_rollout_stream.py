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
from samepath.rl.group_journal import GroupJournal
from samepath.rl.loop import Loop
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.rollout_stream import RolloutStream
from samepath.rl.tasks.requests import answered
from samepath.rl.tasks.row import Task, TaskRow
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.pool import PolledPool
from samepath.rollout.types import Group
from tests.rl.sampled import Children, group
from tests.rl.test_loop import loop

STEPS, PROMPTS, REFILL = 4, 3, 3


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
