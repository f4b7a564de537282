"""How far a learner is from the engine that sampled, at equal weights: routes that differ, log-probabilities that differ.

Axes: M sampled tokens, N rows run, R rows of all sequences, L mixture-of-experts layers, X experts chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from samepath.model.policy import Policy
from samepath.rl.batch.cut import split_by_tokens
from samepath.rl.batch.pack import PackedBatch, TrainSequence, pack
from samepath.rl.learner.policy_pass import PolicyPass, run_policy

Replay = Literal["off", "on", "wrong layer"]
"""The learner's own routes, the engine's, or the engine's of the next mixture-of-experts layer (the negative control)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobGap:
    """Learner minus engine on the sampled tokens, nats."""

    mean: float
    """Mean absolute difference."""
    largest: float
    """Largest absolute difference."""
    kl: float
    """KL(engine‖learner), k3 estimate: mean of r − 1 − log r with r = π_learner/π_engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One engine against one learner."""

    tokens: int
    """Sampled tokens compared."""
    entropy: float
    """Mean entropy of the learner's policy there, nats."""
    choices: int
    """(row, layer) choices compared, prompt and response."""
    choices_differing: int
    """Choices whose set of experts differs when the learner routes live."""
    rows: int
    """Rows compared."""
    rows_differing: int
    """Rows with a differing choice in any layer."""
    gaps: dict[Replay, LogprobGap]
    """By what the learner replayed; a dense model has `off` alone."""


def logprob_gap(learner_M: Tensor, engine_M: Tensor) -> LogprobGap:
    """Compare log-probabilities of the same tokens, in float64."""
    log_ratio_M = learner_M.double() - engine_M.double()
    return LogprobGap(
        mean=float(log_ratio_M.abs().mean()),
        largest=float(log_ratio_M.abs().max()),
        kl=float((log_ratio_M.expm1() - log_ratio_M).mean()),
    )


def replayed_routes(routes_LNX: Tensor, replay: Replay) -> Tensor | None:
    """The routes that a pass follows. Raises ValueError if a wrong layer is asked of a model with one."""
    if replay == "off":
        return None
    if replay == "on":
        return routes_LNX
    if len(routes_LNX) < 2:
        raise ValueError("the routes of a wrong layer need at least two mixture-of-experts layers; this model has one")
    return routes_LNX.roll(1, 0)


@torch.no_grad()
def measure(policy: Policy, sequences: Sequence[TrainSequence], max_tokens: int = 4096) -> Mismatch:
    """Score an engine's sequences with a learner of the same weights, under every kind of replay."""
    parts = [
        pack([sequences[index] for index in indices], policy.shape)
        for indices in split_by_tokens(sequences, max_tokens)
    ]
    kinds: tuple[Replay, ...] = ("off", "on", "wrong layer") if policy.shape.moe_layers else ("off",)
    passes = {kind: [_run(policy, part, kind) for part in parts] for kind in kinds}
    engine_M = torch.cat([part.sampler_logprobs_M for part in parts])
    differing_LR = torch.cat([_differing(part, done) for part, done in zip(parts, passes["off"])], 1)
    return Mismatch(
        tokens=len(engine_M),
        entropy=float(torch.cat([done.head.entropy_M for done in passes["off"]]).mean()),
        choices=differing_LR.numel(),
        choices_differing=int(differing_LR.sum()),
        rows=differing_LR.shape[1],
        rows_differing=int(differing_LR.any(0).sum()),
        gaps={
            kind: logprob_gap(torch.cat([done.logprobs_M for done in results]), engine_M)
            for kind, results in passes.items()
        },
    )


def _run(policy: Policy, part: PackedBatch, replay: Replay) -> PolicyPass:
    return run_policy(policy, part, routes_LNX=replayed_routes(part.routes_LNX, replay), use_support=True)


def _differing(part: PackedBatch, done: PolicyPass) -> Tensor:
    """[L, R] True where engine and live router chose different experts. A route that was not recorded counts as different."""
    if not done.trace.live_routes:
        return torch.zeros(0, len(part.rows_R), dtype=torch.bool)
    live_LNX = torch.stack(done.trace.live_routes).sort(-1).values
    return (live_LNX != part.routes_LNX.sort(-1).values).any(-1)[:, part.rows_R]
