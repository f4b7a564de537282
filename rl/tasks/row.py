"""What a task is once it is built: rows to train on, rows held out, and an endless shuffled order."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samepath.model.text.chat import ChatForm
from samepath.model.text.conversation import Message
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.recipe.did_you_mean import did_you_mean
from samepath.rollout.environments.first_context import first_context
from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.settings import EnvironmentSettings, EpisodeSettings


class TaskError(ValueError):
    """A task that cannot be built or read; the message names file and line, or dataset and row."""

    def __init__(self, message: str, kind: str = "malformed") -> None:
        """`kind` is what rows that are wrong in one way are counted by."""
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class RowEpisode:
    """How a row of an environment is worked.

    Example:
        RowEpisode(environment=EnvironmentSettings(environment="my_store:Store"), row=row, settings=EpisodeSettings())
    """

    environment: EnvironmentSettings
    """Which environment."""
    row: EnvironmentRow
    """Its row."""
    settings: EpisodeSettings
    """How the conversation is led."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One problem with its answer.

    Example:
        TaskRow(row_id="train-17", question="State the final answer to the following arithmetic problem: 42 - 25 - 73 =",
                text="42-25-73=", answer={"answer": "-56", "entry": {…}, "dataset": "chain_sum"}, dataset="chain_sum", row=17)
    """

    row_id: str
    """Unique within the task: `train-` or `held-out-` and the row number, or the file's own id."""
    question: str
    """The question as the source words it."""
    text: str
    """The question after rewrite and template: what the model reads, or what the user says where `chat` is given."""
    written: tuple[tuple[int, int], ...] = ()
    """Parts of `text` that the recipe's template wrote, (start, end) in characters: the only ones that may name control tokens."""
    earlier: tuple[Message, ...] = ()
    """Messages of the conversation before `text`; only where `chat` is given."""
    chat: ChatForm | None = None
    """How `text` is put into the checkpoint's chat form; None: it is the prompt as it stands."""
    answer: Mapping[str, Any] = field(default_factory=dict)
    """For the reward function: `answer` (gold answer, text), `entry` (source row, plain data), `dataset` (name); of
    reasoning_gym also `config` (the dataset's params, which some scorers read)."""
    dataset: str
    """Name of the dataset that it is from: the task's own name, unless the task mixes several."""
    row: int
    """Index in the task's split, from 0."""
    episode: RowEpisode | None = None
    """The conversation in which it is worked; None: one prompt is answered."""
    where: str = field(default="", compare=False)
    """Its place in the source, for messages: file and line, or dataset, split and row. Equal rows may stand in two places."""

    def encode(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Token ids of the prompt: of its text, or of the conversation around it; of an environment's row, whose session is started for it,
        of what its conversation begins with."""
        if self.episode is not None:
            episode = self.episode
            return first_context(tokenizer, episode.environment, episode.row, episode.settings).ids
        if self.chat is None:
            return tokenizer.encode(self.text, self.written)
        return tokenizer.encode_chat(self.text, self.chat, earlier=self.earlier, written=self.written)

    @property
    def canonical(self) -> str:
        """What decides whether two rows ask the same: see `canonical_text`."""
        return canonical_text("\n".join([*(message.content for message in self.earlier), self.text]))


class TaskRows(Protocol):
    """Rows by index from 0; may make each one when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TaskRow: ...

    def __iter__(self) -> Iterator[TaskRow]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Rows to train on and rows held out, which share no canonical text.

    Example:
        task.train_row(0).text == "42-25-73=" and len(task.held_out) == 64
    """

    name: str
    """Name of the dataset, or of the file without its suffix."""
    train: TaskRows
    """Training rows; texts may repeat."""
    held_out: list[TaskRow]
    """Rows for evaluation only."""
    seed: int
    """Seed of the epoch order."""
    datasets: Mapping[str, int] = field(default_factory=dict)
    """Training rows of each dataset that they are from; empty where that is seen only when a row is made."""
    dropped_overlap: int = 0
    """Rows of the training file left out because the held-out file has the same text."""

    @property
    def remarks(self) -> str:
        """What is to be said of its rows beside their number, each part behind a comma: rows that are left out, datasets that are mixed."""
        said = [f"{self.dropped_overlap} training rows left out that are held out too"] if self.dropped_overlap else []
        if len(self.datasets) > 1:
            said.append("of the datasets " + ", ".join(f"{name} {count}" for name, count in self.datasets.items()))
        return "".join(f", {one}" for one in said)

    def check_datasets(self, named: Iterable[str]) -> None:
        """Raise TaskError if `beta_by_dataset` names one that no training row is from; an environment's stay unchecked: its rows are made on demand."""
        for name in named:
            if self.datasets and name not in self.datasets:
                hint, known = did_you_mean(name, self.datasets), ", ".join(self.datasets)
                raise TaskError(
                    f"rl.objective.kl.beta_by_dataset must name datasets of the task; got {name!r}{hint}; there are: {known}"
                )

    def train_row(self, index: int) -> TaskRow:
        """Return the row at place `index` ≥ 0 of the endless order: every epoch visits each row once, newly shuffled.

        Depends on `seed`, `index` and the rows alone, so a resumed run goes on where it stopped.
        """
        if index < 0:
            raise IndexError(f"index must be at least 0; got {index}")
        epoch, place = divmod(index, len(self.train))
        return self.train[int(_epoch_order(len(self.train), self.seed, epoch)[place])]


def canonical_text(text: str) -> str:
    """Return the text that decides whether two prompts are the same: runs of white space become one blank.

    Only wording counts: `a+b` and `b+a` are different prompts, although one answer fits both.
    """
    return " ".join(text.split())


@lru_cache(maxsize=4)
def _epoch_order(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the permutation of 0 … num_rows − 1 for one epoch."""
    # NumPy promises the same raw bits in every version (NEP 19); it does not promise the same permutation().
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(num_rows)
    return np.argsort(bits, kind="stable")
