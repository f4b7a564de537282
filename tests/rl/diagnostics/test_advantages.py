"""How far a group's advantages are off their centre."""

import numpy as np
import pytest

from samepath.rl.diagnostics.advantages import off_centre


def test_off_centre_is_the_worst_groups_mean_over_its_largest() -> None:
    centred = np.array([0.5, -0.5, 0.0], np.float32)
    assert off_centre([centred]) == 0
    assert off_centre([centred, np.array([0.9, 0.0, -0.3], np.float32)]) == pytest.approx(0.2 / 0.9)
    assert off_centre([np.array([2.0, 2.0], np.float32), centred]) == 1


def test_off_centre_of_groups_without_an_advantage_is_0() -> None:
    assert off_centre([]) == 0
    assert off_centre([np.zeros(4, np.float32), np.zeros(0, np.float32)]) == 0


def test_off_centre_of_rounded_means_is_small() -> None:
    rewards = np.random.default_rng(0).normal(1e4, 1, 64).astype(np.float32)
    assert off_centre([rewards - rewards.mean()]) < 1e-3
