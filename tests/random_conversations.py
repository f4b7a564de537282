"""Conversations of a small model with random weights: whatever it says is a call of a tool, or an answer, and some conversations go on."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from samepath.model.text.chat import ChatTemplate
from samepath.model.text.conversation import Completion, JsonValue, Message, ToolCall, ToolSchema
from samepath.model.text.tokenizer import Tokenizer, character_tokenizer
from samepath.rewards.score import Score
from samepath.rollout.environments.protocol import EnvironmentRow, ToolResult
from samepath.rollout.environments.request import EpisodeRequest
from samepath.rollout.environments.settings import EnvironmentSettings, EpisodeSettings
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Prompt
from tests.conftest import ALPHABET

TEMPLATE = ChatTemplate(
    source="{% if tools %}{% endif %}{% for message in messages %}{% if message.role == 'user' %}{{ bos_token }}{% endif %}"
    "{{ message.content }}{{ eos_token }}{% endfor %}",
    special_tokens={"bos_token": "<bos>", "eos_token": "<eos>"},
)
NOTE = ToolSchema(
    function={"name": "note", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}
)


def talking_tokenizer() -> Tokenizer:
    """One token a character, and a chat template of these characters."""
    plain = character_tokenizer(ALPHABET)
    return Tokenizer(plain.fast, plain.end_token, plain.start_token, chat=TEMPLATE)


def calls_or_answers(tokenizer: Tokenizer) -> Callable[..., Completion]:
    """A parser: a message of even length is a call, or two where it is long; one of odd length is an answer."""

    def parse(ids: Sequence[int], tools: Sequence[ToolSchema] = (), *, strict: bool = True) -> Completion:
        text = tokenizer.decode([id_ for id_ in ids if id_ not in tokenizer.end_ids])
        calls: tuple[ToolCall, ...] = ()
        if len(text) % 2 == 0:
            calls = tuple(
                ToolCall(name="note", arguments={"text": text[:4]}, call_id=f"call-{n}")
                for n in range(1 + len(text) // 8)
            )
        return Completion(reasoning="", content="" if calls else text, calls=calls, problems=())

    return parse


class Notes:
    """Rows of digits. With `killed`, a file's path, the process ends by a signal in the middle of a conversation, once."""

    def __init__(self, killed: str = "", turns: int = 3) -> None:
        self._killed, self.turns = killed, turns

    def tasks(self, split: str) -> Sequence[EnvironmentRow]:
        return [EnvironmentRow(row_id=f"{split}-{n}", text=f"{n}+{len(split)}=") for n in range(6)]

    async def start(self, row: EnvironmentRow, seed: int) -> "NotesSession":
        return NotesSession(row, self._killed, self.turns)


class NotesSession:
    tools = (NOTE,)

    def __init__(self, row: EnvironmentRow, killed: str, turns: int) -> None:
        self.messages, self._killed, self._turns, self._noted = (
            [Message(role="user", content=row.text)],
            killed,
            turns,
            0,
        )

    async def call(self, name: str, arguments: Mapping[str, JsonValue], deadline_s: float) -> ToolResult:
        self._noted += 1
        if self._killed and self._noted == 2 and not Path(self._killed).exists():
            Path(self._killed).write_text("once")
            os.kill(os.getpid(), signal.SIGKILL)
        return ToolResult(text=str(self._noted))

    async def reply(self, content: str) -> Message | None:
        self._turns -= 1
        return Message(role="user", content=f"{self._turns};") if self._turns else None

    async def score(self) -> Score:
        return Score(total=float(self._noted), parts={"noted": float(self._noted)})

    async def close(self) -> None:
        return


def episodes(count: int = 4, *, killed: str = "", seeds: int = 3, truncates: bool = True) -> list[EpisodeRequest]:
    """Conversations about the first rows."""
    rows = Notes().tasks("train")
    return [
        EpisodeRequest(
            group_id=f"g{index}",
            prompt=Prompt(prompt_id=row.row_id, text=row.text, token_ids=()),
            sampling=SamplingSettings(max_new_tokens=60, top_p=0.9 if truncates else 1.0),
            seeds=tuple(range(10 * index, 10 * index + seeds)),
            environment=EnvironmentSettings(environment="tests.random_conversations:Notes", options={"killed": killed}),
            row=row,
            episode=EpisodeSettings.model_validate(
                {
                    "form": {"parser": "tests.random_conversations:calls_or_answers"},
                    "budgets": {"max_turns": 7, "max_tokens": 150},
                }
            ),
        )
        for index, row in enumerate(rows[:count])
    ]
