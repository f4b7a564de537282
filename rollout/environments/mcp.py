"""An MCP server as an environment: its tools, questions of your own, and a reward for the answer. The server speaks to a child process that has
the package `mcp`; this process needs none of it.

    task:
      kind: environment
      environment: samepath.rollout.environments.mcp:McpServer
      options:
        path: questions.jsonl
        held_out_share: 0.1
        command: ["{python}", server.py]
        reward: samepath.rewards.exact:number

A line of the file is an object such as `{"question": "What does an apple cost?", "answer": "3"}`; the reward function sees all of it.
"""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samepath.model.text.conversation import JsonValue, Message
from samepath.rewards.request import RewardRequest
from samepath.rewards.score import Score
from samepath.rollout.environments.answer_judge import AnswerJudge
from samepath.rollout.environments.child import Program
from samepath.rollout.environments.child_sessions import ChildLimits, Children, ChildSession, read_tools
from samepath.rollout.environments.file_rows import FileRows
from samepath.rollout.environments.one_turn import first_messages
from samepath.rollout.environments.protocol import EnvironmentFailure, EnvironmentRow, Split

PACKAGE = "mcp>=2.0,<3"
"""What the interpreter of the child must have."""


@dataclass(slots=True, eq=False, kw_only=True)
class McpSession(ChildSession):
    """Tools of the server; the first answer of the model ends the conversation and is judged."""

    row: EnvironmentRow
    judge: AnswerJudge
    dataset: str
    answer: str = field(default="", init=False)

    async def reply(self, content: str) -> Message | None:
        """Take the answer; nobody says anything to it."""
        self.answer = content
        return None

    async def score(self) -> Score:
        """Judge the answer; without one an empty answer is judged."""
        return await self.judge.score(
            RewardRequest(
                prompt_text=self.row.text,
                response_text=self.answer,
                answer=self.row.data,
                dataset=self.dataset,
                finish_reason="stop",
                rollout_key=self.row.row_id,
            )
        )


class McpServer:
    """Questions with a right answer, and the tools of one MCP server to find it.

    Raises ValueError on options that do not fit together.
    """

    def __init__(
        self,
        *,
        path: str,
        held_out_path: str = "",
        held_out_share: float = 0.0,
        question: str = "question",
        system: str = "",
        reward: str | Mapping[str, Any] = "samepath.rewards.exact:text",
        command: Sequence[str] = (),
        url: str = "",
        tools: Sequence[str] = (),
        shared: bool = False,
        python: str = "",
        environment: Mapping[str, str] | None = None,
        sessions_per_child: int = 16,
        start_timeout_s: float = 60.0,
    ) -> None:
        """Every option of the recipe.

        Args:
            path: JSON lines; `held_out_path`, `held_out_share`: see `FileRows`.
            held_out_path: Another file, for evaluation.
            held_out_share: Or the share of the file's different questions.
            question: Field of a line that is asked.
            system: The system's text; empty: none.
            reward: Judges the model's last message; see `AnswerJudge`.
            command: Program and arguments of a server that speaks over its standard streams; `{python}` is the child's interpreter.
            url: Address of a server that is already there (streamable HTTP). Exactly one of the two.
            tools: Names of the server's tools that the model may call; empty: all.
            shared: False: each conversation has a connection of its own; a server started for it finds SAMEPATH_ROW (the line, JSON) and
                SAMEPATH_SEED among its variables. True: the conversations of a child share one, which must keep them apart itself.
            python: Interpreter that has `mcp`; empty: the one that runs this.
            environment: Variables of the server.
            sessions_per_child: Conversations at once in one child process, which speaks to their servers.
            start_timeout_s: Longest time of starting a server and listing its tools, seconds.
        """
        if bool(command) == bool(url):
            raise ValueError(
                f"exactly one of command and url must be given; got command={list(command)!r}, url={url!r}"
            )
        if url and not url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://; got {url!r}")
        self._files = FileRows(path, held_out_path, held_out_share, self._read)
        self._judge = AnswerJudge(reward)
        self._question, self._system, self._only, self._dataset = question, system, tuple(tools), Path(path).stem
        options: dict[str, JsonValue] = {
            "command": list(command),
            "url": url,
            "environment": dict(environment or {}),
            "shared": shared,
        }
        what = f"MCP server {url or ' '.join(command)}"
        program = Program(what=what, adapter="mcp_client.py", options=options, python=python, install=PACKAGE)
        self._children = Children(program, ChildLimits(sessions_per_child, start_timeout_s))
        self._numbers = itertools.count()

    def tasks(self, split: Split) -> Sequence[EnvironmentRow]:
        """See `FileRows.tasks`."""
        return self._files.tasks(split)

    def _read(self, record: Mapping[str, JsonValue]) -> tuple[str, dict[str, JsonValue]]:
        asked = record.get(self._question)
        if not isinstance(asked, str) or not asked:
            raise ValueError(f"{self._question!r} must be the question, which is text; got {asked!r:.80}")
        return asked, dict(record)

    async def start(self, row: EnvironmentRow, seed: int) -> McpSession:
        """Start or join a server and list its tools."""
        session = McpSession(
            children=self._children,
            place=await self._children.take(),
            number=next(self._numbers),
            row=row,
            judge=self._judge,
            dataset=self._dataset,
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
        session.messages = first_messages(self._system, row.text)
        return session
