"""The order in which groups are asked for, and how far ahead: no token is ever older than `rl.max_weight_lag` when it is trained."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.feed import Feed, admitted, of_other_steps
from samepath.rl.loop import Loop
from samepath.rl.tasks.row import Task, TaskRow
from tests.rl.test_loop import loop


def test_admitted_by_hand() -> None:
    assert [admitted(version, 4, 0, 3) for version in range(4)] == [4, 8, 12, 12]
    assert [admitted(version, 4, 2, 5) for version in range(4)] == [12, 16, 20, 20]


def test_groups_of_other_steps_are_told_by_their_ids(tiny_recipe) -> None:
    rl = tiny_recipe().rl
    assert of_other_steps(["s3-g0", "s3-g1"], 2, rl) == 0
    assert of_other_steps(["s3-g0", "s1-g1", "s4-g2", "s3-g3"], 2, rl) == 0.5
    assert of_other_steps([], 2, rl) == 0


def test_with_oversample_a_neighbouring_steps_groups_are_a_steps_own(tiny_recipe) -> None:
    rl = tiny_recipe("rl.max_weight_lag=2", "rl.oversample=1", "runtime=ray").rl
    assert of_other_steps(["s3-g0", "s2-g1", "s4-g2", "s5-g3"], 2, rl) == 0.25


@given(st.integers(0, 2**32), st.integers(0, 4), st.integers(1, 5), st.integers(1, 8), st.integers(1, 3))
def test_no_group_is_older_than_the_lag_whatever_the_workers_do(
    seed: int, lag: int, prompts: int, steps: int, workers: int
) -> None:
    """Workers that end groups in any order, with weights as old as can be: each draws with those it had when the group was handed out."""
    rng, version, next_number, trained = random.Random(seed), 0, 0, 0
    under_way: list[tuple[int, int]] = []
    finished: dict[int, int] = {}
    oldest = 0
    while trained < steps:
        for number in range(next_number, admitted(version, prompts, lag, steps)):
            under_way.append((number, version))
        next_number = max(next_number, admitted(version, prompts, lag, steps))
        assert len(under_way) + len(finished) <= (lag + 1) * prompts, "the queue is bounded"
        wanted = range(trained * prompts, (trained + 1) * prompts)
        if set(wanted) <= set(finished) and (not under_way or rng.random() < 0.5):
            ages = [trained - finished.pop(number) for number in wanted]
            assert min(ages) >= 0
            assert max(ages) <= lag
            oldest, trained, version = max(oldest, *ages), trained + 1, version + 1
        elif under_way:
            place = rng.randrange(min(len(under_way), workers))
            number, drawn_with = under_way.pop(place)
            finished[number] = drawn_with
        else:
            assert set(wanted) <= set(finished), "without work under way there is something to learn from"
    assert next_number == steps * prompts, "every group that was handed out is trained, and no other is"
    assert not [*under_way, *finished]


def test_the_lag_is_reached_where_sampling_is_ahead() -> None:
    """Otherwise the bound above would be met by not sampling ahead at all."""
    drawn_with = {}
    for version in range(6):
        for number in range(len(drawn_with), admitted(version, 2, 3, 6)):
            drawn_with[number] = version
    assert [number // 2 - version for number, version in drawn_with.items()] == [0, 0, 1, 1, 2, 2] + [3] * 6


def test_feed_asks_for_what_the_synchronous_loop_asks_for(tiny_recipe, tokenizer: Tokenizer) -> None:
    recipe = tiny_recipe()
    rows = [TaskRow(row_id=f"train-{n}", question="", text=f"{n}+2=", dataset="sums", row=n) for n in range(7)]
    task = Task(name="sums", train=rows, held_out=[], seed=0)
    feed = Feed(recipe=recipe, task=task, tokenizer=tokenizer)
    made = replace(loop(Loop, recipe, tokenizer), task=task)
    assert [feed.request(number) for number in range(12)] == [one for step in range(3) for one in made.requests(step)]
    assert feed.request(5) == Feed(recipe=recipe, task=task, tokenizer=tokenizer).request(5)
    assert feed.limit(1) == 2
    assert Feed(recipe=tiny_recipe("runtime=ray", "rl.max_weight_lag=1"), task=task, tokenizer=tokenizer).limit(1) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("rl.max_weight_lag=1",), r"runtime: inline has one\. Set runtime=ray, or rl\.max_weight_lag=0"),
        (
            ("runtime=ray", "rl.max_weight_lag=1", "rl.on_new_weights=continue"),
            r"on_new_weights=continue draws tokens behind keys of older weights.*Set rl\.on_new_weights=recompute or finish",
        ),
        (
            (
                "runtime=ray",
                "rl.max_weight_lag=1",
                "rl.on_new_weights=recompute",
                "engine={kind: vllm, network: own, dtype: float32, return_sampling_mask: true}",
            ),
            r"on_new_weights=recompute with rl\.max_weight_lag=1: engine\.kind vllm does not offer it: its records hold one set",
        ),
        (
            (
                "runtime=ray",
                "rl.max_weight_lag=1",
                "rl.objective={old_policy: learner, off_policy_mask: {enabled: false}}",
            ),
            r"nothing here corrects for it.*Set rl\.objective\.old_policy=sampler",
        ),
        (("rl.max_weight_lag=-1",), "greater than or equal to 0"),
        (
            ("rl.on_new_weights=recompute",),
            r"on_new_weights=recompute says .*with max_weight_lag=0 there are none\. Set rl\.max_weight_lag=1 or more",
        ),
        (("rl.on_new_weights=restart",), "finish"),
        (
            ("rl.steps=0", "rl.epochs=1", "rl.refill=2"),
            r"epochs counts 4 rows a step, and with refill a step may ask for more",
        ),
        (("checkpoint.keep_sampled=true",), r"keep_sampled keeps groups .*with rl\.max_weight_lag=0 there are none"),
    ],
)
def test_recipe_that_cannot_sample_ahead_is_refused_with_the_cure(tiny_recipe, overrides, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(*overrides)


def test_numbers_of_replacements_stand_behind_those_of_their_step(tiny_recipe, tokenizer: Tokenizer) -> None:
    rows = [TaskRow(row_id=f"train-{n}", question="", text="1+2=", dataset="sums", row=n) for n in range(30)]
    task = Task(name="sums", train=rows, held_out=[], seed=0)
    feed = Feed(recipe=tiny_recipe("rl.refill=2", "rl.prompts_per_step=3"), task=task, tokenizer=tokenizer)
    assert ([*feed.batch(2)], [*feed.refills(2)]) == ([10, 11, 12], [13, 14])
    assert [feed.step(number) for number in (9, 10, 14, 15)] == [1, 2, 2, 3]
    request = feed.request(13)
    assert request.group_id == "s3-g3"
    plain = Feed(recipe=tiny_recipe("rl.prompts_per_step=3"), task=task, tokenizer=tokenizer)
    assert feed.request(10).seeds == plain.request(6).seeds, "the seeds of a step's own groups are what they were"


def test_recipes_that_can_sample_ahead_are_accepted(tiny_recipe) -> None:
    ahead = ("runtime=ray", "rl.max_weight_lag=1")
    assert tiny_recipe(*ahead).rl.on_new_weights == "finish"
    assert tiny_recipe(*ahead, "rl.on_new_weights=recompute").rl.max_gap_at_lag_0 == 0
    tiny_recipe(*ahead, "rl.on_new_weights=continue", "rl.max_gap_at_lag_0=1")
    tiny_recipe(*ahead, "engine={kind: vllm, network: own, dtype: float32, return_sampling_mask: true}")
