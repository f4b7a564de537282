"""The sleeping cluster: the model's figures by hand, samples that take their slots in order, and a driver that trains every one of them."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cluster import measured
from benchmarks.cluster_case import ClusterCase, predicted
from benchmarks.cluster_parts import SleepingPool
from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Prompt

CASE = ClusterCase(
    workers=2,
    slots=2,
    token_s=0.001,
    groups=4,
    group_size=2,
    lag=2,
    ranks=2,
    rank_tokens_per_s=1000.0,
    median=10,
    sigma=0.0,
    prompt=6,
)


def test_predicted_figures_by_hand() -> None:
    """Eight samples of 10 tokens behind prompts of 6, four at a time."""
    wanted = predicted(CASE)
    assert wanted.learning_s == pytest.approx(8 * 16 / 2000)
    assert wanted.sampling_s == pytest.approx(8 * 10 * 0.001 / 4)
    assert wanted.longest_s == pytest.approx((10 * 0.001 + 8 * 16 / 2000) / 3)
    assert (wanted.step_s, wanted.bound, wanted.lag) == (wanted.learning_s, "learning", 2.0)


@pytest.mark.parametrize(
    ("changes", "bound", "lag"),
    [
        ({"rank_tokens_per_s": 1e6}, "sampling", 4 / 8 + 8 * 16 / 2e6 / 0.02),
        ({"rank_tokens_per_s": 1e6, "slots": 100}, "the longest answer", 2.0),
    ],
)
def test_predicted_bound_is_what_takes_longest(changes: dict[str, float], bound: str, lag: float) -> None:
    wanted = predicted(replace(CASE, **changes))
    assert wanted.bound == bound
    assert wanted.lag == pytest.approx(lag)


def test_lengths_are_a_function_of_the_seed_and_cut() -> None:
    case = replace(CASE, sigma=2.0, longest=50)
    lengths = [case.length(seed) for seed in range(500)]
    assert lengths == [case.length(seed) for seed in range(500)]
    assert (min(lengths), max(lengths)) == (1, 50)


def test_sleeping_pool_fills_slots_in_order_with_the_version_of_the_start(tokenizer: Tokenizer) -> None:
    pool = SleepingPool(replace(CASE, workers=1, slots=1, token_s=0.002), tokenizer)
    prompt = Prompt(prompt_id="p", text="1+2=", token_ids=tuple(tokenizer.encode("1+2=")))
    pool.load_weights({}, 3)
    requests = [
        GroupRequest(group_id=f"g{number}", prompt=prompt, sampling=SamplingSettings(), seeds=(number, number + 10))
        for number in range(2)
    ]
    begun = time.monotonic()
    pool.submit(requests)
    pool.offer_weights({}, 4, "continue")
    groups = []
    while len(groups) < 2:
        groups += pool.poll(1.0)
    assert time.monotonic() - begun >= 4 * 10 * 0.002
    assert [group.group_id for group in groups] == ["g0", "g1"]
    versions = [rollout.segments[0].weight_version[-1] for group in groups for rollout in group.rollouts]
    assert versions == [3, 4, 4, 4], "the first had begun when the weights came"
    assert all(rollout.num_trained == 10 for group in groups for rollout in group.rollouts)


def test_measured_run_trains_every_sample(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    row = measured(replace(CASE, rank_tokens_per_s=20_000.0), steps=4, warm=1)
    assert (row["samples a step"], row["lag allowed"]) == (8, 2)
    assert 0 < row["step_s"] < 10
    assert row["rollouts/s"] == pytest.approx(8 / row["step_s"], rel=0.05)
    assert 0 <= row["lag"] <= 2
