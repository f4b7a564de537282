"""The learner as a Ray actor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.learner.learner import Learner
from samepath.rl.machine import import_path
from samepath.rl.recipe.recipe import Recipe
from samepath.rollout.pool.pool import Weights


class LearnerLostError(RuntimeError):
    """The learner's process ended or did not answer in time."""


class RayLearner:
    """Calls the learner actor; every wait is bounded and says what it waits for."""

    def __init__(self, recipe: Recipe, recipe_dir: Path, run_dir: Path, resume_from: Path | None) -> None:
        environment = {**import_path(recipe_dir), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        gpus = recipe.ray.learner_gpus if recipe.model.device == "cuda" else 0
        options = {"num_cpus": 0, "num_gpus": gpus, "max_restarts": 0}
        remote = ray.remote(**options, runtime_env={"env_vars": environment})(Learner)
        self._timeout_s = recipe.learner.update_timeout_s
        self._lost: LearnerLostError | None = None
        self._actor = remote.remote(
            recipe, recipe_dir.resolve(), run_dir.resolve(), resume_from.resolve() if resume_from else None
        )
        self._wait("loading its model", self._actor.statistics.remote())

    def cold_start(self, first: int, count: int) -> list[Mapping[str, float]]:
        """See `Learner.cold_start`."""
        steps: list[Mapping[str, float]] = self._wait(
            f"cold-start steps {first} to {first + count - 1}", self._actor.cold_start.remote(first, count)
        )
        return steps

    def start_rl(self) -> None:
        """See `Learner.start_rl`."""
        self._wait("freezing the reference", self._actor.start_rl.remote())

    def update(self, batch: TrainBatch) -> UpdateReport:
        """See `Learner.update`."""
        report: UpdateReport = self._wait(
            f"the updates on {len(batch.sequences)} sequences", self._actor.update.remote(batch)
        )
        return report

    def advance(self) -> None:
        """See `Learner.advance`."""
        self._wait("counting an empty batch", self._actor.advance.remote())

    def weights(self) -> Weights:
        """A reference to the weights in the object store, where the learner's process has copied them once for all workers."""
        reference = self._actor.weights.remote()
        self._wait("its weights", reference)
        return reference

    def save(self, step: int) -> Path:
        """See `Learner.save`."""
        return Path(self._wait(f"writing the checkpoint of step {step}", self._actor.save.remote(step)))

    def saved(self, step: int, *, wait: bool) -> bool:
        """See `Learner.saved`."""
        whole: bool = self._wait(f"writing the checkpoint of step {step}", self._actor.saved.remote(step, wait=wait))
        return whole

    def statistics(self) -> dict[str, float]:
        """See `Learner.statistics`."""
        statistics: dict[str, float] = self._wait("its statistics", self._actor.statistics.remote())
        return statistics

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor, no_restart=True)

    def _wait(self, what: str, call: Any) -> Any:
        if self._lost is not None:
            # It would only be waited for once more.
            raise self._lost
        try:
            return ray.get(call, timeout=self._timeout_s)
        except GetTimeoutError as error:
            self._lost = LearnerLostError(
                f"waited learner.update_timeout_s={self._timeout_s:.0f} s for the learner: {what}. Raise the limit, or look at its log."
            )
            raise self._lost from error
        except RayActorError as error:
            self._lost = LearnerLostError(
                f"the learner's process ended during {what} ({type(error).__name__}). Go on from the last checkpoint with `samepath resume`."
            )
            raise self._lost from error
