"""A pool of rollout actors under Ray: they drain one queue of groups; a dead or silent one is replaced and its groups go on, or run again.

Ray is imported in the files `ray_*.py` of this room and of `rl/learner` only, because `runtime: inline` must work without it.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from samepath.model.placement import ON_CPU, Placement
from samepath.rollout.begun import going_on
from samepath.rollout.engine_errors import RolloutPoolError
from samepath.rollout.engine_settings import EngineSettings
from samepath.rollout.environments.request import EpisodeRequest, Request
from samepath.rollout.pool.pool import SLICE_S, Handover, PolledPool, worker_environment
from samepath.rollout.pool.ray_actor import GONE, RolloutActor, first_ready
from samepath.rollout.pool.ray_bundles import RayBundles
from samepath.rollout.pool.ray_calls import ask, end_actor, stopped
from samepath.rollout.pool.settings import OnNewWeights, RolloutSettings
from samepath.rollout.pool.steady_worker import SteadyWorker, Worked
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.record_bytes import from_bytes
from samepath.rollout.types import Group
from samepath.rollout.weights.bucket import buckets
from samepath.rollout.weights.publication import Publication, Weights, publication

STEADY_SLICE_S = 0.2
"""The same of a steady worker, whose engine goes on between the calls: how long new groups and weights may have to wait for their turn."""


class RayPool(PolledPool):
    """Rollout actors with an engine each. Equal seeds give equal samples on any actor, so a group may be run again anywhere.

    Steady ones tell what they have drawn, so that their groups go on from there.
    """

    def __init__(
        self,
        model_folder: Path,
        engine: EngineSettings,
        settings: RolloutSettings,
        environment: Mapping[str, str],
        placement: Placement = ON_CPU,
        *,
        steady: bool = False,
    ) -> None:
        """`steady`: engines go on while nobody polls (`SteadyWorker`)."""
        super().__init__()
        self._steady = steady
        self._worker_class = SteadyWorker if steady else RolloutWorker
        self._slice_s = STEADY_SLICE_S if steady else SLICE_S
        self._queue = deque[Request]()
        self._told: dict[str, list[bytes]] = {}
        """What was told of each group under way, since it was last handed out."""
        self._folder, self._engine, self._settings, self._placement = model_folder, engine, settings, placement
        self._environment = worker_environment(engine, settings, environment)
        self._weights: list[Publication] = []
        self._load_s = 0.0
        self._replaced = 0
        self._retired: dict[str, float] = {}
        gpus = settings.gpus if placement.device == "cuda" else 0
        self._room = RayBundles(
            "rollout workers (rollout.num_workers, rollout.cpus)",
            settings.num_workers,
            {"CPU": settings.cpus, "GPU": gpus},
            settings.placing,
            settings.start_timeout_s,
        )
        self._actors = [self._start(number) for number in range(settings.num_workers)]
        for actor in self._actors:
            self._await_start(actor)

    def process_ids(self) -> list[int]:
        """Operating-system processes of the actors, for people and fault tests."""
        return [
            int(self._get("a worker's process id", actor.handle.process_id, self._settings.start_timeout_s))
            for actor in self._actors
        ]

    def submit(self, requests: Sequence[Request]) -> None:
        """See `RolloutPool.submit`: actors get them at once, as far as they have room."""
        self._queue += requests
        for actor in self._actors:
            if actor.call is None:
                self._give_work(actor)

    def _poll(self, wait_s: float) -> list[Group]:
        for actor in self._actors:
            self._heard(actor)
            if actor.call is None:
                self._give_work(actor)
        calls = {actor.call: actor for actor in self._actors if actor.call is not None}
        if not calls:
            time.sleep(wait_s)
        groups = [group for call in first_ready(list(calls), wait_s) for group in self._collect(calls[call])]
        limit_s = self._settings.stall_timeout_s
        for actor in self._actors:
            if actor.call is not None and time.monotonic() - actor.last_answer_s > limit_s:
                self._replace(actor, f"gave no answer for {limit_s:.0f} s while sampling {sorted(actor.groups)}")
            elif actor.call is None:
                self._give_work(actor)
        return groups

    def load_weights(self, weights: Weights, version: int) -> None:
        """Wait until every actor serves the weights, which stand in the object store once for all of them."""
        self.offer_weights(weights, version, "continue")
        for actor in self._actors:
            while actor.loading:
                self._loaded(actor, actor.loading.pop(0))

    def offer_weights(self, weights: Weights, version: int, on_new_weights: OnNewWeights) -> None:
        """See `RolloutPool.offer_weights`. An actor takes its calls in order, so what is handed to it later is sampled with these weights."""
        limit_s = self._settings.stall_timeout_s
        given = publication(weights, version)
        if given.tensors is not None:
            given = _stored(given, limit_s)
        # Whoever comes late takes the last whole version and what changed since.
        self._weights, self._load_s = [*(self._weights if given.base else []), given], 0.0
        calls = ask(
            "Ray to hand the weights to the workers",
            limit_s,
            lambda: [
                actor.handle.take_buckets.remote(version, on_new_weights, given.header, *given.buckets)
                for actor in self._actors
            ],
        )
        for actor, call in zip(self._actors, calls, strict=True):
            actor.loading.append(call)

    def handover(self) -> Handover:
        """See `RolloutPool.handover`."""
        return Handover(load_s=self._load_s, sent_bytes=self._weights[-1].sent_bytes if self._weights else 0)

    def idle_s(self) -> float:
        """See `RolloutPool.idle_s`."""
        return sum(actor.clock.seconds for actor in self._actors) / len(self._actors)

    def statistics(self) -> dict[str, float]:
        """Sums over the living actors (and the last known totals of replaced ones)."""
        total = {**self._retired, "replaced_workers": float(self._replaced)}
        for actor in self._actors:
            try:
                counters = self._get("a worker's statistics", actor.handle.statistics, self._settings.stall_timeout_s)
            except (*GONE, GetTimeoutError):
                continue
            for name, value in counters.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            end_actor(actor.handle)
        self._room.close()

    def _start(self, number: int) -> RolloutActor:
        """Order the worker with this number, whose place stays that of its number."""
        options, variables = self._room.options(number), {"env_vars": self._environment}
        remote = ray.remote(**options, runtime_env=variables)(self._worker_class)
        handle = ask(
            "Ray to take the order for a rollout worker",
            self._settings.start_timeout_s,
            lambda: remote.remote(self._folder, self._engine, self._settings.threads, self._placement),
        )
        return RolloutActor(handle=handle, number=number, last_answer_s=time.monotonic())

    def _await_start(self, actor: RolloutActor) -> None:
        """Wait until the actor has its model, and the current weights if there are any."""
        try:
            self._get("a worker to load its model", actor.handle.process_id, self._settings.start_timeout_s)
            for given in self._weights:
                load, limit_s = actor.handle.take_buckets, self._settings.start_timeout_s
                arguments = (given.version, "continue", given.header, *given.buckets)
                self._get("a fresh worker to load the weights", load, limit_s, *arguments)
        except (*GONE, GetTimeoutError) as error:
            raise RolloutPoolError(
                f"a rollout worker must load {self._folder} within rollout.start_timeout_s={self._settings.start_timeout_s:.0f} s; got {error}{stopped()}"
            ) from error

    def _give_work(self, actor: RolloutActor) -> None:
        """Fill the actor up to its engine's rows and a few groups more, then let it work for a slice."""
        fresh, queue = [], self._queue
        share = -(-(len(queue) + sum(len(other.groups) for other in self._actors)) // len(self._actors))
        while queue and len(actor.groups) < share:
            rows = sum(len(request.seeds) for request in actor.groups.values())
            if actor.groups and rows >= 2 * self._engine.max_sequences:
                break
            request = queue.popleft()
            actor.groups[request.group_id] = request
            fresh.append(request)
        if actor.groups:
            work, slice_s = actor.handle.look if self._steady else actor.handle.work, self._slice_s
            actor.call = ask(
                "Ray to hand groups to a worker", self._settings.stall_timeout_s, lambda: work.remote(fresh, slice_s)
            )
            actor.last_answer_s = time.monotonic()
        actor.clock.set(idle=not actor.groups)

    def _heard(self, actor: RolloutActor) -> None:
        """Raise what handing over weights raised, and let go of calls that have their result."""
        if not actor.loading:
            return
        calls = list(actor.loading)
        ready, _ = ask("a worker", SLICE_S, lambda: ray.wait(calls, num_returns=len(calls), timeout=0))
        for call in ready:
            if call in actor.loading:
                actor.loading.remove(call)
                self._loaded(actor, call)

    def _loaded(self, actor: RolloutActor, call: Any) -> None:
        """Wait for a call that hands over weights; an actor that does not take them is replaced."""
        try:
            took_s: float = self._result("a worker to load weights", call, self._settings.stall_timeout_s)
            self._load_s = max(self._load_s, took_s)
        except (*GONE, GetTimeoutError) as error:
            self._replace(actor, f"failed to load weights: {type(error).__name__}")

    def _collect(self, actor: RolloutActor) -> list[Group]:
        try:
            result = self._result("a worker's groups", actor.call, self._settings.stall_timeout_s)
        except GONE as error:
            self._replace(actor, f"died ({type(error).__name__})")
            return []
        except GetTimeoutError:
            self._replace(actor, f"has groups that cannot be fetched{stopped()}")
            return []
        actor.call = None
        groups: list[Group] = result
        if isinstance(result, Worked):
            groups = result.groups
            self._fresh_progress += result.progress
            for group_id, content in result.progress:
                self._told.setdefault(group_id, []).append(content)
        for group in groups:
            del actor.groups[group.group_id]
            self._told.pop(group.group_id, None)
        actor.clock.set(idle=not actor.groups)
        return groups

    def _replace(self, actor: RolloutActor, reason: str) -> None:
        """Start a fresh actor with the current weights; the old one's unfinished groups, as far as they were told, go back to the front of the
        queue."""
        self._queue.extendleft(reversed([self._gone_on(request) for request in actor.groups.values()]))
        actor.groups, actor.loading = {}, []
        while reason:
            self._replaced += 1
            if self._replaced > self._settings.max_replacements:
                raise RolloutPoolError(
                    f"rollout workers may be replaced rollout.max_replacements={self._settings.max_replacements} times; the last one {reason}. "
                    "Look at its log in the Ray session folder; too little memory is the usual cause."
                )
            end_actor(actor.handle)
            fresh, reason = self._start(actor.number), ""
            actor.handle = fresh.handle
            try:
                self._await_start(fresh)
            except RolloutPoolError as error:
                if not isinstance(error.__cause__, GONE):
                    raise
                # Ray may have put it on a node that is lost, before it knew of the loss.
                reason = f"did not start: {error}"
        actor.call, actor.last_answer_s = None, time.monotonic()

    def _gone_on(self, request: Request) -> Request:
        """The request as far as its answer was told; conversations begin again."""
        told = self._told.pop(request.group_id, [])
        if isinstance(request, EpisodeRequest):
            return request
        return going_on(request, [from_bytes(content) for content in told])

    def _get(self, what: str, method: Any, limit_s: float, *arguments: Any) -> Any:
        """Result of one call of an actor's method."""
        return ask(what, limit_s, lambda: ray.get(method.remote(*arguments), timeout=limit_s))

    def _result(self, what: str, call: Any, limit_s: float) -> Any:
        """Result of a call that has been made."""
        return ask(what, limit_s, lambda: ray.get(call, timeout=limit_s))


def _stored(given: Publication, limit_s: float) -> Publication:
    """A publication of this process, in the object store."""
    assert given.tensors is not None
    what = "Ray's object store to take the weights"
    stored = tuple(
        ask(what, limit_s, partial(ray.put, bucket)) for bucket in buckets(given.tensors.items(), given.bucket_bytes)
    )
    head = ask(what, limit_s, lambda: ray.put(given.header))
    sent_bytes = given.header.size_bytes
    return replace(given, tensors=None, policy=None, buckets=stored, header=head, sent_bytes=sent_bytes)
