"""One run from recipe to summary: set-up, cold start, evaluation, the loop, evaluation, summary; resumable at any checkpoint."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from samepath.model.placement import Placement
from samepath.model.text.tokenizer import Tokenizer, load_tokenizer
from samepath.rewards.runner import RewardRunner
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.evaluation.held_out import Evaluation
from samepath.rl.learner.handle import LearnerHandle, build_learner
from samepath.rl.learner.learner import latest_checkpoint
from samepath.rl.loop import Loop
from samepath.rl.machine import child_environment, collect_environment, import_path
from samepath.rl.recipe.cluster import RaySettings
from samepath.rl.recipe.file import dump_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.progress import ProgressDisplay
from samepath.rl.report.summary import write_summary
from samepath.rl.run_state import RECIPE_FILE, STATE_FILE, RunState
from samepath.rl.tasks.row import Task
from samepath.rl.tasks.tasks import build_task
from samepath.rl.tracking.sink import RunStart, RunStatus
from samepath.rl.tracking.tracker import Tracker, build_tracker
from samepath.rollout.engine_settings import AnyEngine, describe
from samepath.rollout.pool.pool import InlinePool, RolloutPool, worker_environment
from samepath.rollout.pool.process_pool import ProcessPool
from samepath.rollout.pool.settings import RolloutSettings
from samepath.rollout.pool.worker import peak_memory_bytes

COLD_START_STEPS_A_CALL = 20


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says what to do."""


def start_run(recipe: Recipe, recipe_dir: Path) -> dict[str, Any]:
    """Run a recipe from its beginning; returns the summary. Raises RunError if the run's folder already holds a run."""
    run_dir = recipe.run_dir
    if (run_dir / STATE_FILE).exists():
        raise RunError(
            f"{run_dir} already holds a run. Choose another name=…, delete the folder, or go on with `samepath resume {run_dir}`."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / RECIPE_FILE).write_text(dump_recipe(recipe))
    return _run(recipe, RunState(recipe_dir=str(recipe_dir.resolve())), resume_from=None, first_step=0)


def resume_run(recipe: Recipe, run_dir: Path) -> dict[str, Any]:
    """Go on from the newest checkpoint; a run that ended before its first one begins again under its old run id."""
    found = latest_checkpoint(run_dir)
    if found is None:
        return _run(recipe, RunState.load(run_dir), resume_from=None, first_step=0)
    return _run(recipe, RunState.load(run_dir), resume_from=found[0], first_step=found[1])


