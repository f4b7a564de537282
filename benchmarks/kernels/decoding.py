"""Steps of decoding beside what they would cost by the library's operations; both must give the same bits.

- cached_logits: index logits of one query a sequence, by a copy of the cached keys to one tensor and from the cache itself, under a CUDA graph. The
  window is twice as long as the contexts, as a bucket's may be. The rate is that of the keys' bytes.
- candidates: top-p of a row of logits by a sort of the vocabulary and by a search, and the whole draw, with an untruncated draw beside it. Normal logits
  of standard deviation 1 are flat (most rows exceed their cap), those of 4 are peaked.

Axes: B sequences, S keys of a window, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import embedding

import samepath.kernels.indexer.triton_index_logits as index_kernels
from benchmarks.kernels.measurement import Measurement, RandomInputs, graph_milliseconds
from samepath.kernels.backend import Backend
from samepath.kernels.head.candidates import truncate
from samepath.rollout.sampling import draw

PAGE = 16
"""Tokens of a page of the cache."""


class DecodingBench(RandomInputs):
    """Runs the groups of measurements of decoding steps."""

    def cached_logits(self) -> list[Measurement]:
        """Index logits of decoding rows."""
        results = []
        for num_sequences, length, heads, width in (
            (64, 8192, 16, 128),
            (64, 8192, 64, 128),
            (64, 8192, 8, 64),
            (8, 32768, 64, 128),
            (1, 131072, 64, 128),
            (256, 2048, 16, 128),
        ):
            window = 2 * length
            store = self.normal(num_sequences * window, width)
            pages = torch.randperm(len(store) // PAGE, generator=self.random, device="cuda")[:, None] * PAGE
            table_BS = (pages + torch.arange(PAGE, device="cuda")).view(num_sequences, window)
            ends_B1 = torch.full((num_sequences, 1), length, device="cuda")
            q_BTIK = self.normal(num_sequences, 1, heads, width)
            weights_BTI = self.normal(num_sequences, 1, heads, dtype=torch.float32)
            copied = partial(copied_logits, q_BTIK, store, table_BS, weights_BTI)
            cached = partial(index_kernels.cached_index_logits, q_BTIK, store, table_BS, weights_BTI, ends_B1)
            if not torch.equal(copied()[..., :length], cached()[..., :length]):
                raise RuntimeError(f"cached and copied index logits differ with {heads} heads × {width}")
            shape = f"{num_sequences} × 1 query, {heads} heads × {width}, {length} keys each, window {window}, bf16"
            size = num_sequences * length * width * 2
            for name, run in (("index logits by a copy", copied), ("index logits from the cache", cached)):
                ms = graph_milliseconds(run)
                results.append(Measurement(operation=name, shape=shape, ms=ms, rate=size / ms / 1e9, unit="TB/s"))
        return results

    def candidates(self) -> list[Measurement]:
        """Candidates and whole draws; the rate is that of the logits' bytes."""
        results = []
        for rows, vocab_size, spread in ((256, 32000, 1), (256, 32000, 4), (64, 32000, 4), (64, 151936, 4)):
            logits_BV = self.normal(rows, vocab_size, dtype=torch.float32) * spread
            settings_5B = torch.tensor([[1.0], [0.0], [0.95], [0.0], [4096.0]], dtype=torch.float64, device="cuda")
            settings_5B = settings_5B.expand(-1, rows).contiguous()
            uniforms_B = torch.rand(rows, dtype=torch.float64, generator=self.random, device="cuda")
            found = [drawn(logits_BV, settings_5B, uniforms_B, backend) for backend in ("torch", "triton")]
            if not all(torch.equal(one, other) for one, other in zip(*found, strict=True)):
                raise RuntimeError(f"draws by sort and by search differ at {rows} × {vocab_size}")
            ones_B = torch.ones(rows, device="cuda")
            runs: dict[str, Callable[[], object]] = {
                "top-p by a sort": partial(truncate, logits_BV, ones_B, settings_5B, "torch"),
                "top-p by a search": partial(truncate, logits_BV, ones_B, settings_5B, "triton"),
                "draw with top-p by a sort": partial(drawn, logits_BV, settings_5B, uniforms_B, "torch"),
                "draw with top-p by a search": partial(drawn, logits_BV, settings_5B, uniforms_B, "triton"),
                "draw from the whole vocabulary": partial(draw, logits_BV, settings_5B, uniforms_B, truncates=False),
            }
            shape = f"{rows} × {vocab_size}, standard deviation {spread}, float32"
            for name, run in runs.items():
                ms = graph_milliseconds(run)
                rate = logits_BV.nbytes / ms / 1e9
                results.append(Measurement(operation=name, shape=shape, ms=ms, rate=rate, unit="TB/s"))
        return results


def copied_logits(q_BTIK: Tensor, store: Tensor, table_BS: Tensor, weights_BTI: Tensor) -> Tensor:
    """Index logits of a copy of the listed keys."""
    return index_kernels.index_logits(q_BTIK, embedding(table_BS, store), weights_BTI)


def drawn(logits_BV: Tensor, settings_5B: Tensor, uniforms_B: Tensor, backend: Backend) -> tuple[Tensor, ...]:
    """(tokens, log-probabilities, bits of the candidates, rows over their cap) of a truncated draw."""
    found = draw(logits_BV, settings_5B, uniforms_B, truncates=True, backend=backend)
    assert found.words_BW is not None
    return found.tokens_B, found.logprobs_B, found.words_BW, found.over_cap_B
