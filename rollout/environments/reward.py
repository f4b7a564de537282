"""Any reward function as an environment of one turn, over the rows of a file.

    task:
      kind: environment
      environment: samepath.rollout.environments.reward:RewardEnvironment
      options: {path: sums.jsonl, held_out_share: 0.1, reward: "samepath.rewards.math:answer"}

A line of the file is an object such as `{"question": "12+34?", "answer": "46"}`; the reward function sees all of it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samepath.model.text.conversation import JsonValue
from samepath.rollout.environments.answer_judge import AnswerJudge
from samepath.rollout.environments.file_rows import FileRows
from samepath.rollout.environments.one_turn import OneTurnSession
from samepath.rollout.environments.protocol import EnvironmentRow, Split


class RewardEnvironment:
    """Asks the question of a line and judges the answer by a reward."""

    def __init__(
        self,
        *,
        path: str,
        reward: str | Mapping[str, Any],
        held_out_path: str = "",
        held_out_share: float = 0.0,
        question: str = "question",
        system: str = "",
    ) -> None:
        """`path`, `held_out_path`, `held_out_share`: see `FileRows`. `reward`: see `AnswerJudge`. `question`: its name in a line's object.
        `system`: the system's text."""
        self._files = FileRows(path, held_out_path, held_out_share, self._read)
        self._judge = AnswerJudge(reward)
        self._question, self._system, self._dataset = question, system, Path(path).stem

    def tasks(self, split: Split) -> Sequence[EnvironmentRow]:
        """See `FileRows.tasks`."""
        return self._files.tasks(split)

    async def start(self, row: EnvironmentRow, seed: int) -> OneTurnSession:
        """See `Environment.start`; nothing in a session is random."""
        return OneTurnSession(judge=self._judge, row=row, answer=row.data, system=self._system, dataset=self._dataset)

    def _read(self, record: Mapping[str, JsonValue]) -> tuple[str, dict[str, JsonValue]]:
        asked = record.get(self._question)
        if not isinstance(asked, str) or not asked:
            raise ValueError(f"{self._question!r} must be the question, which is text; got {asked!r:.80}")
        return asked, dict(record)
