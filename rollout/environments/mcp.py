"""An MCP server as an environment: its tools, questions of your own, and a reward function for the answer. The server speaks to a child process
that has the package `mcp`; this process needs none of it."""

import asyncio
import contextlib
import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samepath.model.text.conversation import JsonValue, Message
from samepath.rewards.plugin import PluginError, RewardFunction, resolve
from samepath.rewards.request import RewardRequest
from samepath.rewards.score import Score
from samepath.rollout.environments.child import Program
from samepath.rollout.environments.child_sessions import ChildLimits, Children, ChildSession, read_tools
from samepath.rollout.environments.protocol import EnvironmentFailure, EnvironmentRow, Split
from samepath.rollout.environments.question_rows import question_rows

PACKAGE = "mcp>=2.0,<3"
"""What the interpreter of the child must have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """The reward function and how it is called."""

    path: str
    options: Mapping[str, Any]
    function: RewardFunction
    fields: tuple[str, str]
    timeout_s: float

    async def score(self, row: EnvironmentRow, response: str) -> Score:
        """Judge the last answer. A function that raises, or returns no number, gives a score that says so, and no reward."""
        answer = {**row.data, "answer": row.data[self.fields[1]]}
        request = RewardRequest(prompt_text=row.text, response_text=response, answer=answer)
        task = asyncio.ensure_future(self._value(request))
        done, _ = await asyncio.wait([task], timeout=self.timeout_s)
        if not done:
            task.cancel()
            return Score(total=math.nan, status="timeout", detail=f"{self.path}: no result within {self.timeout_s:g} s")
        error = task.exception()
        if error is not None:
            return Score(total=math.nan, status="error", detail=f"{self.path}: {type(error).__name__}: {error}")
        value = task.result()
        parts = (
            {str(name): number for name, number in value.items()} if isinstance(value, Mapping) else {"answer": value}
        )
        if not parts or not all(isinstance(number, int | float) and math.isfinite(number) for number in parts.values()):
            return Score(
                total=math.nan, status="invalid", detail=f"{self.path} must return finite numbers; got {value!r:.200}"
            )
        return Score(total=float(sum(parts.values())), parts={name: float(number) for name, number in parts.items()})

    async def _value(self, request: RewardRequest) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return await self.function(request, **self.options)
        # A function that computes must not hold up the tools of other conversations.
        return await asyncio.to_thread(self.function, request, **self.options)


def judge_of(path: str, options: dict[str, Any], fields: tuple[str, str], timeout_s: float) -> Judge:
    """The judge that an import path and options name. Raises ValueError where there is none."""
    try:
        function = resolve(path, options)
    except PluginError as error:
        raise ValueError(f"reward: {error}") from error
    return Judge(path=path, options=options, function=function, fields=fields, timeout_s=timeout_s)


@dataclass(slots=True, eq=False, kw_only=True)
class McpSession(ChildSession):
    """Tools of the server; the first answer of the model ends the conversation and is judged."""

    row: EnvironmentRow
    judge: Judge
    answer: str = field(default="", init=False)

    async def reply(self, content: str) -> Message | None:
        """Take the answer; nobody says anything to it."""
        self.answer = content
        return None

    async def score(self) -> Score:
        """Judge the answer; without one an empty answer is judged."""
        return await self.judge.score(self.row, self.answer)


class McpServer:
    """Questions with a right answer, and the tools of one MCP server to find it.

    Raises ValueError on options that do not fit together.
    """

    def __init__(
        self,
        *,
        train: str | Sequence[Mapping[str, Any]],
        held_out: str | Sequence[Mapping[str, Any]] = (),
        command: Sequence[str] = (),
        url: str = "",
        tools: Sequence[str] = (),
        system: str = "",
        question: str = "question",
        answer: str = "answer",
        reward: str = "samepath.rewards.exact:text",
        reward_options: Mapping[str, Any] | None = None,
        python: str = "",
        environment: Mapping[str, str] | None = None,
        shared: bool = False,
        sessions_per_child: int = 16,
        start_timeout_s: float = 60.0,
        answer_timeout_s: float = 60.0,
    ) -> None:
        """Every option of the recipe.

        Args:
            train: Rows: a JSONL file, or a list of objects. All of a row is given to the reward function.
            held_out: The same, for evaluation.
            command: Program and arguments of a server that speaks over its standard streams; `{python}` is the child's interpreter.
            url: Address of a server that is already there (streamable HTTP). Exactly one of the two.
            tools: Names of the server's tools that the model may call; empty: all.
            system: Text of the system message; empty: there is none.
            question: Field of a row that is asked.
            answer: Field of a row with the right answer; the reward function finds it under `answer`.
            reward: Import path of a reward function, which judges the model's last message.
            reward_options: Its keyword arguments.
            python: Interpreter that has `mcp`; empty: the one that runs this.
            environment: Variables of the server.
            shared: False: each conversation has a connection of its own; a server started for it finds SAMEPATH_ROW (the row, JSON) and
                SAMEPATH_SEED among its variables. True: the conversations of a child share one, which must keep them apart itself.
            sessions_per_child: Conversations at once in one child process, which speaks to their servers.
            start_timeout_s: Longest time of starting a server and listing its tools, seconds.
            answer_timeout_s: Longest time of the reward function, seconds.
        """
        if bool(command) == bool(url):
            raise ValueError(
                f"exactly one of command and url must be given; got command={list(command)!r}, url={url!r}"
            )
        if url and not url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://; got {url!r}")
        limits = ChildLimits(sessions_per_child, start_timeout_s, answer_timeout_s)
        self._rows: dict[Split, tuple[EnvironmentRow, ...]] = {
            "train": question_rows(train, "train", (question, answer)),
            "held_out": question_rows(held_out, "held_out", (question, answer)),
        }
        self._only, self._system = tuple(tools), system
        options: dict[str, JsonValue] = {
            "command": list(command),
            "url": url,
            "environment": dict(environment or {}),
            "shared": shared,
        }
        program = Program(
            what=f"MCP server {url or ' '.join(command)}",
            adapter="mcp_client.py",
            options=options,
            python=python,
            install=PACKAGE,
        )
        self._children = Children(program, limits)
        self._judge = judge_of(reward, dict(reward_options or {}), (question, answer), answer_timeout_s)
        self._numbers = itertools.count()

    def tasks(self, split: Split) -> Sequence[EnvironmentRow]:
        """Rows in the order of the file."""
        return self._rows[split]

    async def start(self, row: EnvironmentRow, seed: int) -> McpSession:
        """Start or join a server and list its tools."""
        session = McpSession(
            children=self._children,
            place=await self._children.take(),
            number=next(self._numbers),
            row=row,
            judge=self._judge,
        )
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(session.close)
            limit_s = self._children.limits.start_timeout_s
            answer = await session.ask("start", {"row": dict(row.data), "seed": seed}, limit_s)
            tools = {tool.name: tool for tool in read_tools(answer, self._children.program.what)}
            if missing := [name for name in self._only if name not in tools]:
                raise EnvironmentFailure(
                    "start",
                    f"{self._children.program.what} has no tool {', '.join(missing)}; it has {', '.join(tools) or 'none'}. Correct `tools`.",
                )
            undo.pop_all()
        session.tools = tuple(tools[name] for name in self._only or tools)
        opening = [Message(role="system", content=self._system)] if self._system else []
        session.messages = (*opening, Message(role="user", content=row.text))
        return session
