"""The child's half of a `verifiers` taskset as an environment, for verifiers 0.4. Its tasks, tool servers, environment and rewards run as they do
there; only the model's seat is another.
"""

import asyncio
import random
import sys
from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf
from verifiers.v1.configs.agent import TimeoutConfig, agent_config_fields
from verifiers.v1.types import content_text
from verifiers.v1.utils.decorators import discover_decorated
from verifiers_seat import RELAY, Relay, RelayError

NO_LIMIT_S = 1e9
"""A task's own limit on the model's time would count the time of other conversations too; the recipe has a budget for it."""


class Adapter:
    """A taskset and the environment that plays it; `seeded`: the random numbers of the process begin at each session's seed."""

    def __init__(self, taskset: "dict[str, Any]", environment: str, agent: str, seeded: bool) -> None:
        self._seeded = seeded
        fields = agent_config_fields(
            vf.env_config_type(taskset.get("id", ""), environment)(taskset=taskset, id=environment)
        )
        self.role = agent or next(iter(fields))
        if self.role not in fields or (len(fields) > 1 and not agent):
            raise RelayError(
                "start", f"agent must be one of {', '.join(fields)}: the seat that the model takes; got {agent!r}"
            )
        if len(fields) > 1:
            others = ", ".join(name for name in fields if name != self.role)
            raise RelayError(
                "start",
                f"this environment has seats beside {self.role!r} that want a model of their own: {others}; not supported",
            )
        seat = {
            "harness": {"id": "verifiers_seat"},
            "runtime": {"type": "subprocess"},
            "model": "samepath",
            "timeout": TimeoutConfig(rollout=NO_LIMIT_S),
            "network_notice": False,
        }
        self._env = vf.load_environment(vf.resolve_env_config({"id": environment, "taskset": taskset, self.role: seat}))
        # No request is ever sent: the model's answers come from the parent.
        client = vf.EvalClientConfig(base_url="http://127.0.0.1:9", api_key_var="SAMEPATH_NO_KEY")
        self._context = vf.ModelContext(model="samepath", client=client)
        self._relays: dict[int, tuple[Relay, asyncio.Task[Any]]] = {}
        self._tasks: Iterator[Any] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    async def rows(self, count: int, size: int) -> "list[Any]":
        """The next `count` tasks; `size` is how many are wanted in all, 0 for all there are."""
        if self._tasks is None:
            taskset = self._env.taskset
            if not size and not taskset.bounded:
                raise RelayError("start", "this taskset has no end. Say with size how many of its tasks are used.")
            self._tasks = iter(taskset.take(size) if size else taskset)
        rows = []
        for task in self._tasks:
            rows.append({"text": task.data.prompt_text, "data": task.data.model_dump(mode="json")})
            if len(rows) == count:
                break
        return rows

    async def start(self, session: int, row: "dict[str, Any]", seed: int) -> Any:
        """Begin an episode and wait for the first that is said to the model."""
        kind = type(self._env.taskset).task_type()
        task = kind(kind.data_type().model_validate(row), self._env.taskset.config.task)
        if unsupported := [hook.__name__ for hook in discover_decorated(task, "intercept")]:
            raise RelayError(
                "start", f"this task rewrites messages ({', '.join(unsupported)}, @intercept); that is not supported"
            )
        relay = Relay(task)
        await self._serve()
        if self._seeded:
            random.seed(seed)
            if "numpy" in sys.modules:
                sys.modules["numpy"].random.seed(seed % 2**32)
        playing = asyncio.ensure_future(self._play(relay, task))
        self._relays[session] = (relay, playing)
        playing.add_done_callback(lambda _: relay.events.put_nowait(None))
        said = await relay.events.get()
        if said is None:
            raise RelayError("start", f"the episode ended before anything was asked: {trouble(playing.result())}")
        assert relay.session is not None
        return {"messages": [plain(message) for message in said], "tools": relay.session.schemas}

    async def _play(self, relay: Relay, task: Any) -> Any:
        RELAY.set(relay)
        return await self._env.run_episode(task, self._context)

    async def _serve(self) -> None:
        """Bring up what all episodes share, in a task of its own, which also takes it down."""
        if self._serving is None:
            ready = asyncio.get_running_loop().create_future()
            self._serving = asyncio.ensure_future(self._held(ready))
            self._up = ready
        await asyncio.wait([self._up, self._serving], return_when=asyncio.FIRST_COMPLETED)
        if self._serving.done():
            self._serving.result()

    async def _held(self, ready: "asyncio.Future[None]") -> None:
        async with self._env.serving():
            ready.set_result(None)
            await self._stop.wait()

    async def call(self, session: int, name: str, arguments: "dict[str, Any]", turn: int) -> Any:
        """Run a tool."""
        relay, _ = self._relays[session]
        assert relay.session is not None
        return await relay.session.call(name, arguments, turn)

    async def reply(self, session: int, content: str) -> Any:
        """Give the model's answer; what is said to it, or None at the end."""
        relay, _ = self._relays[session]
        relay.answers.put_nowait(content)
        said = await relay.events.get()
        return None if said is None else "\n\n".join(plain(message)["content"] for message in said)

    async def score(self, session: int) -> Any:
        """The rewards of the model's trace; a conversation that goes on is stopped first."""
        relay, playing = self._relays[session]
        relay.answers.put_nowait(None)
        while not playing.done():
            # An environment that asks again is told again.
            if await relay.events.get() is not None:
                relay.answers.put_nowait(None)
        episode = playing.result()
        traces = [trace for trace in episode.traces if trace.agent.name == self.role]
        if not episode.ok or not traces:
            raise RelayError("died", f"the episode failed: {trouble(episode)}")
        rewards = traces[-1].rewards
        if not rewards or None in rewards.values():
            raise RelayError("died", f"the episode has no reward: {dict(rewards)}; {trouble(episode)}")
        parts = {name: reward.score for name, reward in rewards.items()}
        return {"total": traces[-1].reward, "parts": parts}

    async def close(self, session: int) -> None:
        """End the episode, and with the last one what all share."""
        _, playing = self._relays.pop(session, (None, None))
        if playing is not None:
            playing.cancel()
            await asyncio.wait([playing])
        if not self._relays and self._serving is not None:
            self._stop.set()
            await asyncio.wait([self._serving])


def trouble(episode: Any) -> str:
    """What went wrong in an episode."""
    errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
    stops = [trace.stop_condition for trace in episode.traces if trace.is_timeout]
    return (
        "; ".join([*(f"{error.type}: {error.message}"[:1000] for error in errors), *map(str, stops)])
        or "nothing is known"
    )


def plain(message: Any) -> "dict[str, str]":
    """A message as the parent reads it. Raises RelayError on one that text cannot say."""
    content = message.content
    if isinstance(content, list) and any(part.type != "text" for part in content):
        raise RelayError("start", "this task shows images to the model; only text is supported")
    if message.role not in ("system", "user", "assistant") or getattr(message, "tool_calls", None):
        raise RelayError(
            "start",
            f"this task begins with a {message.role} message with calls or results of tools; that is not supported",
        )
    return {"role": message.role, "content": content_text(content)}
