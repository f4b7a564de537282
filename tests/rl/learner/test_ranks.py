"""Several ranks do what one does: the same gradients in the same order, one decision for all, and a sentence when one of them is lost."""

import signal
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.distributed_c10d import _set_pg_timeout

from samepath.model.files.policy_files import load_policy
from samepath.model.text.tokenizer import character_tokenizer
from samepath.model.transformers.policy import TransformersPolicy
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner import rank_children
from samepath.rl.learner.handle import InlineLearner, build_learner
from samepath.rl.learner.lost import LearnerLostError
from samepath.rl.learner.ranks import ALONE
from samepath.rl.learner.shares import HELD_BYTES, Shares
from tests import rank_cases
from tests.conftest import ALPHABET, tiny_model
from tests.ranks import on_ranks
from tests.rl.learner.test_transformers_learner import sampled_batch
from tests.update_runs import rollout_batch


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    """See `rank_cases.uneven_batch`."""
    return rank_cases.uneven_batch()


def test_shares_worked_by_hand() -> None:
    shares = Shares(ranks=2, window=2)
    assert [list(window) for window in shares.windows(5)] == [[0, 1, 2, 3], [4]]
    # 9 to rank 0, both 5 to rank 1 (5 < 9), and 1 to rank 0 (9 < 10).
    assert shares.owners([5, 5, 1, 9, 3]) == [1, 1, 0, 0, 0]
    assert Shares(ranks=3, window=1).owners([0, 0, 0, 7]) == [0, 1, 2, 0]


def test_shares_hold_as_many_gradients_as_there_is_room_for() -> None:
    model = tiny_model()
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert Shares.of(2, model).window == HELD_BYTES // size
    model.requires_grad_(False)
    assert Shares.of(2, model).window == HELD_BYTES


VALUES: list[list[list[float] | None]] = [
    [[1e8, 1.0, 0.1], None],
    [[1.0, 1.0, 0.2], [1.0, 2.0]],
    [[-1e8, 1.0, 0.3], None],
    [[1.0, 1.0, 0.7], [0.5, 0.25]],
    [None, None],
]
"""Of two parameters. In float32 (1e8 + 1) − 1e8 + 1 is 1, and in another order 2 or 0."""


@pytest.mark.parametrize(("size", "window"), [(2, 1), (2, 8), (3, 1), (4, 2), (7, 1)])
def test_gradients_are_added_in_the_order_of_the_passes(size: int, window: int) -> None:
    alone, ran = [torch.zeros(3), torch.zeros(2)], []
    for values in VALUES:
        for total, value in zip(alone, values):
            total += torch.zeros_like(total) if value is None else torch.tensor(value)
    for total, own in on_ranks(size, rank_cases.sums, VALUES, window):
        assert total == [one.tolist() for one in alone]
        assert total[0][0] == 1.0
        ran += own
    assert sorted(ran) == list(range(len(VALUES)))


def test_gradient_that_no_pass_has_stays_none() -> None:
    without = [[None if place else value for place, value in enumerate(values)] for values in VALUES]
    assert [total[1] for total, _ in on_ranks(2, rank_cases.sums, without, 1)] == [None, None]


SEQUENCE = {"enabled": True, "delta": 1e-3}
FEATURES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "kl, mask, indexer": (
        {"objective": {"kl": {"estimator": "unbiased", "beta": 0.1}, "off_policy_mask": SEQUENCE}},
        {"indexer": "trained"},
    ),
    "old policy, recomputed": (
        {"objective": {"old_policy": "learner", "surrogate": "gspo"}},
        {"activation_checkpointing": True},
    ),
    "live routes, full vocabulary": ({"keep_routing": "off", "keep_sampling_mask": "off"}, {}),
}


