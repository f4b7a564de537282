"""The KL over the full vocabulary against its definition in float64, whatever the chunks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.head import vocabulary_kl as module
from samepath.kernels.head.vocabulary_kl import vocabulary_kl


def naive(
    hidden_ND: Tensor, weight_VD: Tensor, reference_ND: Tensor, reference_weight_VD: Tensor, temperature_N: Tensor
) -> list[float]:
    """One row and one token at a time, in float64."""
    sums = []
    for hidden_D, reference_D, temperature in zip(hidden_ND.double(), reference_ND.double(), temperature_N.tolist()):
        logits = [float(hidden_D @ row_D) / temperature for row_D in weight_VD.double()]
        others = [float(reference_D @ row_D) / temperature for row_D in reference_weight_VD.double()]
        total, other_total = (math.log(sum(math.exp(x) for x in values)) for values in (logits, others))
        sums.append(sum(math.exp(a - total) * ((a - total) - (b - other_total)) for a, b in zip(logits, others)))
    return sums


@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 37),
    st.integers(2, 50),
    st.sampled_from([16, 1 << 23]),
    st.sampled_from(["torch", "reference"]),
    st.integers(0, 2**31),
)
def test_vocabulary_kl_equals_its_definition(rows: int, vocab: int, chunk: int, backend: Backend, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden_ND, reference_ND = torch.randn(rows, 16, generator=generator), torch.randn(rows, 32, generator=generator)
    weight_VD, other_VD = torch.randn(vocab, 16, generator=generator), torch.randn(vocab, 32, generator=generator)
    temperature_N = torch.rand(rows, generator=generator) + 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ELEMENTS", chunk)
        kl_N = vocabulary_kl(hidden_ND, weight_VD, reference_ND, other_VD, temperature_N, backend)
    expected = naive(hidden_ND, weight_VD, reference_ND, other_VD, temperature_N)
    assert kl_N.tolist() == pytest.approx(expected, rel=2e-5, abs=1e-5)
    assert min(expected) >= 0


def test_vocabulary_kl_hand_worked() -> None:
    """π = (¾, ¼) from logits (log 3, 0), π_ref = (½, ½): ¾·log(3/2) + ¼·log(1/2). At temperature 2 π = (√3, 1)/(√3 + 1)."""
    hidden_ND, weight_VD = torch.ones(2, 1), torch.tensor([[math.log(3)], [0.0]])
    kl_N = vocabulary_kl(hidden_ND, weight_VD, hidden_ND, torch.zeros(2, 1), torch.tensor([1.0, 2.0]), "torch")
    warm = math.sqrt(3) / (math.sqrt(3) + 1)
    assert kl_N.tolist() == pytest.approx(
        [
            0.75 * math.log(1.5) + 0.25 * math.log(0.5),
            warm * math.log(2 * warm) + (1 - warm) * math.log(2 * (1 - warm)),
        ],
        rel=1e-6,
    )


def test_vocabulary_kl_of_equal_logits_is_exactly_zero() -> None:
    hidden_ND, weight_VD = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), torch.ones(33, 16)
    kl_N = vocabulary_kl(hidden_ND, weight_VD, hidden_ND.clone(), weight_VD.clone(), torch.full((40,), 0.7), "torch")
    assert torch.equal(kl_N, torch.zeros(40))


def test_vocabulary_kl_of_different_vocabularies_is_refused() -> None:
    hidden_ND = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="got 3 and 2 tokens"):
        vocabulary_kl(hidden_ND, torch.zeros(3, 4), hidden_ND, torch.zeros(2, 4), torch.ones(1), "torch")
