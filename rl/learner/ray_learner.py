"""The learner as a Ray actor."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.learner.learner import Learner
from samepath.rl.machine import import_path
from samepath.rl.recipe.recipe import Recipe
from samepath.rollout.engine_errors import ClusterLostError
from samepath.rollout.pool.pool import Weights
from samepath.rollout.pool.ray_calls import ask, end_actor, stopped


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
        self._lost: LearnerLostError | ClusterLostError | None = None
        source = resume_from.resolve() if resume_from else None
        self._actor = ask(
            "Ray to take the order for the learner",
            self._timeout_s,
            lambda: remote.remote(recipe, recipe_dir.resolve(), run_dir.resolve(), source),
        )
        self._wait("loading its model", lambda: self._actor.statistics.remote())

    def cold_start(self, first: int, count: int) -> list[Mapping[str, float]]:
        """See `Learner.cold_start`."""
        steps: list[Mapping[str, float]] = self._wait(
            f"cold-start steps {first} to {first + count - 1}", lambda: self._actor.cold_start.remote(first, count)
        )
        return steps

    def start_rl(self) -> None:
        """See `Learner.start_rl`."""
        self._wait("freezing the reference", lambda: self._actor.start_rl.remote())

    def update(self, batch: TrainBatch) -> UpdateReport:
        """See `Learner.update`."""
        report: UpdateReport = self._wait(
            f"the updates on {len(batch.sequences)} sequences", lambda: self._actor.update.remote(batch)
        )
        return report

    def advance(self) -> None:
        """See `Learner.advance`."""
        self._wait("counting an empty batch", lambda: self._actor.advance.remote())

    def weights(self) -> Weights:
        """A reference to the weights in the object store, where the learner's process has copied them once for all workers."""
        reference = ask("Ray to ask the learner for its weights", self._timeout_s, lambda: self._actor.weights.remote())
        self._wait("its weights", lambda: reference)
        return reference

    def save(self, step: int) -> Path:
        """See `Learner.save`."""
        return Path(self._wait(f"writing the checkpoint of step {step}", lambda: self._actor.save.remote(step)))

    def saved(self, step: int, *, wait: bool) -> bool:
        """See `Learner.saved`."""
        whole: bool = self._wait(
            f"writing the checkpoint of step {step}", lambda: self._actor.saved.remote(step, wait=wait)
        )
        return whole

    def statistics(self) -> dict[str, float]:
        """See `Learner.statistics`."""
        statistics: dict[str, float] = self._wait("its statistics", lambda: self._actor.statistics.remote())
        return statistics

    def close(self) -> None:
        """End the actor."""
        end_actor(self._actor)

    def _wait(self, what: str, call: Callable[[], Any]) -> Any:
        """What the call, which is made here, gives. Raises LearnerLostError, or ClusterLostError with the cluster."""
        if self._lost is not None:
            # It would only be waited for once more.
            raise self._lost
        try:
            return ask(f"the learner: {what}", self._timeout_s, lambda: ray.get(call(), timeout=self._timeout_s))
        except GetTimeoutError as error:
            self._lost = LearnerLostError(
                f"waited learner.update_timeout_s={self._timeout_s:.0f} s for the learner: {what}{stopped()}. Raise the limit, or look at its log."
            )
            raise self._lost from error
        except ClusterLostError as error:
            self._lost = error
            raise
        except RayActorError as error:
            self._lost = LearnerLostError(
                f"the learner's process ended during {what} ({type(error).__name__}). Go on from the last checkpoint with `samepath resume`."
            )
            raise self._lost from error
