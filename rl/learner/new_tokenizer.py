"""The tokenizer of a new model: one token a character, or learned from the worked conversations that its cold start is made of."""

import random
from collections.abc import Iterator, Sequence
from itertools import groupby

from samepath.model.text.conversation import Conversation
from samepath.model.text.encodings.learned_tokenizer import LEAST_IDS, byte_tokenizer, learned_pieces
from samepath.model.text.tokenizer import Tokenizer, character_tokenizer
from samepath.rl.learner.worked_answers import AnswerKindError, resolve_answer_writer, written
from samepath.rl.learner.worked_conversation import worked_segments
from samepath.rl.recipe.cold_start import ColdStartSettings
from samepath.rl.recipe.model import LearnedTokenizer, NewModel
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.tasks.row import Task, TaskRows
from samepath.rollout.environments.form import renderer_of
from samepath.rollout.environments.settings import FormSettings


def new_tokenizer(recipe: Recipe, task: Task | None) -> Tokenizer:
    """The tokenizer of a recipe's new model. Raises ValueError. `task` may be None where the tokenizer is not learned from its rows."""
    model = recipe.model
    assert isinstance(model, NewModel)
    if model.tokenizer is None:
        return character_tokenizer(model.alphabet)
    assert isinstance(recipe.task, EnvironmentTask)
    assert task is not None
    return learned_tokenizer(model.tokenizer, task.train, recipe.cold_start, recipe.task.episode.form)


def learned_tokenizer(
    settings: LearnedTokenizer, rows: TaskRows, cold_start: ColdStartSettings, form: FormSettings
) -> Tokenizer:
    """A tokenizer of the texts between control tokens in the worked conversations of the first rows; of equal settings an equal one.

    A row that cannot be worked is left out. Raises ValueError if none can, or the form is not that of the control tokens.
    """
    write = resolve_answer_writer(cold_start.traces, {**cold_start.options, **cold_start.late_options})
    tokenizer = byte_tokenizer()
    renderer = renderer_of(tokenizer, form)
    texts: list[str] = []
    used, reason = 0, ValueError("the task has no training rows")
    for index in range(min(settings.rows, len(rows))):
        try:
            worked = written(write, rows[index], random.Random(f"tokenizer/{index}"), cold_start.options)
            if not isinstance(worked, Conversation):
                raise AnswerKindError("model.tokenizer learns from conversations; the task has questions alone")
            segments = worked_segments(worked, renderer)
        except AnswerKindError:
            raise
        except ValueError as error:
            reason = error
        else:
            used += 1
            texts += [text for segment in segments for text in _between_marks(tokenizer, segment.token_ids)]
    if not used:
        raise ValueError(
            f"model.tokenizer finds no worked conversation among the first training rows: {reason}"
        ) from reason
    return byte_tokenizer(learned_pieces(texts, least=used, most=settings.vocab_size - LEAST_IDS))


def _between_marks(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[str]:
    for control, run in groupby(ids, key=lambda id_: id_ in tokenizer.control_ids):
        if not control:
            yield tokenizer.text(list(run))
