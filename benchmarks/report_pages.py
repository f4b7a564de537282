"""Seconds that one page `report.html` of a run takes: `python -m benchmarks.report_pages runs/quickstart [--steps 10000]`.

With `--steps` the run's metrics are repeated until there are so many steps, in a copy of its folder.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from samepath.rl.report.report import write_report
from samepath.rl.run_folder import recipe_of_run
from samepath.rl.run_state import METRICS_FILE, RECIPE_FILE, STATE_FILE, RunState
from samepath.rl.tracking.jsonl import read_metrics

REPEATS = 5


def lengthened(run_dir: Path, folder: Path, steps: int) -> Path:
    """A copy of what a report reads, with the run's steps again and again."""
    folder.mkdir()
    for name in (RECIPE_FILE, STATE_FILE):
        shutil.copyfile(run_dir / name, folder / name)
    values = [one for step, one in read_metrics(run_dir / METRICS_FILE).items() if step and "time/step_s" in one]
    with (folder / METRICS_FILE).open("w") as file:
        for step in range(steps):
            file.write(json.dumps({"step": step + 1, "metrics": values[step % len(values)]}) + "\n")
    return folder


def main() -> None:
    """Write the page a few times and print the fastest, and its size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / asked.run.resolve().name
        recipe_dir = lengthened(asked.run, run_dir, asked.steps) if asked.steps else asked.run
        recipe, state, seconds, processor = recipe_of_run(recipe_dir), RunState.load(recipe_dir), [], []
        for _ in range(REPEATS):
            began, worked = time.perf_counter(), time.process_time()
            path = write_report(recipe, state)
            seconds.append(time.perf_counter() - began)
            processor.append(time.process_time() - worked)
        size = path.stat().st_size / 2**20
    print(f"{min(seconds):.2f} s, {min(processor):.2f} s of processor time, {size:.2f} MiB")


if __name__ == "__main__":
    main()
