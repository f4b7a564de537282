"""The middle of a run: cold start, evaluation, the loop, evaluation, with a checkpoint wherever the run may be cut."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from samepath.model.placement import Placement
from samepath.model.text.tokenizer import load_tokenizer
from samepath.rewards.runner import RewardRunner
from samepath.rl.alerts.alerts import Alerts
from samepath.rl.batch.failed_share import TooManyFailuresError
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.evaluation.held_out import Evaluations
from samepath.rl.evaluation.sets import seen_in_training
from samepath.rl.faults.injector import FaultInjector
from samepath.rl.interruption import Interruption
from samepath.rl.learner.handle import LearnerHandle
from samepath.rl.learner.rank_children import RankChildren
from samepath.rl.learner.rank_pool import RankPool
from samepath.rl.loop import Loop
from samepath.rl.machine import child_environment, gpu_alone, import_path
from samepath.rl.overlapped_loop import OverlappedLoop
from samepath.rl.preparation import Prepared
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.progress import ProgressDisplay
from samepath.rl.report.report import LiveReport
from samepath.rl.run_folder import REFERENCE
from samepath.rl.run_state import Phase, RunState
from samepath.rl.saving import Saving
from samepath.rl.tasks.survey import check_first_prompts
from samepath.rl.tracking.tracker import Tracker
from samepath.rollout.engine_errors import RolloutPoolError
from samepath.rollout.engine_settings import AnyEngine, describe
from samepath.rollout.pool.pool import InlinePool, RolloutPool, worker_environment
from samepath.rollout.pool.process_pool import ProcessPool
from samepath.rollout.pool.settings import RolloutSettings
from samepath.rollout.pool.worker import peak_memory_bytes

COLD_START_STEPS_A_CALL = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The objects of one run."""

    recipe: Recipe
    prepared: Prepared
    learner: LearnerHandle
    runner: RewardRunner
    tracker: Tracker
    display: ProgressDisplay
    state: RunState
    interruption: Interruption
    faults: FaultInjector
    alerts: Alerts
    started: float = field(default_factory=time.monotonic)
    """`time.monotonic()` when this attempt began, seconds."""

    def run(self, source: Path | None, first_step: int) -> Evaluations:
        """Go on from `source` (a checkpoint, or the reference), or begin with the cold start; Ctrl-C leaves a checkpoint."""
        recipe = self.recipe
        reference = recipe.run_dir / REFERENCE
        if source is None:
            self._cold_start()
            self.learner.start_rl()
            self._enter("evaluation", 0)
        tokenizer = load_tokenizer(reference)
        if said := check_first_prompts(self.prepared.task, tokenizer):
            self.display.message(
                f"warning: {said}. They count as rollout/failure.<reason>; `samepath validate` reads every row."
            )
        for said in seen_in_training(self.prepared.sets):
            self.display.message(f"warning: {said}.")
        saved = source is not None and source.resolve() != reference.resolve()
        saving = Saving(
            recipe=recipe,
            learner=self.learner,
            tracker=self.tracker,
            display=self.display,
            state=self.state,
            newest=first_step if saved else -1,
        )
        pool = self._pool(reference)
        try:
            pool.load_weights(self.learner.weights(), first_step)
            kind = OverlappedLoop if recipe.rl.max_weight_lag else Loop
            loop = kind(
                recipe=recipe,
                task=self.prepared.task,
                sets=self.prepared.sets,
                tokenizer=tokenizer,
                learner=self.learner,
                pool=pool,
                scorer=GroupScorer(self.runner, recipe.reward.max_failed_share),
                saving=saving,
                tracker=self.tracker,
                display=self.display,
                interruption=self.interruption,
                alerts=self.alerts,
            )
            if self.state.phase == "evaluation":
                before = loop.evaluated(0)
                self.state.accuracy_before = before.headline.accuracy
                self.state.sets_before = before.accuracies
                self._measured(0, before)
                self._enter("training", 0)
                for line in before.lines():
                    self.display.message(f"{line} before RL")
            self._train(loop, first_step)
            after = loop.evaluated(recipe.rl.steps)
            self._measured(recipe.rl.steps, after)
            self._measure_memory(pool)
            saving.end()
            return after
        finally:
            saving.close()
            pool.close()

    def _measured(self, step: int, results: Evaluations) -> None:
        """Keep what an evaluation outside the steps gave."""
        self.tracker.log_metrics(step, results.metrics())
        for line in self.alerts.step(step, results.metrics()):
            self.display.message(line)
        self.state.alerts = dict(self.alerts.holding)

    def _pool(self, reference: Path) -> RolloutPool:
        """The rollout pool that the recipe's runtime asks for. A worker that is replaced later loads the same folder, so it is one that stays."""
        recipe, recipe_dir = self.recipe, Path(self.state.recipe_dir)
        engine, workers, placement = recipe.engine, recipe.rollout, recipe.model.placement
        if workers.own_process:
            return pool_beside(reference, recipe, recipe_dir)
        if recipe.runtime == "inline":
            return inline_pool(reference, engine, workers, placement, recipe_dir, self.learner.sampling_ranks)
        # Late: `runtime: inline` must work without Ray.
        from samepath.rollout.pool.ray_pool import RayPool

        steady = recipe.rl.max_weight_lag > 0
        return RayPool(reference.resolve(), engine, workers, import_path(recipe_dir), placement, steady=steady)

    def _train(self, loop: Loop, first_step: int) -> None:
        """The steps, and the beginning of a checkpoint of the last one."""
        state, saving, done = self.state, loop.saving, first_step
        spent_before = state.seconds

        def on_step(step: int, metrics: dict[str, float]) -> None:
            nonlocal done
            done = step
            state.gap_at_lag_0 = max(state.gap_at_lag_0, metrics.get("policy/gap_at_lag_0", 0.0))
            for name, value in metrics.items():
                if (
                    name.startswith(("reward/status.", "rollout/failure.", "learner/updates_nonfinite"))
                    and value
                    and name != "reward/status.ok"
                ):
                    state.counters[name] = state.counters.get(name, 0.0) + value
            state.alerts = dict(self.alerts.holding)
            state.seconds = spent_before + time.monotonic() - self.started
            if self.faults.planned:
                self.tracker.log_metrics(step, self.faults.metrics)
                self.faults.done(step)
            report.after()

        report = LiveReport(recipe=self.recipe, state=state, started=self.started)
        self.display.tell(self.faults.phase)
        try:
            loop.run(first_step, on_step)
        except KeyboardInterrupt:
            if self.interruption.held:
                self.display.message("interrupted twice: no checkpoint, because this step's update was not finished")
            else:
                self._save(saving, done, "interrupted")
            raise
        except TooManyFailuresError:
            self._save(saving, done, "too many rewards failed")
            raise
        saving.begin(done)

    def _save(self, saving: Saving, done: int, why: str) -> None:
        """Leave a checkpoint of the last finished step."""
        if saving.newest != done or saving.writing:
            self.display.message(f"{why}: writing a checkpoint of step {done}")
        saving.begin(done)
        saving.finish()

    def _enter(self, phase: Phase, step: int) -> None:
        self.state.phase = phase
        self.state.mark(self.recipe.run_dir, step, self.recipe.checkpoint.keep)
        self.state.save(self.recipe.run_dir)

    def _measure_memory(self, pool: RolloutPool) -> None:
        state, recipe = self.state, self.recipe
        statistics = pool.statistics()
        learner = self.learner.statistics()
        peak_bytes = learner["peak_bytes"]
        # Inline the driver is the learner's rank 0, and the engines may live in its ranks.
        if recipe.runtime == "ray":
            peak_bytes += peak_memory_bytes()
        if not isinstance(pool, InlinePool | RankPool):
            peak_bytes += statistics.get("peak_bytes", 0.0)
        state.peak_bytes = max(state.peak_bytes, peak_bytes)
        on_gpu = [statistics, learner] if recipe.model.device == "cuda" else []
        state.gpu_peak_bytes = max([state.gpu_peak_bytes, *(entry.get("gpu_peak_bytes", 0.0) for entry in on_gpu)])
        state.counters |= {
            f"rollout/{name}": statistics[name] for name in ("replaced_workers", "over_cap") if statistics.get(name)
        }

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


