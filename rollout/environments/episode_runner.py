"""An engine that also leads conversations: beside it lives the loop with the environments, and neither waits for the other.

`step` takes what the conversations ask for, lets the engine work, and hands out what it drew. A tool that takes its time holds up its own
conversation alone.
"""

import asyncio
import json
import queue
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from samepath.model.text.renderer import Renderer
from samepath.rollout.engine import Engine
from samepath.rollout.environments.conversation_loop import ConversationLoop
from samepath.rollout.environments.episode import Ask, Episode
from samepath.rollout.environments.form import renderer_of
from samepath.rollout.environments.plugin import load_environment
from samepath.rollout.environments.protocol import Environment
from samepath.rollout.environments.request import EpisodeRequest, Request
from samepath.rollout.environments.settings import EnvironmentSettings, FormSettings
from samepath.rollout.record import failed_rollouts
from samepath.rollout.request import GroupRequest
from samepath.rollout.types import Group, Prompt, Rollout

IDLE_WAIT_S = 0.05
"""Longest wait for a conversation where the engine has nothing to do."""
GRACE_S = 5.0
"""How much longer than any bound the loop may give no sign before it is held to be blocked."""
ABORT_WAIT_S = 5.0
"""Longest wait for aborted conversations to end."""
USABLE = 2
"""Samples that a group must have left after infrastructure failures to be compared."""


@dataclass(slots=True, kw_only=True)
class _Sample:
    """One conversation in flight."""

    state: "_GroupState"
    index: int
    future: "Future[Rollout]"


@dataclass(slots=True, kw_only=True)
class _GroupState:
    """A group of conversations."""

    request: EpisodeRequest
    rollouts: dict[int, Rollout] = field(default_factory=dict)
    repeated: set[int] = field(default_factory=set)
    """Samples that were begun a second time after an infrastructure failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A message that a conversation waits for."""

    ask: Ask
    future: "asyncio.Future[Rollout]"
    loop: ConversationLoop


_Event: TypeAlias = "_Asked | _Sample"
_Answer: TypeAlias = "tuple[asyncio.Future[Rollout], Rollout]"


