"""The learner as Ray actors, one a rank."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private import state as ray_state
from ray.exceptions import ActorUnavailableError, GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.learner.ended_ranks import ended_ranks
from samepath.rl.learner.lost import GO_ON, LearnerLostError
from samepath.rl.learner.rank_host import RankHost, summed
from samepath.rl.machine import import_path
from samepath.rl.recipe.recipe import Recipe
from samepath.rollout.engine_errors import ClusterLostError
from samepath.rollout.pool.ray_bundles import RayBundles
from samepath.rollout.pool.ray_calls import ask, end_actor, stopped
from samepath.rollout.weights.publication import Publication

END_WAIT_S = 10.0
"""Longest wait for what became of the other ranks once one has lost them."""


class RayLearner:
    """Calls the learner's ranks, an actor each; every wait is bounded and says what it waits for."""

    def __init__(self, recipe: Recipe, recipe_dir: Path, run_dir: Path, resume_from: Path | None) -> None:
        environment = {**import_path(recipe_dir), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self._timeout_s = recipe.learner.update_timeout_s
        self._room = RayBundles(
            "learner ranks (learner.ranks, ray.learner_cpus)",
            recipe.learner.ranks,
            {"CPU": recipe.ray.learner_cpus, "GPU": recipe.ray.learner_gpus if recipe.model.device == "cuda" else 0},
            recipe.ray.learner_placing,
            self._timeout_s,
        )
        self._lost: LearnerLostError | ClusterLostError | None = None
        self._sharded = recipe.learner.shard == "full"
        arguments = recipe, recipe_dir.resolve(), run_dir.resolve(), resume_from.resolve() if resume_from else None
        variables = {"env_vars": environment}
        kinds = [
            ray.remote(**self._room.options(rank), runtime_env=variables)(RankHost)
            for rank in range(recipe.learner.ranks)
        ]
        self._actors = [
            ask(
                "Ray to take the order for the learner",
                self._timeout_s,
                lambda kind=kind: kind.remote(*arguments),  # type: ignore[misc]
            )
            for kind in kinds
        ]
        meeting = None
        if len(self._actors) > 1 or self._sharded:
            (meeting,) = self._wait("opening a meeting of its ranks", lambda: [self._actors[0].open.remote()])
        self._wait(
            "loading its model",
            lambda: [actor.start.remote(rank, meeting) for rank, actor in enumerate(self._actors)],
        )

    def cold_start(self, first: int, count: int) -> list[Mapping[str, float]]:
        """See `Learner.cold_start`."""
        what = f"cold-start steps {first} to {first + count - 1}"
        steps: list[Mapping[str, float]] = self._all(what, "cold_start", first, count)[0]
        return steps

    def start_rl(self) -> None:
        """See `Learner.start_rl`."""
        self._all("freezing the reference", "start_rl")

    def update(self, batch: TrainBatch) -> UpdateReport:
        """See `Learner.update`."""
        # Once into the object store, for all ranks.
        held = ask("Ray to take a rollout batch", self._timeout_s, lambda: ray.put(batch))
        report: UpdateReport = self._all(f"the updates on {len(batch.sequences)} sequences", "update", held)[0]
        return report

    def advance(self) -> None:
        """See `Learner.advance`."""
        self._all("counting an empty batch", "advance")

    def weights(self) -> Publication:
        """References to the weights in the object store, which takes one bucket of them after the other; only their digests come here."""
        started = time.perf_counter()
        publish = self._actors[0].published.options(num_returns="streaming")
        stream = ask("Ray to take the order for the weights", self._timeout_s, publish.remote)
        others = self._actors[1:] if self._sharded else []
        self._wait("its weights", lambda: [stream.completed(), *(actor.call.remote("weights") for actor in others)])
        *buckets, last = ask("references to the weights", self._timeout_s, lambda: list(stream))
        (head,) = self._wait("the digests of its weights", lambda: [last])
        return Publication(
            version=head.version,
            header=last,
            fingerprint=head.fingerprint,
            base=head.base,
            buckets=tuple(buckets),
            sent_bytes=head.sent_bytes,
            seconds=time.perf_counter() - started,
        )

    def save(self, step: int, best: int | None = None) -> Path:
        """See `Learner.save`."""
        asked = self._all if self._sharded else self._first
        return Path(asked(f"writing the checkpoint of step {step}", "save", step, best)[0])

    def saved(self, step: int, *, wait: bool) -> bool:
        """See `Learner.saved`."""
        whole: bool = self._wait(
            f"writing the checkpoint of step {step}", lambda: [self._actors[0].call.remote("saved", step, wait=wait)]
        )[0]
        return whole

    def statistics(self) -> dict[str, float]:
        """See `Learner.statistics`; the memory is that of all ranks."""
        return summed(self._all("its statistics", "statistics"))

    @property
    def sampling_ranks(self) -> None:
        """None: under Ray the engines have actors of their own."""
        return None

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            end_actor(actor)
        self._room.close()

    def _all(self, what: str, method: str, *arguments: Any) -> list[Any]:
        """What a call gives every rank; those after the first say nothing."""
        return self._wait(what, lambda: [actor.call.remote(method, *arguments) for actor in self._actors])

    def _first(self, what: str, method: str, *arguments: Any) -> list[Any]:
        """What a call on rank 0 alone gives."""
        return self._wait(what, lambda: [self._actors[0].call.remote(method, *arguments)])

    def _wait(self, what: str, call: Callable[[], list[Any]]) -> list[Any]:
        """What the calls, which are made here, give. Raises LearnerLostError, or ClusterLostError with the cluster."""
        if self._lost is not None:
            # It would only be waited for once more.
            raise self._lost
        made: list[Any] = []
        try:
            made += ask(f"Ray to take the order for {what}", self._timeout_s, call)
            answered: list[Any] = ask(
                f"the learner: {what}", self._timeout_s, lambda: ray.get(made, timeout=self._timeout_s)
            )
            return answered
        except GetTimeoutError as error:
            self._lost = LearnerLostError(
                f"waited learner.update_timeout_s={self._timeout_s:.0f} s for the learner: {what}{stopped()}. Raise the limit, or look at its log."
            )
            raise self._lost from error
        except ClusterLostError as error:
            self._lost = error
            raise
        except (RayActorError, ObjectLostError, LearnerLostError) as error:
            self._lost = self._why(what, made, error)
            raise self._lost from error
        except RayTaskError as error:
            # What a rank fails with may follow from another's end.
            if ended := self._ended():
                self._lost = _lost_to(ended, what)
                raise self._lost from error
            raise

    def _why(self, what: str, made: list[Any], first: Exception) -> LearnerLostError:
        """What has become of the rank that is to blame: those that waited for it only say that it is away, and may end after it."""
        ended = self._ended()
        if not ended:
            ask(
                "what became of the learner's ranks",
                END_WAIT_S,
                lambda: ray.wait(made, num_returns=len(made), timeout=END_WAIT_S),
            )
            ended = self._ended()
        if ended:
            return _lost_to(ended, what)
        for rank, reference in enumerate(made):
            try:
                ask("a learner rank's answer", END_WAIT_S, lambda one=reference: ray.get(one, timeout=0))  # type: ignore[misc]
            except (GetTimeoutError, RayActorError, ObjectLostError, LearnerLostError):
                continue
            except RayTaskError as error:
                return LearnerLostError(f"learner rank {rank} failed during {what}: {error}")
        if isinstance(first, ActorUnavailableError):
            reason = str(first).strip().splitlines()[0]
            return LearnerLostError(
                f"a rank of the learner cannot be reached during {what}; the node that it stands on may be lost. {GO_ON} Ray says: {reason}"
            )
        return LearnerLostError(
            f"the learner's ranks lost each other during {what}, and all of their processes are there. {GO_ON} The first to say so: {first}"
        )

    def _ended(self) -> list[str]:
        """The ranks that have ended, first the one that did so first, as Ray's table of actors has them."""
        return ask(
            "Ray's table of the learner's ranks",
            END_WAIT_S,
            lambda: ended_ranks([ray_state.actors(actor._actor_id.hex()) for actor in self._actors]),
        )


def _lost_to(ended: list[str], what: str) -> LearnerLostError:
    return LearnerLostError(f"{', and after it '.join(ended)}, during {what}. {GO_ON}")
