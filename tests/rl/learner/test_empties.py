"""Everything that may be empty in a step is: groups, mini-batches, losses, metrics. The step goes on and the weights stay finite."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import character_tokenizer
from samepath.rewards.score import Score
from samepath.rl.alerts.first_failures import failures
from samepath.rl.alerts.rules import rules_of
from samepath.rl.alerts.watch import Watch
from samepath.rl.batch.score_groups import training_batch
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.diagnostics.rollouts import rollout_metrics
from samepath.rl.learner.optimizer import Optimizer
from samepath.rl.learner.update import PolicyUpdater
from samepath.rl.objective.objective import NonFiniteError
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rl.recipe.optimizer import OptimizerSettings
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tracking.step_rollouts import tracked_rollouts
from samepath.rollout.types import Group, Segment
from tests.conftest import ALPHABET, tiny_model
from tests.families import family_model
from tests.rl.sampled import group, segment
from tests.update_runs import Descent, rollout_batch, updater

RECIPE = load_recipe(Path(__file__).parents[3] / "recipes" / "quickstart.yaml", [], Recipe)
TOKENIZER = character_tokenizer(ALPHABET)
BAD = Score(total=float("nan"), status="error", detail="own: KeyError")
MODELS = {"sparse experts": tiny_model, "dense": lambda: family_model("llama")}
AGGREGATIONS = [{"mode": "sequence_mean"}, {"mode": "token_mean"}, {"mode": "constant", "fixed_length": 8}]
KINDS = ["zero", "one", "bad", "failed", "truncated", "nothing"]


def shaped(made: Segment, model: CausalLM) -> Segment:
    """The segment with missing routes of the model's shape."""
    shape = (len(made.token_ids), len(model.shape.moe_layers), model.shape.num_experts_per_tok)
    return replace(made, routes=np.full(shape, -1, np.int16))


def make_group(name: str, kinds: list[str], model: CausalLM) -> Group:
    """A group of rollouts of the given kinds; `nothing` is a scored response of no token."""
    made = group(name, *[BAD if kind == "bad" else float(kind != "zero") for kind in kinds])
    rollouts = []
    for index, (one, kind) in enumerate(zip(made.rollouts, kinds)):
        tokens = () if kind == "nothing" else tuple(range(4, 5 + index))
        record = shaped(segment(tokens, "length" if kind == "truncated" else "stop"), model)
        changes = {"segments": (), "failure": "aborted", "score": None} if kind == "failed" else {"segments": (record,)}
        rollouts.append(replace(one, **changes))
    return replace(made, rollouts=tuple(rollouts))


def run_step(
    groups: list[Group], rl: AlgorithmSettings, model: CausalLM
) -> tuple[TrainBatch | None, UpdateReport | None]:
    """What the loop does with sampled groups, but for the sampling."""
    batch, by_group = training_batch(groups, rl)
    report = None
    if batch is not None:
        optimizer = Optimizer(model, OptimizerSettings(lr=1e-3), total_updates=4)
        learner = LearnerSettings(max_tokens_per_pass=16)
        report = PolicyUpdater(model, None, rl, learner).run(batch, 0, optimizer)
    metrics = rollout_metrics(groups, 0) | ({} if report is None else report.metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    list(failures(groups, {}, 1))
    # Whatever is left out of a step's metrics, the rules take it.
    Watch(rules_of(RECIPE)).step(1, metrics)
    assert len(tracked_rollouts(1, groups, by_group, batch, report, TOKENIZER)) == sum(
        len(one.rollouts) for one in groups
    )
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    return batch, report


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.data())
def test_step_of_any_legal_emptiness_goes_on(data: st.DataObject) -> None:
    model = MODELS[data.draw(st.sampled_from(sorted(MODELS)))]()
    kinds = data.draw(st.lists(st.lists(st.sampled_from(KINDS), min_size=2, max_size=3), min_size=1, max_size=3))
    rl = AlgorithmSettings.model_validate(
        {
            "updates_per_rollout": data.draw(st.integers(1, 3)),
            "keep_routing": "off",
            "max_gap_at_lag_0": 1e9,
            "drop_uninformative": data.draw(st.booleans()),
            "truncated": {"mode": data.draw(st.sampled_from(["train", "mask", "penalise"]))},
            "advantage": {"scale": data.draw(st.sampled_from(["none", "group_std", "batch_std"]))},
            "objective": {
                "kl": {"beta": 0.0},
                "aggregation": data.draw(st.sampled_from(AGGREGATIONS)),
            },
        }
    )
    groups = [make_group(f"g{index}", each, model) for index, each in enumerate(kinds)]
    batch, report = run_step(groups, rl, model)
    usable = [kind for each in kinds for kind in each if kind in ("zero", "one", "truncated")]
    assert batch is not None or rl.drop_uninformative or not usable
    if report is not None:
        done = report.metrics["learner/updates"] + report.metrics["learner/updates_empty"]
        assert 1 <= done <= min(rl.updates_per_rollout, len(kinds))


