"""A user who says what a file says, message after message, whatever the answers are.

    task:
      kind: environment
      environment: samepath.rollout.environments.scripted_user:ScriptedUser
      options: {path: talks.jsonl, held_out_share: 0.1, reward: "samepath.rewards.exact:number"}

A line of the file is an object such as `{"user": ["12+34?", "Thanks. And 7 more?"], "answers": ["46", "53"], "system": "Be brief."}`:
`answers` has the right answer to each message, or null where none is judged; `system` may be missing.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samepath.model.text.conversation import JsonValue, Message, ToolSchema
from samepath.rewards.request import RewardRequest
from samepath.rewards.score import Score
from samepath.rollout.environments.answer_judge import AnswerJudge
from samepath.rollout.environments.file_rows import FileRows
from samepath.rollout.environments.one_turn import first_messages, no_tool
from samepath.rollout.environments.protocol import EnvironmentRow, Split, ToolResult

ALL_RIGHT = "right"
"""First part of a score: the least that any answer's first part is."""


class ScriptedUser:
    """Conversations with a script of a file. Answers are judged by a reward, each by itself."""

    def __init__(
        self, *, path: str, reward: str | Mapping[str, Any], held_out_path: str = "", held_out_share: float = 0.0
    ) -> None:
        """`path`, `held_out_path`, `held_out_share`: see `FileRows`. `reward`: see `AnswerJudge`."""
        self._files = FileRows(path, held_out_path, held_out_share, _read)
        self._judge, self._dataset = AnswerJudge(reward), Path(path).stem

    def tasks(self, split: Split) -> Sequence[EnvironmentRow]:
        """See `FileRows.tasks`."""
        return self._files.tasks(split)

    async def start(self, row: EnvironmentRow, seed: int) -> "ScriptedSession":
        """See `Environment.start`; nothing in a session is random."""
        return ScriptedSession(row, self._judge, self._dataset)


class ScriptedSession:
    """One conversation."""

    def __init__(self, row: EnvironmentRow, judge: AnswerJudge, dataset: str) -> None:
        data: Any = row.data
        self._row, self._judge, self._dataset = row, judge, dataset
        self._script: list[str] = data["user"]
        self._said: list[str] = []
        self.messages: Sequence[Message] = first_messages(data.get("system", ""), self._script[0])
        self.tools: Sequence[ToolSchema] = ()

    async def call(self, name: str, arguments: Mapping[str, JsonValue], deadline_s: float) -> ToolResult:
        """See `Session.call`."""
        return no_tool(name)

    async def reply(self, content: str) -> Message | None:
        """See `Session.reply`."""
        self._said.append(content)
        if len(self._said) == len(self._script):
            return None
        return Message(role="user", content=self._script[len(self._said)])

    async def score(self) -> Score:
        """See `Session.score`: the mean over the judged answers, and what the worst one's first part is; one never given counts as empty."""
        data: Any = self._row.data
        said = [*self._said, *("" for _ in self._script[len(self._said) :])]
        requests = [
            RewardRequest(
                prompt_text=asked,
                response_text=answer,
                answer={**data, "answer": right},
                dataset=self._dataset,
                finish_reason="stop",
                rollout_key=f"{self._row.row_id}/{place}",
            )
            for place, (asked, answer, right) in enumerate(zip(self._script, said, data["answers"], strict=True))
            if right is not None
        ]
        scores = await asyncio.gather(*(self._judge.score(request) for request in requests))
        return mean_score(scores)

    async def close(self) -> None:
        """See `Session.close`; it holds nothing."""


def mean_score(scores: Sequence[Score]) -> Score:
    """Means of totals and of parts, behind the least of the first parts; the first that failed, if any did."""
    for score in scores:
        if score.status != "ok":
            return score
    count = len(scores)
    names = list(scores[0].parts)
    means = {name: sum(score.parts[name] for score in scores) / count for name in names}
    least = min(score.parts[names[0]] for score in scores)
    return Score(total=sum(score.total for score in scores) / count, parts={ALL_RIGHT: least, **means})


def _read(record: Mapping[str, JsonValue]) -> tuple[str, dict[str, JsonValue]]:
    user, answers, system = record.get("user"), record.get("answers"), record.get("system", "")
    if not isinstance(user, list) or not user or not all(isinstance(said, str) and said for said in user):
        raise ValueError(f"'user' must be a list of the user's messages, at least one; got {user!r:.80}")
    if not isinstance(answers, list) or len(answers) != len(user) or all(answer is None for answer in answers):
        raise ValueError(
            f"'answers' must be a list of the right answers, one for each of the {len(user)} messages or null where none is judged, not all "
            f"null; got {answers!r:.80}"
        )
    if not isinstance(system, str):
        raise ValueError(f"'system' must be text; got {system!r:.80}")
    return "\n".join(map(str, [*([system] if system else []), *user])), dict(record)
