"""How the driver reaches the learner: the object itself, or a Ray actor with a bound on every wait."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from samepath.model.files.policy_files import policy_tensors
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.learner.learner import Learner
from samepath.rl.recipe.recipe import Recipe
from samepath.rollout.engine_settings import describe
from samepath.rollout.pool.pool import Weights


class LearnerHandle(Protocol):
    """The learner's calls (see `Learner`)."""

    def cold_start(self, first: int, count: int) -> list[Mapping[str, float]]: ...

    def start_rl(self) -> None: ...

    def update(self, batch: TrainBatch) -> UpdateReport: ...

    def advance(self) -> None: ...

    def weights(self) -> Weights: ...

    def save(self, step: int) -> Path: ...

    def saved(self, step: int, *, wait: bool) -> bool: ...

    def statistics(self) -> dict[str, float]: ...

    def close(self) -> None: ...


class InlineLearner(Learner):
    """The learner in the driver's process."""

    def weights(self) -> Weights:
        """See `Learner.weights`; beside an engine in this process, the tensors where they stand."""
        if self._recipe.model.device == "cpu" or describe(self._recipe.engine).own_process:
            return super().weights()
        return {name: tensor.detach() for name, tensor in policy_tensors(self._model).items()}

    def close(self) -> None:
        """Nothing to give back."""


def build_learner(recipe: Recipe, recipe_dir: Path, run_dir: Path, resume_from: Path | None) -> LearnerHandle:
    """The learner that the recipe's runtime asks for."""
    if recipe.runtime == "inline":
        return InlineLearner(recipe, recipe_dir, run_dir, resume_from)
    # Late: `runtime: inline` must work without Ray.
    from samepath.rl.learner.ray_learner import RayLearner

    return RayLearner(recipe, recipe_dir, run_dir, resume_from)
