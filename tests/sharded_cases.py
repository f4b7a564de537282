"""What tests let several ranks do that hold a policy in shards (see `tests/ranks.py`)."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch._dynamo  # What activation checkpointing imports late: once here, not in every rank.
import torch.distributed.checkpoint  # The same of a checkpoint's shards.
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.tensor import DTensor

from samepath.model.files.policy_files import policy_tensors
from samepath.model.key_store import PackedKeys
from samepath.model.network.placement import rounded
from samepath.model.policy import Policy
from samepath.model.text.tokenizer import Tokenizer
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.learner import Learner
from samepath.rl.learner.optimizer import GradientNorms, Optimizer
from samepath.rl.learner.ranks import ALONE, Ranks
from samepath.rl.learner.sharded_runner import ShardedRunner, blank_input
from samepath.rl.learner.sharding import named_weights, shard, shards
from samepath.rl.learner.update import PolicyUpdater
from samepath.rl.objective.objective import NonFiniteError
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rl.recipe.optimizer import OptimizerSettings
from samepath.rl.recipe.recipe import Recipe
from tests.conftest import tiny_model
from tests.families import family_model
from tests.update_runs import GROUPS, SAMPLES

Tensors = dict[str, torch.Tensor]
Updated = tuple[dict[str, float], list[float], Tensors, Tensors]


class Watched(Optimizer):
    """AdamW that remembers the first update's gradients, before clipping, and the norms of all."""

    def __init__(self, model: Policy) -> None:
        # A large epsilon: Adam would divide rounding by rounding where a gradient is 0 but for it.
        settings = OptimizerSettings(lr=0.01, epsilon=1.0, max_grad_norm=1e-2)
        super().__init__(model, settings, total_updates=10)
        self.first: Tensors = {}
        self.norms: list[GradientNorms] = []

    def step(self) -> GradientNorms:
        """Remember, and step."""
        if not self.norms:
            self.first = {
                name: whole(one.grad).clone() for name, one in self.named_masters().items() if one.grad is not None
            }
        self.norms.append(super().step())
        return self.norms[-1]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of it, on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def update(ranks: Ranks, batch: TrainBatch, rl: dict[str, Any], learner: dict[str, Any]) -> Updated:
    """Metrics of a step of AdamW, its norms, its first gradients and the weights afterwards; in shards unless there is one process."""
    model, reference = tiny_model(), tiny_model().requires_grad_(False)
    model.activation_checkpointing = bool(learner.get("activation_checkpointing"))
    settings = LearnerSettings.model_validate({**learner, "shard": "none" if ranks is ALONE else "full"})
    if ranks is not ALONE:
        shard(model, ranks, expert_parallel=settings.expert_parallel)
        shard(reference, ranks, expert_parallel=settings.expert_parallel)
    for parameter in model.indexer_parameters():
        parameter.requires_grad_(settings.indexer == "trained")
    watched = Watched(model)
    algorithm = AlgorithmSettings.model_validate({"prompts_per_step": GROUPS, "group_size": SAMPLES, **rl})
    report = PolicyUpdater(model, reference, algorithm, settings, ranks).run(batch, 0, watched)
    weights = policy_tensors(model).items() if ranks is ALONE else named_weights(model)
    return (
        report.metrics,
        [norm for norms in watched.norms for norm in (norms.policy, norms.indexer or 0.0)],
        watched.first,
        {name: tensor.clone() for name, tensor in weights},
    )


def assert_same_update(seen: Updated, wanted: Updated) -> None:
    """Loss, norms, gradients and weights within 1e-6 of the largest."""
    (metrics, norms, gradients, weights), scale = wanted, max(float(one.abs().max()) for one in wanted[2].values())
    assert seen[0]["learner/loss"] == pytest.approx(metrics["learner/loss"], rel=1e-6)
    assert seen[1] == pytest.approx(norms, rel=1e-6)
    assert seen[2].keys() == gradients.keys()
    assert list(seen[3]) == list(weights)
    for name, gradient in gradients.items():
        torch.testing.assert_close(seen[2][name], gradient, rtol=1e-6, atol=1e-6 * scale)
    for name, weight in weights.items():
        torch.testing.assert_close(seen[3][name], weight, rtol=1e-6, atol=1e-6 * float(weight.abs().max()))


