"""One pass of a policy over a packed batch: log-probabilities of the sampled tokens on the sampler's path.

The batch stays on the CPU, and so does everything that is computed from the result: the network takes its inputs to its own device, and
what it reports comes back once a pass.

Axes: N rows run, M trained tokens, U different ones among them, L layers, X experts chosen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.kernels.head.logprob import SupportRows, head_logprobs
from samepath.model.key_store import PackedKeys
from samepath.model.model_input import ModelInput
from samepath.model.policy import Policy
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.pack import PackedBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPass:
    """Result of one forward pass."""

    logprobs_M: Tensor
    """[M] nats under the sampling distribution, with gradient if enabled."""
    entropy_M: Tensor
    """[M] nats, full vocabulary at the sampling temperature."""
    kept_mass_M: Tensor
    """[M] full-vocabulary probability of the recorded support."""
    trace: ForwardTrace
    """Routes used and live, fingerprints."""


def run_policy(
    model: Policy,
    batch: PackedBatch,
    *,
    routes_LNX: Tensor | None,
    use_support: bool,
    fingerprints: bool = False,
    train_indexer: bool = False,
    num_selected: int | None = None,
) -> PolicyPass:
    """Score a batch. `routes_LNX` None routes live; `use_support` False renormalises over the full vocabulary."""
    trace = ForwardTrace(record_fingerprints=fingerprints, train_indexer=train_indexer)
    inputs = ModelInput(
        token_ids_N=batch.token_ids_N, positions_N=batch.positions_N, plan=batch.plan, replay_LNX=routes_LNX
    )
    hidden_ND = model(inputs, PackedKeys(), trace, num_selected=num_selected)
    trace.to_cpu()
    device, first_U = hidden_ND.device, batch.first_U
    scores_U = head_logprobs(
        hidden_ND[batch.rows_M[first_U].to(device)],
        model.head_weight,
        batch.targets_M[first_U].to(device),
        batch.temperature_M[first_U].to(device),
        _support_of(batch, device) if use_support else None,
        model.backend,
    )
    logprobs_M, entropy_M, kept_mass_M = (score_U.cpu()[batch.scored_M] for score_U in scores_U)
    return PolicyPass(logprobs_M=logprobs_M, entropy_M=entropy_M, kept_mass_M=kept_mass_M, trace=trace)


def _support_of(batch: PackedBatch, device: torch.device) -> SupportRows | None:
    if batch.support is None:
        return None
    rows = batch.support.select(batch.first_U)
    return SupportRows(counts_N=rows.counts_N.to(device), ids=rows.ids.to(device))
