"""An engine that draws what a script says, and environments with a script of their own: conversations without a model."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from samepath.model.text.conversation import JsonValue, Message, ToolCall, ToolSchema
from samepath.model.text.encodings import dsml_text as form
from samepath.model.text.encodings.dsml_text import calls_parts
from samepath.rewards.score import Score
from samepath.rollout.counters import EngineCounters
from samepath.rollout.environments.protocol import EnvironmentFailure, EnvironmentRow, ToolResult
from samepath.rollout.record import failed_rollouts
from samepath.rollout.request import GroupRequest
from samepath.rollout.token_digest import token_digest
from samepath.rollout.types import CallSpan, Group, Rollout, Segment
from tests.marked_conversations import ADD, GET, marked_tokenizer

Policy = Callable[[str, int], str]
"""From the context as text and the seed to what is drawn, marks in it by name."""
TOKENIZER = marked_tokenizer()


def thought(answer: str, *, reasoning: str = "") -> str:
    """A whole message: reasoning, then the answer."""
    return f"{reasoning}{form.THOUGHT}{answer}{form.END}"


def calling(*calls: ToolCall) -> str:
    """A whole message that makes calls."""
    return thought("\n\n" + "".join(part.text for part in calls_parts(calls)))


class ScriptedEngine:
    """Finishes one sample a step. `contexts` keeps what it was asked."""

    def __init__(self, policy: Policy, *, longest: int = 100_000) -> None:
        self.policy, self.longest_sequence = policy, longest
        self.tokenizer, self.counters, self.weight_version = TOKENIZER, EngineCounters(), 0
        self.held = False
        """True: it draws nothing."""
        self.contexts: list[str] = []
        self.requests: list[GroupRequest] = []
        self._waiting: list[tuple[GroupRequest, int]] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def submit(self, request: GroupRequest) -> Group | None:
        if len(request.prompt.token_ids) + request.sampling.max_new_tokens > self.longest_sequence:
            return failed_rollouts(request, "prompt_too_long")
        self.requests.append(request)
        self._waiting += [(request, index) for index in range(len(request.seeds))]
        return None

    def step(self) -> list[Group]:
        if self.held:
            return []
        request, index = self._waiting.pop(0)
        return [self._group(request, index, "")]

    def abort(self) -> list[Group]:
        groups = [self._group(request, index, "abort") for request, index in self._waiting]
        self._waiting.clear()
        return groups

    def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        raise NotImplementedError

    def load_weights(self, tensors: Mapping[str, object], version: int) -> None:
        self.weight_version = version

    def _group(self, request: GroupRequest, index: int, reason: str) -> Group:
        context = TOKENIZER.text(list(request.prompt.token_ids))
        self.contexts.append(context)
        text = self.policy(context, request.seeds[index])
        ids = TOKENIZER.encode_continuation(text, [(0, len(text))])
        drawn = ids[: request.sampling.max_new_tokens]
        whole = "stop" if drawn == ids and ids[-1] == TOKENIZER.end_id else "length"
        call = _call(request.prompt.token_ids, drawn, reason or whole)
        rollout = Rollout(
            prompt_id=request.prompt.prompt_id,
            group_id=request.group_id,
            sample_index=index,
            segments=(call,),
            text=TOKENIZER.decode(list(drawn)),
        )
        return Group(group_id=request.group_id, prompt=request.prompt, sampling=request.sampling, rollouts=(rollout,))


def _call(prompt: Sequence[int], drawn: Sequence[int], reason: str) -> Segment:
    ids = np.array([*prompt, *drawn], np.int32)
    trained = np.arange(len(ids)) >= len(prompt)
    span = CallSpan(index=0, first=len(prompt), end=len(ids), finish_reason=reason, digest=token_digest(ids))
    return Segment(
        token_ids=ids,
        trained=trained,
        sampler_logprobs=np.where(trained, -1, 0).astype(np.float32),
        routes=np.zeros((len(ids), 1, 1), np.int16),
        support=None,
        selection_fingerprint=None,
        weight_version=np.where(trained, 0, -1).astype(np.int32),
        finish_reason=reason,
        calls=(span,),
    )


def asks_twice(context: str, seed: int) -> str:
    """A policy that works the toy conversation: gets a key, answers, gets the next one, answers."""
    question = context.rpartition(form.USER)[2]
    key = question.partition(form.ASSISTANT)[0].split()[-1]
    if form.RESULTS_OPEN.strip() not in question:
        return calling(ToolCall(name="get", arguments={"key": key}))
    return thought(question.rpartition("<result>")[2].partition("</result>")[0], reasoning=f"seed {seed % 7}")


@dataclass
class ToySession:
    """Two questions about keys; a key is its own value, or the name of a fault."""

    row: EnvironmentRow
    log: list[str]
    faults: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    tools: Sequence[ToolSchema] = (GET, ADD)

    @property
    def messages(self) -> Sequence[Message]:
        return [Message(role="user", content=f"key {self.keys[0]}")]

    @property
    def keys(self) -> list[str]:
        return self.row.text.split()

    async def call(self, name: str, arguments: Mapping[str, JsonValue], deadline_s: float) -> ToolResult:
        self.log.append(f"call {name}")
        key = str(arguments.get("key", ""))
        if key in self.faults:
            made = self.faults[key]()
            return await made if asyncio.iscoroutine(made) else made
        return ToolResult(text=key.upper())

    async def reply(self, content: str) -> Message | None:
        self.answers.append(content)
        if "reply" in self.faults:
            await self.faults["reply"]()
        following = self.keys[len(self.answers) :]
        return Message(role="user", content=f"and key {following[0]}") if following else None

    async def score(self) -> Score:
        if "score" in self.faults:
            made = self.faults["score"]()
            return await made if asyncio.iscoroutine(made) else made
        right = [answer == key.upper() for answer, key in zip(self.answers, self.keys)]
        share = sum(right) / len(self.keys)
        return Score(total=float(share == 1), parts={"right": float(share == 1), "share": share})

    async def close(self) -> None:
        self.log.append("close")
        if "close" in self.faults:
            await self.faults["close"]()


class Toy:
    """An environment of rows such as `a b`. Tests put faults into the class; `log` tells what its sessions did."""

    faults: ClassVar[Mapping[str, Callable[[], Any]]] = {}
    log: ClassVar[list[str]] = []

    def __init__(self, rows: Sequence[str] = ("a b",), held_out: Sequence[str] = ("c d",)) -> None:
        self._rows = {"train": rows, "held_out": held_out}

    def tasks(self, split: str) -> Sequence[EnvironmentRow]:
        return [EnvironmentRow(row_id=f"{split}-{index}", text=text) for index, text in enumerate(self._rows[split])]

    async def start(self, row: EnvironmentRow, seed: int) -> ToySession:
        self.log.append("start")
        if "start" in self.faults:
            made = self.faults["start"]()
            if asyncio.iscoroutine(made):
                await made
        return ToySession(row, self.log, self.faults)


def failing(kind: Any, detail: str = "gone") -> Any:
    """A fault: the infrastructure fails."""

    def fail() -> None:
        raise EnvironmentFailure(kind, detail)

    return fail


def blocking(seconds: float) -> Any:
    """A fault: code that blocks the loop."""

    def block() -> ToolResult:
        time.sleep(seconds)
        return ToolResult(text="late")

    return block
