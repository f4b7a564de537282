"""Problems of Reasoning Gym as an environment of one turn, judged by the datasets' own scorers.

    task:
      kind: environment
      environment: samepath.rollout.environments.reasoning_gym:ReasoningGym
      options: {dataset: chain_sum, params: {min_terms: 2, max_terms: 2}}

Needs `pip install samepath[gym]`.
"""

import hashlib
from collections.abc import Container, Mapping, Sequence
from typing import Any

from samepath.model.text.conversation import JsonValue
from samepath.rewards.gym_datasets import GENERATOR_ERRORS, unusable
from samepath.rollout.environments.answer_judge import AnswerJudge
from samepath.rollout.environments.held_out import is_held_out
from samepath.rollout.environments.one_turn import OneTurnSession
from samepath.rollout.environments.protocol import EnvironmentRow, Split
from samepath.rollout.environments.rows_on_demand import RowsOnDemand

HELD_OUT_SHARE = 1 / 8
"""Of all texts."""
MAX_DRAWS = 1000
"""Draws for one row."""
SCORER = "samepath.rewards.reasoning_gym:score"


class ReasoningGym:
    """Rows of one dataset; its texts are held out by a digest, so that no training row asks what a held-out one does."""

    def __init__(
        self,
        *,
        dataset: str,
        params: Mapping[str, JsonValue] | None = None,
        num_train: int = 100_000,
        num_held_out: int = 128,
        seed: int = 0,
        strict: bool = True,
        system: str = "",
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        """`params`: settings of the dataset. `strict`: see `samepath.rewards.reasoning_gym.score`. `system`: the system's text. `limits`: what a
        recipe says under `reward` beside functions, such as {timeout_s: 20}.

        Raises ValueError for a dataset or params that cannot be used, and ModuleNotFoundError without the package.
        """
        if reason := unusable(dataset):
            raise ValueError(reason)
        if num_train < 1 or num_held_out < 1:
            raise ValueError(f"num_train and num_held_out must be at least 1; got {num_train} and {num_held_out}")
        self._dataset, self._params, self._seed = dataset, dict(params or {}), seed
        self._num_train, self._num_held_out = num_train, num_held_out
        self._judge = AnswerJudge(
            {"parts": {"answer": {"function": SCORER, "options": {"strict": strict}}}, **(limits or {})}
        )
        self._system = system
        self._generated: dict[tuple[Split, int], Any] = {}
        self._drawn("train", 0, 0)

    def tasks(self, split: Split) -> Sequence[EnvironmentRow]:
        """See `Environment.tasks`. Training rows are made when they are asked for; held-out rows are all different."""
        if split == "train":
            return RowsOnDemand(self._num_train, lambda index: self._row(split, index))
        rows: dict[str, EnvironmentRow] = {}
        for index in range(self._num_held_out):
            row = self._row(split, index, taken=rows)
            rows[row.text] = row
        return list(rows.values())

    async def start(self, row: EnvironmentRow, seed: int) -> OneTurnSession:
        """See `Environment.start`; nothing in a session is random."""
        return OneTurnSession(judge=self._judge, row=row, answer=row.data, system=self._system, dataset=self._dataset)

    def _row(self, split: Split, index: int, taken: Container[str] = ()) -> EnvironmentRow:
        """The first draw whose text belongs into the split and is not taken. Raises ValueError if there is none."""
        for number in range(MAX_DRAWS):
            row = self._drawn(split, index, number)
            if is_held_out(row.text, HELD_OUT_SHARE) == (split == "held_out") and row.text not in taken:
                return row
        raise ValueError(
            f"{self._dataset}: {MAX_DRAWS} draws gave no {split} row {index}; there are too few different ones. Lower num_held_out, or widen "
            "params."
        )

    def _drawn(self, split: Split, index: int, number: int) -> EnvironmentRow:
        try:
            # The dataset makes row i from seed + i: neighbouring seeds would share rows.
            if (split, number) not in self._generated:
                size = self._num_train if split == "train" else self._num_held_out
                self._generated[split, number] = self._create(size, _seed(self._seed, split, number))
            entry = self._generated[split, number][index]
        except GENERATOR_ERRORS as error:
            raise ValueError(f"{self._dataset} with params {self._params} makes no rows: {error!r}") from error
        gold = entry["answer"]
        # Tuples of an entry stay tuples: some of the datasets' scorers compare with them.
        data = {"answer": "" if gold is None else str(gold), "entry": entry, "config": self._params}
        return EnvironmentRow(row_id=f"{split}-{index}", text=entry["question"], data=data)

    def _create(self, size: int, seed: int) -> Any:
        try:
            # Imported late: optional, and it takes about two seconds.
            import reasoning_gym
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the environment of Reasoning Gym needs a package: pip install samepath[gym]", name=error.name
            ) from error
        return reasoning_gym.create_dataset(self._dataset, size=size, seed=seed, **self._params)


def _seed(seed: int, split: Split, number: int) -> int:
    """31 bits without a simple relation to those of other splits and draws."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{split}/{number}".encode()).digest()[:4], "big") >> 1
