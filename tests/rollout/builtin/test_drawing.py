"""What goes from a draw to the host: candidates as bits, and numbers that must be finite."""

import numpy as np
import pytest
import torch

from samepath.kernels.head.logprob import kept_words
from samepath.rollout.builtin.drawing import draw_rows, kept_ids, read_report
from samepath.rollout.sampling import setting_rows
from samepath.rollout.sampling_settings import SamplingSettings
from tests.conftest import tiny_model


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 200])
def test_kept_ids_are_the_tokens_whose_bits_kept_words_set(vocab_size: int) -> None:
    kept_NV = torch.rand(9, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) < 0.3
    kept_NV[0], kept_NV[4] = False, True
    words_NW = kept_words(kept_NV)
    assert words_NW.shape == (9, -(-vocab_size // 32))
    found = kept_ids(words_NW.numpy())
    assert [ids.tolist() for ids in found] == [row.nonzero().flatten().tolist() for row in kept_NV]
    assert all(ids.dtype == np.int32 for ids in found)


def test_kept_words_hand_worked_bits() -> None:
    kept_NV = torch.zeros(1, 40, dtype=torch.bool)
    kept_NV[0, [0, 5, 31, 33]] = True
    assert kept_words(kept_NV).tolist() == [[1 + 32 - (1 << 31), 2]]


def test_draw_rows_reports_token_log_probability_candidates_and_cap() -> None:
    """Beside a row that keeps its two best: one over its cap, and one that leaves nothing out."""
    model = tiny_model()
    hidden_BD = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    entries = [SamplingSettings(top_k=2), SamplingSettings(top_k=5, support_cap=4), SamplingSettings()]
    settings_5B = torch.from_numpy(setting_rows(entries))
    with torch.no_grad():
        drawn = draw_rows(model, hidden_BD, settings_5B, torch.full((3,), 0.5).double(), truncates=True).to_host()
        logprobs_BV = (hidden_BD @ model.head.T).log_softmax(-1)
    best = logprobs_BV[0].topk(2).indices
    assert drawn.supports is not None
    assert [ids.tolist() for ids in drawn.supports] == [sorted(best.tolist()), [], []]
    assert drawn.over_cap == 1
    wanted = logprobs_BV[range(3), drawn.tokens.tolist()]
    wanted[0] -= logprobs_BV[0, best].logsumexp(0)
    np.testing.assert_allclose(drawn.logprobs, wanted.numpy(), rtol=1e-5)


def test_read_report_refuses_a_log_probability_that_is_not_finite() -> None:
    report_3B = np.array([[3.0, 4.0], [-0.5, np.nan], [0.0, 0.0]])
    with pytest.raises(ValueError, match="row 1 has nan for token 4"):
        read_report(report_3B, None)
