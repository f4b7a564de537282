"""The learner hands each part the settings that the recipe has for it."""

import copy
from pathlib import Path

import pytest
import torch

from samepath.rl.learner.handle import InlineLearner
from samepath.rl.learner.optimizer import Optimizer
from samepath.rollout.weights.mark import require_equal

OPTIMIZER = {
    "lr": 0.01,
    "warmup_updates": 5,
    "beta1": 0.5,
    "beta2": 0.6,
    "schedule": "linear",
    "min_lr_share": 0.2,
    "epsilon": 0.1,
    "weight_decay": 0.3,
    "max_grad_norm": 0.2,
}


def test_learner_steps_by_the_recipes_optimizer_and_the_indexers_own_rate(tiny_recipe, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        "learner.indexer=trained",
        "learner.indexer_lr_scale=3",
        *(f"optimizer.{key}={value}" for key, value in OPTIMIZER.items()),
    )
    learner = InlineLearner(recipe, Path(), tmp_path, None)
    learner.start_rl()
    twin = copy.deepcopy(learner._model)
    mine, expected = (
        learner._optimizer,
        Optimizer(
            twin, recipe.optimizer, total_updates=recipe.rl.steps * recipe.rl.updates_per_rollout, indexer_lr_scale=3.0
        ),
    )
    assert mine is not None
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        gradients = [torch.randn(one.shape, generator=generator) for one in mine.parameters]
        for optimizer in (mine, expected):
            optimizer.add([gradient.clone() for gradient in gradients])
            optimizer.step()
    assert all(map(torch.equal, learner._model.parameters(), twin.parameters()))
    assert recipe.optimizer.model_dump() == OPTIMIZER


@pytest.mark.parametrize(("indexer", "trained"), [("frozen", False), ("trained", True)])
def test_learner_trains_the_indexer_only_if_asked(indexer: str, trained: bool, tiny_recipe, tmp_path: Path) -> None:
    learner = InlineLearner(tiny_recipe(f"learner.indexer={indexer}"), Path(), tmp_path, None)
    learner.start_rl()
    assert {parameter.requires_grad for parameter in learner._model.indexer_parameters()} == {trained}


def test_learner_recomputes_activations_of_the_trained_model_alone(tiny_recipe, tmp_path: Path) -> None:
    for asked in (False, True):
        recipe = tiny_recipe(f"learner.activation_checkpointing={asked}".lower())
        learner = InlineLearner(recipe, Path(), tmp_path / str(asked), None)
        learner.start_rl()
        assert learner._model.activation_checkpointing is asked
        assert learner._updater is not None
        assert learner._updater.reference is not None
        assert learner._updater.reference.activation_checkpointing is False


def test_learner_hands_its_weights_out_in_buckets_as_set(tiny_recipe, tmp_path: Path) -> None:
    counts = []
    for limit in (4096, 65536):
        learner = InlineLearner(tiny_recipe(f"learner.weight_bucket_bytes={limit}"), Path(), tmp_path, None)
        *buckets, head = learner.published()
        assert all(len(one) == 1 or sum(piece.values.nbytes for piece in one) <= limit for one in buckets)
        require_equal(head, dict(learner.named_weights()), "this test")
        counts.append(len(buckets))
        assert learner.weights().bucket_bytes == limit
        assert learner.weights().header.marks == head.marks
    assert counts[0] > counts[1]


@pytest.mark.parametrize("deltas", [False, True])
def test_learner_hands_out_what_changed_where_asked(deltas: bool, tiny_recipe, tmp_path: Path) -> None:
    changed = f"learner.weight_deltas={str(deltas).lower()}"
    learner = InlineLearner(tiny_recipe("runtime=ray", changed), Path(), tmp_path, None)
    *_, first = learner.published()
    with torch.no_grad():
        dict(learner.named_weights())["model.norm.weight"][2] += 1.0
    *buckets, second = learner.published()
    pieces = [one for bucket in buckets for one in bucket]
    assert second.base == (first.fingerprint if deltas else "")
    assert second.sent_bytes == (8 if deltas else first.size_bytes)
    assert len(pieces) == (1 if deltas else len(first.marks))
    assert [name for name in first.marks if first.marks[name] != second.marks[name]] == ["model.norm.weight"]


@pytest.mark.parametrize("other", [["runtime=inline"], ["runtime=ray", "engine.kind=vllm"]])
def test_weight_deltas_where_nothing_can_be_told_as_changes_are_refused(other: list[str], tiny_recipe) -> None:
    with pytest.raises(
        ValueError, match=r"learner\.weight_deltas needs runtime: ray and engine\.kind: builtin.*got (inline|ray)"
    ):
        tiny_recipe("learner.weight_deltas=true", *other)