def test_run_mini_batch_without_a_token_in_the_loss_moves_no_weight_even_with_momentum() -> None:
    """The first two groups are the first update, and the last two, masked throughout, the second."""
    model = tiny_model()
    batch = rollout_batch(TOKENIZER)
    optimizer = Optimizer(model, OptimizerSettings(lr=1e-2), total_updates=4)
    both = updater(model, min_passes=1)
    both.run(batch, 0, optimizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    report = both.run(replace(batch, in_loss_B=np.zeros(16, np.bool_)), 1, optimizer)
    assert (report.metrics["learner/updates"], report.metrics["learner/updates_empty"]) == (0, 2)
    assert "learner/grad_norm" not in report.metrics
    assert all(map(torch.equal, before, model.parameters()))
    assert optimizer.updates == 2


def test_run_indexer_that_is_trained_learns_from_masked_rows_too() -> None:
    model = tiny_model()
    batch = replace(rollout_batch(TOKENIZER), in_loss_B=np.zeros(16, np.bool_))
    report = updater(model, min_passes=1, indexer="trained").run(batch, 0, Descent(model, 0.1))
    assert (report.metrics["learner/updates"], report.metrics["learner/updates_empty"]) == (2, 0)


@pytest.mark.parametrize("where", ["advantage", "logprob"])
def test_run_numbers_that_are_not_finite_stop_or_cost_their_mini_batch_as_the_recipe_says(where: str) -> None:
    """Something in the first mini-batch is not finite; the second is sound."""
    batch = rollout_batch(TOKENIZER)
    if where == "advantage":
        batch.advantages_B[3] = np.inf
    else:
        batch.sequences[3].segment.sampler_logprobs[-1] = np.nan
    stopped = tiny_model()
    with pytest.raises(NonFiniteError):
        updater(stopped, min_passes=1).run(batch, 1, Optimizer(stopped, OptimizerSettings(), total_updates=4))
    assert all(map(torch.equal, stopped.parameters(), tiny_model().parameters()))

    model, alone = tiny_model(), tiny_model()
    report = updater(model, {"nonfinite": "skip"}, min_passes=1).run(
        batch, 1, Optimizer(model, OptimizerSettings(), total_updates=4)
    )
    assert (report.metrics["learner/updates"], report.metrics["learner/updates_nonfinite"]) == (1, 1)
    assert math.isfinite(report.metrics["learner/loss"])
    second = TrainBatch(
        sequences=batch.sequences[8:],
        rollout_S=batch.rollout_S[8:] - 8,
        names=batch.names[8:],
        advantages_B=batch.advantages_B[8:],
        group_B=batch.group_B[8:],
        datasets=batch.datasets[8:],
        in_loss_B=batch.in_loss_B[8:],
    )
    updater(alone, {"updates_per_rollout": 1}, min_passes=1).run(
        second, 1, Optimizer(alone, OptimizerSettings(), total_updates=4)
    )
    assert all(map(torch.equal, model.parameters(), alone.parameters()))
