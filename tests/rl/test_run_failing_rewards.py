"""A reward that fails on every response stops the run with a checkpoint, at a bounded cost; mended, the run goes on."""

from pathlib import Path

import pytest

from samepath.rl.batch.failed_share import TooManyFailuresError
from samepath.rl.learner.checkpoints import latest_checkpoint
from samepath.rl.run import resume_run, start_run
from samepath.rl.tracking.jsonl import read_metrics

FAILS = "def f(request):\n    if request.rollout_key.startswith({prefix!r}): raise KeyError('gold')\n    return float(request.num_tokens)\n"


def overrides(folder: Path, prefix: str, **reward: object) -> list[str]:
    (folder / "own_fails.py").write_text(FAILS.format(prefix=prefix))
    settings = {"parts": "{own: own_fails:f}", "search_path": folder, "num_workers": 1, **reward}
    return ["~reward", *(f"reward.{key}={value}" for key, value in settings.items()), "cold_start.steps=0"]


@pytest.mark.parametrize("prefix", ["s2-", "eval"])
def test_start_run_whose_rewards_fail_stops_keeps_a_checkpoint_and_goes_on_once_they_are_mended(
    prefix: str, tiny_recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(*overrides(tmp_path, prefix), "checkpoint.every=0", "rl.steps=2")
    with pytest.raises(
        TooManyFailuresError, match=r"more than reward.max_failed_share=0.5 allows.*own: KeyError: 'gold'"
    ):
        start_run(recipe, tmp_path)
    found = latest_checkpoint(recipe.run_dir)
    if prefix == "eval":
        # The evaluation before the loop: nothing was trained yet.
        assert found is None
        return
    assert found is not None
    assert found[1] == 1
    overrides(tmp_path, "nothing")
    resume_run(recipe, recipe.run_dir)
    assert read_metrics(recipe.run_dir / "metrics.jsonl")[2]["reward/status.ok"] == 16


def test_start_run_that_may_fail_wholly_says_the_first_failure_and_ends(
    tiny_recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(*overrides(tmp_path, "s", max_failed_share=1), "rl.steps=1")
    start_run(recipe, tmp_path)
    metrics = read_metrics(recipe.run_dir / "metrics.jsonl")[1]
    assert metrics["reward/status.error"] == 16
    assert "learner/updates" not in metrics
    said = capsys.readouterr().out
    assert said.count("warning: first reward/status.error of own_fails:f, rollout s1-g0/0: own: KeyError: 'gold'") == 1


def test_start_run_whose_evaluation_fails_midway_keeps_the_step_before_it(tiny_recipe, tmp_path: Path) -> None:
    """The evaluation before the loop works, and the one after step 1 does not."""
    counting = """
calls = []
def f(request):
    calls.append(1)
    if request.rollout_key.startswith("eval") and len(calls) > 8: raise KeyError("gold")
    return 1.0
"""
    settings = overrides(tmp_path, "nothing")
    (tmp_path / "own_fails.py").write_text(counting)
    recipe = tiny_recipe(*settings, "evaluation.every=1", "rl.steps=2", "checkpoint.every=0")
    with pytest.raises(TooManyFailuresError):
        start_run(recipe, tmp_path)
    found = latest_checkpoint(recipe.run_dir)
    assert found is not None
    assert found[1] == 1
    assert "reward/mean" in read_metrics(recipe.run_dir / "metrics.jsonl")[1]
