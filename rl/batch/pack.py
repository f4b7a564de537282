"""Packing rollouts for the learner: only the rows that must run, no padding but the last few to a multiple of 16.

What sequences have in common at their beginning, such as the prompt of a group's samples, stands in the batch once, and what follows
attends to those rows.

Axes: N rows run, R rows of all sequences (every token but each segment's last; a shared row once for each sequence),
M sampled tokens that are trained, U different ones among them (equal row, token and distribution), L layers, X experts chosen, S segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.kernels.backend import round_up
from samepath.kernels.head.logprob import SupportRows
from samepath.kernels.window import AttentionPlan
from samepath.model.plan import Span, plan_spans
from samepath.model.shape import ModelShape
from samepath.rl.batch.route_check import checked_routes
from samepath.rl.batch.shared_rows import Placed, SharedRows
from samepath.rollout.types import Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSequence:
    """One segment to train on, with what the objective needs to know of its rollout."""

    segment: Segment
    """Tokens and records."""
    temperature: float
    """Temperature it was sampled at."""
    name: str
    """For error messages: group and sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Segments laid end to end, common beginnings once. The row of a segment's token t predicts its token t + 1."""

    token_ids_N: Tensor
    """int64 [N] inputs; N is a multiple of 16, the last rows are padding."""
    positions_N: Tensor
    """int64 [N]."""
    plan: AttentionPlan
    """Causal attention within each segment."""
    num_rows: int
    """Rows before padding."""
    rows_R: Tensor
    """int64 [R] row of each position of each segment, segment by segment: what is counted or averaged by row is taken from here."""
    sequence_R: Tensor
    """int64 [R] index of the segment in the batch."""
    prompts_apart: int
    """Sequences whose prompt runs once more, in part, because it came with other routes or fingerprints than another sample's."""
    rows_M: Tensor
    """int64 [M] row that predicts each trained token; the first tokens after a shared prompt have the same."""
    targets_M: Tensor
    """int64 [M] the trained tokens."""
    first_U: Tensor
    """int64 [U] index in M of one of each, ascending: only these go through the head."""
    scored_M: Tensor
    """int64 [M] index in U."""
    temperature_M: Tensor
    """[M] sampling temperature."""
    support: SupportRows | None
    """Candidates of each trained token, or None if nothing was truncated."""
    sequence_M: Tensor
    """int64 [M] index of the segment in the batch: where the token stands."""
    rollout_S: Tensor
    """int64 [S] index of each segment's rollout in the batch."""
    rollout_M: Tensor
    """int64 [M] the same of each trained token: what it counts in."""
    rollout_R: Tensor
    """int64 [R] the same of each row."""
    sampler_logprobs_M: Tensor
    """[M] nats."""
    version_M: Tensor
    """int64 [M] weight version that sampled the token."""
    routes_LNX: Tensor
    """int64 [L_moe, N, X] recorded routes; −1 missing and padding."""
    missing_routes: int
    """Number of missing (row, layer) entries among the R rows."""
    fingerprints_NL: Tensor | None
    """int64 [N, L_sparse] the sampler's selection fingerprints; None if a segment has none."""


def pack(
    sequences: Sequence[TrainSequence],
    shape: ModelShape,
    rollout_S: Sequence[int] | None = None,
    placed: Sequence[Placed] | None = None,
) -> PackedBatch:
    """Lay segments end to end. Raises RouteError on unusable routes and ValueError if there is nothing to run.

    `rollout_S` is the rollout of each, from 0 upwards; without it each is a rollout of its own. `placed` is where each stands, if that is
    known from cutting the batch (`rl/batch/cut.py`).
    """
    if not sequences:
        raise ValueError("a batch needs at least one sequence")
    if placed is None:
        shared = SharedRows()
        placed = [shared.place(entry.segment) for entry in sequences]
    num_rows = sum(len(place.rows_T) - place.num_shared for place in placed)
    padded = round_up(num_rows)
    segments, lengths_S = [entry.segment for entry in sequences], np.array([len(place.rows_T) for place in placed])
    rows_R, starts_S = np.concatenate([place.rows_T.numpy() for place in placed]), np.cumsum(lengths_S) - lengths_S
    routes_RLX, missing = checked_routes(
        [segment.routes[:length] for segment, length in zip(segments, lengths_S)],
        shape,
        [entry.name for entry in sequences],
    )
    token_ids, positions = np.zeros(padded, np.int64), np.zeros(padded, np.int64)
    routes = np.full((padded, *routes_RLX.shape[1:]), -1, np.int64)
    # Rows that several sequences share are written by each, with equal numbers.
    token_ids[rows_R] = np.concatenate([segment.token_ids[:-1] for segment in segments])
    positions[rows_R] = np.arange(len(rows_R)) - np.repeat(starts_S, lengths_S)
    routes[rows_R] = routes_RLX
    trained_R = np.concatenate([segment.trained[1:] for segment in segments])
    sequence_R = np.repeat(np.arange(len(segments)), lengths_S)
    sequence_M = torch.from_numpy(sequence_R[trained_R])
    rows_M = torch.from_numpy(rows_R[trained_R])
    targets_M = torch.from_numpy(_trained(segments, "token_ids", trained_R)).long()
    temperature_M = torch.tensor([entry.temperature for entry in sequences])[sequence_M]
    support = _pack_supports(segments, np.bincount(sequence_R[trained_R], minlength=len(segments)))
    first_U, scored_M = _different(rows_M, targets_M, temperature_M, support)
    rollouts = torch.arange(len(sequences)) if rollout_S is None else torch.tensor(rollout_S)
    return PackedBatch(
        token_ids_N=torch.from_numpy(token_ids),
        positions_N=torch.from_numpy(positions),
        plan=plan_spans(_spans(placed), padded, shape.window_heads),
        num_rows=num_rows,
        rows_R=torch.from_numpy(rows_R),
        sequence_R=torch.from_numpy(sequence_R),
        prompts_apart=sum(place.apart for place in placed),
        rows_M=rows_M,
        targets_M=targets_M,
        first_U=first_U,
        scored_M=scored_M,
        temperature_M=temperature_M,
        support=support,
        sequence_M=sequence_M,
        rollout_S=rollouts,
        rollout_M=rollouts[sequence_M],
        rollout_R=rollouts[sequence_R],
        sampler_logprobs_M=torch.from_numpy(_trained(segments, "sampler_logprobs", trained_R)),
        version_M=torch.from_numpy(_trained(segments, "weight_version", trained_R)).long(),
        routes_LNX=torch.from_numpy(routes).transpose(0, 1).contiguous(),
        missing_routes=missing,
        fingerprints_NL=_fingerprints(segments, rows_R, lengths_S, (padded, len(shape.sparse_layers))),
    )


