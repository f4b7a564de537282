"""A taskset of the library `verifiers` (0.4) as an environment: its tasks, tools, users and rewards, in a child process that has the library.

task:
  kind: environment
  environment: samepath.rollout.environments.verifiers:Verifiers
  options:
    taskset: {id: gsm8k-v1}
    held_out_share: 0.1
    python: /path/of/a/venv/bin/python
"""

import asyncio
import itertools
import json
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from samepath.model.text.conversation import JsonValue, Message
from samepath.rewards.score import Score
from samepath.rollout.environments.child import Program, RequestError
from samepath.rollout.environments.child_sessions import (
    ChildLimits,
    Children,
    ChildSession,
    clean,
    failure_of,
    read_tools,
)
from samepath.rollout.environments.held_out import is_held_out
from samepath.rollout.environments.protocol import EnvironmentFailure, EnvironmentRow, Split

PACKAGE = "verifiers==0.4.0"
"""What the interpreter of the child must have."""
ROWS_AT_ONCE = 500
"""Tasks that are handed over in one answer."""
NAMES_OF_A_TASK = ("idx", "id", "name", "description")
"""Fields of a task that say which it is, not what it asks."""
Result = TypeVar("Result")


@dataclass(slots=True, eq=False, kw_only=True)
class VerifiersSession(ChildSession):
    """An episode of the environment in the child; the model takes its seat."""

    async def reply(self, content: str) -> Message | None:
        """What the environment says to the answer; None where its episode is over."""
        said = await self.ask("reply", {"content": content}, self.children.limits.answer_timeout_s)
        return None if said is None else Message(role="user", content=clean(str(said)))

    async def score(self) -> Score:
        """The taskset's own rewards, each under its name; the total is weighted as there."""
        answer = await self.ask("score", {}, self.children.limits.answer_timeout_s)
        return Score(
            total=float(answer["total"]), parts={name: float(value) for name, value in answer["parts"].items()}
        )