def held(ranks: Ranks, expert_parallel: bool = False) -> dict[str, int]:
    """Bytes of weights, gradients and both moments that this rank holds after an update, and of all weights."""
    model = tiny_model()
    total = sum(one.nbytes for one in model.parameters())
    shard(model, ranks, expert_parallel=expert_parallel)
    optimizer = Watched(model)
    runner = ShardedRunner(ranks, model, None, train_indexer=True)
    runner.train([0], lambda place: ("", runner._blank_loss()), optimizer)
    gradients = sum(one.grad.to_local().nbytes for one in model.parameters() if one.grad is not None)
    optimizer.step()
    moments = [
        one for values in optimizer.named_moments().values() for one in (values["exp_avg"], values["exp_avg_sq"])
    ]
    return {
        "weights": sum(one.untyped_storage().nbytes() for one in shards(model).values()),
        "gradients": gradients,
        "moments": sum(one.to_local().nbytes for one in moments),
        "all": total,
    }


def failing(ranks: Ranks, bad: int) -> None:
    """Raise on one rank alone, between forward and backward."""
    model = tiny_model()
    shard(model, ranks)
    runner = ShardedRunner(ranks, model, None, train_indexer=False)

    def compute(place: int) -> tuple[int, torch.Tensor]:
        loss = runner._blank_loss()
        if ranks.rank == bad:
            raise NonFiniteError("no number")
        return place, loss

    runner.train(list(range(ranks.size)), compute, Watched(model))


Learned = tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, float]]


def learn_and_go_on(ranks: Ranks, recipe: Recipe, folder: Path, batch: TrainBatch) -> tuple[Learned, Learned]:
    """`learn` from the beginning, and from the checkpoint that it leaves."""
    first = learn(ranks, recipe, folder, None, batch)
    return first, learn(ranks, recipe, folder, recipe.run_dir / "checkpoints" / "step-000001", batch)


def learn(ranks: Ranks, recipe: Recipe, folder: Path, resume_from: Path | None, batch: TrainBatch) -> Learned:
    """Weights before and after an update of a learner that begins, or goes on from a checkpoint, and its metrics; it leaves one of step 1."""
    learner = Learner(recipe, folder, recipe.run_dir, resume_from, ranks)
    if resume_from is None:
        if recipe.cold_start.steps:
            learner.cold_start(0, 2)
        learner.start_rl()
        learner.update(batch)
        learner.save(1)
        learner.saved(1, wait=True)
        # The folder is whole once rank 0 says so.
        ranks.wait()
    before = copies(learner)
    report = learner.update(batch)
    return before, copies(learner), report.metrics


def copies(learner: Learner) -> dict[str, np.ndarray]:
    """The weights of rank 0; nothing on another."""
    tensors = learner.weights().tensors
    assert tensors is not None
    return {name: tensor.float().numpy().copy() for name, tensor in tensors.items()}


def failing_inside(ranks: Ranks, bad: int, expert_parallel: bool = False) -> None:
    """Raise on one rank alone, in the middle of its network."""
    model = tiny_model()
    shard(model, ranks, expert_parallel=expert_parallel)
    runner = ShardedRunner(ranks, model, None, train_indexer=False)
    if ranks.rank == bad:

        def broken(*_: Any) -> None:
            raise ValueError("no such layer")

        model.layers[1].register_forward_pre_hook(broken)
    runner.train([0] * ranks.size, lambda place: (place, runner._blank_loss()), Watched(model))


