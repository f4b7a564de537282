"""A run under Ray of which one learner rank is killed, for real: it says which, ends long before its limit, and goes on to the same weights."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("ray")

from samepath.rl.run import resume_run, start_run
from samepath.rl.run_folder import recipe_of_run
from tests.rl.conftest import TINY

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LOSING = Path(__file__).with_name("losing_a_rank.py")
LIMIT_S = 240
"""Far below `learner.update_timeout_s` here, and far above what the run takes."""


@pytest.mark.parametrize("rank", [1, 0])
def test_run_whose_rank_is_killed_names_it_and_goes_on_to_the_weights_of_a_whole_run(
    rank: int, tiny_recipe, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    small = ["learner.ranks=2", "learner.min_passes=2", "cold_start.steps=2", "rl.steps=2", "rollout.num_workers=1"]
    small += ["checkpoint.asynchronous=false"]
    settings = [*small, f"runs_dir={tmp_path / 'runs'}", "runtime=ray", "ray.object_store_bytes=104857600"]
    command = [sys.executable, str(LOSING), str(rank), "1", "run", str(tmp_path / "tiny.yaml"), *settings]
    done = subprocess.run(
        [*command, "learner.update_timeout_s=1000"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=LOSING.parents[2],
    )
    assert done.returncode == 2, done.stdout + done.stderr
    killed = re.search(r"killing process (\d+)", done.stdout)
    assert killed
    assert f"error: learner rank {rank} (process {killed[1]} on " in done.stderr
    assert "samepath resume" in done.stderr
    run_dir = tmp_path / "runs" / "tiny"
    assert sorted(folder.name for folder in (run_dir / "checkpoints").iterdir()) == ["step-000001"]
    resume_run(recipe_of_run(run_dir), run_dir)
    whole = tiny_recipe(*small, "name=whole")
    start_run(whole, tmp_path)
    one, other = (folder / "checkpoints" / "step-000002" / "model.safetensors" for folder in (run_dir, whole.run_dir))
    assert one.read_bytes() == other.read_bytes()
