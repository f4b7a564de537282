"""What a version of the weights takes from the learner to a worker's engine, beside the rate at which this machine copies memory.

    python -m benchmarks.weight_sync                              # SmolLM2-135M in float32 (`make smollm2`), each way of crossing
    python -m benchmarks.weight_sync --recipe recipes/h200_small.yaml --ways ray inline

Learner, pools, workers and engines are the real ones. Every round takes one version, and beside it a copy of as many bytes from tensor to tensor
in the learner's process, or for Ray the driver's; the fastest of the rounds after the first counts, because other
programs may use the machine.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from samepath.rl.learner.handle import InlineLearner, LearnerHandle
from samepath.rl.learner.ray_cluster import running_cluster
from samepath.rl.learner.ray_learner import RayLearner
from samepath.rl.machine import child_environment, import_path
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rollout.pool.pool import InlinePool, RolloutPool, worker_environment
from samepath.rollout.pool.process_pool import ProcessPool
from samepath.rollout.pool.ray_pool import RayPool

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "smollm2_arithmetic.yaml"
WAYS = ("ray", "child", "inline")


class Copy:
    """A copy of `size_bytes` from tensor to tensor."""

    def __init__(self, size_bytes: int) -> None:
        self._source = torch.ones(size_bytes // 4)
        self._target = torch.empty_like(self._source)

    def seconds(self) -> float:
        """Of one copy."""
        started = time.perf_counter()
        self._target.copy_(self._source)
        return time.perf_counter() - started


def main() -> None:
    """Measure each way and print a table."""
    arguments = _arguments()
    torch.set_num_threads(1)
    print(
        f"{os.cpu_count()} cores, torch {torch.__version__}, {arguments.rounds} rounds, load {os.getloadavg()[0]:.1f}"
    )
    print(
        "| way | dtype | MB sent | a copy, s | handed out, s | of the copy's rate | put together, s | of the copy's rate | both, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for way in arguments.ways:
        print(_measured(way, arguments.recipe, arguments.rounds), flush=True)


def _measured(way: str, path: Path, rounds: int) -> str:
    """A row of the table: seconds by the clock, the fastest round's, and in brackets of processor time, the rounds' mean."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(way, path, Path(folder))
        with _parts(way, recipe, path.parent) as (learner, pool):
            size = int(learner.statistics()["parameters"]) * (2 if recipe.model.dtype == "bfloat16" else 4)
            copy, processes = Copy(size), _processes(way, pool)
            for _ in range(rounds + 1):
                spent = [process.cpu_times() for process in processes]
                started = time.perf_counter()
                published = learner.weights()
                pool.load_weights(published, published.version)
                whole_s, handover = time.perf_counter() - started, pool.handover()
                out_cpu_s, load_cpu_s = (
                    _since(process, before) for process, before in zip(processes, spent, strict=True)
                )
                sent = published.sent_bytes or handover.sent_bytes
                # A child's learner writes the shared memory after it has handed its tensors to the pool.
                out_s = whole_s - handover.load_s if way == "child" else published.seconds
                before_s = time.process_time()
                copy_s = copy.seconds()
                clock = (copy_s, out_s, handover.load_s, whole_s)
                rows.append((*clock, time.process_time() - before_s, out_cpu_s, load_cpu_s))
    copy_s, out_s, load_s, whole_s = (min(column) for column in list(zip(*rows[1:], strict=True))[:4])
    copy_cpu_s, out_cpu_s, load_cpu_s = (statistics.fmean(column) for column in list(zip(*rows[1:], strict=True))[4:])
    cells = [way, recipe.model.dtype, f"{sent / 1e6:.0f} of {size / 1e6:.0f}", f"{copy_s:.3f} ({copy_cpu_s:.3f})"]
    for seconds, cpu_s in ((out_s, out_cpu_s), (load_s, load_cpu_s)):
        shares = f"{copy_s / seconds:.2f} ({copy_cpu_s / cpu_s:.2f})" if sent else "–"
        cells += [f"{seconds:.3f} ({cpu_s:.3f})", shares]
    return f"| {' | '.join([*cells, f'{whole_s:.3f}'])} |"


def _processes(way: str, pool: RolloutPool) -> tuple[psutil.Process, psutil.Process]:
    """The processes of the learner and of the worker."""
    own = psutil.Process()
    if isinstance(pool, InlinePool):
        return own, own
    assert isinstance(pool, ProcessPool | RayPool)
    worker = psutil.Process(pool.process_ids()[0])
    if way == "child":
        return own, worker
    # Ray names a process after the actor in it.
    named = [
        one
        for one in own.children(recursive=True)
        if one.cmdline()[:1] and one.cmdline()[0].startswith("ray::RankHost")
    ]
    return named[0], worker


def _since(process: psutil.Process, before: Any) -> float:
    """Processor time of a process since `before`, seconds, of user and system."""
    now = process.cpu_times()
    return (now.user - before.user) + (now.system - before.system)


def _recipe(way: str, path: Path, folder: Path) -> Recipe:
    runtime = "ray" if way == "ray" else "inline"
    one_each = ["learner.ranks=1", "rollout.num_workers=1", "ray.object_store_bytes=2147483648"]
    return load_recipe(path, [f"runs_dir={folder}", f"runtime={runtime}", "cold_start.steps=0", *one_each], Recipe)


@contextmanager
def _parts(way: str, recipe: Recipe, folder: Path) -> Iterator[tuple[LearnerHandle, RolloutPool]]:
    """Learner and pool, and what they need."""
    engine, workers, placement = recipe.engine, recipe.rollout, recipe.model.placement
    reference = (recipe.run_dir / "reference").resolve()
    if way == "ray":
        with running_cluster(recipe.ray):
            learner: LearnerHandle = RayLearner(recipe, folder, recipe.run_dir, None)
            learner.start_rl()
            pool: RolloutPool = RayPool(reference, engine, workers, import_path(folder), placement)
            yield learner, pool
            pool.close()
            learner.close()
        return
    learner = InlineLearner(recipe, folder, recipe.run_dir, None)
    learner.start_rl()
    if way == "inline":
        pool = InlinePool(reference, engine, workers, placement)
    else:
        variables = worker_environment(engine, workers, import_path(folder))
        pool = ProcessPool(reference, engine, workers, child_environment(variables))
    yield learner, pool
    pool.close()
    learner.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="whose model is taken")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
