"""The training curves."""

from pathlib import Path

import matplotlib.image
import pytest

from samepath.rl.report.curves import plot_training
from samepath.rl.tracking.jsonl import JsonlSink


def test_plot_training_draws_what_the_run_has(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    for step in range(1, 4):
        values = {"reward/mean": step / 3, "kl/sampler_k3": 0.0, "kl/reference_unbiased": float("nan")}
        sink.log_metrics(step, values)
    drawn = plot_training(tmp_path / "metrics.jsonl", tmp_path / "plots" / "t.png")
    assert drawn == ["reward/mean", "kl/sampler_k3"]
    height, width = matplotlib.image.imread(tmp_path / "plots" / "t.png").shape[:2]
    assert width > 2 * height


def test_plot_training_exact_and_drifting_steps_share_a_panel(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    for step, drift in enumerate((0.0, 1e-7, 1e-3, -1e-9)):
        sink.log_metrics(step, {"kl/sampler_k3": drift, "kl/sampler_k3_numerics": 0.0})
    drawn = plot_training(tmp_path / "metrics.jsonl", tmp_path / "t.png")
    assert drawn == ["kl/sampler_k3", "kl/sampler_k3_numerics"]


def test_plot_training_run_without_known_metrics_is_refused(tmp_path: Path) -> None:
    JsonlSink(tmp_path).log_metrics(1, {"other": 1.0})
    with pytest.raises(ValueError, match="reward/mean"):
        plot_training(tmp_path / "metrics.jsonl", tmp_path / "t.png")
