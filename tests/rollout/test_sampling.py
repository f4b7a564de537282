"""Sampling: hand-worked candidate sets, the right distribution, and draws that depend on nothing but their own seed."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from samepath.kernels.head.candidates import candidates, descending
from samepath.kernels.head.logprob import sampling_logprobs
from samepath.rollout.builtin.drawing import kept_ids as drawn_ids
from samepath.rollout.sampling import Draw, draw, invert_cumulative, setting_rows, uniforms
from samepath.rollout.sampling_settings import SamplingSettings

PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
"""By rank: tokens 1, 3, 4, 0, 2 with 0.4, 0.25, 0.2, 0.1, 0.05."""


def rows_of(entries: Sequence[SamplingSettings]) -> Tensor:
    return torch.from_numpy(setting_rows(entries))


def drawn_from(logits_BV: Tensor, entries: Sequence[SamplingSettings], numbers: NDArray[np.float64]) -> Draw:
    truncates = any(entry.truncates for entry in entries)
    return draw(logits_BV, rows_of(entries), torch.from_numpy(numbers), truncates=truncates)


def kept_row(drawn: Draw, row: int, vocab_size: int) -> Tensor:
    """bool [V] of the row's bits; all False where the full vocabulary is drawn from."""
    kept_V = torch.zeros(vocab_size, dtype=torch.bool)
    if drawn.words_BW is not None:
        kept_V[torch.from_numpy(drawn_ids(drawn.words_BW.numpy())[row]).long()] = True
    return kept_V


def kept_ids(**changes: object) -> list[int]:
    entry = SamplingSettings.model_validate(changes)
    kept_BV, _ = candidates(PROBABILITIES.log()[None], torch.ones(1), rows_of([entry]))
    return kept_BV[0].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.3}, [1]),
        ({"top_p": 0.5}, [1, 3]),
        ({"top_p": 0.8}, [1, 3, 4]),
        ({"top_p": 0.9}, [0, 1, 3, 4]),
        ({"min_p": 0.3}, [1, 3, 4]),
        ({"min_p": 0.55}, [1, 3]),
        ({"min_p": 0.99}, [1]),
        ({"top_k": 2, "top_p": 0.99}, [1, 3]),
        ({"top_k": 4, "top_p": 0.9, "min_p": 0.55}, [1, 3]),
        ({}, []),
    ],
)
def test_candidates_hand_worked_sets(changes: dict[str, object], wanted: list[int]) -> None:
    """top_p keeps the fewest tokens that reach p; min_p compares with 0.4; nothing set keeps all, written as none."""
    assert kept_ids(**changes) == wanted


def test_candidates_temperature_comes_before_top_p() -> None:
    """At temperature ½ probabilities are squared and renormalised: 0.16 / 0.275 = 0.58, so top_p 0.5 keeps one."""
    logits_BV = PROBABILITIES.log()[None]
    entry = SamplingSettings(top_p=0.5)
    assert candidates(logits_BV, torch.tensor([0.5]), rows_of([entry]))[0][0].nonzero().flatten().tolist() == [1]
    assert candidates(logits_BV, torch.tensor([1.0]), rows_of([entry]))[0][0].nonzero().flatten().tolist() == [1, 3]


def test_candidates_top_k_keeps_all_that_tie_with_the_last_and_top_p_the_lower_ids() -> None:
    """Seven tokens 4, 2, 2, 2, 2, 2, 2 (over 16): the third is one of six, all as likely; half of the mass are the first three."""
    logits_BV = torch.tensor([[2.0, 2.0, 4.0, 2.0, 2.0, 2.0, 2.0]]).log()
    for changes, wanted in (
        ({"top_k": 1}, [2]),
        ({"top_k": 3}, [0, 1, 2, 3, 4, 5, 6]),
        ({"top_p": 0.45}, [0, 1, 2]),
        ({"top_k": 3, "top_p": 0.45}, [0, 1, 2]),
    ):
        entry = SamplingSettings.model_validate(changes)
        kept_BV, _ = candidates(logits_BV, torch.ones(1), rows_of([entry]))
        assert kept_BV[0].nonzero().flatten().tolist() == wanted, changes


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    rows=st.lists(
        st.lists(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 3e38, -3e38, 1e-45, -1e-45, float("-inf")]), min_size=7, max_size=7
        ),
        min_size=1,
        max_size=4,
    )
)
def test_descending_ties_and_signs_equal_the_stable_sort(rows: list[list[float]]) -> None:
    values_BV = torch.tensor(rows)
    values_sorted_BV, ids_BV = descending(values_BV)
    wanted = values_BV.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(ids_BV, wanted.indices)
    assert torch.equal(values_sorted_BV, wanted.values)


