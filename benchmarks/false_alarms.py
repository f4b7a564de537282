"""How often alerts cry wolf: clean short runs with other seeds and settings, and every alert that they raise.

    python -m benchmarks.false_alarms --runs 40 --steps 40 --folder /tmp/alarms

Each run is the quickstart's task and mechanisms on a model of two layers, in this process, without Ray and MLflow; run n has seed n and the n-th of the
settings below in turn. An alert in one of them is either a false alarm or a defect, so each is printed with its sentence; notes of first failures count
too. The status is 1 if there is any.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from samepath.rl.alerts.book import read_alerts
from samepath.rl.alerts.diagnosis import diagnose
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run

RECIPE = Path(__file__).parent.parent / "recipes/quickstart.yaml"
SMALL = (
    "runtime=inline",
    "tracking.kind=jsonl",
    'reward={"short": {"function": "samepath.rewards.length:brevity", "options": {"max_tokens": 32}}, "right": "samepath.rewards.exact:number"}',
    "model.config.hidden_size=64",
    "model.config.num_hidden_layers=2",
    "cold_start.steps=60",
    "cold_start.late_steps=20",
    "cold_start.dense_warmup_steps=10",
    "task.num_train=2000",
    "task.num_held_out=64",
    "sampling.max_new_tokens=32",
    "rl.prompts_per_step=8",
    "rl.group_size=8",
    "evaluation.every=10",
    "checkpoint.every=0",
    "learner.ranks=1",
    "reward.num_workers=1",
)
SETTINGS: tuple[tuple[str, ...], ...] = (
    (),
    ("sampling.top_p=0.9", "rl.updates_per_rollout=4"),
    ("optimizer.lr=1e-4",),
    ("rl.objective.surrogate=gspo", "rl.objective.clip_low=3e-4", "rl.objective.clip_high=4e-4"),
    ("rl.objective.surrogate=cispo", "rl.objective.aggregation.mode=token_mean"),
    ("rl.objective.old_policy=learner", "rl.objective.importance.mode=truncated"),
    ("rl.advantage.scale=group_std", "rl.truncated.mode=penalise"),
    ("rl.advantage.baseline=leave_one_out", "rl.objective.kl.beta=0.05"),
    ("rl.drop_uninformative=true", "rl.refill=4"),
    ("sampling.temperature=0.8", "rl.objective.off_policy_mask.delta=0.005"),
)
"""What differs from run to run, in turn."""


def main() -> None:
    """Run, count, and print what came out as JSON; status 1 after an alarm."""
    asked = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(asked.folder or scratch).resolve()
        result = counted(folder, asked.runs, asked.steps, asked.first_seed)
    print(json.dumps(result, indent=2, ensure_ascii=False))
    sys.exit(1 if result["runs with an alarm"] else 0)


def counted(folder: Path, runs: int, steps: int, first_seed: int) -> dict[str, Any]:
    """Make the runs; how many raised an alarm, and which."""
    started, alarms, by_rule = time.monotonic(), dict[str, list[str]](), Counter[str]()
    for number in range(runs):
        seed, settings = first_seed + number, SETTINGS[number % len(SETTINGS)]
        said = alarms_of(clean_run(folder, f"clean-{seed}", seed, steps, settings))
        by_rule.update(rule for rule, _ in said)
        if said:
            alarms[f"seed={seed} {' '.join(settings)}"] = [f"{rule}: {seen}" for rule, seen in said]
        sys.stderr.write(f"{number + 1}/{runs}  seed {seed}  {len(said)} alarms\n")
    return {
        "runs": runs,
        "steps a run": steps,
        "settings": len(SETTINGS),
        "runs with an alarm": len(alarms),
        "alarms by rule": dict(by_rule),
        "alarms": alarms,
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def clean_run(folder: Path, name: str, seed: int, steps: int, settings: tuple[str, ...]) -> Path:
    """Make one; its folder. What it prints goes nowhere."""
    overrides = [*SMALL, *settings, f"runs_dir={folder}", f"name={name}", f"seed={seed}", f"rl.steps={steps}"]
    recipe = load_recipe(RECIPE, overrides, Recipe)
    with contextlib.redirect_stdout(io.StringIO()):
        start_run(recipe, RECIPE.parent)
    return recipe.run_dir


def alarms_of(run_dir: Path) -> list[tuple[str, str]]:
    """(rule, what was seen) of all that a run said, and of what is found in its folder afterwards."""
    said = [(alert.rule, alert.seen) for alert in read_alerts(run_dir) if alert.event != "ends"]
    found = [(one.rule, one.seen) for one in diagnose(run_dir).findings]
    return list(dict.fromkeys([*said, *found]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--folder", default="", help="where the runs are kept; without it they are removed at the end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
