"""What `samepath validate` says of the run's folder."""

from pathlib import Path

import pytest

from samepath.rl.run_state import RunState
from samepath.rl.validate.folder_finding import folder_finding


def test_folder_finding_where_a_file_is_in_the_way_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = folder_finding(tmp_path / "file" / "runs" / "one")
    assert found.outcome == "wrong"
    assert found.detail.startswith(f"{tmp_path / 'file'} must be a folder")


def test_folder_finding_of_a_new_folder_is_ok_and_makes_nothing(tmp_path: Path) -> None:
    assert folder_finding(tmp_path / "runs" / "one").outcome == "ok"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("phase", "outcome"),
    [("cold start", "ok"), ("evaluation", "ok"), ("training", "obstacle"), ("finished", "obstacle")],
)
def test_folder_finding_of_a_begun_run_is_an_obstacle_once_it_has_trained(
    phase: str, outcome: str, tmp_path: Path
) -> None:
    RunState(phase=phase).save(tmp_path)
    found = folder_finding(tmp_path)
    assert found.outcome == outcome
    assert ("samepath resume" in found.detail) == (outcome == "obstacle")
