"""Routed experts that lie on several processes: rows travel to the process that holds their expert, and back.

Axes: N tokens of this process, D width, X experts chosen, E experts of all processes, S experts of this one, P processes, R rows, G, F as in
`expert_product`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from samepath.kernels.backend import ROW_MULTIPLE, Backend
from samepath.kernels.experts.expert_product import expert_product
from samepath.kernels.experts.expert_rows import gated_sum, spread_tokens
from samepath.model.collectives import timed


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertExchange:
    """How one process takes part. Of E experts rank r of the group holds the S = E / P from r·S on; all run the same layers in the same order."""

    group: dist.ProcessGroup
    """Processes that share the experts."""
    dtype: torch.dtype
    """Type that experts compute in; what is held in another is rounded to it."""

    def product(
        self,
        x_ND: Tensor,
        gates_NX: Tensor,
        ids_NX: Tensor,
        gate_up_SGD: Tensor,
        down_SDF: Tensor,
        backend: Backend,
    ) -> Tensor:
        """What `expert_product` gives with the experts of all processes, `[N, D]`, with gradients for tokens, gates and own weights.

        A row goes to its expert, is multiplied there beside those of other processes, and comes back; slots are summed here, in slot order.
        A weight's gradient is the sum over the rows of all processes. Every process must call it, also without a row for an expert of its own.
        """
        num_held = gate_up_SGD.shape[0]
        flat = ids_NX.flatten()
        # Where each slot's row stands once rows are in the order of their experts.
        rows_NX = flat.argsort(stable=True).argsort().view_as(ids_NX)
        counts_E = torch.bincount(flat, minlength=num_held * self.group.size())
        counts_PS = torch.empty_like(counts_E)
        with timed(flat.device):
            dist.all_to_all_single(counts_PS, counts_E, group=self.group)
        counts_PS = counts_PS.view(-1, num_held)
        # Both at once: on a GPU each is a wait.
        sent, received = torch.stack([counts_E.view(-1, num_held).sum(1), counts_PS.sum(1)]).tolist()
        held_P = torch.arange(num_held, device=flat.device).repeat(len(sent))
        held_R = held_P.repeat_interleave(counts_PS.flatten(), output_size=sum(received))
        arrived_RD = _exchanged(spread_tokens(x_ND, rows_NX), sent, received, self.group)
        computed_RD = self._computed(arrived_RD, held_R, gate_up_SGD.to(self.dtype), down_SDF.to(self.dtype), backend)
        y_RD = _exchanged(computed_RD, received, sent, self.group)
        return gated_sum(y_RD, gates_NX, rows_NX, backend)

    def _computed(self, x_RD: Tensor, ids_R: Tensor, gate_up_SGD: Tensor, down_SDF: Tensor, backend: Backend) -> Tensor:
        """Each row's expert, not weighted, `[R, D]`."""
        num_rows = len(x_RD)
        if not num_rows:
            # Kernels want a row, and the weights their gradient, which is 0.
            x_RD = torch.cat([x_RD, x_RD.new_zeros(ROW_MULTIPLE, x_RD.shape[1])])
            ids_R = ids_R.new_zeros(ROW_MULTIPLE)
        y_RD = expert_product(x_RD, x_RD.new_ones(len(x_RD), 1), ids_R[:, None], gate_up_SGD, down_SDF, backend)
        return y_RD[:num_rows]

    @torch.no_grad()
    def experts(self, gate_up_SGD: Tensor, down_SDF: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Both matrices of each of all experts, in order, on every process; all must take all, in step.

        One process's share is there at a time: whoever keeps a matrix past the next one copies it.
        """
        held = [weight.detach().to(self.dtype) for weight in (gate_up_SGD, down_SDF)]
        for owner in range(self.group.size()):
            shares = held if owner == self.group.rank() else [torch.empty_like(weight) for weight in held]
            for share in shares:
                with timed(share.device):
                    dist.broadcast(share, group=self.group, group_src=owner)
            yield from zip(*shares)


class _Exchange(torch.autograd.Function):
    """Rows to the processes and from them; gradients travel the other way."""

    @staticmethod
    def forward(
        ctx: Any, rows_RD: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        arrived_RD = rows_RD.new_empty(sum(received), rows_RD.shape[1])
        rows_RD = rows_RD.contiguous()
        with timed(rows_RD.device):
            dist.all_to_all_single(arrived_RD, rows_RD, list(received), list(sent), group=group)
        return arrived_RD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _exchanged(gradients[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _exchanged(rows_RD: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """`[Σ received, D]`: rows from every process, those of rank 0 first; `sent[p]` of `rows_RD`, which lie in order, go to rank p."""
    arrived_RD: Tensor = _Exchange.apply(rows_RD, sent, received, group)  # type: ignore[no-untyped-call]
    return arrived_RD
