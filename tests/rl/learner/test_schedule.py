"""The learning rate of each update, by hand."""

import numpy as np
import pytest

from samepath.rl.learner.schedule import learning_rate
from samepath.rl.recipe.cold_start import ColdStartOptimizerSettings, ColdStartSettings
from samepath.rl.recipe.optimizer import OptimizerSettings


def rates(settings: OptimizerSettings, total: int, count: int) -> list[float]:
    return [learning_rate(settings, update, total) for update in range(count)]


def test_learning_rate_constant_rises_and_stays() -> None:
    """Update n of w has lr·(n + 1)/w, so the w-th is the first at the full rate; nothing falls."""
    settings = OptimizerSettings(lr=0.5, warmup_updates=4, min_lr_share=0.0)
    assert rates(settings, 2, 6) == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert rates(OptimizerSettings(lr=0.5), 0, 2) == [0.5, 0.5]


def test_learning_rate_linear_falls_to_its_share_and_stays_there() -> None:
    """From 1 to a quarter over four updates: 16, 13, 10, 7, then 4 sixteenths."""
    settings = OptimizerSettings(lr=1.0, schedule="linear", min_lr_share=0.25)
    assert rates(settings, 4, 6) == [1.0, 0.8125, 0.625, 0.4375, 0.25, 0.25]
    assert rates(OptimizerSettings(lr=1.0, schedule="linear", min_lr_share=0.0), 2, 4) == [1.0, 0.5, 0.0, 0.0]


def test_learning_rate_cosine_is_halfway_at_half_time() -> None:
    """At thirds of the way cos is 1, 1/2, −1/2, −1."""
    settings = OptimizerSettings(lr=1.0, schedule="cosine", min_lr_share=0.5)
    assert rates(settings, 3, 5) == pytest.approx([1.0, 0.875, 0.625, 0.5, 0.5])


def test_learning_rate_fall_runs_during_the_rise_too() -> None:
    settings = OptimizerSettings(lr=1.0, schedule="linear", min_lr_share=0.0, warmup_updates=2)
    assert rates(settings, 4, 4) == [0.5, 0.75, 0.5, 0.25]


def test_learning_rate_of_the_cold_start_is_a_cosine_to_a_tenth_to_the_last_bit() -> None:
    settings = ColdStartSettings.model_validate(
        {"steps": 1500, "optimizer": {"lr": 2.0e-3, "warmup_updates": 40, "beta2": 0.98}}
    )
    expected = [
        float(2.0e-3 * min(1.0, (update + 1) / 40) * (0.1 + 0.45 * (1 + np.cos(np.pi * update / 1500))))
        for update in range(1500)
    ]
    assert rates(settings.optimizer, 1500, 1500) == expected


def test_cold_start_has_the_optimizers_settings_but_for_the_schedule() -> None:
    own, rl = ColdStartOptimizerSettings().model_dump(), OptimizerSettings().model_dump()
    assert (own.pop("schedule"), rl.pop("schedule")) == ("cosine", "constant")
    assert own == rl
