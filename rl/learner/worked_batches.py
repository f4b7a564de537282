"""Which worked answers and conversations the cold start trains on at which step, as sequences that nobody sampled."""

import random
from collections.abc import Iterator, Sequence

import numpy as np

from samepath.model.shape import ModelShape
from samepath.model.text.conversation import Conversation
from samepath.model.text.renderer import Renderer
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.batch.pack import TrainSequence
from samepath.rl.learner.worked_answers import AnswerKindError, resolve_answer_writer, written
from samepath.rl.learner.worked_conversation import WorkedSegment, worked_segments
from samepath.rl.recipe.cold_start import ColdStartSettings
from samepath.rl.tasks.row import Task, TaskRow
from samepath.rollout.types import MISSING_ROUTE, Segment

MAX_UNUSABLE = 100
"""Draws in a row of rows that cannot be encoded, answered or fitted into the model before the cold start gives up."""


class WorkedBatches:
    """Draws worked answers deterministically by step."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        task: Task,
        settings: ColdStartSettings,
        seed: int,
        *,
        renderer: Renderer | None = None,
    ) -> None:
        """With a `renderer` (a task of conversations) the traces are conversations, without one texts."""
        self._tokenizer, self._task, self._settings, self._seed = tokenizer, task, settings, seed
        self._renderer = renderer
        self._write = resolve_answer_writer(settings.traces, {**settings.options, **settings.late_options})

    def batch(self, step: int, shape: ModelShape) -> tuple[TrainSequence, ...]:
        """The sequences of one step: a function of seed and step alone; of a conversation one an epoch.

        A row that cannot be used is passed over for the next draw. Raises ValueError, with the reason of the last, if more than MAX_UNUSABLE
        draws in a row give none, and AnswerKindError at once if the traces are no conversations and must be, or the other way round.
        """
        rng = random.Random(f"{self._seed}/{step}")
        rows = self._task.train
        sequences: list[TrainSequence] = []
        used, unusable = 0, 0
        while used < self._settings.batch_size:
            try:
                sequences += self._drawn(rows[rng.randrange(len(rows))], rng, step, shape)
            except AnswerKindError:
                raise
            except ValueError as error:
                unusable += 1
                if unusable > MAX_UNUSABLE:
                    raise ValueError(
                        f"{unusable} draws one after the other gave no row for the cold start: {error}"
                    ) from error
            else:
                used, unusable = used + 1, 0
        return tuple(sequences)

    def _drawn(self, row: TaskRow, rng: random.Random, step: int, shape: ModelShape) -> list[TrainSequence]:
        """The sequences of a row. Raises ValueError if it cannot be used."""
        settings = self._settings
        late = step >= settings.steps - settings.late_steps
        options = {**settings.options, **settings.late_options} if late else settings.options
        worked = written(self._write, row, rng, options)
        segments = list(self._segments(row, worked))
        longest = max(len(segment.token_ids) for segment in segments)
        if longest > shape.max_position_embeddings:
            raise ValueError(
                f"prompt and worked answer must fit max_position_embeddings={shape.max_position_embeddings}; got {longest} tokens"
            )
        return [_sequence(segment, shape, epoch) for epoch, segment in enumerate(segments)]

    def _segments(self, row: TaskRow, worked: str | Conversation) -> Iterator[WorkedSegment]:
        if isinstance(worked, Conversation):
            assert self._renderer is not None
            yield from worked_segments(worked, self._renderer)
        else:
            prompt = row.encode(self._tokenizer)
            ids = (*prompt, *self._tokenizer.encode_continuation(worked), self._tokenizer.end_id)
            yield WorkedSegment(token_ids=ids, answers=((len(prompt), len(ids)),))


def supervised_sequence(prompt_ids: Sequence[int], response_ids: Sequence[int], shape: ModelShape) -> TrainSequence:
    """A sequence of a prompt and a response, every token of which is a target."""
    ids = (*prompt_ids, *response_ids)
    return _sequence(WorkedSegment(token_ids=ids, answers=((len(prompt_ids), len(ids)),)), shape, 0)


def _sequence(worked: WorkedSegment, shape: ModelShape, epoch: int) -> TrainSequence:
    """A sequence nobody sampled: no routes, no supports, the tokens of the answers its targets."""
    total = len(worked.token_ids)
    trained = np.zeros(total, np.bool_)
    for first, end in worked.answers:
        trained[first:end] = True
    segment = Segment(
        token_ids=np.array(worked.token_ids, np.int32),
        trained=trained,
        sampler_logprobs=np.zeros(total, np.float32),
        routes=np.full((total, len(shape.moe_layers), shape.num_experts_per_tok), MISSING_ROUTE, np.int16),
        support=None,
        selection_fingerprint=np.zeros((total, len(shape.sparse_layers)), np.uint64),
        weight_version=np.where(trained, 0, -1).astype(np.int32),
        finish_reason="stop",
        epoch=epoch,
    )
    return TrainSequence(segment=segment, temperature=1.0, name="cold start")
