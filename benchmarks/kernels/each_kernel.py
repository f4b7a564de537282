"""Times the GPU kernels at the published model's shapes beside what PyTorch offers: `python -m benchmarks.kernels.each_kernel --out FILE.json`.

Median of CUDA-event times after warm-up; inputs are random; comparators run in the same process; one layer's attention as a whole stands in
layer.py, attention over all keys in dense.py, steps of decoding in decoding.py. FLOP counts: sparse forward
2·H·(576 + 512)·pairs, backward 2·H·(3·576 + 2·512)·pairs, index logits 2·I·K·pairs, expert product 6·rows·D·F (three times that with its
backward), head 2·N·V·D. Axes: N query rows, S keys, H heads, C selected keys, I indexer heads, D width, E experts, F expert width, V vocabulary.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import samepath.kernels.experts.triton_product as expert_kernels
import samepath.kernels.head.triton_logprob as head_kernels
import samepath.kernels.indexer.triton_index_logits as index_kernels
import samepath.kernels.rows.triton_dense_rows as row_kernels
import samepath.kernels.selection.triton_selection as selection_kernels
import samepath.kernels.sparse_attention.triton_backward as backward_kernels
import samepath.kernels.sparse_attention.triton_forward as forward_kernels
import samepath.kernels.sparse_attention.triton_mass as mass_kernels
from benchmarks.kernels.decoding import DecodingBench
from benchmarks.kernels.dense import DenseBench
from benchmarks.kernels.layer import LayerBench
from benchmarks.kernels.measurement import (
    DENSE_HEADS,
    DENSE_KEY,
    DENSE_VALUE,
    HEADS,
    INDEX_HEADS,
    INDEX_WIDTH,
    KEY_WIDTH,
    QUERIES,
    SCALE,
    SELECTED,
    VALUE_WIDTH,
    Measurement,
    RandomInputs,
    flops,
    forward_and_backward,
    graph_milliseconds,
    in_turn,
    milliseconds,
)
from samepath.kernels.gpu.loading import backend_problem
from samepath.kernels.indexer.triton_fp8 import quantise
from samepath.kernels.sparse_attention.sparse_attention import attend
from samepath.kernels.sparse_attention.triton_gradients import SavedRows


class Bench(RandomInputs):
    """Runs the groups of measurements of single operations."""

    def ceilings(self) -> list[Measurement]:
        """What the card does at best: a large copy and a large product."""
        left, right = self.normal(8192, 8192), self.normal(8192, 8192)
        source = torch.empty(1 << 30, dtype=torch.float32, device="cuda")
        target = torch.empty_like(source)
        ms = milliseconds(lambda: target.copy_(source))
        copy = Measurement(operation="copy", shape="4 GiB", ms=ms, rate=2 * source.nbytes / ms / 1e9, unit="TB/s")
        return [flops("torch.mm", "8192³ bf16", 2 * 8192**3, lambda: left @ right), copy]

    def selected(self, num_rows: int, num_keys: int) -> tuple[Tensor, Tensor]:
        """(ascending distinct random indices [N, C], counts)."""
        indices_NC = torch.empty(num_rows, SELECTED, dtype=torch.int32, device="cuda")
        for start in range(0, num_rows, 256):
            noise = torch.rand(min(256, num_rows - start), num_keys, generator=self.random, device="cuda")
            indices_NC[start : start + 256] = noise.topk(SELECTED, dim=1).indices.sort(1).values
        return indices_NC, torch.full((num_rows,), SELECTED, dtype=torch.int32, device="cuda")

    def attention(self) -> list[Measurement]:
        """Sparse forward and backward."""
        results = []
        q_NHK = self.normal(QUERIES, HEADS, KEY_WIDTH)
        for num_keys in (8192, 32768, 131072):
            kv_SK = self.normal(num_keys, KEY_WIDTH)
            indices_NC, count_N = self.selected(QUERIES, num_keys)
            pairs = QUERIES * SELECTED
            shape = f"{QUERIES} queries, {HEADS} heads, {SELECTED} of {num_keys} keys, bf16"
            arguments = (q_NHK, kv_SK, indices_NC, count_N, SCALE, VALUE_WIDTH)
            ahead = 2 * HEADS * (KEY_WIDTH + VALUE_WIDTH) * pairs
            run = partial(forward_kernels.attend_forward, *arguments)
            results.append(flops("sparse forward", shape, ahead, run))
            out_NHV, lse_NH = forward_kernels.attend_forward(*arguments)
            saved = SavedRows(
                q_NHK=q_NHK,
                kv_SK=kv_SK,
                indices_NC=indices_NC,
                count_N=count_N,
                out_NHV=out_NHV,
                lse_NH=lse_NH,
                scale=SCALE,
            )
            upstream = self.normal(*out_NHV.shape)
            back = 2 * HEADS * (3 * KEY_WIDTH + 2 * VALUE_WIDTH) * pairs
            run = partial(backward_kernels.attend_backward, saved, upstream)
            results.append(flops("sparse backward, deterministic", shape, back, run, 3))
            run = partial(mass_kernels.attention_mass, *arguments[:4], lse_NH, SCALE)
            results.append(flops("attention mass", shape, 2 * HEADS * KEY_WIDTH * pairs, run, 3))
        rows = 64
        few = (q_NHK[:rows], kv_SK, indices_NC[:rows], count_N[:rows])
        plain = partial(gathered_attention, *few)
        results.append(
            flops("gather + bmm (torch) forward", f"{rows} queries of the same", ahead * rows / QUERIES, plain, 3)
        )
        return results

    def dense(self) -> list[Measurement]:
        """Causal multi-head attention 192/128 through PyTorch's own choice of kernel (cuDNN or flash)."""
        results = []
        for length in (8192, 32768):
            q, k = (self.normal(1, DENSE_HEADS, length, DENSE_KEY).requires_grad_() for _ in range(2))
            v = self.normal(1, DENSE_HEADS, length, DENSE_VALUE).requires_grad_()
            shape = f"{DENSE_HEADS} heads, {length} causal, {DENSE_KEY}/{DENSE_VALUE} bf16"
            count = DENSE_HEADS * length * length * (DENSE_KEY + DENSE_VALUE)
            ahead = partial(scaled_dot_product_attention, q, k, v, is_causal=True)
            results.append(flops("dense MHA forward (SDPA)", shape, count, ahead, 5))
            out = ahead()
            back = partial(torch.autograd.grad, out, (q, k, v), self.normal(*out.shape), retain_graph=True)
            wide = DENSE_HEADS * length * length * (3 * DENSE_KEY + 2 * DENSE_VALUE)
            results.append(flops("dense MHA backward (SDPA)", shape, wide, back, 3))
        return results

    def indexer(self) -> list[Measurement]:
        """Index logits in bf16 and FP8, quantisation, and selection beside torch.topk."""
        results = []
        q_BTIK = self.normal(1, QUERIES, INDEX_HEADS, INDEX_WIDTH)
        weights_BTI = self.normal(1, QUERIES, INDEX_HEADS, dtype=torch.float32)
        codes, q_scales = quantise(q_BTIK.flatten(0, 2))
        codes_q, scaled = codes.view(q_BTIK.shape), weights_BTI * q_scales.view(weights_BTI.shape)
        ms = milliseconds(lambda: quantise(q_BTIK.flatten(0, 2)))
        results.append(
            Measurement(
                operation="Hadamard + FP8 quantise",
                shape=f"{QUERIES * INDEX_HEADS} × {INDEX_WIDTH} bf16",
                ms=ms,
                rate=q_BTIK.numel() * 3 / ms / 1e9,
                unit="TB/s",
            )
        )
        for num_keys in (32768, 131072):
            k_BSK = self.normal(1, num_keys, INDEX_WIDTH)
            codes, scales = quantise(k_BSK[0])
            count = 2 * INDEX_HEADS * INDEX_WIDTH * QUERIES * num_keys
            shape = f"{QUERIES} queries, {INDEX_HEADS} heads × {INDEX_WIDTH}, {num_keys} keys"
            bf16 = partial(index_kernels.index_logits, q_BTIK, k_BSK, weights_BTI)
            fp8 = partial(index_kernels.index_logits, codes_q, codes[None], scaled, None, scales[None])
            results.append(flops("index logits bf16", shape, count, bf16, 5))
            results.append(flops("index logits FP8", shape, count, fp8, 5))
        for num_keys in (32768, 131072):
            logits_NS = self.normal(2048, num_keys, dtype=torch.float32)
            starts_N = torch.zeros(2048, dtype=torch.int32, device="cuda")
            ends_N = torch.full_like(starts_N, num_keys)
            for name, run in (
                ("selection", partial(selection_kernels.select, logits_NS, starts_N, ends_N, SELECTED)),
                ("torch.topk", partial(torch.topk, logits_NS, SELECTED, dim=1)),
            ):
                ms = milliseconds(run)
                shape = f"2048 × {num_keys}, C {SELECTED}, float32"
                results.append(
                    Measurement(operation=name, shape=shape, ms=ms, rate=logits_NS.nbytes / ms / 1e9, unit="TB/s")
                )
        return results + self.indexer_of_few_rows()

    def indexer_of_few_rows(self) -> list[Measurement]:
        """Index logits and selection of decoding steps, each row with 128K keys of its own, under a CUDA graph; the rate is that of keys or logits."""
        num_keys, results = 131072, []
        for num_rows in (1, 8, 64):
            q_BTIK = self.normal(num_rows, 1, INDEX_HEADS, INDEX_WIDTH)
            weights_BTI = self.normal(num_rows, 1, INDEX_HEADS, dtype=torch.float32)
            k_BSK = self.normal(num_rows, num_keys, INDEX_WIDTH)
            codes_q, _ = quantise(q_BTIK.flatten(0, 2))
            codes_k, scales = quantise(k_BSK.flatten(0, 1))
            fp8 = codes_q.view(q_BTIK.shape), codes_k.view(k_BSK.shape), weights_BTI, None, scales.view(num_rows, -1)
            logits_NS = self.normal(num_rows, num_keys, dtype=torch.float32)
            starts_N = torch.zeros(num_rows, dtype=torch.int32, device="cuda")
            bounds = starts_N, starts_N + num_keys
            shape = f"{num_rows} rows × {num_keys} keys of their own"
            for name, size, run in (
                (
                    "index logits bf16, decoding",
                    k_BSK.nbytes,
                    partial(index_kernels.index_logits, q_BTIK, k_BSK, weights_BTI),
                ),
                ("index logits FP8, decoding", codes_k.nbytes, partial(index_kernels.index_logits, *fp8)),
                (
                    "selection, decoding",
                    logits_NS.nbytes,
                    partial(selection_kernels.select, logits_NS, *bounds, SELECTED),
                ),
                ("torch.topk, decoding", logits_NS.nbytes, partial(torch.topk, logits_NS, SELECTED, dim=1)),
            ):
                ms = graph_milliseconds(run)
                results.append(Measurement(operation=name, shape=shape, ms=ms, rate=size / ms / 1e9, unit="TB/s"))
        return results

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