FEW: dict[str, object] = {"min_passes": 4}
MANY: dict[str, object] = {"max_tokens_per_pass": 60, "min_passes": 8}
CASES = [
    ("kl, mask, indexer", FEW, (2, 4)),
    ("live routes, full vocabulary", MANY, (2,)),
    pytest.param("old policy, recomputed", FEW, (2, 4), marks=pytest.mark.slow),
    pytest.param("old policy, recomputed", MANY, (2, 4), marks=pytest.mark.slow),
    pytest.param("kl, mask, indexer", MANY, (2, 4), marks=pytest.mark.slow),
    pytest.param("live routes, full vocabulary", FEW, (2, 4), marks=pytest.mark.slow),
    pytest.param("live routes, full vocabulary", MANY, (4,), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("features", "passes", "sizes"), CASES)
def test_update_on_two_and_four_ranks_is_that_of_one_to_the_bit(
    batch: TrainBatch, features: str, passes: dict[str, object], sizes: tuple[int, ...]
) -> None:
    """Two updates a step, over replayed routes and supports but where `features` says otherwise."""
    rl, learner = FEATURES[features]
    settings = {**learner, **passes}
    metrics, gradients, weights = rank_cases.update(ALONE, batch, {"updates_per_rollout": 2, **rl}, settings)
    for size in sizes:
        for seen in on_ranks(size, rank_cases.update, batch, {"updates_per_rollout": 2, **rl}, settings):
            assert seen[0] == metrics
            assert all(map(same, seen[1], gradients))
            assert all(map(torch.equal, seen[2], weights))


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def test_update_in_other_passes_is_that_of_one_rank_within_rounding(batch: TrainBatch) -> None:
    """With one pass a mini-batch on one rank, and three on three."""
    rl: dict[str, object] = {"updates_per_rollout": 1, "objective": {"kl": {"beta": 0.1}}}
    metrics, gradients, _ = rank_cases.update(ALONE, batch, rl, {"indexer": "trained"})
    for seen in on_ranks(3, rank_cases.update, batch, rl, {"indexer": "trained"}):
        assert seen[0]["learner/loss"] == pytest.approx(metrics["learner/loss"], rel=1e-6)
        scale = max(float(one.abs().max()) for one in gradients if one is not None)
        for one, other in zip(seen[1], gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * scale)


def test_rank_with_nothing_to_do_takes_part(batch: TrainBatch) -> None:
    """One rollout, so one pass, on three ranks."""
    alone = rank_cases.one_rollout(batch)
    rl: dict[str, object] = {"updates_per_rollout": 1}
    _, _, weights = rank_cases.update(ALONE, alone, rl, {})
    for seen in on_ranks(3, rank_cases.update, alone, rl, {}):
        assert all(map(torch.equal, seen[2], weights))


def test_numbers_that_are_not_finite_on_one_rank_cost_the_mini_batch_on_all(batch: TrainBatch) -> None:
    segment = batch.sequences[0].segment
    broken = replace(segment, sampler_logprobs=np.where(segment.trained, np.nan, 0).astype(np.float32))
    bad = replace(batch, sequences=(replace(batch.sequences[0], segment=broken), *batch.sequences[1:]))
    rl: dict[str, object] = {"updates_per_rollout": 2, "nonfinite": "skip", "max_gap_at_lag_0": 1e-3}
    for metrics, _, _ in on_ranks(2, rank_cases.update, bad, rl, {}):
        assert metrics["learner/updates_nonfinite"] == metrics["learner/updates"] == 1
    stopped = on_ranks(2, rank_cases.update, bad, {**rl, "nonfinite": "stop"}, {})
    assert all(text.startswith("NonFiniteError") for text in stopped)


def test_error_of_one_rank_is_raised_on_all() -> None:
    seen = on_ranks(3, rank_cases.failing, 1)
    assert seen == [
        f"NonFiniteError: no number {note}" for note in ("on learner rank 1 of 3", "", "on learner rank 1 of 3")
    ]


def test_weights_that_differ_in_one_bit_are_an_error_on_all_ranks() -> None:
    for text in on_ranks(3, rank_cases.different):
        assert "weights must be equal to the bit on all 3 learner ranks; ranks [2] differ from rank 0 in 1 of 2" in text


def test_rank_that_is_killed_is_noticed_by_the_others_at_once() -> None:
    for text in on_ranks(3, rank_cases.killed, 1, signal.SIGKILL, lost=1):
        assert text.startswith("LearnerLostError: learner rank ")
        assert "one of them has ended or is late" in text
        assert "samepath resume" in text


def test_rank_that_is_stopped_is_waited_for_no_longer_than_set() -> None:
    """The bound that `learner.update_timeout_s` sets."""
    (text,) = on_ranks(2, rank_cases.killed, 1, signal.SIGSTOP, timeout_s=3.0, lost=1)
    assert text.startswith("LearnerLostError: learner rank 0 of 2 waited for what they found")


def test_learner_runs_as_many_processes_as_ranks(tiny_recipe, tmp_path: Path) -> None:
    """And its weights are those of one process, cold start included."""
    learned = []
    for number, ranks in enumerate((1, 2)):
        recipe = tiny_recipe(
            f"learner.ranks={ranks}", "learner.min_passes=2", "rl.max_gap_at_lag_0=9", f"name=run{number}"
        )
        learner = build_learner(recipe, tmp_path, recipe.run_dir, None)
        assert isinstance(learner, InlineLearner)
        try:
            assert len(learner._others._children if learner._others else ()) == ranks - 1
            metrics = [untimed(one, "cold_start", ranks) for one in learner.cold_start(0, 2)]
            learner.start_rl()
            report = learner.update(rollout_batch(character_tokenizer(ALPHABET)))
            learner.advance()
            peak = learner.statistics()["peak_bytes"]
            assert report.metrics.pop("memory/learner_gib") > 0
            learned.append((metrics, untimed(report.metrics, "learner", ranks), dict(learner.named_weights()), peak))
        finally:
            learner.close()
    one, two = learned
    assert one[:2] == two[:2]
    assert all(np.array_equal(one[2][name], two[2][name]) for name in one[2])
    assert two[3] > 1.2 * one[3], "the memory of both"


def untimed(metrics: Mapping[str, float], kind: str, ranks: int) -> dict[str, float]:
    """Metrics without those of collectives, which several ranks have and one has not."""
    found = {name: value for name, value in metrics.items() if "collectives" in name}
    if ranks == 1:
        assert not found
    else:
        assert 0 < found[f"{kind}/collectives_share_least"] <= found[f"{kind}/collectives_share"] < 1
        assert found[f"{kind}/collectives_s"] > 0
    return {name: value for name, value in metrics.items() if name not in found}


@pytest.mark.slow
def test_foreign_model_with_adapters_learns_the_same_on_two_ranks(foreign_recipe, tmp_path: Path) -> None:
    learned = []
    for ranks in (1, 2):
        recipe = foreign_recipe("Qwen3Moe", f"learner.ranks={ranks}", "learner.min_passes=2", "learner.lora.rank=4")
        learner = build_learner(recipe, tmp_path, tmp_path / f"run{ranks}", None)
        try:
            learner.start_rl()
            start = load_policy(tmp_path / f"run{ranks}" / "reference", "transformers", "torch")
            assert isinstance(start, TransformersPolicy)
            report = learner.update(sampled_batch(start))
            metrics = untimed(report.metrics, "learner", ranks)
            learned.append((metrics, {name: tensor.numpy().copy() for name, tensor in learner.named_weights()}))
        finally:
            learner.close()
    (metrics, weights), (other_metrics, other_weights) = learned
    assert metrics == other_metrics
    assert all(np.array_equal(weights[name], other_weights[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_lost_child_ends_the_call_with_its_name_and_what_to_do(
    tiny_recipe, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe("learner.ranks=2", "learner.update_timeout_s=60")
    learner = InlineLearner(recipe, tmp_path, recipe.run_dir, None)
    _set_pg_timeout(timedelta(seconds=2))
    monkeypatch.setattr(rank_children, "END_WAIT_S", 1.0)
    try:
        assert learner._others is not None
        (child,) = learner._others._children
        child.process.send_signal(number)
        said = {
            signal.SIGKILL: rf"learner rank 1 \(process {child.process.pid}\) ended with signal SIGKILL.*samepath resume",
            signal.SIGSTOP: rf"learner rank 1 \(process {child.process.pid}\) gave no answer to cold_start for",
        }
        with pytest.raises(LearnerLostError, match=said[signal.Signals(number)]):
            learner.cold_start(0, 1)
    finally:
        learner.close()
    assert child.process.poll() is not None
