"""Comparing engine and learner: numbers by hand, no difference between equals, and pages that hold what was measured."""

import datetime
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.mismatch_cases import FAMILIES, write_case
from benchmarks.mismatch_measure import LogprobGap, Mismatch, logprob_gap, measure, replayed_routes
from benchmarks.mismatch_report import report
from samepath.model.files.policy_files import load_policy
from samepath.model.transformers.policy import TransformersPolicy
from tests.rl.learner.test_transformers_learner import sampled_batch
from tests.tiny_transformers import tiny_transformers


def test_logprob_gap_of_two_tokens_worked_by_hand() -> None:
    """r = 2 and r = 1/2: |log r| = log 2 both, k3 = (2 − 1 − log 2 + ½ − 1 + log 2) / 2 = ¼."""
    engine_M = torch.tensor([-1.0, -2.0])
    gap = logprob_gap(engine_M + math.log(2) * torch.tensor([1.0, -1.0]), engine_M)
    assert (gap.mean, gap.largest, gap.kl) == pytest.approx((math.log(2), math.log(2), 0.25), rel=1e-6)


def test_replayed_routes_of_a_wrong_layer_are_those_before() -> None:
    routes_LNX = torch.arange(12).view(3, 2, 2)
    assert replayed_routes(routes_LNX, "off") is None
    assert replayed_routes(routes_LNX, "on") is routes_LNX
    wrong = replayed_routes(routes_LNX, "wrong layer")
    assert wrong is not None
    assert torch.equal(wrong, torch.stack([routes_LNX[2], routes_LNX[0], routes_LNX[1]]))
    with pytest.raises(ValueError, match="at least two"):
        replayed_routes(routes_LNX[:1], "wrong layer")


def test_measure_of_a_policy_against_itself_finds_nothing_but_the_wrong_layer() -> None:
    policy = TransformersPolicy(tiny_transformers("Olmoe"))
    found = measure(policy, sampled_batch(policy).sequences)
    assert (found.choices_differing, found.rows_differing) == (0, 0)
    assert found.choices == 3 * found.rows == 3 * 8 * 20
    assert found.tokens == 8 * 16
    assert found.gaps["off"].largest < 1e-5
    assert found.gaps["on"].largest < 1e-5
    assert found.gaps["wrong layer"].kl > 1e-3


def test_measure_in_small_passes_equals_one_pass() -> None:
    policy = TransformersPolicy(tiny_transformers("DeepseekV3"))
    sequences = sampled_batch(policy).sequences
    small, whole = measure(policy, sequences, max_tokens=48), measure(policy, sequences)
    assert (small.choices, small.choices_differing) == (whole.choices, whole.choices_differing)
    assert small.gaps["wrong layer"].kl == pytest.approx(whole.gaps["wrong layer"].kl, rel=1e-3)


def test_measure_counts_the_choices_that_were_changed() -> None:
    policy = TransformersPolicy(tiny_transformers("Olmoe"))
    sequences = list(sampled_batch(policy).sequences)
    segment = sequences[0].segment
    routes = segment.routes.copy()
    for row, layer in ((7, 0), (7, 2), (11, 1)):
        unused = [expert for expert in range(8) if expert not in routes[row, layer]]
        routes[row, layer, 0] = unused[0]
    # The order of a set does not matter.
    routes[12] = routes[12, :, ::-1]
    sequences[0] = replace(sequences[0], segment=replace(segment, routes=routes))
    found = measure(policy, sequences)
    assert (found.choices_differing, found.rows_differing) == (3, 2)


def test_report_shows_ratios_and_leaves_dense_models_out_of_replay() -> None:
    gaps = {
        "off": LogprobGap(mean=0.01, largest=0.5, kl=2e-4),
        "on": LogprobGap(mean=0.001, largest=0.02, kl=5e-5),
        "wrong layer": LogprobGap(mean=0.2, largest=1.0, kl=2e-2),
    }
    mixture = Mismatch(
        tokens=100, entropy=2.0, choices=1000, choices_differing=15, rows=250, rows_differing=10, gaps=gaps
    )
    dense = replace(mixture, choices=0, choices_differing=0, rows_differing=0, gaps={"off": gaps["off"]})
    page = report({"M": mixture}, {"M": mixture, "D": dense}, "the command", datetime.date(2026, 1, 2))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| M ")]
    assert cells[1][1:3] == ["1.50%", "4.0%"]
    assert cells[1][6] == "4.0×"
    assert cells[1][-1] == "100×"
    assert "| D " in page
    assert "2026-01-02" in page
    assert "`the command`" in page
    tables = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert set(tables) == {9, 11}, "no cell holds a bar"


@pytest.mark.parametrize("family", FAMILIES)
def test_write_case_gives_a_checkpoint_that_loads_and_is_no_uniform_policy(family: str, tmp_path: Path) -> None:
    write_case(family, tmp_path, 0)
    policy = load_policy(tmp_path, "transformers", "torch")
    assert isinstance(policy, TransformersPolicy)
    batch = sampled_batch(policy)
    logprobs = np.concatenate([entry.segment.sampler_logprobs[entry.segment.trained] for entry in batch.sequences])
    assert logprobs.std() > 0.5
