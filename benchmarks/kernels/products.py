"""Products of experts, linear maps and the head beside PyTorch's own, at the published sizes; each_kernel.py runs them.

Axes: N rows, D width, E experts, F expert width, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import samepath.kernels.experts.triton_product as expert_kernels
import samepath.kernels.head.triton_logprob as head_kernels
import samepath.kernels.rows.triton_dense_rows as row_kernels
from benchmarks.kernels.measurement import (
    Measurement,
    RandomInputs,
    flops,
    forward_and_backward,
    graph_milliseconds,
    in_turn,
)


class ProductBench(RandomInputs):
    """Runs the groups of this module."""

    def experts(self) -> list[Measurement]:
        """Expert product beside torch's grouped product of its first matrix alone."""
        results = []
        for tokens, experts, width, units in ((2048, 64, 2048, 1408), (8192, 64, 2048, 1408), (8192, 256, 7168, 2048)):
            slots = 8
            shape = f"{tokens * slots} rows, {experts} experts, {width} × {units}, bf16"
            x_ND = self.normal(tokens, width).requires_grad_()
            gate_up = (self.normal(experts, 2 * units, width) / width**0.5).requires_grad_()
            down = (self.normal(experts, width, units) / units**0.5).requires_grad_()
            ids_NX = torch.rand(tokens, experts, generator=self.random, device="cuda").topk(slots, 1).indices
            gates_NX = torch.rand(tokens, slots, generator=self.random, device="cuda").requires_grad_()
            count = 6 * tokens * slots * width * units
            ahead = partial(expert_kernels.expert_product, x_ND, gates_NX, ids_NX, gate_up, down)
            both = partial(forward_and_backward, ahead, (x_ND, gates_NX, gate_up, down), self.normal(tokens, width))
            with torch.no_grad():
                results.append(flops("expert product forward", shape, count, ahead))
            results.append(flops("expert product forward + backward", shape, 3 * count, both, 3))
            offsets = torch.bincount(ids_NX.flatten(), minlength=experts).cumsum(0).to(torch.int32)
            rows = self.normal(tokens * slots, width)
            weight = gate_up.detach().transpose(1, 2)
            grouped = partial(torch._grouped_mm, rows, weight, offs=offsets)
            results.append(flops("torch._grouped_mm, gate and up alone", shape, count * 2 / 3, grouped))
        return results + self.few_tokens()

    def few_tokens(self) -> list[Measurement]:
        """Expert product of decoding steps under a CUDA graph; the rate is that of the used experts' weights."""
        results = []
        experts, slots, width, units = 64, 6, 2048, 1408
        gate_up = self.normal(experts, 2 * units, width) / width**0.5
        down = self.normal(experts, width, units) / units**0.5
        for tokens in (16, 64, 256):
            ids_NX = torch.rand(tokens, experts, generator=self.random, device="cuda").topk(slots, 1).indices
            gates_NX = torch.rand(tokens, slots, generator=self.random, device="cuda")
            step = partial(expert_kernels.expert_product, self.normal(tokens, width), gates_NX, ids_NX, gate_up, down)
            with torch.no_grad():
                ms = graph_milliseconds(step)
            used = int((torch.bincount(ids_NX.flatten()) > 0).sum())
            shape = f"{tokens} tokens, {slots} of {experts} experts ({used} used), {width} × {units}, bf16"
            rate = used * 6 * width * units / ms / 1e9
            results.append(
                Measurement(operation="expert product, decoding", shape=shape, ms=ms, rate=rate, unit="TB/s")
            )
        return results

    def rows(self) -> list[Measurement]:
        """Linear maps of the rows of decoding and of training, under a CUDA graph; eight weights in turn, which L2 does not hold."""
        results = []
        for width, outputs in ((7168, 1536), (2048, 5632), (768, 768)):
            weights = [self.normal(outputs, width) / width**0.5 for _ in range(8)]
            for num_rows in (16, 64, 256, 4096, 16384):
                x_ND = self.normal(num_rows, width)
                shape = f"{num_rows} × {width} → {outputs}, bf16"
                for name, run in (("linear map", row_kernels.linear), ("linear map by torch.mm", _plain_linear)):
                    with torch.no_grad():
                        ms = graph_milliseconds(partial(_map_all, run, x_ND, weights)) / len(weights)
                    rate = 2 * num_rows * width * outputs / ms / 1e9
                    results.append(Measurement(operation=name, shape=shape, ms=ms, rate=rate, unit="TFLOPS"))
        return results

    def head(self) -> list[Measurement]:
        """Log-probability head and the matrix library's products alone, in turn."""
        num_rows, vocab, width = 32768, 129280, 7168
        shape = f"N {num_rows}, V {vocab}, D {width}, bf16"
        hidden = self.normal(num_rows, width).requires_grad_()
        weight = (self.normal(vocab, width) / width**0.5).requires_grad_()
        targets = torch.randint(0, vocab, (num_rows,), generator=self.random, device="cuda")
        temperature = torch.ones(num_rows, device="cuda")
        ahead = partial(_first, head_kernels.head_logprobs, hidden, weight, targets, temperature, None)
        both = partial(forward_and_backward, ahead, (hidden, weight), torch.ones(num_rows, device="cuda"))
        with torch.no_grad():
            extra = peak_bytes(ahead)
        gradients = hidden.nbytes + weight.nbytes
        more = peak_bytes(both) - gradients
        count = 2 * num_rows * vocab * width
        plain = hidden.detach(), weight.detach()
        ms = in_turn(
            {
                "head: torch.mm alone": partial(library_products, *plain, None),
                "head forward": torch.no_grad()(ahead),
                "head: three products by torch.mm": partial(library_products, *plain, self.normal(num_rows, 8192)),
                "head forward + backward": both,
            }
        )
        counts = [count, count, 3 * count, 3 * count]
        return [
            *(
                Measurement(operation=name, shape=shape, ms=ms[name], rate=flop / ms[name] / 1e9, unit="TFLOPS")
                for name, flop in zip(ms, counts, strict=True)
            ),
            Measurement(operation="head forward, extra memory", shape=shape, ms=0.0, rate=extra / 1e9, unit="GB"),
            Measurement(
                operation="head forward + backward, memory beside the gradients",
                shape=shape,
                ms=0.0,
                rate=more / 1e9,
                unit="GB",
            ),
        ]


