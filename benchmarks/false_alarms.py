"""How often alerts cry wolf: clean short runs with other seeds and settings, and every alert that they raise.

    python -m benchmarks.false_alarms /tmp/alarms --runs 200 --at-once 32 --minutes 7

Each run is the quickstart's model, of two layers, on short sums that this file writes, in a process of its own without Ray, MLflow and Reasoning Gym;
run n has seed n and the n-th of the settings below in turn. Side by side each run has one core. What is finished in the folder is kept and counted, and
a run that was cut begins anew. An alert is either a false alarm or a defect, so each is printed with its sentence; notes of first failures count too.
The status is 1 if there is any, or a run failed.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.process import CHECKOUT, MOST_OUTPUT, peer_environment
from benchmarks.setting import PeerSetting
from samepath.rl.alerts.book import read_alerts
from samepath.rl.alerts.diagnosis import diagnose
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run

RECIPE = CHECKOUT / "recipes/quickstart.yaml"
ROWS = "sums.jsonl"
NUM_ROWS, TERMS = 2000, 3
"""So many sums, of so many digits: worked out, a sum of four has 24 tokens, which fit in `sampling.max_new_tokens` below."""
REWARD = {
    "right": {"function": "samepath.rewards.exact:number", "options": {"marker": "#"}},
    "short": {"function": "samepath.rewards.length:brevity", "options": {"max_tokens": 32}, "weight": 0.1},
}
SMALL = (
    "runtime=inline",
    "tracking.kind=jsonl",
    f"reward={json.dumps(REWARD)}",
    "model.config.hidden_size=64",
    "model.config.num_hidden_layers=2",
    "optimizer.lr=2e-5",
    "cold_start.steps=400",
    "cold_start.late_steps=80",
    "cold_start.late_options.direct_share=0.4",
    "cold_start.dense_warmup_steps=40",
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
    ("optimizer.lr=5e-5",),
    ("rl.objective.surrogate=gspo", "rl.objective.clip_low=3e-4", "rl.objective.clip_high=4e-4"),
    ("rl.objective.surrogate=cispo", "rl.objective.aggregation.mode=token_mean"),
    ("rl.objective.old_policy=learner", "rl.objective.importance.mode=truncated"),
    ("rl.advantage.scale=group_std", "rl.truncated.mode=penalise"),
    ("rl.advantage.baseline=leave_one_out", "rl.objective.kl.beta=0.05"),
    ("rl.drop_uninformative=true", "rl.refill=4"),
    ("sampling.temperature=0.8", "rl.objective.off_policy_mask.delta=0.005"),
)
"""What differs from run to run, in turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanRun:
    """One run: which, and how long.

    Example:
        CleanRun(folder=Path("/tmp/alarms"), number=3, seed=3, steps=30)
    """

    folder: Path
    number: int
    """Chooses the settings."""
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Of its folder; a run of other steps has another."""
        return f"clean-{self.seed}-{self.number % len(SETTINGS)}-{self.steps}"

    @property
    def settings(self) -> tuple[str, ...]:
        """What is its own."""
        return SETTINGS[self.number % len(SETTINGS)]

    @property
    def run_dir(self) -> Path:
        """Where it is kept."""
        return self.folder / self.name

    @property
    def finished(self) -> bool:
        """Whether it is there, whole."""
        return (self.run_dir / "summary.json").is_file()

    @property
    def overrides(self) -> list[str]:
        """All that is laid over the quickstart."""
        task = {"kind": "file", "path": str(self.folder / ROWS), "held_out_fraction": 0.05, "max_held_out": 64}
        places = [f"runs_dir={self.folder}", f"name={self.name}", f"seed={self.seed}", f"rl.steps={self.steps}"]
        return [f"task={json.dumps(task)}", *SMALL, *self.settings, *places]


def main() -> None:
    """Run, count, and print what came out as JSON; status 1 after an alarm."""
    asked = _arguments()
    folder = asked.folder.resolve()
    if asked.alone is not None:
        make_here(CleanRun(folder=folder, number=asked.alone, seed=asked.first_seed + asked.alone, steps=asked.steps))
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / ROWS)
    runs = [
        CleanRun(folder=folder, number=number, seed=asked.first_seed + number, steps=asked.steps)
        for number in range(asked.runs)
    ]
    result = counted(runs, asked.at_once, asked.minutes)
    print(json.dumps(result, indent=2, ensure_ascii=False))
    sys.exit(1 if result["runs with an alarm"] or result["failed"] else 0)


def write_rows(path: Path) -> None:
    """Sums such as 3-4+5+1= with their answers, the same every time."""
    rng = random.Random(0)
    lines = []
    for _ in range(NUM_ROWS):
        text = str(rng.randint(1, 9)) + "".join(f"{rng.choice('+-')}{rng.randint(1, 9)}" for _ in range(TERMS - 1))
        terms = text.replace("-", "+-").split("+")
        lines.append(json.dumps({"question": f"{text}=", "answer": str(sum(map(int, terms)))}))
    path.write_text("\n".join(lines) + "\n")


def counted(runs: list[CleanRun], at_once: int, minutes: float) -> dict[str, Any]:
    """Make the runs, `at_once` side by side, none begun after so many minutes; how many raised an alarm, and which."""
    started, alarms, failed, by_rule = time.monotonic(), dict[str, list[str]](), dict[str, str](), Counter[str]()
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:at_once]:
        cores.put(core)

    def hold_a_core() -> None:
        # The mask is of this thread alone, and every process that it begins inherits it.
        if at_once > 1:
            os.sched_setaffinity(0, {cores.get()})

    def one(run: CleanRun) -> str | None:
        if run.finished:
            return ""
        if time.monotonic() - started > 60 * minutes:
            return None
        return made(run)

    done = 0
    with ThreadPoolExecutor(at_once, initializer=hold_a_core) as pool:
        for run, problem in zip(runs, pool.map(one, runs), strict=True):
            if problem is None:
                continue
            title = f"seed={run.seed} {' '.join(run.settings)}"
            done += 1
            if problem:
                failed[title] = problem
                continue
            said = alarms_of(run.run_dir)
            by_rule.update(rule for rule, _ in said)
            if said:
                alarms[title] = [f"{rule}: {seen}" for rule, seen in said]
            sys.stderr.write(f"{done}/{len(runs)}  {title}  {len(said)} alarms\n")
    return {
        "runs": done - len(failed),
        "steps a run": runs[0].steps,
        "settings": len(SETTINGS),
        "runs with an alarm": len(alarms),
        "alarms by rule": dict(by_rule),
        "alarms": alarms,
        "failed": failed,
        "not begun": len(runs) - done,
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def made(run: CleanRun) -> str:
    """Make one in a process of its own, anew if it was cut; the end of its output if it failed, else ""."""
    shutil.rmtree(run.run_dir, ignore_errors=True)
    words = ["--alone", run.number, "--first-seed", run.seed - run.number, "--steps", run.steps]
    command = [sys.executable, "-m", "benchmarks.false_alarms", str(run.folder), *map(str, words)]
    child = subprocess.run(
        command,
        env=peer_environment(PeerSetting(threads=1)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if child.returncode == 0 else (child.stderr[-MOST_OUTPUT:] or f"status {child.returncode}")


def make_here(run: CleanRun) -> None:
    """Make one in this process. What it prints goes nowhere."""
    recipe = load_recipe(RECIPE, run.overrides, Recipe)
    with contextlib.redirect_stdout(io.StringIO()):
        start_run(recipe, RECIPE.parent)


def alarms_of(run_dir: Path) -> list[tuple[str, str]]:
    """(rule, what was seen) of all that a run said, and of what is found in its folder afterwards."""
    said = [(alert.rule, alert.seen) for alert in read_alerts(run_dir) if alert.event != "ends"]
    found = [(one.rule, one.seen) for one in diagnose(run_dir).findings]
    return list(dict.fromkeys([*said, *found]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs stand, and where a second call finds them")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side, one core each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no run begins later than this")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not 1 <= asked.at_once <= len(os.sched_getaffinity(0)):
        parser.error(f"--at-once {asked.at_once} needs as many cores; here are {len(os.sched_getaffinity(0))}")
    if asked.runs < 1 or asked.steps < 1:
        parser.error("--runs and --steps must be at least 1")
    return asked


if __name__ == "__main__":
    main()
