"""Problems that reasoning_gym generates, as a task."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from samepath.rewards.gym_datasets import GENERATOR_ERRORS, WITHOUT_ANSWER, unusable
from samepath.rl.recipe.did_you_mean import did_you_mean
from samepath.rl.recipe.evaluation_rows import GymRows
from samepath.rl.recipe.task import ReasoningGymTask
from samepath.rl.tasks.prompt import prompt_text
from samepath.rl.tasks.row import Task, TaskError, TaskRow, canonical_text

_MAX_DRAWS = 64
"""Draws for one training row. At half overlap, the most that is accepted, all fail once in 2⁶⁴ rows."""
_MAX_ROUNDS = 16
_PROBED_ROWS = 32
_Generate = Callable[..., Any]


def build_reasoning_gym(settings: ReasoningGymTask) -> Task:
    """Generate the held-out rows, and make training rows on demand, each drawn anew while its text is held out.

    The splits have unrelated seeds. (reasoning_gym makes row i from seed + i, so neighbouring seeds would share rows.)
    Texts may repeat among training rows. Raises TaskError for an unknown dataset or parameter, for datasets that give other
    rows each time, when too few different texts exist, and when held-out texts are half of what the dataset generates.
    """
    generate = _checked_generator(settings)
    held_out = _different_rows(settings, generate, settings.num_held_out, "num_held_out")
    train = GeneratedRows(settings, generate, frozenset(canonical_text(row.text) for row in held_out))
    # Few training rows are probed by several draws each: one alone would say nothing about the share.
    places = [divmod(probe, settings.num_train) for probe in range(_PROBED_ROWS)]
    num_fresh = sum(train.is_fresh(index, draw) for draw, index in places)
    if 2 * num_fresh < _PROBED_ROWS:
        raise TaskError(
            f"{settings.dataset}: held-out rows must be a small part of what the dataset generates; of {_PROBED_ROWS} training "
            f"rows {_PROBED_ROWS - num_fresh} were held out. Lower num_held_out ({settings.num_held_out}) or widen params."
        )
    return Task(
        name=settings.dataset,
        train=train,
        held_out=held_out,
        seed=settings.seed,
        datasets={settings.dataset: settings.num_train},
    )


class GeneratedRows:
    """Training rows made on demand: row i is the first draw for i whose text is not held out."""

    def __init__(self, settings: ReasoningGymTask, generate: _Generate, held_out: frozenset[str]) -> None:
        self._settings = settings
        self._generate = generate
        self._held_out = held_out
        self._draws: list[Any] = []

    def __len__(self) -> int:
        return self._settings.num_train

    def __iter__(self) -> Iterator[TaskRow]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> TaskRow:
        """Make row `index`; raises IndexError outside 0 … num_train − 1."""
        for draw in range(_MAX_DRAWS):
            row = self._drawn(index, draw)
            if canonical_text(row.text) not in self._held_out:
                return row
        raise TaskError(
            f"{self._settings.dataset} train row {index}: {_MAX_DRAWS} draws gave only held-out texts. Lower num_held_out."
        )

    def is_fresh(self, index: int, draw: int) -> bool:
        """Tell whether one draw for a row is not held out."""
        return canonical_text(self._drawn(index, draw).text) not in self._held_out

    def _drawn(self, index: int, draw: int) -> TaskRow:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 … {len(self) - 1}; got {index}")
        while len(self._draws) <= draw:
            seed = _derived_seed(self._settings.seed, "train", len(self._draws))
            self._draws.append(self._generate(size=self._settings.num_train, seed=seed))
        try:
            entry = self._draws[draw][index]
        except GENERATOR_ERRORS as error:
            where = f"{self._settings.dataset} train row {index}"
            raise TaskError(f"{where}: reasoning_gym cannot make it: {error!r}.") from error
        return _row(self._settings, entry, "train", index)


def generated_rows(settings: GymRows) -> list[TaskRow]:
    """Rows for an evaluation, all different; those that a task of the same seed holds out come first. Raises TaskError."""
    return _different_rows(settings, _checked_generator(settings), settings.num_rows, "num_rows")


def _different_rows(settings: ReasoningGymTask | GymRows, generate: _Generate, count: int, name: str) -> list[TaskRow]:
    rows: dict[str, TaskRow] = {}
    for round_ in range(_MAX_ROUNDS):
        entries = generate(size=count, seed=_derived_seed(settings.seed, "held-out", round_))
        for index in range(count):
            row = _row(settings, entries[index], "held-out", len(rows))
            rows.setdefault(canonical_text(row.text), row)
            if len(rows) == count:
                return list(rows.values())
    raise TaskError(
        f"{settings.dataset}: {name} must not exceed the different texts that the dataset generates; "
        f"{_MAX_ROUNDS * count} draws gave {len(rows)} of {count}. "
        f"Lower {name} or widen params."
    )


def _row(settings: ReasoningGymTask | GymRows, entry: Mapping[str, Any], split: str, index: int) -> TaskRow:
    where = f"{settings.dataset} {split} row {index}"
    try:
        # Tuples pass and stay tuples: some of the datasets' scorers compare with them.
        json.dumps(entry)
    except (TypeError, ValueError) as error:
        raise TaskError(f"{where}: the entry must be plain data that JSON can hold: {error}.") from error
    gold = entry["answer"]
    prompt = prompt_text(settings, entry["question"], where)
    return TaskRow(
        row_id=f"{split}-{index}",
        question=entry["question"],
        text=prompt.text,
        written=prompt.written,
        chat=settings.chat.form,
        answer={
            "answer": "" if gold is None else str(gold),
            "entry": entry,
            "dataset": settings.dataset,
            "config": settings.params,
        },
        dataset=settings.dataset,
        row=index,
        where=where,
    )


def _derived_seed(seed: int, split: str, draw: int) -> int:
    """Return a seed of 31 bits that has no simple relation to the seeds of other splits and draws."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{split}/{draw}".encode()).digest()[:4], "big") >> 1


def _checked_generator(settings: ReasoningGymTask | GymRows) -> _Generate:
    """Return a function of size and seed that makes the dataset, after refusing what cannot work."""
    datasets, create = _reasoning_gym()
    name = settings.dataset
    if name not in datasets:
        raise TaskError(f"dataset must be one that reasoning_gym has; got {name!r}{did_you_mean(name, datasets)}")
    if reason := unusable(name):
        raise TaskError(reason)
    if name in WITHOUT_ANSWER:
        warnings.warn(
            f"{name} stores no answer: `answer` is empty, and only reasoning_gym's own scorer can judge.", stacklevel=4
        )
    known = [field.name for field in dataclasses.fields(datasets[name][1]) if field.name not in ("seed", "size")]
    for param in settings.params:
        if param not in known:
            raise TaskError(
                f"{name} has no parameter {param!r}{did_you_mean(param, known)} (it has: {', '.join(sorted(known))})"
            )

    def generate(*, size: int, seed: int) -> Any:
        try:
            return create(name, size=size, seed=seed, **settings.params)
        except GENERATOR_ERRORS as error:
            raise TaskError(f"{name} does not take params {settings.params}: {error}") from error

    return generate


def _reasoning_gym() -> tuple[Mapping[str, tuple[type, type]], _Generate]:
    """Return reasoning_gym's datasets by name, and its function that makes one."""
    try:
        # Imported late: optional, and it takes about two seconds.
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise TaskError(f"kind reasoning_gym needs a package: pip install samepath[gym] ({error}).") from error
    return DATASETS, reasoning_gym.create_dataset
