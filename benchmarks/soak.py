"""A small run that is broken once a minute, for as long as asked, beside the same run in peace: does it lose steps, tokens, memory or its bits?

    python -m benchmarks.soak --minutes 60 --folder /tmp/soak
    make soak ARGS="--minutes 10"

Faults come from the recipe's own plan (docs/faults.md). A driver that ends is started again with `samepath resume`, once all processes of the one
before are gone. When the time is over the run is interrupted (SIGTERM); then the undisturbed run does as many steps, in one process, and their
weights are compared byte for byte.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.soak_watch import Watch, Watched
from samepath.rl.faults.book import read_faults
from samepath.rl.recipe.faults import FaultName
from samepath.rl.tracking.jsonl import read_metrics, read_rollouts

RECIPE = Path(__file__).parent.parent / "recipes/quickstart.yaml"
KINDS: tuple[FaultName, ...] = (
    "worker_killed",
    "worker_killed",
    "worker_stopped",
    "rank_killed",
    "store_gone",
    "disk_full",
    "driver_killed",
)
"""What is drawn from: everything after which a run must end with the weights of an undisturbed one. NaNs cost samples, and so does a reward child that dies
over one."""
SMALL = (
    'reward={"short": {"function": "samepath.rewards.length:brevity", "options": {"max_tokens": 32}}}',
    "model.config.hidden_size=64",
    "model.config.num_hidden_layers=2",
    "cold_start.steps=20",
    "cold_start.late_steps=0",
    "cold_start.dense_warmup_steps=5",
    "task.num_train=2000",
    "task.num_held_out=16",
    "sampling.max_new_tokens=32",
    "rl.steps=1000000",
    "rl.prompts_per_step=8",
    "rl.group_size=4",
    "evaluation.every=0",
    "checkpoint.every=2",
    "learner.ranks=1",
    "reward.num_workers=1",
    "reward.max_failed_share=1",
)
BROKEN = (
    "runtime=ray",
    "ray.object_store_bytes=104857600",
    "rollout.stall_timeout_s=10",
    "rollout.max_replacements=1000000",
    "learner.restarts=100",
    "learner.update_timeout_s=120",
    "tracking.kind=mlflow",
    "tracking.traced_rollouts_per_step=1",
)
PEACE = ("runtime=inline", "tracking.kind=jsonl")
MOST_WITHOUT_A_STEP = 5
"""Attempts in a row that may end without a checkpoint more, before the soak gives up."""
END_WAIT_S = 120.0


class SoakError(RuntimeError):
    """A run that does not go on."""


def main() -> None:
    """Soak, compare, and print what came out as JSON; status 1 if anything is lost."""
    asked = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(asked.folder or scratch).resolve()
        result = soaked(folder, 60 * asked.minutes, asked.every_s, asked.kinds, asked.seed)
        result |= compared(folder)
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["lost tokens"] == 0 and result["weights equal"] and not result["processes left"] else 1)


def soaked(folder: Path, limit_s: float, every_s: float, kinds: list[str], seed: int) -> dict[str, Any]:
    """Run and resume for `limit_s` seconds; what was seen."""
    plan = {"every_s": every_s, "kinds": kinds, "seed": seed}
    first = [
        *command("run", str(RECIPE)),
        f"runs_dir={folder}",
        "name=broken",
        *SMALL,
        *BROKEN,
        f"faults={json.dumps(plan)}",
    ]
    run_dir, deadline, started = folder / "broken", time.monotonic() + limit_s, time.monotonic()
    watch, ends, idle = Watch(), Counter[str](), 0
    while time.monotonic() < deadline:
        before = newest(run_dir)
        going_on = (run_dir / "run.json").is_file()
        ends[attempted(command("resume", str(run_dir)) if going_on else first, folder, watch, deadline)] += 1
        idle = 0 if newest(run_dir) > before else idle + 1
        if idle > MOST_WITHOUT_A_STEP:
            raise SoakError(f"{idle} attempts ended without a checkpoint more; see {folder / 'output.txt'}")
    return {
        "minutes": round((time.monotonic() - started) / 60, 1),
        "attempts": sum(ends.values()),
        "ends of attempts": dict(ends),
        "faults": dict(Counter(entry.fault for entry in read_faults(run_dir))),
        "steps": newest(run_dir),
        **watch.report(),
    }


def attempted(argv: list[str], folder: Path, watch: Watch, deadline: float) -> str:
    """Start the command and look at it until it ends, or until the time is over; how it ended."""
    with (folder / "output.txt").open("ab") if folder.exists() else _made(folder) as output:
        process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, cwd=RECIPE.parent.parent)
        seen = Watched(process.pid)
        while process.poll() is None and time.monotonic() < deadline:
            watch.look(seen, newest(folder / "broken"))
            time.sleep(1.0)
        over = process.poll() is None
        if over:
            process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=END_WAIT_S)
    watch.ended(seen, END_WAIT_S)
    return "time over" if over else f"status {status}"


def compared(folder: Path) -> dict[str, Any]:
    """The undisturbed run of as many steps beside it: tokens of both, and whether their weights are equal."""
    steps = newest(folder / "broken")
    argv = [*command("run", str(RECIPE)), f"runs_dir={folder}", "name=peace", *SMALL, *PEACE, f"rl.steps={steps}"]
    started = time.monotonic()
    with (folder / "output.txt").open("ab") as output:
        subprocess.run(argv, stdout=output, stderr=subprocess.STDOUT, cwd=RECIPE.parent.parent, check=True)
    broken, peace = (
        folder / name / "checkpoints" / f"step-{steps:06d}" / "model.safetensors" for name in ("broken", "peace")
    )
    tokens = [counted(folder / name, steps) for name in ("broken", "peace")]
    return {
        **tokens[0],
        "undisturbed": {"minutes": round((time.monotonic() - started) / 60, 1), **tokens[1]},
        "weights equal": broken.read_bytes() == peace.read_bytes(),
    }


def counted(run_dir: Path, steps: int) -> dict[str, int]:
    """Tokens that were sampled, trained, and left out for a counted reason; what is none of these is lost."""
    sampled = trained = left_out = 0
    for step in range(1, steps + 1):
        for rollout in read_rollouts(run_dir / "rollouts" / f"step-{step:05d}.jsonl"):
            sampled += rollout.num_tokens
            trained += len(rollout.kl_tokens)
            left_out += 0 if rollout.reward_status == "ok" else rollout.num_tokens
    metrics = read_metrics(run_dir / "metrics.jsonl")
    return {
        "sampled tokens": sampled,
        "trained tokens": trained,
        "tokens left out and counted": left_out,
        "lost tokens": sampled - trained - left_out,
        "steps in metrics.jsonl": sum("reward/mean" in of for of in metrics.values()),
    }


def newest(run_dir: Path) -> int:
    """Step of the newest checkpoint, 0 without any."""
    return max((int(path.name.removeprefix("step-")) for path in run_dir.glob("checkpoints/step-*")), default=0)


def command(*arguments: str) -> list[str]:
    """`samepath` in the interpreter that this runs in."""
    return [sys.executable, "-c", "from samepath.rl.cli import main; main()", *arguments]


def _made(folder: Path) -> Any:
    folder.mkdir(parents=True)
    return (folder / "output.txt").open("ab")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every-s", type=float, default=60.0, help="seconds between two faults, on average")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--folder", default="", help="where the runs are kept; without it they are removed at the end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