def test_candidates_top_p_is_a_share_of_what_top_k_and_min_p_left() -> None:
    """0.4, 0.3, 0.2, 0.1: two of them are 0.7, of which the first has 4/7 ≥ 0.5; min_p 0.6 leaves the same two, 0.5 leaves 0.9."""
    logits_BV = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    for changes, wanted in (
        ({"top_p": 0.5}, [0, 1]),
        ({"top_k": 2, "top_p": 0.5}, [0]),
        ({"min_p": 0.6, "top_p": 0.5}, [0]),
        ({"min_p": 0.45, "top_p": 0.75}, [0, 1]),
        ({"top_p": 0.75}, [0, 1, 2]),
        ({"top_k": 2, "top_p": 0.6}, [0, 1]),
    ):
        entry = SamplingSettings.model_validate(changes)
        kept_BV, _ = candidates(logits_BV, torch.ones(1), rows_of([entry]))
        assert kept_BV[0].nonzero().flatten().tolist() == wanted, changes


def test_candidates_at_the_very_boundary_top_p_is_reached_and_min_p_is_met() -> None:
    """Halves are exact: one of two equal tokens has reached p = 0.5, and a token half as likely as the best meets min_p = 0.5."""
    pair_BV = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert sampling_logprobs(pair_BV, torch.ones(1), None).exp()[0, 0] == 0.5
    kept_BV, _ = candidates(pair_BV, torch.ones(1), rows_of([SamplingSettings(top_p=0.5)]))
    assert kept_BV[0].tolist() == [True, False, False]
    half_BV = torch.tensor([[0.0, np.log(0.5)]], dtype=torch.float32)
    assert half_BV[0, 1].exp() == 0.5
    for min_p, wanted in ((0.5, [True, True]), (float(np.nextafter(np.float32(0.5), np.float32(1))), [True, False])):
        kept_BV, _ = candidates(half_BV, torch.ones(1), rows_of([SamplingSettings(min_p=min_p)]))
        assert kept_BV[0].tolist() == wanted


