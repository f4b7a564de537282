"""What one training pass measured, small enough to go to every rank.

Axes: B rollouts of the pass, M its trained tokens.
"""

from dataclasses import dataclass

from torch import Tensor

from samepath.model.shape import ModelShape
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.pack import SharedCounts, shared_counts
from samepath.rl.diagnostics.flipped_routes import FlippedRoutes, flipped_routes
from samepath.rl.diagnostics.numerics import SameWeights, same_weights
from samepath.rl.diagnostics.path_counts import PathCounts
from samepath.rl.diagnostics.step import HeadStatistics
from samepath.rl.learner.mini_batches import MicroBatch
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.objective.objective import LossTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPass:
    """What one training pass gave, where it ran."""

    logprobs_M: Tensor
    """[M] nats, the learner's, of rows that give no loss too."""
    inputs: LossInputs
    """The loss's inputs, the reference's log-probabilities among them."""
    terms: LossTerms
    """The loss's pieces."""
    head: HeadStatistics
    """What the head saw."""
    trace: ForwardTrace
    """Routes, selections."""
    loss: float
    """Its part of the update's loss, the indexer's left out."""
    indexer_kl: float
    """Its part of the update's indexer loss, nats; 0 if that is not trained."""
    finite: bool
    """False if a log-probability is no finite number: then nothing of the pass is in the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassReport:
    """What the step's report needs of a training pass."""

    inputs: LossInputs
    """See `TrainedPass`, as the next four."""
    terms: LossTerms
    head: HeadStatistics
    loss: float
    finite: bool
    indexer_kl_sum: float
    """Its indexer loss summed over its rows, nats."""
    same_weights: SameWeights | None
    """Tokens of the learner's own version; None where they were compared before, or are no numbers."""
    path: PathCounts
    """Flips, load, selections."""
    shared: SharedCounts
    """What common beginnings saved."""
    flipped: FlippedRoutes
    """Trained tokens whose live route is not the recorded one."""


def report_of(part: MicroBatch, done: TrainedPass, shape: ModelShape, version: int) -> PassReport:
    """The report of a pass; `version` is the learner's before the step's first update."""
    path = PathCounts(shape)
    path.add(part.packed, done.trace, part.routes_LNX is not None)
    compared = part.first_M is None and done.finite
    return PassReport(
        inputs=done.inputs,
        terms=done.terms,
        head=done.head,
        loss=done.loss,
        finite=done.finite,
        indexer_kl_sum=done.indexer_kl * part.plan.num_rows,
        same_weights=same_weights(part.packed, part.plan.sequences, done.logprobs_M, version) if compared else None,
        path=path,
        shared=shared_counts(part.packed),
        flipped=flipped_routes(part.packed, done.trace),
    )


def first_tokens(part: MicroBatch, version: int, *, finite_only: bool) -> SameWeights | None:
    """Of a pass that ran before the first update, the tokens to compare; with `finite_only` none if a number is not finite."""
    first_M, sampler_M = part.first_M, part.packed.sampler_logprobs_M
    if first_M is None or (finite_only and not bool(first_M.isfinite().all() and sampler_M.isfinite().all())):
        return None
    return same_weights(part.packed, part.plan.sequences, first_M, version)
