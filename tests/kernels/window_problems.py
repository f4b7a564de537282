"""Windows of sequences with random operands and selections, and their attention by one dense masked softmax in float64."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.window import Window
from samepath.kernels.window_attention.window_attention import window_attend


@dataclass
class WindowProblem:
    operands: tuple[Tensor, Tensor, Tensor]
    """q [B, T, H, K], k [B, S, H, K] and the values among other channels [B, S, H, 2V]."""
    window: Window
    positions_BTC: Tensor

    @property
    def scale(self) -> float:
        return float(self.operands[0].shape[3] ** -0.5)

    def run(self, backend: Backend, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """(out, mass, gradients of the operands) for a fixed upstream gradient that leaves the padding out."""
        q, k, v = (tensor.to(dtype).detach().requires_grad_() for tensor in self.operands)
        width = v.shape[3] // 2
        out, mass = window_attend(
            q, k, v[..., width:], self.window, self.positions_BTC, scale=self.scale, backend=backend, with_mass=True
        )
        assert mass is not None
        live = (self.window.ends_BT > 0)[..., None]
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        upstream = upstream.to(out) * live[..., None]
        return (out * live[..., None]).detach(), mass * live, *torch.autograd.grad(out, (q, k, v), upstream)

    def wanted(self) -> tuple[Tensor, ...]:
        """The same by the definition."""
        q, k, v = (tensor.double().detach().requires_grad_() for tensor in self.operands)
        ends_BT = self.window.ends_BT
        kept = torch.zeros(*ends_BT.shape, k.shape[1] + 1, dtype=torch.bool, device=q.device)
        kept = kept.scatter(2, self.positions_BTC.long() + 1, True)[..., 1:]
        scores = torch.einsum("bthk,bshk->bths", q, k) * self.scale
        probs = torch.nan_to_num(scores.masked_fill(~kept[:, :, None], -torch.inf).softmax(-1))
        out = torch.einsum("bths,bshv->bthv", probs, v[..., v.shape[3] // 2 :])
        mass = probs.sum(2).gather(2, self.positions_BTC.clamp(min=0).long()) * (self.positions_BTC >= 0)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(out)
        upstream = upstream * (ends_BT > 0)[..., None, None]
        return out.detach(), mass.detach(), *torch.autograd.grad(out, (q, k, v), upstream)


def window_problem(
    spans: Sequence[tuple[int, int]], num_selected: int, sizes: tuple[int, int, int], device: torch.device
) -> WindowProblem:
    """One (first, count) a sequence: positions of its queries. `sizes` are H, K and V; each query selects random keys up to its own."""
    num_heads, key_width, value_width = sizes
    generator = torch.Generator().manual_seed(len(spans) + num_selected)
    longest, num_queries = max(first + count for first, count in spans), max(count for _, count in spans)
    whole = not any(first for first, _ in spans)
    num_keys = num_queries if whole else -(-longest // 16) * 16
    ends_BT = torch.zeros(len(spans), num_queries, dtype=torch.int64)
    positions_BTC = torch.full((len(spans), num_queries, num_selected), -1, dtype=torch.int32)
    for sequence, (first, count) in enumerate(spans):
        for query in range(count):
            end = first + query + 1
            ends_BT[sequence, query] = end
            chosen = torch.randperm(end, generator=generator)[:num_selected].sort().values
            positions_BTC[sequence, query, : len(chosen)] = chosen.to(torch.int32)
    shapes = (
        (len(spans), num_queries, num_heads, key_width),
        (len(spans), num_keys, num_heads, key_width),
        (len(spans), num_keys, num_heads, 2 * value_width),
    )
    # Numbers that bfloat16 holds too.
    operands = [torch.randn(shape, generator=generator).bfloat16().double().to(device) for shape in shapes]
    window = Window(
        rows_BT=torch.zeros_like(ends_BT),
        ends_BT=ends_BT,
        keys_BS=torch.zeros(len(spans), num_keys, dtype=torch.int64),
        longest=longest,
        whole=whole,
    )
    return WindowProblem((operands[0], operands[1], operands[2]), window.to(device), positions_BTC.to(device))
