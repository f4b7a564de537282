"""One layer's attention as a whole, sparse with its indexer beside dense multi-head attention (192/128, PyTorch's own kernels), published sizes.

- prefill: the last 4096 queries of a context, forward. training: the same with the backward, the attention mass and the indexer's loss with its
  gradients. decode: one query a sequence. short: the two forms of latent attention on contexts up to 8K, forward and backward, from which
  `model/network/dispatch.py` has its lengths.
- Sparse counts everything from the projected queries and cached keys to the absorbed output: quantisation of the indexer's queries, index logits
  (FP8), selection, attention. Absorbed products and dense attention's expansion of the cache to keys and values (2·512·256·H a key, which a
  cache of latents makes necessary) are left out of both.
- Dense attention is causal: the keys before the chunk and the chunk itself in two calls, as an attention that skips what is hidden would cost;
  16 heads are measured, times 8.
- Formulas, with Q queries over S keys, P = Q·(S − Q) + Q·(Q + 1)/2 pairs and C = 2048 selected. FLOP of dense attention 2·H·(192 + 128)·P forward,
  2·H·(3·192 + 2·128)·P backward; of sparse attention 2·H·(576 + 512)·Q·C and 2·H·(3·576 + 2·512)·Q·C, of its index logits 2·64·128·P. Bytes of
  one decoded token: dense 2·H·(192 + 128)·S = 10.7 GB at 128K keys; latents in full 2·576·S = 151 MB; sparse (128 + 4)·S codes and scales of the
  index keys, 2·4·S logits (written and read), 2·576·C = 21 MB together.

Axes: N query rows, S keys, H heads, C selected keys, I indexer heads; B, T, S of a window.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.kernels.layer_passes import (
    NOPE,
    absorbed_form,
    dense_decode,
    dense_pass,
    expanded_form,
    latent_decode,
    quantised,
    sparse_forward,
    sparse_training,
)
from benchmarks.kernels.measurement import (
    DENSE_HEADS,
    DENSE_KEY,
    DENSE_VALUE,
    HEADS,
    INDEX_HEADS,
    INDEX_WIDTH,
    KEY_WIDTH,
    QUERIES,
    SELECTED,
    VALUE_WIDTH,
    Measurement,
    RandomInputs,
    forward_and_backward,
    graph_milliseconds,
    milliseconds,
)

DENSE_PEERS = ("dense MHA (SDPA)", "dense MHA (bmm)")
LENGTHS = (8192, 16384, 32768, 65536, 131072)
SHORT_LENGTHS = (1024, 2048, 4096, 8192, 12288)
DECODE_LENGTHS = (2048, 8192, 32768, 131072)


def crossover(what: str, points: Sequence[tuple[int, float, float]]) -> Measurement:
    """Where the first times fall below the second ones, linear between measured lengths; points are (keys, first ms, second ms)."""
    shape = f"linear between {', '.join(str(length) for length, _, _ in points)}"
    (shortest, first_ms, second_ms), (longest, _, _) = points[0], points[-1]
    found, operation = float(longest), f"{what}: no crossover up to"
    for (low, first_low, second_low), (high, first_high, second_high) in pairwise(points):
        before, after = first_low - second_low, first_high - second_high
        if before > 0 >= after:
            found, operation = low + (high - low) * before / (before - after), f"{what}: crossover"
    if first_ms <= second_ms:
        found, operation = float(shortest), f"{what}: faster from the shortest length on"
    return Measurement(operation=operation, shape=shape, ms=0.0, rate=found, unit="keys")


def compared(what: str, shape: str, times: dict[str, float], peer: str) -> list[Measurement]:
    """A line for each time, with its speed over the peer's."""
    return [
        Measurement(operation=f"{what}: {name}", shape=shape, ms=ms, rate=times[peer] / ms, unit="×")
        for name, ms in times.items()
    ]