def warped(logits_BV: Tensor, entry: SamplingSettings) -> Tensor:
    """What transformers' own warpers leave, in vLLM's order: min-p before top-k and top-p, where its `generate` has it behind them."""
    ids_B1 = torch.zeros(len(logits_BV), 1, dtype=torch.int64)
    warpers = [TemperatureLogitsWarper(entry.temperature)]
    warpers += [MinPLogitsWarper(entry.min_p)] if entry.min_p > 0 else []
    warpers += [TopKLogitsWarper(entry.top_k)] if entry.top_k > 0 else []
    warpers += [TopPLogitsWarper(entry.top_p)] if entry.top_p < 1 else []
    return LogitsProcessorList(warpers)(ids_B1, logits_BV)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    levels=st.lists(st.integers(-12, 12), min_size=1, max_size=9),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 11),
    top_p=st.sampled_from([1e-9, 0.03, 0.21, 0.4, 0.62, 0.83, 0.97, 1.0]),
    min_p=st.sampled_from([0.0, 1e-4, 0.017, 0.13, 0.41, 0.77]),
)
def test_candidates_are_those_of_transformers_warpers(
    levels: list[int], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Ties, k beyond the vocabulary and p next to 0 among them; of equally likely tokens at top-p's edge the lower ids stay."""
    entry = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits_BV = torch.tensor([levels]) * 0.37
    drawn = drawn_from(logits_BV, [entry], np.array([0.5]))
    left_V = warped(logits_BV, entry)[0] > -torch.inf
    kept_V = torch.ones_like(left_V) if drawn.words_BW is None else kept_row(drawn, 0, len(levels))
    assert sorted(logits_BV[0, kept_V].tolist()) == sorted(logits_BV[0, left_V].tolist())
    for level in set(levels):
        of_level = [bool(kept_V[index]) for index, other in enumerate(levels) if other == level]
        assert of_level == sorted(of_level, reverse=True)
    wanted_V = sampling_logprobs(logits_BV, torch.tensor([temperature]), ~kept_V[None])[0]
    assert drawn.logprobs_B[0] == wanted_V[drawn.tokens_B[0]]


def test_candidates_over_the_cap_fall_back_to_the_full_vocabulary_and_are_counted() -> None:
    entries = [SamplingSettings(top_k=3, support_cap=2), SamplingSettings(top_k=2, support_cap=2), SamplingSettings()]
    kept_BV, over_cap_B = candidates(PROBABILITIES.log().repeat(3, 1), torch.ones(3), rows_of(entries))
    assert over_cap_B.tolist() == [True, False, False]
    assert kept_BV.sum(1).tolist() == [0, 2, 0]


def chi_square(counts_V: Tensor, probabilities_V: Tensor) -> float:
    expected_V = probabilities_V.double() * int(counts_V.sum())
    used_V = expected_V > 0
    assert int(counts_V[~used_V].sum()) == 0
    return float(((counts_V - expected_V).square() / expected_V)[used_V].sum())


@pytest.mark.parametrize("one_seed", [False, True])
@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, PROBABILITIES.square() / PROBABILITIES.square().sum()),
        ({"top_k": 3}, torch.tensor([0, 0.4, 0, 0.25, 0.2]) / 0.85),
        ({"top_p": 0.5}, torch.tensor([0, 0.4, 0, 0.25, 0]) / 0.65),
    ],
)
def test_draw_frequencies_follow_the_sampling_distribution(
    changes: dict[str, object], wanted: Tensor, one_seed: bool
) -> None:
    """Over seeds and over the draws of one seed. With 4 degrees of freedom, chance exceeds 23.5 once in 10 000 times."""
    count = 20000
    running, fixed = np.arange(count), np.full(count, 3)
    seeds, counters = (fixed, running) if one_seed else (running, fixed)
    numbers = uniforms(seeds.astype(np.uint64), counters.astype(np.int64))
    entry = SamplingSettings.model_validate(changes)
    drawn = drawn_from(PROBABILITIES.log().repeat(count, 1), [entry] * count, numbers)
    assert chi_square(torch.bincount(drawn.tokens_B, minlength=5), wanted) < 23.5
    torch.testing.assert_close(drawn.logprobs_B.exp(), wanted[drawn.tokens_B], rtol=1e-5, atol=0)


