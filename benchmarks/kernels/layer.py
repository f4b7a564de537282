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
from torch.nn.functional import scaled_dot_product_attention

import samepath.kernels.indexer.triton_index_logits as index_kernels
import samepath.kernels.indexer.triton_selected_logits as selected_kernels
import samepath.kernels.selection.triton_selection as selection_kernels
import samepath.kernels.sparse_attention.triton_joined as attention_kernels
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
    forward_and_backward,
    graph_milliseconds,
    milliseconds,
)
from samepath.kernels.indexer.index_logits import indexer_loss
from samepath.kernels.indexer.triton_fp8 import quantise
from samepath.kernels.rows.head_product import head_product
from samepath.kernels.window import Window
from samepath.kernels.window_attention.window_attention import window_attend

NOPE = 128
"""Channels of a head's key without position, and of its value."""
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


def quantised(keys_BSJ: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 codes and scales of index keys."""
    codes, scales = quantise(keys_BSJ.flatten(0, 1))
    return codes.view(keys_BSJ.shape), scales.view(keys_BSJ.shape[:2])


def selected_keys(q_BTIK: Tensor, weights_BTI: Tensor, index_keys: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Quantise, score and select for the last rows of each context: (rows of the store [N, C], count [N])."""
    codes_BSJ, scales_BS = index_keys
    (num_sequences, num_rows), num_keys = q_BTIK.shape[:2], codes_BSJ.shape[1]
    ends_T = torch.arange(num_keys - num_rows + 1, num_keys + 1, dtype=torch.int32, device="cuda")
    ends_BT = ends_T.expand(num_sequences, -1).contiguous()
    starts_BT = torch.zeros_like(ends_BT)
    codes, scales = quantise(q_BTIK.flatten(0, 2))
    logits_BTS = index_kernels.index_logits(
        codes.view(q_BTIK.shape),
        codes_BSJ,
        weights_BTI * scales.view(weights_BTI.shape),
        (starts_BT, ends_BT),
        scales_BS,
    )
    places_NC, count_N = selection_kernels.select(
        logits_BTS.flatten(0, 1), starts_BT.flatten(), ends_BT.flatten(), SELECTED
    )
    if num_sequences > 1:
        first_N1 = torch.arange(num_sequences, device="cuda").repeat_interleave(num_rows)[:, None] * num_keys
        places_NC = (places_NC + first_N1).to(torch.int32)
    return places_NC, count_N


def sparse_forward(
    queries: tuple[Tensor, Tensor, Tensor],
    kv_SK: Tensor,
    index_keys: tuple[Tensor, Tensor],
    batch_invariant: bool = True,
) -> Tensor:
    """The layer's forward; queries are (absorbed, indexer's, its head weights)."""
    q_NHK, q_BTIK, weights_BTI = queries
    places_NC, count_N = selected_keys(q_BTIK, weights_BTI, index_keys)
    return attention_kernels.attend(q_NHK, kv_SK, places_NC, count_N, SCALE, VALUE_WIDTH, False, batch_invariant)[0]


def sparse_training(inputs: Sequence[Tensor], upstream_NHV: Tensor) -> object:
    """Forward and backward; inputs are (absorbed queries, keys, indexer's queries, its keys, its head weights)."""
    q_NHK, kv_SK, q_NIK, index_SJ, weights_NI = inputs
    with torch.no_grad():
        places_NC, count_N = selected_keys(q_NIK[None], weights_NI[None], quantised(index_SJ[None]))
    out_NHV, _, mass_NC = attention_kernels.attend(q_NHK, kv_SK, places_NC, count_N, SCALE, VALUE_WIDTH, True, True)
    selected_NC = selected_kernels.selected_index_logits(q_NIK, index_SJ, weights_NI, places_NC)
    loss = indexer_loss(selected_NC, mass_NC, count_N).sum()
    return torch.autograd.grad((out_NHV, loss), inputs, (upstream_NHV, torch.ones_like(loss)))


def absorbed_form(
    q_nope_NHE: Tensor, q_rope_NHE: Tensor, kv_SK: Tensor, key_up_HER: Tensor, positions_NC: Tensor
) -> Tensor:
    """Output before the output matrix, by latents that all heads share."""
    q_NHK = torch.cat([head_product(q_nope_NHE, key_up_HER[:, :NOPE], "torch"), q_rope_NHE], -1)
    count_N = (positions_NC >= 0).sum(1, dtype=torch.int32)
    out_NHR = attention_kernels.attend(q_NHK, kv_SK, positions_NC, count_N, SCALE, VALUE_WIDTH, False, True)[0]
    return head_product(out_NHR, key_up_HER[:, NOPE:].transpose(1, 2), "torch")


def expanded_form(
    q_nope_NHE: Tensor, q_rope_NHE: Tensor, kv_SK: Tensor, key_up_HER: Tensor, positions_NC: Tensor
) -> Tensor:
    """The same with a key and a value for each head."""
    length = kv_SK.shape[0]
    up_SHE = (kv_SK[:, :VALUE_WIDTH] @ key_up_HER.flatten(0, 1).T).view(length, HEADS, 2 * NOPE)
    shared_SHE = kv_SK[:, None, VALUE_WIDTH:].expand(-1, HEADS, -1)
    places = torch.arange(length, device="cuda")[None]
    window = Window(rows_BT=places, ends_BT=places + 1, keys_BS=places, longest=length, whole=True)
    out_BTHV, _ = window_attend(
        torch.cat([q_nope_NHE, q_rope_NHE], -1)[None],
        torch.cat([up_SHE[..., :NOPE], shared_SHE], -1)[None],
        up_SHE[None, ..., NOPE:],
        window,
        positions_NC[None],
        scale=SCALE,
        backend="triton",
    )
    return out_BTHV[0]


def dense_pass(operands: tuple[Tensor, Tensor, Tensor], upstream: Tensor | None, causal: bool) -> object:
    """Dense multi-head attention, with its backward if there is an upstream gradient."""
    out = scaled_dot_product_attention(*operands, is_causal=causal, scale=SCALE)
    return out if upstream is None else torch.autograd.grad(out, operands, upstream)


def dense_decode(q_BH1K: Tensor, k_BHSK: Tensor, v_BHSV: Tensor) -> Tensor:
    """Dense multi-head attention of one query a sequence by the library's products: SDPA's kernels do not cut the keys of one query."""
    scores_BH1S = torch.matmul(q_BH1K, k_BHSK.transpose(2, 3)).float() * SCALE
    return torch.matmul(scores_BH1S.softmax(-1).to(v_BHSV.dtype), v_BHSV)


def latent_decode(q_BHK: Tensor, kv_BSK: Tensor) -> Tensor:
    """Absorbed attention of one query a sequence over all latents, by the library's products."""
    scores_BHS = torch.bmm(q_BHK, kv_BSK.transpose(1, 2)).float() * SCALE
    return torch.bmm(scores_BHS.softmax(-1).to(kv_BSK.dtype), kv_BSK[..., :VALUE_WIDTH])
