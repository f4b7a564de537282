"""A disk that fills up at any moment of a run: the run says which file, leaves nothing torn, and goes on once there is room."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from samepath.model.durable_file import whole_lines
from samepath.model.manifest import require_whole
from samepath.rl.run_folder import RunFolderUnusableError, claimed
from tests.model.test_durable_file import room_for
from tests.rl.attempts import Attempts
from tests.rl.test_killed_runs import SMALL, lines, rollouts

RUN: dict[str, Any] = {
    **SMALL,
    "reward": {"short": {"function": "samepath.rewards.length:brevity", "options": {"max_tokens": 16}}},
    "checkpoint": {"every": 1, "keep": 2},
}
FULL = "File too large. Free space there (or lower checkpoint.keep), then go on with `samepath resume`."


class Filler:
    """Runs on a disk that fills up."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.attempt = folder, Attempts()
        (folder / "small.yaml").write_text(yaml.safe_dump(RUN))
        whole = self.start("whole")
        assert whole["status"] == 0
        self.moments: int = whole["moments"]

    def start(self, name: str, full: int = 0, *settings: str) -> dict[str, Any]:
        recipe = str(self.folder / "small.yaml")
        return self.attempt("run", recipe, f"runs_dir={self.folder}", f"name={name}", *settings, full=full)

    def assert_full_at(self, moment: int, *settings: str) -> None:
        """The run ends with a sentence, and goes on to the end of one that had room."""
        name, run_dir = f"at-{moment}", self.folder / f"at-{moment}"
        end = self.start(name, moment, *settings)
        if end["status"] == 0:
            # After the last write nothing is missing: how the run ended in tracking.json, which may be left out, and clearing up.
            assert moment > self.moments - 12
        else:
            assert end["status"] == 2, end["output"]
            assert re.search(rf"error: {run_dir}\S*[: ].*File too large", end["output"]), end["output"]
            assert "Traceback" not in end["output"]
            assert "samepath resume" in end["output"]
            assert_nothing_torn(run_dir)
            begun = (run_dir / "run.json").exists()
            again = self.attempt("resume", str(run_dir)) if begun else self.start(name, 0, *settings)
            assert again["status"] == 0, again["output"]
        self.assert_like_whole(run_dir)

    def assert_like_whole(self, run_dir: Path) -> None:
        whole = self.folder / "whole"
        wanted, got = (load_file(run / "checkpoints" / "step-000003" / "model.safetensors") for run in (whole, run_dir))
        assert all(torch.equal(wanted[key], got[key]) for key in wanted)
        assert (lines(run_dir), rollouts(run_dir)) == (lines(whole), rollouts(whole))


def assert_nothing_torn(run_dir: Path) -> None:
    """Every file that stands there is whole."""
    for path in run_dir.glob("*.json"):
        json.loads(path.read_text())
    for path in run_dir.rglob("*.jsonl"):
        assert all(isinstance(json.loads(line), dict) for line in whole_lines(path))
        # The first line of a file may be the one that was refused.
        assert path.read_bytes()[-1:] in (b"", b"\n")
    for path in [*run_dir.glob("checkpoints/step-*"), *run_dir.glob("reference")]:
        require_whole(path)
    assert not list(run_dir.rglob(".*.partial"))


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filler]:
    made = Filler(tmp_path_factory.mktemp("full"))
    yield made
    made.attempt.close()


@pytest.mark.slow
def test_run_whose_disk_fills_up_at_any_moment_says_where_and_goes_on_with_room(filler: Filler) -> None:
    for moment in range(1, filler.moments + 1, 4):
        filler.assert_full_at(moment)


def test_claimed_on_a_full_disk_names_the_lock(tmp_path: Path) -> None:
    with room_for(0), pytest.raises(RunFolderUnusableError, match=r"run\.lock: File too large"), claimed(tmp_path):
        pytest.fail("not reached")