def killed_inside(ranks: Ranks, victim: int, expert_parallel: bool = False) -> None:
    """Lose a rank in the middle of its network."""
    model = tiny_model()
    shard(model, ranks, expert_parallel=expert_parallel)
    runner = ShardedRunner(ranks, model, None, train_indexer=False)
    if ranks.rank == victim:
        model.layers[1].register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    runner.train([0] * ranks.size, lambda place: (place, runner._blank_loss()), Watched(model))


def saving(ranks: Ranks, recipe: Recipe, folder: Path, bad: int, what: str) -> tuple[str, list[str], str]:
    """What a save says that fails on one rank, the checkpoints that there are then, and what the next save says."""
    learner = Learner(recipe, folder, recipe.run_dir, None, ranks)
    learner.start_rl()
    said = [_saved(learner, ranks, 1)]
    writer = "write_data" if what == "shards" else "finish"
    with ExitStack() as failing:
        if ranks.rank == bad and what == "tokenizer":
            failing.enter_context(
                mock.patch.object(Tokenizer, "save", side_effect=OSError(28, "No space left on device"))
            )
        elif ranks.rank == bad:
            failing.enter_context(
                mock.patch.object(FileSystemWriter, writer, side_effect=OSError(28, "No space left on device"))
            )
        said.append(_saved(learner, ranks, 2))
    ranks.wait()
    there = sorted(path.name for path in (recipe.run_dir / "checkpoints").iterdir())
    ranks.wait()
    again = Learner(recipe, folder, recipe.run_dir, recipe.run_dir / "checkpoints" / "step-000001", ranks)
    return said[1], there, _saved(again, ranks, 3)


def _saved(learner: Learner, ranks: Ranks, step: int) -> str:
    try:
        learner.save(step)
        whole = learner.saved(step, wait=True)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return "whole" if whole else "not whole"


def rounding(ranks: Ranks) -> tuple[bool, bool, bool, list[torch.dtype]]:
    """A pass of bfloat16 weights in shards against whole ones, weights handed out against masters, whether a step moved less than they round, and
    the types of gradients."""
    # Neither experts nor an indexer: on CPUs these have no bfloat16.
    whole_model = rounded(family_model("llama"), "bfloat16")
    model = rounded(family_model("llama"), "bfloat16").float()
    shard(model, ranks, gathered_in="bfloat16")
    inputs = blank_input(model.shape)
    with torch.no_grad():
        hidden = [one(inputs, PackedKeys(), ForwardTrace()) for one in (whole_model, model)]
    model.reshard()  # type: ignore[operator]
    optimizer = Watched(model)
    runner = ShardedRunner(ranks, model, None, train_indexer=False)

    def compute(place: int) -> tuple[int, torch.Tensor]:
        hidden_ND = model(inputs, PackedKeys(), ForwardTrace())
        return place, (hidden_ND @ model.head_weight.T).float().log_softmax(-1)[:, 0].sum() * 1e-3

    runner.train([0], compute, optimizer)
    types = sorted({one.grad.dtype for one in optimizer.parameters if one.grad is not None}, key=str)
    optimizer.step()
    masters = {name: whole(one.detach()) for name, one in optimizer.named_masters().items()}
    published = {name: tensor.clone() for name, tensor in named_weights(model)}
    head = masters["head"]
    return (
        torch.equal(*hidden),
        torch.equal(published["lm_head.weight"], head.bfloat16()),
        not torch.equal(head, head.bfloat16().float()),
        types,
    )


def entries(ranks: Ranks) -> list[tuple[bool, bool]]:
    """Of each layer, whether the indexer's loss and what the next layer sees are of one step of the backward, and whether that is the hook's."""
    model = tiny_model()
    shard(model, ranks)
    outputs: list[torch.Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, __, output_ND: outputs.append(output_ND))
    trace = ForwardTrace(train_indexer=True)
    model(blank_input(model.shape), PackedKeys(), trace)
    return [
        (loss.grad_fn is output_ND.grad_fn, "Together" in str(loss.grad_fn))
        for loss, output_ND in zip(trace.indexer_losses, outputs, strict=True)
    ]