def gathered_attention(*rows: Tensor) -> object:
    """The `torch` backend's forward: gather and batched products."""
    with torch.no_grad():
        return attend(*rows, scale=SCALE, value_width=VALUE_WIDTH, backend="torch")


def table(results: list[Measurement]) -> str:
    """Markdown table of the measurements."""
    lines = ["| operation | shape | ms | rate |", "|---|---|---:|---:|"]
    for one in results:
        ms = f"{one.ms:.3f}" if one.ms else ""
        lines.append(f"| {one.operation} | {one.shape} | {ms} | {one.rate:.4g} {one.unit} |")
    return "\n".join(lines)


def main() -> None:
    """Run the chosen groups, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    single = ("ceilings", "attention", "dense", "indexer", "experts", "rows", "head")
    over_all_keys = ("grouped", "grouped_decode", "warmup")
    layers, steps = ("prefill", "training", "decode", "short"), ("cached_logits", "candidates")
    groups = (*single, *layers, *over_all_keys, *steps)
    parser.add_argument("--only", nargs="*", choices=groups, default=groups, help="groups to run")
    parser.add_argument("--out", type=Path, default=Path("kernels-bench.json"), help="JSON file to write")
    options = parser.parse_args()
    problem = backend_problem("triton")
    if problem is not None or not torch.cuda.is_available():
        raise SystemExit(f"the benchmark needs Triton on an NVIDIA GPU: {problem or 'no CUDA device is visible'}.")
    benches = {
        Bench(): single,
        LayerBench(): layers,
        DenseBench(): over_all_keys,
        DecodingBench(): steps,
    }
    results: list[Measurement] = []
    for name in options.only:
        bench = next(bench for bench, names in benches.items() if name in names)
        results += getattr(bench, name)()
        torch.cuda.empty_cache()
        record = {
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": metadata.version("triton"),
            "cuda": torch.version.cuda,
            "results": [asdict(one) for one in results],
        }
        # After each group, so that what stops a later one loses nothing.
        options.out.write_text(json.dumps(record, indent=1), encoding="utf-8")
        print(f"{name} done", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
