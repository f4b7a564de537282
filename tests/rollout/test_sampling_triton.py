"""Draws with the fused candidates are those of the sort, to the last bit; untruncated and best-token rows beside them."""

import numpy as np
import pytest
import torch

from tests.kernels.triton_here import require_triton

DEVICE = require_triton()

from samepath.kernels.head import triton_candidates
from samepath.rollout.sampling import draw, setting_rows, uniforms
from samepath.rollout.sampling_settings import SamplingSettings

ENTRIES = (
    SamplingSettings(),
    SamplingSettings(top_p=0.9),
    SamplingSettings(temperature=0.6, top_k=4),
    SamplingSettings(temperature=0.0, top_p=0.5),
    SamplingSettings(min_p=0.2, top_p=0.8),
    SamplingSettings(top_k=30, support_cap=10),
)


@pytest.mark.parametrize("vocab_size", [40, 1300])
def test_draw_by_fused_candidates_has_the_bits_of_the_sort(monkeypatch: pytest.MonkeyPatch, vocab_size: int) -> None:
    rows = 3 * len(ENTRIES)
    logits_BV = (torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(0)) * 3).to(DEVICE)
    settings_5B = torch.from_numpy(setting_rows(ENTRIES * 3)).to(DEVICE)
    uniforms_B = torch.from_numpy(uniforms(np.arange(rows, dtype=np.uint64), np.zeros(rows, np.int64))).to(DEVICE)
    wanted = draw(logits_BV, settings_5B, uniforms_B, truncates=True)
    calls = []
    real = triton_candidates.truncate
    monkeypatch.setattr(
        "samepath.kernels.triton_backend.TritonKernels.truncate",
        staticmethod(lambda *arguments: calls.append(1) or real(*arguments)),
    )
    found = draw(logits_BV, settings_5B, uniforms_B, truncates=True, backend="triton")
    assert calls == [1]
    for name in ("temperature_B", "tokens_B", "logprobs_B", "words_BW", "over_cap_B"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