class Verifiers:
    """Tasks, tools, users and rewards of a taskset.

    Raises ValueError on options that do not fit together.
    """

    def __init__(
        self,
        *,
        taskset: Mapping[str, JsonValue],
        held_out_taskset: Mapping[str, JsonValue] | None = None,
        held_out_share: float = 0.0,
        size: int = 0,
        played_by: str = "",
        agent: str = "",
        python: str = "",
        environment: Mapping[str, str] | None = None,
        sessions_per_child: int = 16,
        start_timeout_s: float = 120.0,
        answer_timeout_s: float = 60.0,
    ) -> None:
        """Every option of the recipe.

        Args:
            taskset: Its configuration as the library knows it: `id` names an installed package, the rest are its settings.
            held_out_taskset: Another one for evaluation, such as its test split.
            held_out_share: Or the share of the taskset's different tasks.
            size: How many of its tasks are used; 0: all. A taskset without an end needs one.
            played_by: `id` of the library's environment that plays the tasks; empty: the taskset's own.
            agent: Its seat that the model takes; empty: the only one.
            python: Interpreter that has the library; empty: the one that runs this.
            environment: Variables of the child, such as PYTHONPATH with the folder of a taskset that is not installed.
            sessions_per_child: Conversations at once in one child, which takes seconds to start; they share the process's random numbers. 1: each
                has a child of its own, whose random numbers begin at the sample's seed.
            start_timeout_s: Longest time of starting a child, and of the first message of a conversation, seconds.
            answer_timeout_s: Longest time of a reply, of the rewards, and of a list of tasks, seconds.
        """
        if not isinstance(taskset.get("id"), str):
            raise ValueError(f"taskset must have an id, the name of its package; got {dict(taskset)!r}")
        if (held_out_taskset is None) == (held_out_share == 0) or not 0 <= held_out_share < 1:
            raise ValueError(
                "give exactly one of held_out_taskset and held_out_share (between 0 and 1), so that there are rows to evaluate on; got "
                f"{held_out_taskset!r} and {held_out_share}"
            )
        if size < 0:
            raise ValueError(f"size must be 0 (all tasks) or more; got {size}")
        self._share, self._size = held_out_share, size
        limits = ChildLimits(sessions_per_child, start_timeout_s, answer_timeout_s)
        self._children: dict[Split, Children] = {}
        tasksets: dict[Split, Mapping[str, JsonValue] | None] = {"train": taskset, "held_out": held_out_taskset}
        for split, chosen in tasksets.items():
            if chosen is not None:
                options: dict[str, JsonValue] = {
                    "taskset": dict(chosen),
                    "environment": played_by,
                    "agent": agent,
                    "seeded": sessions_per_child == 1,
                }
                program = Program(
                    what=f"verifiers taskset {chosen.get('id')}",
                    adapter="verifiers_client.py",
                    options=options,
                    python=python,
                    install=PACKAGE,
                    environment=dict(environment or {}),
                )
                self._children[split] = Children(program, limits)
        self._given: dict[Split, list[Any]] = {}
        self._numbers = itertools.count()

    def tasks(self, split: Split) -> Sequence[EnvironmentRow]:
        """The tasks, read once by a child that ends with it. Raises EnvironmentFailure where it cannot be started, ValueError where there are none."""
        source: Split = split if split in self._children else "train"
        children = self._children[source]
        if source not in self._given:
            limit_s = children.limits.start_timeout_s + children.limits.answer_timeout_s
            self._given[source] = in_a_loop_of_its_own(read_tasks(children, self._size), limit_s)
        rows = rows_of(self._given[source], source, split)
        if self._share:
            rows = [row for row in rows if is_held_out(row.text, self._share) == (split == "held_out")]
        if not rows:
            raise ValueError(f"{children.program.what} gives no {split} rows. Change size or held_out_share.")
        return rows

    async def start(self, row: EnvironmentRow, seed: int) -> VerifiersSession:
        """Begin an episode, up to the first that is said to the model."""
        children = self._children["held_out" if row.data["taskset"] == "held_out" else "train"]
        session = VerifiersSession(children=children, place=await children.take(), number=next(self._numbers))
        async with AsyncExitStack() as undo:
            undo.push_async_callback(session.close)
            params = {"row": row.data["task"], "seed": seed}
            answer = await session.ask("start", params, children.limits.start_timeout_s)
            session.tools = read_tools(answer["tools"], children.program.what)
            session.messages = tuple(
                Message(role=message["role"], content=clean(message["content"])) for message in answer["messages"]
            )
            if not session.messages or session.messages[-1].role != "user":
                raise EnvironmentFailure(
                    "start", f"{children.program.what}: the last message before the model's must be the user's"
                )
            undo.pop_all()
        return session


async def read_tasks(children: Children, size: int) -> list[Any]:
    """All tasks of a taskset, `{text, data}` each."""
    given: list[Any] = []
    place = await children.take()
    try:
        while True:
            params = {"count": ROWS_AT_ONCE, "size": size}
            more = await place.child.ask("rows", params, children.limits.answer_timeout_s)
            given += more
            if len(more) < ROWS_AT_ONCE:
                return given
    except RequestError as error:
        raise failure_of(error, "start", f"{children.program.what}: its tasks") from error
    finally:
        await children.give_back(place)


def rows_of(given: Sequence[Any], source: Split, split: Split) -> list[EnvironmentRow]:
    """Rows of tasks. Two tasks with one prompt that differ otherwise, as games with a hidden word do, differ in their text by that too."""
    contents = [
        json.dumps({name: value for name, value in task["data"].items() if name not in NAMES_OF_A_TASK}, sort_keys=True)
        for task in given
    ]
    different: dict[str, set[str]] = {}
    for task, content in zip(given, contents, strict=True):
        different.setdefault(task["text"], set()).add(content)
    return [
        EnvironmentRow(
            row_id=f"{split}-{index}",
            text=clean(
                task["text"]
                if task["text"] and len(different[task["text"]]) == 1
                else f"{task['text']} {content}".strip()
            ),
            data={"task": task["data"], "taskset": source},
        )
        for index, (task, content) in enumerate(zip(given, contents, strict=True))
    ]


def in_a_loop_of_its_own(coroutine: Coroutine[Any, Any, Result], limit_s: float) -> Result:
    """What it returns, whether or not this thread runs a loop already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result(limit_s + 30.0)
