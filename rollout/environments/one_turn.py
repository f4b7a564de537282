"""The session of an environment that asks once, offers no tools and judges the answer by a reward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samepath.model.text.conversation import JsonValue, Message, ToolSchema
from samepath.rewards.request import RewardRequest
from samepath.rewards.score import Score
from samepath.rollout.environments.answer_judge import AnswerJudge
from samepath.rollout.environments.protocol import EnvironmentRow, ToolResult


@dataclass(slots=True, kw_only=True)
class OneTurnSession:
    """One question; without an answer the reward judges an empty one."""

    judge: AnswerJudge
    """Judges the answer."""
    row: EnvironmentRow
    """Its text is the question."""
    answer: Mapping[str, Any]
    """What the reward function finds in `RewardRequest.answer`."""
    system: str
    """The system's text; empty: none."""
    dataset: str
    """`RewardRequest.dataset`."""
    said: str = ""
    """The answer."""

    @property
    def messages(self) -> Sequence[Message]:
        """See `Session.messages`."""
        return first_messages(self.system, self.row.text)

    @property
    def tools(self) -> Sequence[ToolSchema]:
        """None."""
        return ()

    async def call(self, name: str, arguments: Mapping[str, JsonValue], deadline_s: float) -> ToolResult:
        """See `Session.call`."""
        return no_tool(name)

    async def reply(self, content: str) -> Message | None:
        """See `Session.reply`: the first answer is the last."""
        self.said = content
        return None

    async def score(self) -> Score:
        """See `Session.score`: the reward's own."""
        return await self.judge.score(
            RewardRequest(
                prompt_text=self.row.text,
                response_text=self.said,
                answer=self.answer,
                dataset=self.dataset,
                finish_reason="stop",
                rollout_key=self.row.row_id,
            )
        )

    async def close(self) -> None:
        """See `Session.close`; it holds nothing."""


def first_messages(system: str, question: str) -> tuple[Message, ...]:
    """The system's message, if there is one, and the user's first."""
    asked = Message(role="user", content=question)
    return (Message(role="system", content=system), asked) if system else (asked,)


def no_tool(name: str) -> ToolResult:
    """What is read of a call where nothing can be called."""
    return ToolResult(text=f"there is no tool {name}", error="bad_arguments")
