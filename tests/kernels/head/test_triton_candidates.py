"""Candidates found by a search against those of the sort, and against sums of fractions, which round nothing."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.head.candidates import Candidates, candidates, truncate
from samepath.kernels.head.logprob import kept_words

Entry = tuple[float, float, float, float, float]
"""Temperature, top-k, top-p, min-p, cap."""
ENTRIES: Sequence[Entry] = (
    (1.0, 0, 1.0, 0.0, 4096),
    (1.0, 0, 0.9, 0.0, 4096),
    (0.7, 5, 1.0, 0.0, 4096),
    (1.0, 0, 1.0, 0.1, 4096),
    (1.3, 40, 0.6, 0.02, 4096),
    (1.0, 1, 0.5, 0.0, 4096),
    (2.0, 0, 0.99, 0.0, 20),
    (1.0, 9, 1.0, 0.0, 8),
    (1.0, 10_000, 0.95, 0.0, 1_000_000),
    (1.0, 0, 1e-9, 0.0, 4096),
)


def settings_of(entries: Sequence[Entry]) -> tuple[Tensor, Tensor]:
    """(temperature_B float32, settings_5B float64)."""
    settings_5B = torch.tensor(entries, dtype=torch.float64).T.contiguous().to(DEVICE)
    return settings_5B[0].float(), settings_5B


def random_logits(num_rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    return (torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3).to(DEVICE)


def assert_same(found: Candidates, logits_BV: Tensor, entries: Sequence[Entry]) -> None:
    """Bits, cap and what is left are those of the sort."""
    temperature_B, settings_5B = settings_of(entries)
    kept_BV, over_cap_B = candidates(logits_BV, temperature_B, settings_5B)
    assert torch.equal(found.words_BW, kept_words(kept_BV))
    assert torch.equal(found.over_cap_B, over_cap_B)
    wanted_BV = (logits_BV / temperature_B[:, None]).masked_fill(~kept_BV & kept_BV.any(1, keepdim=True), -torch.inf)
    assert torch.equal(found.scaled_BV, wanted_BV)


@pytest.mark.parametrize("vocab_size", [1, 17, 32, 33, 200, 700])
def test_truncate_equals_the_sort(monkeypatch: pytest.MonkeyPatch, vocab_size: int) -> None:
    logits_BV = random_logits(len(ENTRIES), vocab_size, vocab_size)
    poison_fresh_memory(monkeypatch)
    found = truncate(logits_BV, *settings_of(ENTRIES), "triton")
    monkeypatch.undo()
    assert_same(found, logits_BV, ENTRIES)
    if vocab_size == 700:
        assert found.over_cap_B.tolist() == [False] * 6 + [True, True, False, False]


ROWS = {
    "all equal": [0.25] * 70,
    "two levels": [1.0, 0.0] * 40,
    "signed zeros": [-0.0, 0.0, -1.0, 0.0, -0.0] * 14,
    "minus infinities": [float("-inf"), 2.0, 2.0, float("-inf"), 1.0] * 13,
    "one possible": [float("-inf")] * 40 + [3.0] + [float("-inf")] * 9,
    "neighbours": [float(np.nextafter(np.float32(7.0), np.float32(8.0 if place % 2 else 0.0))) for place in range(64)],
    "both signs, far apart": [(-1.0) ** place * 2.0 ** (place % 40 - 30) for place in range(90)],
    "huge": [1.5e38, -1.5e38, 1e38, 0.0] * 16,
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_truncate_ties_signs_and_infinities_equal_the_sort(row: list[float]) -> None:
    entries = [
        (1.0, top_k, top_p, min_p, 4096.0)
        for top_k in (0, 1, 2, 30)
        for top_p in (0.3, 0.5, 0.9999, 1.0)
        for min_p in (0.0, 0.4)
    ]
    logits_BV = torch.tensor([row] * len(entries), device=DEVICE)
    assert_same(truncate(logits_BV, *settings_of(entries), "triton"), logits_BV, entries)


def test_truncate_top_p_sums_are_exact() -> None:
    """With float32's rounded probabilities taken as they are, and p up to the last number below 1."""
    entries = [
        (1.0, 0.0, top_p, 0.0, 4096.0) for top_p in (1e-6, 0.123456789, 0.5, 0.75, 1 - 1e-5, 1 - 1e-7, 1 - 2.0**-53)
    ]
    logits_BV = (random_logits(1, 300, 4) * 1.5).expand(len(entries), -1).contiguous()
    temperature_B, settings_5B = settings_of(entries)
    found = truncate(logits_BV, temperature_B, settings_5B, "triton")
    probs_V = logits_BV[:1].log_softmax(-1).exp()[0].tolist()
    order = sorted(range(300), key=lambda token: (-float(logits_BV[0, token]), token))
    for row, entry in enumerate(entries):
        total, kept = Fraction(0), []
        for token in order:
            if total >= Fraction(entry[2]):
                break
            kept.append(token)
            total += Fraction(probs_V[token])
        assert (found.scaled_BV[row] > -torch.inf).nonzero().flatten().tolist() == sorted(kept)


