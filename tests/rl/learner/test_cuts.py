"""No number and no gradient depends on how a step is cut: into passes or, at weights that do not move, mini-batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.model.text.tokenizer import character_tokenizer
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.pack import pack
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.learner.optimizer import Optimizer
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.recipe.optimizer import OptimizerSettings
from tests.conftest import ALPHABET, tiny_model
from tests.update_runs import Descent, rollout_batch, updater

OF_THE_CUT = {"learner/rows_shared", "learner/prompts_apart", "learner/updates"}
"""What says how it was cut."""
OF_THE_UPDATE = {"learner/loss", "learner/grad_norm", "indexer/grad_norm", "routing/flip_rate_at_lag_0"}
"""Means over mini-batches, each with denominators of its own; the first update alone."""


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    """Four groups of unequal lengths; a sequence is out of the loss."""
    batch = rollout_batch(character_tokenizer(ALPHABET), top_p=0.9)
    in_loss_B = batch.in_loss_B.copy()
    in_loss_B[2] = False
    lengths = [len(entry.segment.token_ids) for entry in batch.sequences]
    assert len(set(lengths)) > 2
    return replace(batch, in_loss_B=in_loss_B)


def step(
    batch: TrainBatch, max_tokens: int, passes: int = 1, updates: int = 1, indexer: str = "trained"
) -> tuple[UpdateReport, list[torch.Tensor | None]]:
    """Report and first gradients of a step that moves no weight, in float64 on the learner's side."""
    model = tiny_model().double()
    descent = Descent(model, 0.0)
    run = updater(
        model,
        {"updates_per_rollout": updates, "max_gap_at_lag_0": 1e-3},
        max_tokens_per_pass=max_tokens,
        min_passes=passes,
        indexer=indexer,
    )
    return run.run(batch, 0, descent), descent.first


def assert_same(one: UpdateReport, other: UpdateReport, but: set[str]) -> None:
    assert one.metrics.keys() == other.metrics.keys()
    for name in one.metrics.keys() - but:
        assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-7, abs=1e-12), name
    for name in ("kl_B", "off_policy_B", "masked_B", "route_flips_B", "weight_lag_B"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-8, err_msg=name)
    for first, second in zip(one.kl_tokens, other.kl_tokens, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-8)
    for mine, others in zip(one.tokens, other.tokens, strict=True):
        np.testing.assert_allclose(mine.log_ratio_T, others.log_ratio_T, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(mine.entropy_T, others.entropy_T, rtol=1e-5)
        assert np.array_equal(mine.role_T, others.role_T)
        assert np.array_equal(mine.flips, others.flips)


@settings(deadline=None, max_examples=8)
@given(st.integers(16, 500), st.integers(1, 3))
def test_step_in_any_passes_has_the_report_and_the_gradient_of_one(
    batch: TrainBatch, max_tokens: int, passes: int
) -> None:
    report, gradients = step(batch, max_tokens, passes)
    whole, whole_gradients = step(batch, 100_000)
    assert_same(report, whole, OF_THE_CUT)
    for part, one in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(part, one, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("updates", [2, 3, 4])
def test_step_at_weights_that_do_not_move_reports_the_same_in_any_number_of_updates(
    batch: TrainBatch, updates: int
) -> None:
    """Three mini-batches of four groups are of unequal size: a mean over updates would weigh the last group double."""
    report, _ = step(batch, 100, updates=updates)
    assert_same(report, step(batch, 100_000)[0], OF_THE_CUT | OF_THE_UPDATE)


def test_indexer_gradient_is_of_the_mean_over_rows_and_layers(batch: TrainBatch) -> None:
    """Against the mean written out over one pass of every sequence alone, in float64."""
    model = tiny_model().double()
    losses = []
    for entry in batch.sequences:
        packed = pack([entry], model.shape)
        result = run_policy(model, packed, routes_LNX=packed.routes_LNX, use_support=True, train_indexer=True)
        losses.append(torch.stack(result.trace.indexer_losses)[:, packed.rows_R])
    mean = torch.cat(losses, 1).mean()
    own = model.indexer_parameters()
    expected = torch.autograd.grad(mean, own)
    report, gradients = step(batch, 60, 2)
    assert report.metrics["indexer/kl"] == pytest.approx(float(mean.detach()), rel=1e-9)
    names = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    for parameter, gradient in zip(own, expected, strict=True):
        seen = gradients[names[id(parameter)]]
        assert seen is not None
        torch.testing.assert_close(seen, gradient, rtol=1e-7, atol=1e-12)


def test_frozen_indexer_reports_nothing_and_learns_nothing(batch: TrainBatch) -> None:
    model = tiny_model()
    for parameter in model.indexer_parameters():
        parameter.requires_grad_(False)
    before = [parameter.clone() for parameter in model.indexer_parameters()]
    optimizer = Optimizer(model, OptimizerSettings(weight_decay=0.5), total_updates=1)
    report = updater(model, indexer="frozen").run(batch, 0, optimizer)
    assert not any(name.startswith("indexer/") for name in report.metrics)
    assert all(map(torch.equal, before, model.indexer_parameters()))


def test_huge_indexer_loss_leaves_the_policy_step_unchanged_to_the_bit(
    batch: TrainBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ForwardTrace.indexer_loss
    weights, reports = [], []
    for factor in (1.0, 1e6):
        monkeypatch.setattr(ForwardTrace, "indexer_loss", lambda *inputs, factor=factor: factor * plain(*inputs))
        model = tiny_model()
        optimizer = Optimizer(model, OptimizerSettings(max_grad_norm=0.01), total_updates=1)
        reports.append(updater(model, indexer="trained").run(batch, 0, optimizer))
        own = {id(parameter) for parameter in model.indexer_parameters()}
        weights.append([parameter for parameter in model.parameters() if id(parameter) not in own])
    assert all(map(torch.equal, *weights))
    first, huge = (report.metrics for report in reports)
    assert first["learner/loss"] == huge["learner/loss"]
    assert first["learner/grad_norm"] == huge["learner/grad_norm"] > 0.01, "the clip binds"
    assert huge["indexer/grad_norm"] > 1e5 * first["indexer/grad_norm"] > 0


def test_step_whose_sequences_are_all_out_of_the_loss_reports_no_policy_and_goes_on(batch: TrainBatch) -> None:
    """As with `truncated: mask`, when every response ran into the limit."""
    model = tiny_model()
    nothing = replace(batch, in_loss_B=np.zeros(len(batch.sequences), np.bool_))
    report = updater(model).run(nothing, 0, Descent(model, 0.1))
    assert report.metrics["learner/updates"] == 0
    assert report.metrics["learner/updates_empty"] > 0
    assert "learner/loss" not in report.metrics
    assert report.metrics["policy/gap_at_lag_0"] == 0, "compared all the same"
    assert "policy/ratio" not in report.metrics