def _spans(placed: Sequence[Placed]) -> list[Span]:
    """The new rows of each sequence, over the rows of all its positions."""
    return [
        Span(row=int(place.rows_T[place.num_shared]), first=place.num_shared, count=count, keys=place.rows_T)
        for place in placed
        if (count := len(place.rows_T) - place.num_shared)
    ]


def _different(
    rows_M: Tensor, targets_M: Tensor, temperature_M: Tensor, support: SupportRows | None
) -> tuple[Tensor, Tensor]:
    """(first_U, scored_M): tokens that share their row often are the same token, from the same distribution."""
    columns = (temperature_M.numpy(), targets_M.numpy(), rows_M.numpy())
    order_M = np.lexsort(columns)
    begins_M = np.ones(len(order_M), np.bool_)
    begins_M[1:] = np.any([column[order_M[1:]] != column[order_M[:-1]] for column in columns], 0)
    # Of tokens that are alike, by their place in order; the sort leaves them in it.
    alike_M = np.cumsum(begins_M) - 1
    firsts = order_M[begins_M]
    same_M = np.empty_like(order_M)
    same_M[order_M] = firsts[alike_M]
    if support is not None:
        ends_M = np.cumsum(support.counts_N.numpy())
        starts_M, ids = ends_M - support.counts_N.numpy(), support.ids.numpy()
        places: dict[tuple[int, bytes], int] = {}
        for place in np.flatnonzero(np.bincount(same_M, minlength=len(same_M))[same_M] > 1).tolist():
            key = (int(same_M[place]), ids[starts_M[place] : ends_M[place]].tobytes())
            same_M[place] = places.setdefault(key, place)
    first_U, scored_M = np.unique(same_M, return_inverse=True)
    return torch.from_numpy(first_U), torch.from_numpy(scored_M)


def _trained(segments: Sequence[Segment], name: str, trained_R: NDArray[np.bool_]) -> NDArray[Any]:
    whole_R: NDArray[Any] = np.concatenate([getattr(segment, name)[1:] for segment in segments])
    return whole_R[trained_R]


def _fingerprints(
    segments: Sequence[Segment], rows_R: NDArray[np.int64], lengths_S: NDArray[np.int64], size: tuple[int, int]
) -> Tensor | None:
    """`PackedBatch.fingerprints_NL`."""
    parts = [
        segment.selection_fingerprint[:length]
        for segment, length in zip(segments, lengths_S)
        if segment.selection_fingerprint is not None
    ]
    if len(parts) < len(segments):
        return None
    fingerprints_NL = np.zeros(size, np.int64)
    fingerprints_NL[rows_R] = np.concatenate(parts).view(np.int64)
    return torch.from_numpy(fingerprints_NL)


def _pack_supports(segments: Sequence[Segment], counts_S: np.ndarray) -> SupportRows | None:
    """Compressed rows of all segments; a segment without a record has the full vocabulary (count 0) on every token."""
    if all(segment.support is None for segment in segments):
        return None
    counts = [
        np.zeros(count, np.int64) if segment.support is None else segment.support.counts
        for segment, count in zip(segments, counts_S)
    ]
    for segment, rows, count in zip(segments, counts, counts_S):
        if len(rows) != count:
            raise ValueError(
                f"a support must have one row for each of the {count} sampled tokens; got {len(rows)} (finish {segment.finish_reason})"
            )
    ids = [segment.support.ids for segment in segments if segment.support is not None]
    return SupportRows(
        counts_N=torch.from_numpy(np.concatenate(counts).astype(np.int64)),
        ids=torch.from_numpy(np.concatenate(ids).astype(np.int64)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCounts:
    """What common beginnings saved in a pass."""

    rows_run: int
    """Rows before padding."""
    rows: int
    """Rows of all its sequences."""
    prompts_apart: int
    """See `PackedBatch.prompts_apart`."""


def shared_counts(batch: PackedBatch) -> SharedCounts:
    """The counts of one pass."""
    return SharedCounts(rows_run=batch.num_rows, rows=len(batch.rows_R), prompts_apart=batch.prompts_apart)


def sharing_metrics(passes: Sequence[SharedCounts]) -> dict[str, float]:
    """`learner/…` metrics of what common beginnings saved, over the passes of an update."""
    run, total = sum(one.rows_run for one in passes), sum(one.rows for one in passes)
    return {
        "learner/rows_shared": 1 - run / total,
        "learner/prompts_apart": float(sum(one.prompts_apart for one in passes)),
    }
