"""A run on conversations that samples while it learns and computes every context anew: exact, cut where weights came, and made again."""

from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")

from samepath.rl.learner.model_source import save_model  # noqa: E402
from samepath.rl.recipe.recipe import Recipe  # noqa: E402
from samepath.rl.replay_run import ReplayError, replay_run  # noqa: E402
from samepath.rl.run import start_run  # noqa: E402
from samepath.rl.tracking.jsonl import read_metrics  # noqa: E402
from samepath.rollout.conservation import drift_cuts, weight_cuts  # noqa: E402
from tests.conftest import tiny_model  # noqa: E402
from tests.random_conversations import talking_tokenizer  # noqa: E402
from tests.rl.learner.test_overlapped_run import ATTEMPTS, Seen  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, PROMPTS = 6, 2


def talking(folder: Path, **rl: Any) -> Recipe:
    """Long conversations of a model with random weights: several updates pass while one is led."""
    folder.mkdir(exist_ok=True)
    save_model(tiny_model(), talking_tokenizer(), folder / "model")
    return Recipe.model_validate(
        {
            "name": "ahead",
            "runtime": "ray",
            "runs_dir": str(folder / "runs"),
            "model": str(folder / "model"),
            "task": {
                "kind": "environment",
                "environment": "tests.random_conversations:Notes",
                "episode": {
                    "form": {"parser": "tests.random_conversations:calls_or_answers"},
                    "budgets": {"max_turns": 7, "max_tokens": 150},
                },
                "max_held_out": 2,
            },
            "sampling": {"max_new_tokens": 40, "top_p": 0.9},
            "engine": {"page_size": 4, "max_sequences": 6},
            "rollout": {"num_workers": 1},
            "rl": {
                "steps": STEPS,
                "prompts_per_step": PROMPTS,
                "group_size": 3,
                "updates_per_rollout": 1,
                "max_weight_lag": 1,
                "on_new_weights": "recompute",
                **rl,
            },
            "optimizer": {"lr": 1e-3},
            "evaluation": {"every": 0},
            "tracking": {"kind": "jsonl"},
            "checkpoint": {"every": 1, "keep": 8, "keep_sampled": True},
        }
    )


@pytest.mark.slow
def test_overlapped_conversations_have_a_gap_of_zero_to_their_own_versions_and_are_made_again(
    cluster: None, blank_pictures: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in range(ATTEMPTS):
        seen = Seen(monkeypatch)
        recipe = talking(tmp_path / str(attempt))
        summary = start_run(recipe, tmp_path)
        assert len(seen.groups) == STEPS
        seen.check(1, PROMPTS)
        gap, _ = seen.gap(recipe.run_dir)
        assert summary["gap_at_lag_0"] == gap == 0.0
        rollouts = [rollout for groups in seen.groups for group in groups for rollout in group.rollouts]
        if any(weight_cuts(one.segments) for one in rollouts):
            break
    else:
        pytest.fail(f"in {ATTEMPTS} runs no weights came while conversations were led")
    assert not any(drift_cuts(one.segments) for one in rollouts)
    for one in rollouts:
        assert all(len(set(part.weight_version[part.trained].tolist())) == 1 for part in one.segments)
    steps = read_metrics(recipe.run_dir / "metrics.jsonl")
    assert {steps[step]["segments/superseded_rows"] for step in range(1, STEPS + 1)} == {0.0}
    made: list[int] = []
    monkeypatch.undo()
    replay_run(recipe.run_dir, from_rollouts=True, on_step=lambda line: made.append(line.step))
    assert made == list(range(STEPS))
    with pytest.raises(
        ReplayError, match=r"cannot be led again: an environment may answer otherwise\. .*--from-rollouts"
    ):
        replay_run(recipe.run_dir, from_rollouts=False, on_step=lambda line: None)