class LayerBench(RandomInputs):
    """Runs the groups of measurements of a layer."""

    def queries(self, *sizes: int) -> tuple[Tensor, Tensor, Tensor]:
        """(absorbed queries, the indexer's queries, its head weights) of so many sequences and rows."""
        num_sequences, num_rows = sizes
        return (
            self.normal(num_sequences * num_rows, HEADS, KEY_WIDTH),
            self.normal(num_sequences, num_rows, INDEX_HEADS, INDEX_WIDTH),
            self.normal(num_sequences, num_rows, INDEX_HEADS, dtype=torch.float32),
        )

    def prefill(self) -> list[Measurement]:
        """Forward of the last queries of a context."""
        results, points = [], []
        queries = self.queries(1, QUERIES)
        for length in LENGTHS:
            kv_SK, index_keys = self.normal(length, KEY_WIDTH), quantised(self.normal(1, length, INDEX_WIDTH))
            sparse_ms = milliseconds(partial(sparse_forward, queries, kv_SK, index_keys), 5)
            dense_ms = self.dense_chunk(length, backward=False)
            points.append((length, sparse_ms, dense_ms))
            shape = f"last {QUERIES} queries of {length} keys, forward"
            results += compared("layer", shape, {"sparse": sparse_ms, "dense MHA (SDPA)": dense_ms}, "dense MHA (SDPA)")
        return [*results, crossover("sparse against dense, forward", points)]

    def training(self) -> list[Measurement]:
        """Forward and backward of the last queries of a context, the indexer's included."""
        results, points = [], []
        q_NHK, q_BTIK, weights_BTI = self.queries(1, QUERIES)
        upstream_NHV = self.normal(QUERIES, HEADS, VALUE_WIDTH)
        for length in LENGTHS:
            kv_SK, index_SJ = self.normal(length, KEY_WIDTH), self.normal(length, INDEX_WIDTH)
            inputs = [
                tensor.requires_grad_()
                for tensor in (q_NHK.detach(), kv_SK, q_BTIK[0].detach(), index_SJ, weights_BTI[0].detach())
            ]
            sparse_ms = milliseconds(partial(sparse_training, inputs, upstream_NHV), 3)
            dense_ms = self.dense_chunk(length, backward=True)
            points.append((length, sparse_ms, dense_ms))
            shape = f"last {QUERIES} queries of {length} keys, forward + backward"
            results += compared("layer", shape, {"sparse": sparse_ms, "dense MHA (SDPA)": dense_ms}, "dense MHA (SDPA)")
        return [*results, crossover("sparse against dense, forward + backward", points)]

    def short(self) -> list[Measurement]:
        """Both forms of latent attention over whole contexts, with the products that lead into and out of them; what is hidden is not selected."""
        results, points = [], []
        for length in SHORT_LENGTHS:
            inputs = [
                self.normal(length, HEADS, NOPE).requires_grad_(),
                self.normal(length, HEADS, KEY_WIDTH - VALUE_WIDTH).requires_grad_(),
                self.normal(length, KEY_WIDTH).requires_grad_(),
                (self.normal(HEADS, 2 * NOPE, VALUE_WIDTH) / VALUE_WIDTH**0.5).requires_grad_(),
            ]
            upstream_NHV = self.normal(length, HEADS, NOPE)
            positions_NC = self.causal_selection(length)
            found = {}
            forms: dict[str, Callable[..., Tensor]] = {"absorbed": absorbed_form, "expanded": expanded_form}
            for name, form in forms.items():
                run = partial(form, *inputs, positions_NC)
                with torch.no_grad():
                    found[name] = milliseconds(run, 3)
                found[f"{name}, forward + backward"] = milliseconds(
                    partial(forward_and_backward, run, tuple(inputs), upstream_NHV), 3
                )
            ahead = {name: ms for name, ms in found.items() if "," not in name}
            both = {name: ms for name, ms in found.items() if "," in name}
            shape = f"{length} tokens, {SELECTED} selected at most"
            results += compared("latent attention", shape, ahead, "absorbed")
            results += compared("latent attention", shape, both, "absorbed, forward + backward")
            points.append((length, both["absorbed, forward + backward"], both["expanded, forward + backward"]))
        return [*results, crossover("absorbed against expanded form, forward + backward", points)]

    def causal_selection(self, length: int) -> Tensor:
        """int32 [N, C] random positions up to each row's own, ascending, −1 behind the last."""
        positions_NC = torch.full((length, SELECTED), -1, dtype=torch.int32, device="cuda")
        keys_S = torch.arange(length, device="cuda")
        for start in range(0, length, 512):
            rows = keys_S[start : start + 512, None]
            noise = torch.rand(len(rows), length, generator=self.random, device="cuda").masked_fill_(keys_S > rows, -1)
            best = noise.topk(min(SELECTED, length), 1)
            chosen = best.indices.masked_fill(best.values < 0, length).sort(1).values
            positions_NC[start : start + 512, : chosen.shape[1]] = chosen.masked_fill(chosen == length, -1).int()
        return positions_NC

    def dense_chunk(self, length: int, *, backward: bool) -> float:
        """Milliseconds of all heads' dense attention of the last queries of a context."""
        total = 0.0
        for num_keys, causal in ((length - QUERIES, False), (QUERIES, True)):
            q, k = (
                self.normal(1, DENSE_HEADS, rows, DENSE_KEY).requires_grad_(backward) for rows in (QUERIES, num_keys)
            )
            v = self.normal(1, DENSE_HEADS, num_keys, DENSE_VALUE).requires_grad_(backward)
            upstream = self.normal(1, DENSE_HEADS, QUERIES, DENSE_VALUE)
            run = partial(dense_pass, (q, k, v), upstream if backward else None, causal)
            total += HEADS // DENSE_HEADS * milliseconds(run, 3)
        return total

    def decode(self) -> list[Measurement]:
        """One query a sequence over a cache, eager and as a CUDA graph, against the faster of two dense peers."""
        results = []
        for num_sequences in (1, 8):
            points: dict[str, list[tuple[int, float, float]]] = {"eager": [], "graph": []}
            for length in DECODE_LENGTHS:
                runs = self.decode_runs(num_sequences, length)
                shape = f"{num_sequences} × 1 query, {length} keys each"
                times = {
                    "eager": {name: milliseconds(run, 10) for name, run in runs.items()},
                    "graph": {name: graph_milliseconds(run) for name, run in runs.items()},
                }
                for mode, found in times.items():
                    peer = min(DENSE_PEERS, key=found.__getitem__)
                    results += compared(f"decode, {mode}", shape, found, peer)
                    points[mode].append((length, found["sparse"], found[peer]))
                del runs
                torch.cuda.empty_cache()
            results += [
                crossover(f"sparse against dense, decode of {num_sequences}, {mode}", found)
                for mode, found in points.items()
            ]
        return results

    def decode_runs(self, num_sequences: int, length: int) -> dict[str, Callable[[], object]]:
        """The sparse layer, dense attention over expanded keys, and dense attention over all latents."""
        queries = self.queries(num_sequences, 1)
        kv_BSK = self.normal(num_sequences, length, KEY_WIDTH)
        index_keys = quantised(self.normal(num_sequences, length, INDEX_WIDTH))
        q, k, v = (
            torch.empty(num_sequences, HEADS, rows, width, dtype=torch.bfloat16, device="cuda").normal_()
            for rows, width in ((1, DENSE_KEY), (length, DENSE_KEY), (length, DENSE_VALUE))
        )
        return {
            "sparse, batch-invariant": partial(sparse_forward, queries, kv_BSK.flatten(0, 1), index_keys),
            "sparse": partial(sparse_forward, queries, kv_BSK.flatten(0, 1), index_keys, False),
            "dense MHA (SDPA)": partial(dense_pass, (q, k, v), None, False),
            "dense MHA (bmm)": partial(dense_decode, q, k, v),
            "dense over latents (bmm)": partial(latent_decode, queries[0], kv_BSK),
        }