def _run(recipe: Recipe, state: RunState, resume_from: Path | None, first_step: int) -> dict[str, Any]:
    """Everything that can be wrong with the recipe is checked before any work is done."""
    run_dir, recipe_dir = recipe.run_dir, Path(state.recipe_dir)
    if recipe.runtime == "inline" or recipe.ray.address == "local":
        # The workers run in this environment.
        describe(recipe.engine).require(recipe.engine)
    task = build_task(recipe.task, recipe_dir)
    started = time.monotonic()
    with RewardRunner(recipe.reward) as runner:
        tracker = build_tracker(recipe.tracking, run_dir)
        state.run_id = tracker.start(
            RunStart(
                run_name=recipe.name,
                recipe=recipe.model_dump(mode="json"),
                recipe_yaml=dump_recipe(recipe),
                environment=collect_environment(),
                run_id=state.run_id,
            )
        )
        status: RunStatus = "FAILED"
        try:
            with (
                _cluster(recipe.runtime, recipe.ray),
                _interruptible(),
                ProgressDisplay(total_steps=recipe.rl.steps, done_steps=first_step) as display,
            ):
                _announce(display, tracker, run_dir)
                learner = build_learner(recipe, recipe_dir, run_dir, resume_from)
                try:
                    setup = _Setup(
                        recipe=recipe,
                        task=task,
                        learner=learner,
                        runner=runner,
                        tracker=tracker,
                        display=display,
                        state=state,
                    )
                    after = setup.train(resume_from, first_step, started)
                finally:
                    learner.close()
            state.seconds += time.monotonic() - started
            summary = write_summary(recipe, state, after, tracker)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            state.save(run_dir)
            tracker.finish(status)
    return summary


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setup:
    """The objects of one run."""

    recipe: Recipe
    task: Task
    learner: LearnerHandle
    runner: RewardRunner
    tracker: Tracker
    display: ProgressDisplay
    state: RunState

    def train(self, resume_from: Path | None, first_step: int, started: float) -> Evaluation:
        """Cold start (or resume), evaluation, loop, evaluation; Ctrl-C leaves a checkpoint."""
        run_dir = self.recipe.run_dir
        reference_dir = run_dir / "reference"
        if resume_from is None:
            self._cold_start()
            self.learner.start_rl()
        tokenizer = load_tokenizer(reference_dir)
        self._check_prompts(tokenizer)
        pool = self._pool(resume_from or reference_dir)
        try:
            pool.load_weights(self.learner.weights(), first_step)
            loop = Loop(
                recipe=self.recipe,
                task=self.task,
                tokenizer=tokenizer,
                learner=self.learner,
                pool=pool,
                scorer=GroupScorer(self.runner),
                tracker=self.tracker,
                display=self.display,
            )
            return self._loop(loop, pool, first_step, started)
        finally:
            pool.close()

    def _pool(self, model_folder: Path) -> RolloutPool:
        """The rollout pool that the recipe's runtime asks for."""
        recipe, recipe_dir = self.recipe, Path(self.state.recipe_dir)
        engine, workers, placement = recipe.engine, recipe.rollout, recipe.model.placement
        if recipe.runtime == "inline":
            return inline_pool(model_folder, engine, workers, placement, recipe_dir)
        # Late: `runtime: inline` must work without Ray.
        from samepath.rollout.pool.ray_pool import RayPool

        return RayPool(model_folder.resolve(), engine, workers, import_path(recipe_dir), placement)

    def _loop(self, loop: Loop, pool: RolloutPool, first_step: int, started: float) -> Evaluation:
        state, run_dir = self.state, self.recipe.run_dir
        done = first_step
        if math.isnan(state.accuracy_before):
            before = loop.evaluate()
            state.accuracy_before = before.accuracy
            self.tracker.log_metrics(0, before.metrics())
            self.display.message(f"held-out accuracy before RL: {before.accuracy:.3f} ({before.num_scored} responses)")
        spent_before = state.seconds

        def on_step(step: int, metrics: dict[str, float]) -> None:
            nonlocal done
            done = step
            state.gap_at_lag_0 = max(state.gap_at_lag_0, metrics.get("policy/gap_at_lag_0", 0.0))
            for name, value in metrics.items():
                if name.startswith(("reward/status.", "rollout/failure.")) and value and name != "reward/status.ok":
                    state.counters[name] = state.counters.get(name, 0.0) + value
            state.seconds = spent_before + time.monotonic() - started
            state.save(run_dir)

        try:
            loop.run(first_step, on_step)
        except KeyboardInterrupt:
            self.display.message(f"interrupted: writing a checkpoint of step {done}")
            self.tracker.log_checkpoint(done, self.learner.save(done))
            raise
        state.seconds = spent_before
        after = loop.evaluate()
        self.tracker.log_metrics(self.recipe.rl.steps, after.metrics())
        self.tracker.log_checkpoint(self.recipe.rl.steps, self.learner.save(self.recipe.rl.steps))
        statistics = pool.statistics()
        own = peak_memory_bytes()
        # What lives in this process reports this process's peak: inline the learner, and the built-in engine.
        others = 0.0 if isinstance(pool, InlinePool) else statistics["peak_bytes"]
        if self.recipe.runtime == "ray":
            others += self.learner.statistics()["peak_bytes"]
        state.peak_bytes = max(state.peak_bytes, own + others)
        on_gpu = [statistics, self.learner.statistics()] if self.recipe.model.device == "cuda" else []
        state.gpu_peak_bytes = max([state.gpu_peak_bytes, *(entry["gpu_peak_bytes"] for entry in on_gpu)])
        state.counters |= {
            f"rollout/{name}": statistics[name] for name in ("replaced_workers", "over_cap") if statistics.get(name)
        }
        return after

    def _cold_start(self) -> None:
        total = self.recipe.cold_start.steps
        self.display.phase("cold start")
        for first in range(0, total, COLD_START_STEPS_A_CALL):
            count = min(COLD_START_STEPS_A_CALL, total - first)
            steps = self.learner.cold_start(first, count)
            for offset, metrics in enumerate(steps):
                self.tracker.log_metrics(first + offset, metrics)
            last = steps[-1]
            if first // COLD_START_STEPS_A_CALL % 5 == 4 or first + count == total:
                self.display.message(
                    f"cold start {first + count}/{total}  loss {last['cold_start/loss']:.3f}  indexer KL {last['cold_start/indexer_kl']:.3f}"
                )

    def _check_prompts(self, tokenizer: Tokenizer) -> None:
        """Every held-out prompt and the first training prompts must be encodable before sampling starts."""
        rows = [*self.task.held_out, *(self.task.train_row(index) for index in range(min(64, len(self.task.train))))]
        for row in rows:
            if not row.encode(tokenizer):
                raise RunError(f"row {row.row_id} of the task has an empty prompt")


def inline_pool(
    model_folder: Path, engine: AnyEngine, workers: RolloutSettings, placement: Placement, recipe_dir: Path
) -> RolloutPool:
    """One worker without Ray: in this process, or beside it for an engine that changes the process it lives in."""
    if not describe(engine).own_process:
        return InlinePool(model_folder, engine, workers, placement)
    variables = worker_environment(engine, workers, import_path(recipe_dir))
    return ProcessPool(model_folder, engine, workers, child_environment(variables))


@contextmanager
def _cluster(runtime: str, settings: RaySettings) -> Iterator[None]:
    """A Ray cluster for the time of the run, if the runtime needs one."""
    if runtime == "inline":
        yield
        return
    try:
        # Late: `runtime: inline` must work without Ray.
        from samepath.rl.learner.ray_learner import start_cluster, stop_cluster
    except ModuleNotFoundError as error:
        raise RunError(
            "runtime: ray needs the package ray: `pip install samepath[ray]`, or set runtime=inline"
        ) from error
    start_cluster(settings)
    try:
        yield
    finally:
        stop_cluster()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does: with a checkpoint. Only a main thread may set handlers.

    Entered after the cluster has started, because Ray installs a handler of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _announce(display: ProgressDisplay, tracker: Tracker, run_dir: Path) -> None:
    display.message(f"run folder: {run_dir}")
    for name, link in tracker.links().items():
        display.message(f"MLflow {name}: {link}")