def test_truncate_rows_do_not_depend_on_their_batch() -> None:
    logits_BV = random_logits(len(ENTRIES), 150)
    whole = truncate(logits_BV, *settings_of(ENTRIES), "triton")
    for row in range(len(ENTRIES)):
        part = slice(row, row + 1)
        alone = truncate(logits_BV[part], *settings_of(ENTRIES[part]), "triton")
        assert torch.equal(alone.words_BW[0], whole.words_BW[row])
        assert torch.equal(alone.scaled_BV[0], whole.scaled_BV[row])


@pytest.mark.parametrize("top_k", [0.0, 3.0])
def test_truncate_leaves_nan_in_so_that_the_draw_is_refused(top_k: float) -> None:
    logits_BV = random_logits(2, 40)
    logits_BV[0, 33] = torch.nan
    found = truncate(logits_BV, *settings_of([(1.0, top_k, 0.5, 0.1, 4096.0)] * 2), "triton")
    assert found.scaled_BV[:, 33].isnan().tolist() == [True, False]
    assert (found.words_BW[:, 1] >> 1 & 1)[0] == 1


def test_truncate_refuses_other_types_and_shapes() -> None:
    with pytest.raises(ValueError, match=r"settings \[5, B\]"):
        truncate(random_logits(2, 20), *settings_of(ENTRIES[:3]), "triton")
    with pytest.raises(ValueError, match="float32"):
        truncate(random_logits(3, 20).double(), *settings_of(ENTRIES[:3]), "triton")


@pytest.mark.gpu
@pytest.mark.parametrize(("num_rows", "vocab_size", "spread"), [(256, 32000, 1.0), (40, 151936, 2.0), (17, 5001, 6.0)])
def test_truncate_large_vocabularies_equal_the_sort_and_repeat(num_rows: int, vocab_size: int, spread: float) -> None:
    logits_BV = random_logits(num_rows, vocab_size) * (spread / 3)
    # Equal values in plenty, as bfloat16 products give them.
    logits_BV[::2] = logits_BV[::2].bfloat16().float()
    entries = [ENTRIES[row % len(ENTRIES)] for row in range(num_rows)]
    found = truncate(logits_BV, *settings_of(entries), "triton")
    assert_same(found, logits_BV, entries)
    for _ in range(20):
        again = truncate(logits_BV, *settings_of(entries), "triton")
        assert torch.equal(again.words_BW, found.words_BW)
        assert torch.equal(again.scaled_BV, found.scaled_BV)


@pytest.mark.gpu
def test_truncate_can_be_captured_and_follows_its_settings() -> None:
    logits_BV = random_logits(4, 3000)
    entries = [(1.0, 0.0, 0.9, 0.0, 4096.0)] * 4
    temperature_B, settings_5B = settings_of(entries)
    truncate(logits_BV, temperature_B, settings_5B, "triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = truncate(logits_BV, temperature_B, settings_5B, "triton")
    other = ENTRIES[2:6]
    for target, source in zip((temperature_B, settings_5B), settings_of(other), strict=True):
        target.copy_(source)
    graph.replay()
    assert_same(found, logits_BV, other)
