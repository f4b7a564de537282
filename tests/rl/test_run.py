"""The whole job on a tiny model: reproducible to the last bit, resumable, and clean when things fail."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from samepath.rl import run as run_module
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.diagnostics.meanings import meaning_of
from samepath.rl.learner.checkpoints import latest_checkpoint
from samepath.rl.learner.learner import Learner
from samepath.rl.loop import Loop
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import resume_run, start_run
from samepath.rl.run_folder import RunFolderError
from samepath.rl.tracking.jsonl import read_metrics, read_rollouts
from tests.rl.conftest import TIMED, TINY


def comparable(run_dir: Path) -> dict[int, dict[str, str]]:
    """All metrics but those that are times, as text so that NaN equals NaN."""
    steps = read_metrics(run_dir / "metrics.jsonl")
    return {
        step: {name: repr(value) for name, value in row.items() if not name.startswith(TIMED)}
        for step, row in steps.items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    recipe = load_recipe(folder / "tiny.yaml", [f"runs_dir={folder / 'runs'}"], Recipe)
    start_run(recipe, folder)
    return recipe.run_dir


def test_start_run_again_with_its_seed_gives_identical_metrics(tiny_recipe, tmp_path: Path, whole: Path) -> None:
    summary = start_run(tiny_recipe("name=again"), tmp_path)
    assert comparable(tmp_path / "runs" / "again") == comparable(whole)
    assert summary["gap_at_lag_0"] == 0.0
    steps = comparable(whole)
    assert float(steps[3]["learner/grad_norm"]) > 0
    assert float(steps[3]["policy/off_policy_max"]) != 0, "the second update of a step must be off-policy"


def test_start_run_with_another_seed_gives_other_metrics(tiny_recipe, tmp_path: Path, whole: Path) -> None:
    start_run(tiny_recipe("name=other", "seed=1"), tmp_path)
    assert comparable(tmp_path / "runs" / "other") != comparable(whole)


def test_start_run_writes_summary_plot_rollouts_and_checkpoint(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert {
        "accuracy_before",
        "accuracy_after",
        "gap_at_lag_0",
        "steps",
        "seconds",
        "peak_memory_gib",
        "mlflow_run_id",
    } <= set(summary)
    assert (whole / "training.png").read_bytes().endswith(b"IEND\xaeB`\x82"), "painted to its end"
    rollouts = read_rollouts(whole / "rollouts" / "step-00003.jsonl")
    assert len(rollouts) == 16
    assert abs(sum(rollout.advantage for rollout in rollouts)) < 1e-4
    found = latest_checkpoint(whole)
    assert found is not None
    assert found[1] == 3


def test_every_metric_of_a_run_has_a_meaning(whole: Path) -> None:
    names = {name for values in read_metrics(whole / "metrics.jsonl").values() for name in values}
    assert len(names) > 80
    assert sorted(name for name in names if meaning_of(name) is None) == []


def test_every_picture_of_a_run_is_in_its_report(whole: Path) -> None:
    text = (whole / "report.html").read_text()
    assert text.count("data:image/svg+xml;base64,") > 20
    assert "Route flips by layer" in text


def test_start_run_in_a_used_folder_is_refused(tiny_recipe, tmp_path: Path) -> None:
    start_run(tiny_recipe("rl.steps=0"), tmp_path)
    with pytest.raises(RunFolderError, match="already holds a run"):
        start_run(tiny_recipe("rl.steps=0"), tmp_path)


def test_resume_run_after_interruption_ends_like_an_uninterrupted_run(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    original = Loop.one_step

    def interrupted(self: Loop, step: int) -> dict[str, float]:
        if step == 2:
            raise KeyboardInterrupt
        return original(self, step)

    monkeypatch.setattr(Loop, "one_step", interrupted)
    recipe = tiny_recipe("name=cut", "checkpoint.every=0")
    with pytest.raises(KeyboardInterrupt):
        start_run(recipe, tmp_path)
    monkeypatch.undo()
    assert json.loads((recipe.run_dir / "tracking.json").read_text())["attempts"][-1]["status"] == "KILLED"
    found = latest_checkpoint(recipe.run_dir)
    assert found is not None
    assert found[1] == 2
    resume_run(recipe, recipe.run_dir)
    assert comparable(recipe.run_dir)[3] == comparable(whole)[3]
    assert json.loads((recipe.run_dir / "summary.json").read_text())["steps"] == 3


def test_resume_run_after_a_signal_in_an_update_ends_like_an_uninterrupted_run(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights have moved and the step is not counted yet: a checkpoint of that moment would learn from the step twice."""
    settings = ("rl.steps=2", "checkpoint.every=0", "cold_start.steps=1", "rl.prompts_per_step=2")
    start_run(tiny_recipe("name=whole", *settings), tmp_path)
    original = Learner.update

    def signalled(self: Learner, batch: TrainBatch) -> UpdateReport:
        report = original(self, batch)
        signal.raise_signal(signal.SIGTERM)
        return report

    monkeypatch.setattr(Learner, "update", signalled)
    recipe = tiny_recipe("name=cut", *settings)
    with pytest.raises(KeyboardInterrupt):
        start_run(recipe, tmp_path)
    monkeypatch.undo()
    found = latest_checkpoint(recipe.run_dir)
    assert found is not None
    assert found[1] == 1
    resume_run(recipe, recipe.run_dir)
    assert comparable(recipe.run_dir) == comparable(tmp_path / "runs" / "whole")


