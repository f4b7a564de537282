"""The benchmark of the inspector measures what it says, on few rollouts."""

from pathlib import Path

from benchmarks.inspect import STEP, measured


def test_measured_has_a_time_for_every_question(tmp_path: Path) -> None:
    results = measured(tmp_path / "run", STEP + 8, 6, 2)
    assert len(results) == 17
    assert min(value for name, value in results.items() if name.endswith(", ms")) > 0
    assert len(list((tmp_path / "run" / "rollouts").glob("step-*.jsonl"))) == 2
