"""What tests let several ranks do (see `tests/ranks.py`)."""

import os
from dataclasses import replace
from typing import Any

import torch
import torch._dynamo  # What activation checkpointing imports late: once here, not in every rank.

from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.ranks import Ranks
from samepath.rl.learner.shares import Shares
from samepath.rl.learner.trained_passes import trained
from samepath.rl.learner.update import PolicyUpdater
from samepath.rl.objective.objective import NonFiniteError
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings
from tests.conftest import ALPHABET, tiny_model
from tests.update_runs import GROUPS, SAMPLES, Descent, rollout_batch

Gradients = list[torch.Tensor | None]


def uneven_batch() -> TrainBatch:
    """Four groups of unequal lengths with truncated supports; a sequence is out of the loss."""
    batch = rollout_batch(character_tokenizer(ALPHABET), top_p=0.9)
    in_loss_B = batch.in_loss_B.copy()
    in_loss_B[2] = False
    return replace(batch, in_loss_B=in_loss_B)


def update(
    ranks: Ranks, batch: TrainBatch, rl: dict[str, Any], learner: dict[str, Any], rate: float = 0.1
) -> tuple[dict[str, float], Gradients, list[torch.Tensor]]:
    """Metrics of a step of plain descent, its first gradients, and the weights afterwards."""
    model = tiny_model()
    model.activation_checkpointing = bool(learner.get("activation_checkpointing"))
    descent = Descent(model, rate)
    settings = AlgorithmSettings.model_validate({"prompts_per_step": GROUPS, "group_size": SAMPLES, **rl})
    updater = PolicyUpdater(model, tiny_model(), settings, LearnerSettings.model_validate(learner), ranks)
    report = updater.run(batch, 0, descent)
    ranks.require_equal("weights", list(model.parameters()))
    return report.metrics, descent.first, [parameter.detach() for parameter in model.parameters()]


def sums(
    ranks: Ranks, values: list[list[list[float] | None]], window: int
) -> tuple[list[list[float] | None], list[int]]:
    """Gradients of two parameters summed over passes, and which passes this rank ran."""
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 1))]
    taken: list[Gradients] = []
    ran: list[int] = []

    class Taking:
        def __init__(self) -> None:
            self.parameters = parameters

        def add(self, gradients: Gradients) -> None:
            taken.append(list(gradients))

    def compute(place: int) -> tuple[int, Gradients]:
        ran.append(place)
        return place, [
            None if one is None else torch.tensor(one).view_as(parameter)
            for one, parameter in zip(values[place], parameters)
        ]

    shares = Shares(ranks=ranks.size, window=window)
    reports = trained(ranks, shares, shares.owners([1] * len(values)), compute, Taking())  # type: ignore[arg-type]
    assert reports == list(range(len(values)))
    (total,) = taken
    if ranks.size > 1:
        # Each begins where a tensor of its own could.
        assert all(one is None or one.storage_offset() * one.element_size() % 64 == 0 for one in total)
    return [None if one is None else one.flatten().tolist() for one in total], ran


def failing(ranks: Ranks, bad: int) -> None:
    """Raise on one rank alone."""

    def compute() -> int:
        if ranks.rank == bad:
            raise NonFiniteError("no number")
        return 1

    ranks.together(compute)


def different(ranks: Ranks) -> None:
    """Weights of which one bit is another on the last rank."""
    weights = [torch.ones(5), torch.ones(3)]
    if ranks.rank == ranks.size - 1:
        weights[1].view(torch.int32)[2] += 1
    ranks.require_equal("weights", weights)


def killed(ranks: Ranks, victim: int, number: int) -> list[int]:
    """Lose a rank in the middle of a step."""
    ranks.wait()
    if ranks.rank == victim:
        os.kill(os.getpid(), number)
    return ranks.together(lambda: ranks.rank)


def one_rollout(batch: TrainBatch) -> TrainBatch:
    """The first rollout alone."""
    return replace(
        batch,
        sequences=batch.sequences[:1],
        rollout_S=batch.rollout_S[:1],
        names=batch.names[:1],
        advantages_B=batch.advantages_B[:1],
        group_B=batch.group_B[:1],
        datasets=batch.datasets[:1],
        in_loss_B=batch.in_loss_B[:1],
    )
