"""The supervised start: its gradient and metrics do not depend on how a step is cut, its rate falls, its two losses stay apart."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from samepath.model.network.network import CausalLM
from samepath.model.shape import ModelShape
from samepath.model.text.tokenizer import character_tokenizer
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.pack import PackedBatch, TrainSequence, pack
from samepath.rl.learner.cold_start import ColdStart
from samepath.rl.learner.learner import Learner
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.learner.worked_batches import WorkedBatches
from samepath.rl.recipe.cold_start import ColdStartSettings
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tasks.row import Task, TaskRow
from tests.conftest import ALPHABET, tiny_model
from tests.update_runs import Descent

ROWS = [
    TaskRow(row_id=text, question=text, text=text, dataset="sums", row=0) for text in ("1+2=", "31-4+15=", "7+8-9=")
]
"""Fewer rows than a batch has sequences, so that prompts repeat and their rows are shared."""


def cold_start(model: CausalLM, passes: int = 1, max_tokens: int = 4096, **changes: object) -> ColdStart:
    settings = ColdStartSettings.model_validate({"steps": 8, "batch_size": 7, **changes})
    task = Task(name="sums", train=ROWS, held_out=[], seed=0)
    worked = WorkedBatches(character_tokenizer(ALPHABET), task, settings, 3)
    return ColdStart(model, worked, settings, LearnerSettings(min_passes=passes, max_tokens_per_pass=max_tokens))


@pytest.mark.parametrize("dense_steps", [0, 1])
def test_step_cut_into_passes_has_the_gradient_and_the_metrics_of_one(dense_steps: int) -> None:
    seen = []
    for passes, max_tokens in ((1, 4096), (2, 4096), (3, 4096), (1, 40), (2, 16)):
        model = tiny_model().double()
        cold = cold_start(model, passes, max_tokens, dense_warmup_steps=dense_steps, bias_update_rate=0.0)
        descent = Descent(model, 0.0)
        cold._optimizer = descent  # type: ignore[assignment]
        seen.append((cold.step(0), descent.first))
    (metrics, gradients), *others = seen
    for other_metrics, other_gradients in others:
        assert other_metrics == pytest.approx(metrics, rel=1e-9)
        for one, other in zip(gradients, other_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("limit", [16, 30, 4096])
def test_step_runs_no_more_rows_in_a_pass_than_the_learner_may(
    limit: int, tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(f"learner.max_tokens_per_pass={limit}", "cold_start.steps=1", "cold_start.batch_size=6")
    seen: list[PackedBatch] = []

    def recorded(sequences: Sequence[TrainSequence], shape: ModelShape, **known: Any) -> PackedBatch:
        seen.append(pack(sequences, shape, **known))
        return seen[-1]

    monkeypatch.setattr("samepath.rl.learner.cold_start.pack", recorded)
    Learner(recipe, Path(), Path(), None).cold_start(0, 1)
    assert sum(len(batch.rollout_S) for batch in seen) == 6
    assert all(batch.num_rows <= limit or len(batch.rollout_S) == 1 for batch in seen)
    assert (len(seen) == 1) == (limit == 4096)


def test_step_reports_means_over_all_tokens_and_all_rows() -> None:
    """Against one pass over each sequence alone: entropy a token, indexer loss a row and layer."""
    model = tiny_model()
    cold = cold_start(model, 2)
    entropies, losses = [], []
    for entry in cold.worked.batch(0, model.shape):
        packed = pack([entry], model.shape)
        result = run_policy(model, packed, routes_LNX=None, use_support=False, train_indexer=True)
        entropies.append(result.head.entropy_M)
        losses.append(torch.stack(result.trace.indexer_losses).detach()[:, : len(entry.segment.token_ids) - 1])
    metrics = cold.step(0)
    assert metrics["cold_start/entropy"] == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-5)
    assert metrics["cold_start/indexer_kl"] == pytest.approx(float(torch.cat(losses, 1).mean()), rel=1e-5)


def test_huge_indexer_loss_leaves_the_policy_step_unchanged_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ForwardTrace.indexer_loss
    weights, metrics = [], []
    for factor in (1.0, 1e6):
        monkeypatch.setattr(ForwardTrace, "indexer_loss", lambda *inputs, factor=factor: factor * plain(*inputs))
        model = tiny_model()
        cold = cold_start(model, optimizer={"max_grad_norm": 0.1})
        metrics.append([cold.step(step) for step in range(3)])
        own = {id(parameter) for parameter in model.indexer_parameters()}
        weights.append([parameter for parameter in model.parameters() if id(parameter) not in own])
    assert all(map(torch.equal, *weights))
    first, huge = (steps[0] for steps in metrics)
    assert huge["cold_start/grad_norm"] == first["cold_start/grad_norm"]
    assert huge["cold_start/indexer_grad_norm"] == pytest.approx(1e6 * first["cold_start/indexer_grad_norm"], rel=1e-3)


def test_step_has_the_rate_of_the_warm_up_and_of_a_cosine_to_a_tenth() -> None:
    cold = cold_start(tiny_model(), steps=8, optimizer={"lr": 0.5, "warmup_updates": 2})
    falls = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(3)]
    assert [cold.step(step)["cold_start/lr"] for step in range(3)] == pytest.approx(
        [0.25 * falls[0], *(0.5 * fall for fall in falls[1:])]
    )


def test_rate_is_the_one_that_the_steps_take() -> None:
    """With AdamW's momenta off every weight moves by the rate of its step."""
    optimizer = {"lr": 0.25, "warmup_updates": 4, "beta1": 0.0, "beta2": 0.0, "epsilon": 1e-30}
    model = tiny_model()
    cold = cold_start(model, optimizer=optimizer)
    before = model.embedding.detach().clone()
    cold.step(0)
    moved = (model.embedding.detach() - before).abs()
    assert float(moved.max()) == pytest.approx(0.25 / 4, rel=1e-5)
