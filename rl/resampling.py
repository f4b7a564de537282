"""Tokens of a run drawn again: by the weights that drew them, from the seeds of their samples, as far as these weights drew."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from samepath.rl.feed import Feed
from samepath.rl.history import GroupLine, SampleLine, StepLine, record_digest
from samepath.rollout.environments.request import EpisodeRequest
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.request import GroupRequest
from samepath.rollout.types import Group, Rollout
from samepath.rollout.weights.publication import Publication, here


class ReplayError(RuntimeError):
    """A run that cannot be made again, or comes out otherwise; the message names step and group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """What one version draws of one sample."""

    step: int
    number: int
    index: int
    limit: int
    """Tokens of the sample when this version is done with it."""
    last: bool
    """True if it ends with them."""


class Resampler:
    """The samples of a run, some under way. Every sample is asked for by itself: it does not depend on what else an engine does."""

    def __init__(self, worker: RolloutWorker, feed: Feed) -> None:
        self._worker, self._feed = worker, feed
        self._requests: dict[int, GroupRequest | Group] = {}
        self._drawn: dict[tuple[int, int], Rollout] = {}

    def draw(self, weights: Publication, version: int, lines: Sequence[StepLine]) -> None:
        """Load the weights of a version, and draw what they drew of the groups that these steps trained. Raises ReplayError."""
        self._worker.load_weights(here(weights), version)
        pieces = [piece for line in lines for group in line.groups for piece in _pieces(line.step, group, version)]
        asked = [self._request(piece) for piece in pieces]
        for piece, group in zip(pieces, self._worker.engine.run(asked), strict=True):
            self._take(piece, group.rollouts[0])

    def group(self, step: int, line: GroupLine) -> Group:
        """A group whose samples have all been drawn, equal to its record. Raises ReplayError."""
        request = self._asked(line.number)
        if isinstance(request, GroupRequest) and not any(sample.drawn for sample in line.samples):
            # It could never run.
            (request,) = self._worker.engine.run([request])
        if isinstance(request, Group):
            group = request
        else:
            rollouts = tuple(self._drawn.pop((line.number, index)) for index in range(len(line.samples)))
            group = Group(
                group_id=request.group_id, prompt=request.prompt, sampling=request.sampling, rollouts=rollouts
            )
        del self._requests[line.number]
        check_records(step, line, group)
        return group

    def _asked(self, number: int) -> GroupRequest | Group:
        if number not in self._requests:
            request = self._feed.request(number)
            if isinstance(request, EpisodeRequest):
                raise ReplayError(f"{request.group_id} is a conversation, whose environment cannot be replayed")
            self._requests[number] = request
        return self._requests[number]

    def _request(self, piece: _Piece) -> GroupRequest:
        request = self._asked(piece.number)
        if isinstance(request, Group):
            raise ReplayError(
                f"step {piece.step}, group {request.group_id}: it was sampled, and now its row cannot be asked"
            )
        sampling = request.sampling
        if not piece.last:
            sampling = sampling.model_copy(update={"max_new_tokens": piece.limit})
        before = self._drawn.get((piece.number, piece.index))
        return GroupRequest(
            group_id=f"{request.group_id}/{piece.index}",
            # Its own settings are applied already, and would undo the limit.
            prompt=replace(request.prompt, sampling={}),
            sampling=sampling,
            seeds=(request.seeds[piece.index],),
            begun=() if before is None else (replace(before, sample_index=0),),
        )

    def _take(self, piece: _Piece, rollout: Rollout) -> None:
        request = self._asked(piece.number)
        rollout = replace(rollout, group_id=request.group_id, sample_index=piece.index)
        if rollout.num_trained != piece.limit:
            raise ReplayError(
                f"step {piece.step + 1}, group {request.group_id}, sample {piece.index}: it must have {piece.limit} tokens by the record; now it ends "
                f"with {rollout.num_trained}"
            )
        if not piece.last:
            *before, present = rollout.segments
            rollout = replace(rollout, segments=(*before, replace(present, finish_reason="abort")))
        self._drawn[piece.number, piece.index] = rollout


def check_records(step: int, line: GroupLine, group: Group) -> None:
    """Hold a group to what was recorded of its samples. Raises ReplayError."""
    for sample, rollout in zip(line.samples, group.rollouts, strict=True):
        if record_digest(rollout) != sample.record:
            raise ReplayError(
                f"step {step + 1}, group {group.group_id}, sample {rollout.sample_index}: tokens, log-probabilities or choices are not those that "
                "were recorded. Recipe, code and libraries must be those of the run."
            )


def _pieces(step: int, group: GroupLine, version: int) -> list[_Piece]:
    return [
        piece
        for index, sample in enumerate(group.samples)
        for piece in [_piece(step, group.number, index, sample, version)]
        if piece is not None
    ]


def _piece(step: int, number: int, index: int, sample: SampleLine, version: int) -> _Piece | None:
    limit = 0
    for place, (drawn_by, count) in enumerate(sample.drawn):
        limit += count
        if drawn_by == version:
            return _Piece(step=step, number=number, index=index, limit=limit, last=place == len(sample.drawn) - 1)
    return None
