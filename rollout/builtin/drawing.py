"""From final hidden states to drawn tokens, and what of it goes to the host: the same few operations with and without a CUDA graph.

Axes: B rows, D width, V vocabulary, W words of 32 tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.kernels.backend import CAPABILITIES
from samepath.kernels.head.logprob import fused_logprobs, padded_logits
from samepath.model.network.network import CausalLM
from samepath.rollout.sampling import draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One token per row, on the model's device."""

    report_3B: Tensor
    """float64: token id, log-probability in nats, 1 where the support exceeded its cap; float64 holds all three exactly."""
    words_BW: Tensor | None
    """int32 `kept_words` of the candidates, all 0 for the full vocabulary. None if no row may truncate."""

    def to_host(self) -> "HostDrawn":
        """Wait for the device and read."""
        report = self.report_3B.cpu().numpy()
        return read_report(report, None if self.words_BW is None else self.words_BW.cpu().numpy())


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDrawn:
    """The same, read by the host."""

    tokens: NDArray[np.int64]
    """Token ids."""
    logprobs: NDArray[np.float64]
    """Their log-probabilities, nats."""
    supports: list[NDArray[np.int32]] | None
    """Candidates of each row, ascending; empty for the full vocabulary. None if no row may truncate."""
    over_cap: int
    """Rows drawn from the full vocabulary because their support exceeded its cap."""


def draw_rows(model: CausalLM, hidden_BD: Tensor, settings_5B: Tensor, uniforms_B: Tensor, *, truncates: bool) -> Drawn:
    """Draw one token a row from the final hidden states; nothing waits for the host.

    Recorded is the log-probability as the learner computes it: a fused head adds a row's exponentials in another order than the
    softmax that the token was drawn from, so where the learner uses one its number is taken; for other backends both are the same.
    """
    logits_BV = padded_logits(hidden_BD, model.head_weight, model.backend)
    drawn = draw(logits_BV, settings_5B, uniforms_B, truncates=truncates, backend=model.backend)
    logprobs_B = drawn.logprobs_B
    if CAPABILITIES[model.backend].fused:
        logprobs_B = fused_logprobs(
            hidden_BD, model.head_weight, drawn.tokens_B, drawn.temperature_B, drawn.words_BW, model.backend
        )
    report_3B = torch.stack([drawn.tokens_B.double(), logprobs_B.double(), drawn.over_cap_B.double()])
    return Drawn(report_3B=report_3B, words_BW=drawn.words_BW)


def read_report(report_3B: NDArray[np.float64], words_BW: NDArray[np.int32] | None) -> HostDrawn:
    """What the host makes of it. Raises ValueError if a log-probability is not finite."""
    if not np.isfinite(report_3B[1]).all():
        row = int(np.flatnonzero(~np.isfinite(report_3B[1]))[0])
        raise ValueError(
            f"every drawn token must have a finite log-probability; row {row} has {report_3B[1, row]} for token "
            f"{report_3B[0, row]:.0f}. The weights hold numbers that are not finite, or a kernel is wrong."
        )
    return HostDrawn(
        tokens=report_3B[0].astype(np.int64),
        logprobs=report_3B[1].copy(),
        supports=None if words_BW is None else kept_ids(words_BW),
        over_cap=int(report_3B[2].sum()),
    )


def kept_ids(words_BW: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """Ids of each row's set bits, ascending: only bytes that are not 0 are taken apart."""
    size = 32 * words_BW.shape[1]
    places = np.flatnonzero(words_BW)
    # Bit by bit in a little-endian word, so that its bytes come in the order of their bits.
    word_bytes = words_BW.ravel()[places].astype("<i4").view(np.uint8)
    used = np.flatnonzero(word_bytes)
    found = np.flatnonzero(np.unpackbits(word_bytes[used][:, None], axis=1, bitorder="little"))
    byte = used[found >> 3]
    flat = places[byte >> 2] * 32 + ((byte & 3) << 3) + (found & 7)
    ends = np.searchsorted(flat, np.arange(1, len(words_BW) + 1) * size).tolist()
    ids = (flat % size).astype(np.int32)
    return [ids[start:stop] for start, stop in zip([0, *ends[:-1]], ends)]