class EpisodeRunner:
    """Engine and conversations together. Not thread-safe: one caller steps it. It is itself what conversations draw from."""

    def __init__(self, engine: Engine, *, exact: bool) -> None:
        """`exact`: the engine promises equal records of equal rows in every call."""
        self.engine, self.exact = engine, exact
        self.tokenizer, self.longest = engine.tokenizer, engine.longest_sequence
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._loop: ConversationLoop | None = None
        self._waiting: deque[tuple[_GroupState, int]] = deque()
        self._playing: dict[int, _Sample] = {}
        self._drawing: dict[str, dict[int, _Asked]] = {}
        self._drawn: dict[ConversationLoop, list[_Answer]] = {}
        """Messages for the conversations, handed over together: a thread that is woken for each takes the interpreter from the engine each time."""
        self._numbered = 0
        self._environments: dict[str, Environment] = {}
        self._renderers: dict[str, Renderer] = {}

    @property
    def busy(self) -> bool:
        """True while anything submitted is unfinished."""
        return bool(self.engine.busy or self._waiting or self._playing)

    def submit(self, request: Request) -> Group | None:
        """Queue a group. A single-turn request that can never run comes back at once as a group of failed rollouts."""
        if isinstance(request, GroupRequest):
            return self.engine.submit(request)
        self._environment(request.environment)
        self._renderer(request.episode.form)
        state = _GroupState(request=request)
        self._waiting += [(state, index) for index in range(len(request.seeds))]
        return None

    def step(self) -> list[Group]:
        """Hand messages on and let the engine make one pass; returns the groups that this finished."""
        self._begin()
        finished = self._take_events()
        if self.engine.busy:
            for group in self.engine.step():
                if not self._handed(group):
                    finished.append(group)
        self._hand_over()
        return finished

    def abort(self) -> list[Group]:
        """Drop unfinished work. Groups of single answers come back as far as they are; conversations are judged as they stand, those that wait
        for a tool are given up."""
        groups = [group for group in self.engine.abort() if not self._handed(group)]
        self._hand_over()
        states = {id(state): state for state, _ in self._waiting}
        states |= {id(sample.state): sample.state for sample in self._playing.values()}
        self._waiting.clear()
        for sample in list(self._playing.values()):
            try:
                sample.state.rollouts[sample.index] = sample.future.result(timeout=ABORT_WAIT_S)
            except (TimeoutError, asyncio.CancelledError):
                sample.future.cancel()
        self._playing.clear()
        self._drawing.clear()
        if self._loop is not None:
            self._loop.stop()
            self._loop = None
        return groups + [_group(state) for state in states.values()]

    async def draw(self, ask: Ask) -> Rollout:
        """See `Sampler.draw`; runs in the conversations' loop."""
        assert self._loop is not None
        future: asyncio.Future[Rollout] = asyncio.get_running_loop().create_future()
        self._events.put(_Asked(ask=ask, future=future, loop=self._loop))
        return await future

    def _begin(self) -> None:
        """Start conversations in order, as many as may be in flight."""
        while self._waiting and len(self._playing) < self._waiting[0][0].request.episode.episodes_in_flight:
            state, index = self._waiting.popleft()
            if self._loop is None:
                self._loop = ConversationLoop()
            request = state.request
            episode = Episode(
                request, index, self._environment(request.environment), self._renderer(request.episode.form), self
            )
            sample = _Sample(state=state, index=index, future=self._loop.start(episode.play()))
            self._playing[id(sample)] = sample
            sample.future.add_done_callback(partial(self._over, sample))

    def _over(self, sample: _Sample, future: "Future[Rollout]") -> None:
        """Called in the conversations' loop."""
        self._events.put(sample)

    def _take_events(self) -> list[Group]:
        """What the conversations asked for and which ended since the last look; returns the groups that are complete."""
        finished: list[Group] = []
        asked: list[_Asked] = []
        wait = bool(self._playing) and not self.engine.busy
        while True:
            try:
                event = self._events.get(block=wait, timeout=IDLE_WAIT_S)
            except queue.Empty:
                break
            wait = False
            if isinstance(event, _Asked):
                asked.append(event)
            else:
                finished += self._ended(event)
        self._submit(asked)
        return finished + self._given_up()

    def _submit(self, asked: Sequence[_Asked]) -> None:
        """Ask the engine; equal contexts of one group are prefilled once."""
        alike: dict[tuple[object, ...], list[_Asked]] = {}
        for one in asked:
            ask = one.ask
            alike.setdefault((ask.group_id, ask.token_ids, ask.sampling), []).append(one)
        for members in alike.values():
            ask = members[0].ask
            self._numbered += 1
            group_id = f"{ask.group_id}#{self._numbered}"
            self._drawing[group_id] = dict(enumerate(members))
            failed = self.engine.submit(
                GroupRequest(
                    group_id=group_id,
                    prompt=Prompt(prompt_id=ask.group_id, text="", token_ids=ask.token_ids),
                    sampling=ask.sampling,
                    seeds=tuple(one.ask.seed for one in members),
                    keep_keys=True,
                    apart=True,
                )
            )
            if failed is not None:
                self._handed(failed)

    def _handed(self, group: Group) -> bool:
        """Put a group's messages by for the conversations that wait for them; false if none does."""
        members = self._drawing.get(group.group_id)
        if members is None:
            return False
        for rollout in group.rollouts:
            one = members.pop(rollout.sample_index, None)
            if one is not None:
                self._drawn.setdefault(one.loop, []).append((one.future, rollout))
        if not members:
            del self._drawing[group.group_id]
        return True

    def _hand_over(self) -> None:
        """Give the conversations what was drawn for them."""
        for loop, answers in self._drawn.items():
            loop.call(_answer, answers)
        self._drawn = {}

    def _ended(self, sample: _Sample) -> list[Group]:
        """Note a conversation that is over; a defect in it is raised here."""
        if self._playing.pop(id(sample), None) is None:
            return []
        return self._noted(sample, sample.future.result())

    def _noted(self, sample: _Sample, rollout: Rollout) -> list[Group]:
        """Take a rollout, or begin it once more if the infrastructure failed; returns the group if it is complete."""
        state, index = sample.state, sample.index
        if rollout.failure.startswith("environment_") and index not in state.repeated:
            state.repeated.add(index)
            self._waiting.append((state, index))
            return []
        state.rollouts[index] = rollout
        return [_group(state)] if len(state.rollouts) == len(state.request.seeds) else []

    def _given_up(self) -> list[Group]:
        """If the environments' code blocks the loop, every conversation in it has failed; a new loop goes on. Returns groups that this ends."""
        if self._loop is None or not self._playing:
            return []
        budgets = [sample.state.request.episode.budgets for sample in self._playing.values()]
        limit_s = GRACE_S + max(max(one.tool_timeout_s, one.session_timeout_s) for one in budgets)
        if self._loop.blocked_s() < limit_s:
            return []
        self._loop.stop()
        self._loop = None
        playing, self._playing = list(self._playing.values()), {}
        detail = f"code of the environment blocked the conversations' loop for {limit_s:g} s; await, or use asyncio.to_thread"
        finished = []
        for sample in playing:
            group = failed_rollouts(sample.state.request, "environment_timeout", detail)
            finished += self._noted(sample, group.rollouts[sample.index])
        return finished

    def _environment(self, settings: EnvironmentSettings) -> Environment:
        key = settings.environment + json.dumps(settings.options, sort_keys=True)
        if key not in self._environments:
            self._environments[key] = load_environment(settings)
        return self._environments[key]

    def _renderer(self, form: FormSettings) -> Renderer:
        key = form.model_dump_json(exclude_unset=True)
        if key not in self._renderers:
            self._renderers[key] = renderer_of(self.tokenizer, form)
        return self._renderers[key]


def _answer(answers: Sequence[_Answer]) -> None:
    for future, rollout in answers:
        if not future.done():
            future.set_result(rollout)


def _group(state: _GroupState) -> Group:
    """The group; samples without a rollout count as aborted, and none is left to compare where the infrastructure left fewer than two of several."""
    group = failed_rollouts(state.request, "aborted")
    rollouts = [state.rollouts.get(one.sample_index, one) for one in group.rollouts]
    usable = sum(not rollout.failure for rollout in rollouts)
    broken = any(rollout.failure.startswith("environment_") for rollout in rollouts)
    if broken and usable < USABLE <= len(rollouts):
        detail = "infrastructure failures left fewer than two samples of its group"
        rollouts = [
            rollout if rollout.failure else replace(rollout, failure="environment_group", failure_detail=detail)
            for rollout in rollouts
        ]
    return replace(group, rollouts=tuple(rollouts))
