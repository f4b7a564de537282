"""Updates on real rollouts of the tiny model: a batch, plain descent, and the updater."""

from collections.abc import Sequence

import numpy as np
import torch

from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.batch.pack import TrainSequence
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.gradients import add_gradients
from samepath.rl.learner.optimizer import GradientNorms
from samepath.rl.learner.update import PolicyUpdater
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Prompt
from tests.conftest import tiny_model

GROUPS, SAMPLES = 4, 4


def rollout_batch(tokenizer: Tokenizer, engine: BuiltinEngine | None = None, **sampling: object) -> TrainBatch:
    """Sixteen real rollouts of the tiny model, longer than its top-k, with alternating advantages."""
    settings = SamplingSettings.model_validate({"max_new_tokens": 20, **sampling})
    prompts = [f"{index}+{index + 1}-3=" for index in range(GROUPS)]
    requests = [
        GroupRequest(
            group_id=str(index),
            prompt=Prompt(prompt_id=str(index), text=text, token_ids=tokenizer.encode(text)),
            sampling=settings,
            seeds=tuple(range(100 * index, 100 * index + SAMPLES)),
        )
        for index, text in enumerate(prompts)
    ]
    groups = (engine or BuiltinEngine(tiny_model(), tokenizer, BuiltinSettings())).run(requests)
    sequences = tuple(
        TrainSequence(
            segment=rollout.segments[0],
            temperature=settings.temperature,
            name=f"{group.group_id}/{rollout.sample_index}",
        )
        for group in groups
        for rollout in group.rollouts
    )
    count = len(sequences)
    return TrainBatch(
        sequences=sequences,
        rollout_S=np.arange(count),
        names=tuple(entry.name for entry in sequences),
        advantages_B=np.where(np.arange(count) % 2, -0.5, 0.5).astype(np.float32),
        group_B=np.repeat(np.arange(GROUPS), SAMPLES),
        datasets=("sums",) * count,
        in_loss_B=np.ones(count, np.bool_),
    )


class Descent:
    """Plain gradient descent that remembers the first gradients, by place."""

    def __init__(self, model: CausalLM, rate: float) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.rate = rate
        self._indexer = {id(parameter) for parameter in model.indexer_parameters()}
        self.first: list[torch.Tensor | None] = []

    def add(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Add up."""
        add_gradients(self.parameters, gradients)

    def step(self) -> GradientNorms:
        """Step and clear."""
        gradients = [None if one.grad is None else one.grad.clone() for one in self.parameters]
        self.first = self.first or gradients
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters, gradients):
                parameter.grad = None
                if gradient is not None:
                    parameter -= self.rate * gradient
        return GradientNorms(
            policy=self._norm(gradients, False) or 0.0, indexer=self._norm(gradients, True), lr=self.rate
        )

    def forget(self) -> None:
        """Clear."""
        for parameter in self.parameters:
            parameter.grad = None

    def _norm(self, gradients: Sequence[torch.Tensor | None], of_indexer: bool) -> float | None:
        """Of the indexer's gradients or of all others; None without any."""
        chosen = [
            gradient.flatten()
            for parameter, gradient in zip(self.parameters, gradients)
            if gradient is not None and (id(parameter) in self._indexer) == of_indexer
        ]
        return float(torch.cat(chosen).norm()) if chosen else None


def updater(model: CausalLM, rl: dict[str, object] | None = None, **learner: object) -> PolicyUpdater:
    """Two updates a rollout batch, KL to a frozen copy."""
    settings = AlgorithmSettings.model_validate(
        {"prompts_per_step": GROUPS, "group_size": SAMPLES, "updates_per_rollout": 2, **(rl or {})}
    )
    return PolicyUpdater(model, tiny_model(), settings, LearnerSettings.model_validate(learner))