def interrupted_command(tmp_path: Path, number: signal.Signals, *overrides: str) -> tuple[int, str]:
    """Run the command until its second step, send the signal as a terminal (Ctrl-C: to the whole group) or `kill` does."""
    samepath = str(Path(sys.executable).with_name("samepath"))
    command = [
        samepath,
        "run",
        str(tmp_path / "tiny.yaml"),
        f"runs_dir={tmp_path / 'runs'}",
        "rl.steps=1000",
        *overrides,
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ,
        start_new_session=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("step 2/"):
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            break
    output, _ = process.communicate(timeout=90)
    return process.returncode, "".join(seen) + output


def test_run_command_on_sigterm_leaves_a_checkpoint_and_pictures_and_says_how_to_go_on(
    tiny_recipe, tmp_path: Path
) -> None:
    tiny_recipe()
    status, output = interrupted_command(tmp_path, signal.SIGTERM)
    assert status == 130, output
    run_dir = tmp_path / "runs" / "tiny"
    found = latest_checkpoint(run_dir)
    assert found is not None
    assert found[1] >= 2
    assert f"go on with: samepath resume {run_dir}" in output
    assert {"training.png", "rollouts.html"} <= {path.name for path in run_dir.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_command_under_ray_on_a_signal_leaves_a_checkpoint_and_no_process(
    tiny_recipe, tmp_path: Path, number: signal.Signals
) -> None:
    pytest.importorskip("ray")
    tiny_recipe()
    status, output = interrupted_command(tmp_path, number, "runtime=ray", "checkpoint.every=0")
    assert status == 130, output
    found = latest_checkpoint(tmp_path / "runs" / "tiny")
    assert found is not None, output
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False).stdout.split()
    assert not left, output


def test_resume_run_interrupted_in_the_cold_start_begins_again(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    def interrupted(self: Learner, first: int, count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "cold_start", interrupted)
    recipe = tiny_recipe()
    with pytest.raises(KeyboardInterrupt):
        start_run(recipe, tmp_path)
    monkeypatch.undo()
    resume_run(recipe, recipe.run_dir)
    assert comparable(recipe.run_dir) == comparable(whole)


FAULTY_REWARD = """
import os, time

def f(request):
    kind = len(request.response_text) % 5
    if kind == 0:
        raise RuntimeError("boom")
    if kind == 1 and request.rollout_key.endswith("/0"):
        time.sleep(60)
    if kind == 2 and request.rollout_key.endswith("/1"):
        os._exit(3)
    return 1.0 / (1 + len(request.response_text))
"""


def test_start_run_with_a_faulty_reward_counts_statuses_and_finishes(tiny_recipe, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY_REWARD)
    reward = f"reward={{parts: {{f: {{function: 'faulty:f'}}}}, timeout_s: 0.5, max_failed_share: 1, search_path: '{tmp_path}'}}"
    start_run(tiny_recipe(reward), tmp_path)
    steps = read_metrics(tmp_path / "runs" / "tiny" / "metrics.jsonl")
    statuses = {
        name: sum(row.get(f"reward/status.{name}", 0) for row in steps.values())
        for name in ("ok", "error", "timeout", "died")
    }
    assert all(statuses.values()), statuses
    assert sum(statuses.values()) == 3 * 16
    records = read_rollouts(tmp_path / "runs" / "tiny" / "rollouts" / "step-00001.jsonl")
    failed = [record for record in records if record.failed]
    assert failed
    assert all(record.advantage == 0 and record.reward != 0 for record in failed), "a failed reward is no zero"


def test_start_run_with_an_unreachable_tracking_server_finishes(
    tiny_recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    overrides = (
        "tracking.kind=mlflow",
        "tracking.uri=http://127.0.0.1:9",
        "tracking.start_timeout_s=2",
        "tracking.close_timeout_s=2",
    )
    start_run(tiny_recipe(*overrides), tmp_path)
    assert sum("does not answer" in record.message for record in caplog.records) == 1
    run_dir = tmp_path / "runs" / "tiny"
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 3
    assert (run_dir / "tracking-queue.jsonl").stat().st_size > 0


def test_run_says_what_its_backend_compiles(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    watched = []

    @contextmanager
    def said(backend: str, say: Callable[[str], None]) -> Iterator[None]:
        watched.append(backend)
        say("compiling a kernel")
        yield

    monkeypatch.setattr(run_module, "compilations_said", said)
    start_run(tiny_recipe("rl.steps=0"), tmp_path)
    assert watched == ["torch"]
    assert "compiling a kernel" in capsys.readouterr().out
