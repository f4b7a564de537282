"""One pass of a policy over a packed batch: log-probabilities of the sampled tokens on the sampler's path.

The batch stays on the CPU, and so does everything that is computed from the result: the network takes its inputs to its own device, and
what it reports comes back once a pass.

Axes: N rows run, M trained tokens, U different ones among them, D width, L layers, X experts chosen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.kernels.head.logprob import SupportRows, head_logprobs
from samepath.kernels.head.vocabulary_kl import vocabulary_kl
from samepath.model.key_store import PackedKeys
from samepath.model.model_input import ModelInput
from samepath.model.policy import Policy
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.pack import PackedBatch
from samepath.rl.diagnostics.step import HeadStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPass:
    """Result of one forward pass."""

    logprobs_M: Tensor
    """[M] nats under the sampling distribution, with gradient if enabled."""
    head: HeadStatistics
    """Entropy, kept mass and support size of each token."""
    hidden_UD: Tensor
    """[U, D] final hidden states that the head saw, without gradient, where the network computes."""
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
    device, first_U = hidden_ND.device, batch.first_U
    hidden_UD = hidden_ND[batch.rows_M[first_U].to(device)]
    scores_U = head_logprobs(
        hidden_UD,
        model.head_weight,
        batch.targets_M[first_U].to(device),
        batch.temperature_M[first_U].to(device),
        _support_of(batch, device) if use_support else None,
        model.backend,
    )
    # Only now: to bring anything back waits for the network, and the head is launched meanwhile.
    trace.to_cpu()
    logprobs_M, entropy_M, kept_mass_M = (score_U.cpu()[batch.scored_M] for score_U in scores_U)
    size_M = torch.zeros_like(batch.targets_M) if batch.support is None else batch.support.counts_N
    head = HeadStatistics(entropy_M=entropy_M, kept_mass_M=kept_mass_M, support_size_M=size_M)
    return PolicyPass(logprobs_M=logprobs_M, head=head, hidden_UD=hidden_UD.detach(), trace=trace)


def reference_kl(
    model: Policy, seen: PolicyPass, reference: Policy, reference_seen: PolicyPass, batch: PackedBatch
) -> Tensor:
    """KL(π‖π_ref) of each trained token's row over the full vocabulary, `[M]` nats, from a pass of each policy over one batch."""
    device = seen.hidden_UD.device
    kl_U = vocabulary_kl(
        seen.hidden_UD,
        model.head_weight,
        reference_seen.hidden_UD,
        reference.head_weight,
        batch.temperature_M[batch.first_U].to(device),
        model.backend,
    )
    return kl_U.cpu()[batch.scored_M]


def _support_of(batch: PackedBatch, device: torch.device) -> SupportRows | None:
    if batch.support is None:
        return None
    rows = batch.support.select(batch.first_U)
    return SupportRows(counts_N=rows.counts_N.to(device), ids=rows.ids.to(device))