@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize("number", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
def test_draw_extreme_uniforms_stay_inside_the_support(top_k: int, number: float) -> None:
    logits_BV = torch.tensor([[-200.0, 1.0, 0.3, -200.0, -3.0]]).repeat(2, 1)
    drawn = drawn_from(logits_BV, [SamplingSettings(top_k=top_k)] * 2, np.array([number] * 2))
    assert set(drawn.tokens_B.tolist()) <= ({1, 2} if top_k else {1, 2, 4, 0})
    assert bool(drawn.logprobs_B.isfinite().all())


def test_draw_hand_worked_inverse_of_the_cumulative_distribution() -> None:
    """Cumulative 0.1, 0.5, 0.55, 0.8, 1: the first token whose sum exceeds the number."""
    numbers = np.array([0.0, 0.09, 0.11, 0.49, 0.52, 0.56, 0.79, 0.81, 0.999])
    drawn = drawn_from(PROBABILITIES.log().repeat(9, 1), [SamplingSettings()] * 9, numbers)
    assert drawn.tokens_B.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert drawn.words_BW is None


def test_draw_temperature_zero_takes_the_best_and_ties_go_to_the_lower_id() -> None:
    logits_BV = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    drawn = drawn_from(logits_BV, [SamplingSettings(temperature=0.0)] * 2, np.array([0.99, 0.99]))
    assert drawn.tokens_B.tolist() == [1, 0]


def test_draw_rows_do_not_depend_on_their_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BV = torch.randn(40, 50, generator=generator) * 3
    choices = [SamplingSettings(), SamplingSettings(top_k=7), SamplingSettings(temperature=0.4, top_p=0.7)]
    choices += [SamplingSettings(temperature=0.0)]
    entries = [choices[row % 4] for row in range(40)]
    numbers = uniforms(np.arange(40, dtype=np.uint64), np.zeros(40, np.int64))
    whole = drawn_from(logits_BV, entries, numbers)
    for row in range(40):
        alone = drawn_from(logits_BV[row : row + 1], entries[row : row + 1], numbers[row : row + 1])
        assert torch.equal(alone.tokens_B[0], whole.tokens_B[row])
        assert torch.equal(alone.logprobs_B[0], whole.logprobs_B[row])
        assert torch.equal(kept_row(alone, 0, 50), kept_row(whole, row, 50))


def test_uniforms_first_number_is_splitmix64_of_the_seed() -> None:
    """Seed 0 gives 0xE220A8397B1DCDAF first (the generator's published vector); its top 53 bits are the fraction."""
    assert uniforms(np.zeros(1, np.uint64), np.zeros(1, np.int64))[0] == (0xE220A8397B1DCDAF >> 11) / 2**53


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5, unique=True))
def test_uniforms_lie_in_the_unit_interval_and_differ(seeds: list[int]) -> None:
    grid = np.array(seeds, np.uint64).repeat(200), np.tile(np.arange(200), len(seeds))
    numbers = uniforms(*grid)
    assert bool(((numbers >= 0) & (numbers < 1)).all())
    assert len(np.unique(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("changes", "truncates"), [({}, False), ({"temperature": 0.1}, False), ({"top_k": 1}, True), ({"min_p": 0.1}, True)]
)
def test_truncates_is_true_only_if_tokens_can_be_left_out(changes: dict[str, object], truncates: bool) -> None:
    assert SamplingSettings.model_validate(changes).truncates is truncates


@pytest.mark.parametrize("vocab_size", [1025, 4096, 49152])
def test_invert_cumulative_in_two_stages_finds_the_token_of_one_running_sum(vocab_size: int) -> None:
    """Only a number within rounding of a boundary may fall to the other side of it: below one draw in a hundred here."""
    generator = torch.Generator().manual_seed(vocab_size)
    logprobs_BV = (torch.randn(50, vocab_size, generator=generator) * 4).log_softmax(-1)
    cumulative_BV = pad(logprobs_BV.double().exp().cumsum(-1), (1, 0))
    others = 0
    for uniforms_B in torch.rand(40, 50, generator=generator, dtype=torch.float64):
        tokens_B1 = invert_cumulative(logprobs_BV, uniforms_B)[:, None]
        targets_B1 = uniforms_B[:, None] * cumulative_BV[:, -1:]
        assert bool((cumulative_BV.gather(1, tokens_B1) <= targets_B1 + 1e-6).all())
        assert bool((cumulative_BV.gather(1, tokens_B1 + 1) >= targets_B1 - 1e-6).all())
        others += int((tokens_B1 != (cumulative_BV[:, 1:] <= targets_B1).sum(-1, keepdim=True)).sum())
        assert int(invert_cumulative(logprobs_BV[7:8], uniforms_B[7:8])) == int(tokens_B1[7])
    assert others < 20


@pytest.mark.parametrize("number", [0.0, 0.25, 0.5, 1 - 2.0**-53])
def test_invert_cumulative_never_takes_a_token_of_probability_0(number: float) -> None:
    """Two likely tokens, at the edges of blocks, in a vocabulary of tokens that cannot be drawn."""
    for low, high in ((0, 2047), (511, 512), (700, 701), (1500, 2999)):
        logits_BV = torch.full((1, 3000), -torch.inf)
        logits_BV[0, low], logits_BV[0, high] = 0.3, 0.3
        token = int(invert_cumulative(logits_BV.log_softmax(-1), torch.tensor([number], dtype=torch.float64)))
        assert token == (low if number < 0.5 else high)
