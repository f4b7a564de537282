"""One pass of a policy over a packed batch: log-probabilities of the sampled tokens on the sampler's path.

Axes: N rows run, M trained tokens, L layers, X experts chosen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.kernels.logprob import SupportRows, head_logprobs
from samepath.model.key_store import PackedKeys
from samepath.model.model_input import ModelInput
from samepath.model.policy import Policy
from samepath.model.trace import ForwardTrace
from samepath.rl.batch import PackedBatch


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
    device = hidden_ND.device
    logprobs_M, entropy_M, kept_mass_M = head_logprobs(
        hidden_ND[batch.rows_M.to(device)],
        model.head_weight,
        batch.targets_M.to(device),
        batch.temperature_M.to(device),
        _support_on(batch.support, device) if use_support else None,
        model.backend,
    )
    return PolicyPass(
        logprobs_M=logprobs_M.cpu(), entropy_M=entropy_M.cpu(), kept_mass_M=kept_mass_M.cpu(), trace=trace
    )


def _support_on(support: SupportRows | None, device: torch.device) -> SupportRows | None:
    if support is None:
        return None
    return SupportRows(counts_N=support.counts_N.to(device), ids=support.ids.to(device))