def inline_pool(
    model_folder: Path,
    engine: AnyEngine,
    workers: RolloutSettings,
    placement: Placement,
    recipe_dir: Path,
    ranks: RankChildren | None = None,
) -> RolloutPool:
    """Workers without Ray: in this process and in those of `ranks`, or one beside it for an engine that changes the process it lives in."""
    if not describe(engine).own_process:
        if ranks is not None:
            return RankPool(ranks, model_folder, engine, workers, placement)
        return InlinePool(model_folder, engine, workers, placement)
    variables = worker_environment(engine, workers, import_path(recipe_dir))
    return ProcessPool(model_folder, engine, workers, child_environment(variables))


def pool_beside(model_folder: Path, recipe: Recipe, recipe_dir: Path) -> RolloutPool:
    """A worker of `rollout.own_process`, on the first GPU behind those of the ranks. Raises RolloutPoolError if there is none."""
    engine, workers, placement = recipe.engine, recipe.rollout, recipe.model.placement
    variables = worker_environment(engine, workers, import_path(recipe_dir))
    if placement.device == "cuda":
        number = recipe.learner.ranks
        if torch.cuda.device_count() <= number:
            raise RolloutPoolError(
                f"rollout.own_process with model.device: cuda needs a GPU behind those of learner.ranks={number}; {torch.cuda.device_count()} are "
                "visible. Lower learner.ranks, make more visible, or leave rollout.own_process out: the engine then shares the learner's GPU."
            )
        variables |= gpu_alone(number)
    return ProcessPool(model_folder, engine, workers, child_environment(variables), placement)
