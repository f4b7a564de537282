"""Times the GPU kernels at the published model's shapes beside what PyTorch offers: `python -m benchmarks.kernels.each_kernel --out FILE.json`.

Median of CUDA-event times after warm-up; inputs are random; comparators run in the same process; one layer's attention as a whole stands in
layer.py, attention over all keys in dense.py, steps of decoding in decoding.py. FLOP counts: sparse forward
2·H·(576 + 512)·pairs, backward 2·H·(3·576 + 2·512)·pairs, index logits 2·I·K·pairs, expert product 6·rows·D·F (three times that with its
backward), head 2·N·V·D. Axes: N query rows, S keys, H heads, C selected keys, I indexer heads, D width, E experts, F expert width, V vocabulary.
"""

import argparse
import json
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import samepath.kernels.indexer.triton_index_logits as index_kernels
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
    graph_milliseconds,
    milliseconds,
)
from benchmarks.kernels.products import ProductBench
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
    single, products = ("ceilings", "attention", "dense", "indexer"), ("experts", "rows", "head")
    over_all_keys = ("grouped", "grouped_decode", "warmup")
    layers, steps = ("prefill", "training", "decode", "short"), ("cached_logits", "candidates")
    groups = (*single, *products, *layers, *over_all_keys, *steps)
    parser.add_argument("--only", nargs="*", choices=groups, default=groups, help="groups to run")
    parser.add_argument("--out", type=Path, default=Path("kernels-bench.json"), help="JSON file to write")
    options = parser.parse_args()
    problem = backend_problem("triton")
    if problem is not None or not torch.cuda.is_available():
        raise SystemExit(f"the benchmark needs Triton on an NVIDIA GPU: {problem or 'no CUDA device is visible'}.")
    benches = {
        Bench(): single,
        ProductBench(): products,
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
