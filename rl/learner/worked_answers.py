"""Worked answers and conversations for the cold start, made from the task's own rows: in more than one way, so that RL has something to find."""

import inspect
import random
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from samepath.model.text.conversation import Conversation
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.learner.worked_conversation import worked_segments
from samepath.rl.recipe.cold_start import ColdStartSettings
from samepath.rl.tasks.row import Task, TaskRow, TaskRows
from samepath.rollout.environments.form import renderer_of

TRIED_ROWS = 100
"""Rows that are tried before a writer of answers is held to be the wrong one for a task."""


class AnswerWriter(Protocol):
    """`f(row, rng, **options)`: of a TaskRow a response as text, without the end-of-sequence token; of an EnvironmentRow a whole Conversation."""

    def __call__(self, row: Any, rng: random.Random, **options: Any) -> str | Conversation:
        """Write one response, or one conversation."""
        ...


class AnswerKindError(ValueError):
    """A writer of texts for a task of conversations, or the other way round: no row will do."""


def written(writer: AnswerWriter, row: TaskRow, rng: random.Random, options: Mapping[str, Any]) -> str | Conversation:
    """What a writer makes of a row, or of the environment's own row if the task is one. Raises AnswerKindError if that is not what the task
    needs, and whatever the writer raises."""
    worked: object = writer(row if row.episode is None else row.episode.row, rng, **options)
    if row.episode is not None and isinstance(worked, Conversation):
        return worked
    if row.episode is None and isinstance(worked, str):
        return worked
    wanted = (
        "text for each row of this task" if row.episode is None else "a Conversation for each row of an environment"
    )
    raise AnswerKindError(
        f"cold_start.traces must write {wanted}; got a {type(worked).__name__}. Name a function for this kind of task."
    )


def resolve_answer_writer(path: str, options: Mapping[str, Any]) -> AnswerWriter:
    """Import `package.module:function` and check that it takes a row, a generator and the options. Raises ValueError."""
    module_name, _, name = path.partition(":")
    try:
        function = getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"cold_start.traces must be an importable `package.module:function`; got {path!r}: {error}"
        ) from error
    try:
        inspect.signature(function).bind(None, None, **options)
    except TypeError as error:
        raise ValueError(
            f"cold_start.traces: {path} must take (row, rng, **options); with the recipe's options: {error}"
        ) from error
    return function  # type: ignore[no-any-return]


def try_traces(settings: ColdStartSettings, task: Task | None, tokenizer: Tokenizer | None) -> None:
    """Raise ValueError if the writer that the settings name cannot be used, or answers none of the task's first rows at every step.

    With a tokenizer worked conversations are laid out too: some have no place in a form.
    """
    late = {**settings.options, **settings.late_options}
    writer = resolve_answer_writer(settings.traces, late)
    if task is not None:
        try_answers(writer, task.train, (settings.options, late), tokenizer)


def try_answers(
    writer: AnswerWriter, rows: TaskRows, options: Sequence[Mapping[str, Any]], tokenizer: Tokenizer | None = None
) -> None:
    """Raise ValueError, with the last reason, if it answers none of the first `TRIED_ROWS` rows with each of `options`.

    Raises AnswerKindError at the first answer of the other kind.
    """
    reason: ValueError | None = None
    for index in range(min(TRIED_ROWS, len(rows))):
        try:
            for chosen in options:
                row = rows[index]
                worked = written(writer, row, random.Random(0), chosen)
                if isinstance(worked, Conversation) and row.episode is not None and tokenizer is not None:
                    worked_segments(worked, renderer_of(tokenizer, row.episode.settings.form))
        except AnswerKindError:
            raise
        except ValueError as error:
            reason = error
        else:
            return
    if reason is not None:
        raise ValueError(f"cold_start.traces answers none of the first training rows: {reason}") from reason


def arithmetic_sum(
    row: TaskRow,
    rng: random.Random,
    *,
    direct_share: float = 0.5,
    slip_rate: float = 0.0,
    guess_rate: float = 0.0,
    marker: str = "#",
) -> str:
    """A chain of sums and differences, worked step by step or (with `direct_share`) as the bare answer after `marker`.

    `12+34-5=` becomes `12+34=46;46-5=41;#41`, or `#41`. A worked step comes out wrong by a small amount with probability
    `slip_rate`, and the rest follows from it; a bare answer does with probability `guess_rate`. Raises ValueError if the row's text is
    no such chain.
    """
    match = re.fullmatch(r"(-?\d+)((?:[+-]\d+)+)=?", row.text.replace(" ", ""))
    if match is None:
        raise ValueError(
            f"arithmetic_sum needs a text like 12+34-5=; got {row.text!r} (row {row.row_id}). Name a function for this task in cold_start.traces."
        )
    total = int(match[1])
    terms = [int(sign + number) for sign, number in re.findall(r"([+-])(\d+)", match[2])]
    if rng.random() < direct_share:
        return f"{marker}{_slipped(total + sum(terms), guess_rate, rng)}"
    steps = []
    for term in terms:
        after = _slipped(total + term, slip_rate, rng)
        steps.append(f"{total}{term:+d}={after};")
        total = after
    return "".join(steps) + f"{marker}{total}"


def _slipped(value: int, rate: float, rng: random.Random) -> int:
    return value + rng.choice((-10, -2, -1, 1, 2, 10)) if rng.random() < rate else value
