"""Attention over all keys beside PyTorch's own (SDPA), and the indexer's dense warm-up.

- grouped: 32 query heads over 8 key heads of 128 channels, causal, forward and backward; SDPA gets its keys contiguous and, where it is faster, repeated
  for every query head. grouped_decode: one query a sequence from a paged cache; SDPA gets contiguous keys.
- warmup: the indexer's loss over all keys of the last 4096 queries of a context at the published sizes.
- Formulas, with P (query, key) pairs: attention 2·H·(K + V)·P forward, 2·H·(3·K + 2·V)·P backward; attention mass 2·H·576·P; the indexer's loss
  forward the mass and 2·64·128·P, backward the mass again and 3·2·64·128·P. Bytes of a decoded token: 2·G·(K + V)·S.

Axes: N query rows, S keys, H query heads, G key heads, K key width, V value width; B, T of a window.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import samepath.kernels.dense_attention.triton_backward as backward_kernels
import samepath.kernels.dense_attention.triton_forward as forward_kernels
import samepath.kernels.indexer.triton_dense_indexer as indexer_kernels
import samepath.kernels.indexer.triton_mass as mass_kernels
from benchmarks.kernels.measurement import (
    HEADS,
    INDEX_HEADS,
    INDEX_WIDTH,
    KEY_WIDTH,
    QUERIES,
    SCALE,
    Measurement,
    RandomInputs,
    flops,
    milliseconds,
)
from samepath.kernels.indexer.dense_indexer import Teacher
from samepath.kernels.window import AttentionPlan, Window

QUERY_HEADS, KEY_HEADS, WIDTH = 32, 8, 128


def causal_plan(num_sequences: int, length: int, num_queries: int) -> AttentionPlan:
    """The last `num_queries` queries of sequences that lie one after the other."""
    first = torch.arange(num_sequences, device="cuda")[:, None] * length
    positions_T = torch.arange(length - num_queries, length, device="cuda")
    window = Window(
        rows_BT=first + positions_T,
        ends_BT=(positions_T + 1).expand(num_sequences, -1).contiguous(),
        keys_BS=first + torch.arange(length, device="cuda"),
        longest=length,
    )
    return AttentionPlan(windows=(window,), source_N=torch.arange(num_sequences * length, device="cuda"))


def by_sequence(rows_GSW: Tensor, num_sequences: int, part: slice) -> Tensor:
    """Contiguous keys or values [B, G, S, K] of sequences that lie one after the other."""
    rows = rows_GSW[:, :, part]
    return rows.reshape(rows.shape[0], num_sequences, -1, rows.shape[2]).transpose(0, 1).contiguous()


class DenseBench(RandomInputs):
    """Runs the groups of this module."""

    def grouped(self) -> list[Measurement]:
        """Training and prefill of a grouped-query model."""
        results = []
        for num_sequences, length in ((8, 2048), (1, 8192), (1, 32768)):
            num_rows = num_sequences * length
            q_NHK, rows_GSW = self.normal(num_rows, QUERY_HEADS, WIDTH), self.normal(KEY_HEADS, num_rows, 2 * WIDTH)
            plan = causal_plan(num_sequences, length, length)
            shape = f"{num_sequences} × {length} causal, {QUERY_HEADS} heads over {KEY_HEADS}, {WIDTH} bf16"
            pairs = num_sequences * length * (length + 1) / 2
            ahead, back = 4 * QUERY_HEADS * WIDTH * pairs, 10 * QUERY_HEADS * WIDTH * pairs
            arguments = (q_NHK, rows_GSW, plan, WIDTH**-0.5, WIDTH, WIDTH)
            run = partial(forward_kernels.attend_forward, *arguments)
            results.append(flops("grouped attention forward", shape, ahead, run))
            out_NHV, lse_NH = forward_kernels.attend_forward(*arguments)
            saved = backward_kernels.SavedRows(
                q_NHK=q_NHK,
                rows_GSW=rows_GSW,
                out_NHV=out_NHV,
                lse_NH=lse_NH,
                plan=plan,
                scale=WIDTH**-0.5,
                value_start=WIDTH,
            )
            upstream = self.normal(*out_NHV.shape)
            run = partial(backward_kernels.attend_backward, saved, upstream)
            results.append(flops("grouped attention backward, deterministic", shape, back, run, 3))
            results += self._library(q_NHK, rows_GSW, num_sequences, shape, ahead, back)
        return results

    def _library(
        self, q_NHK: Tensor, rows_GSW: Tensor, num_sequences: int, shape: str, ahead: float, back: float
    ) -> list[Measurement]:
        """SDPA with repeated keys, which is what its fast kernels take."""
        q = q_NHK.view(num_sequences, -1, *q_NHK.shape[1:]).transpose(1, 2).contiguous().requires_grad_()
        repeats = QUERY_HEADS // KEY_HEADS
        k, v = (
            by_sequence(rows_GSW, num_sequences, part).repeat_interleave(repeats, 1).requires_grad_()
            for part in (slice(0, WIDTH), slice(WIDTH, 2 * WIDTH))
        )
        run = partial(scaled_dot_product_attention, q, k, v, is_causal=True)
        forward = flops("the same by SDPA, keys repeated, forward", shape, ahead, run)
        out = run()
        gradients = partial(torch.autograd.grad, out, (q, k, v), self.normal(*out.shape), retain_graph=True)
        return [forward, flops("the same by SDPA, keys repeated, backward", shape, back, gradients, 3)]

    def grouped_decode(self) -> list[Measurement]:
        """One query a sequence, keys of all sequences scattered over one cache."""
        results = []
        for num_sequences, length in ((256, 4096), (64, 2048), (8, 32768)):
            rows_GSW = self.normal(KEY_HEADS, num_sequences * length, 2 * WIDTH)
            q_NHK = self.normal(num_sequences, QUERY_HEADS, WIDTH)
            order = torch.randperm(num_sequences * length, generator=self.random, device="cuda")
            window = Window(
                rows_BT=torch.arange(num_sequences, device="cuda")[:, None],
                ends_BT=torch.full((num_sequences, 1), length, device="cuda"),
                keys_BS=order.view(num_sequences, length),
                longest=length,
                in_order=True,
            )
            plan = AttentionPlan(windows=(window,), source_N=window.rows_BT[:, 0])
            k, v = (by_sequence(rows_GSW, num_sequences, part) for part in (slice(0, WIDTH), slice(WIDTH, 2 * WIDTH)))
            shape = f"{num_sequences} sequences of {length}, {QUERY_HEADS} heads over {KEY_HEADS}, {WIDTH} bf16"
            for name, run in (
                (
                    "grouped decode, paged",
                    partial(forward_kernels.attend_forward, q_NHK, rows_GSW, plan, 0.1, WIDTH, WIDTH),
                ),
                (
                    "grouped decode (SDPA), contiguous",
                    partial(scaled_dot_product_attention, q_NHK[:, :, None], k, v, enable_gqa=True),
                ),
            ):
                ms = milliseconds(run)
                rate = rows_GSW.nbytes / ms / 1e9
                results.append(Measurement(operation=name, shape=shape, ms=ms, rate=rate, unit="TB/s"))
        return results

    def warmup(self) -> list[Measurement]:
        """Attention mass and the indexer's loss with its gradients, over all keys."""
        results = []
        for length in (8192, 32768):
            q_NHK, kv_SK = self.normal(length, HEADS, KEY_WIDTH), self.normal(length, KEY_WIDTH)
            # About the LSE of these numbers; what it is exactly changes no time.
            lse_NH = torch.full((length, HEADS), 11.0, device="cuda")
            teacher = Teacher(q_NHK=q_NHK, kv_SK=kv_SK, lse_NH=lse_NH, scale=SCALE)
            leaves = (
                self.normal(length, INDEX_HEADS, INDEX_WIDTH).requires_grad_(),
                self.normal(length, INDEX_WIDTH).requires_grad_(),
                (self.normal(length, INDEX_HEADS) * (INDEX_HEADS * INDEX_WIDTH) ** -0.5).requires_grad_(),
            )
            plan = causal_plan(1, length, QUERIES)
            (window,) = plan.windows
            pairs = float(window.ends_BT.sum())
            shape = f"last {QUERIES} queries of {length} keys, {HEADS} heads, bf16"
            masses, products = 2 * HEADS * KEY_WIDTH * pairs, 2 * INDEX_HEADS * INDEX_WIDTH * pairs
            tables = (window.rows_BT, window.ends_BT, window.keys_BS)
            run = partial(mass_kernels.window_mass, q_NHK, kv_SK, lse_NH, *tables, SCALE)
            results.append(flops("attention mass of all keys", shape, masses, run, 3))
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            ahead = partial(indexer_kernels.dense_indexer_loss, *leaves, teacher, plan)
            results.append(flops("indexer's loss over all keys, forward", shape, masses + products, ahead, 3))
            losses_N = ahead()
            back = partial(torch.autograd.grad, losses_N, leaves, torch.ones_like(losses_N), retain_graph=True)
            results.append(flops("the same, backward", shape, masses + 3 * products, back, 3))
            extra = (torch.cuda.max_memory_allocated() - held) / 1e9
            results.append(Measurement(operation="the same, peak memory", shape=shape, ms=0.0, rate=extra, unit="GB"))
        return results