def _plain_linear(x_ND: Tensor, weight_OD: Tensor) -> Tensor:
    return x_ND @ weight_OD.T


def _map_all(run: Callable[[Tensor, Tensor], Tensor], x_ND: Tensor, weights: list[Tensor]) -> None:
    for weight_OD in weights:
        run(x_ND, weight_OD)


def library_products(hidden: Tensor, weight: Tensor, slopes: Tensor | None) -> None:
    """The head's products by the matrix library, each in steps that suit it: logits, and with `slopes` [N, columns] both gradients."""
    logits = hidden.new_empty(4096, weight.shape[0])
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.empty_like(weight)
    for start in range(0, len(hidden), 4096):
        rows = slice(start, start + 4096)
        torch.mm(hidden[rows], weight.T, out=logits)
        if slopes is not None:
            torch.mm(logits, weight, out=grad_hidden[rows])
    if slopes is not None:
        for start in range(0, len(weight), slopes.shape[1]):
            part = grad_weight[start : start + slopes.shape[1]]
            torch.mm(slopes[:, : len(part)].T, hidden, out=part)


def peak_bytes(run: Callable[[], object]) -> int:
    """Most memory that `run` holds at once beside what was there, results included."""
    run()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - held


def _first(run: Callable[..., tuple[Tensor, ...]], *arguments: Any) -> Tensor:
    return run(*arguments)[0]
