"""One run from recipe to summary: checks, its folder, the processes around it, and its end; resumable at any moment."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from samepath.kernels.gpu.compilation import compilations_said
from samepath.model.durable_file import replace_file
from samepath.rewards.runner import RewardRunner
from samepath.rl.alerts.alerts import Alerts
from samepath.rl.evaluation.held_out import Evaluations
from samepath.rl.faults.injector import FaultInjector
from samepath.rl.faults.parts import learner_with, runner_with
from samepath.rl.interruption import Interruption
from samepath.rl.learner.handle import build_learner
from samepath.rl.learner.lost import LearnerLostError
from samepath.rl.machine import collect_environment
from samepath.rl.preparation import Prepared, prepare
from samepath.rl.recipe.cluster import RaySettings
from samepath.rl.recipe.file import dump_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.progress import ProgressDisplay
from samepath.rl.report.summary import page_lines, show_interruption, show_summary, write_summary
from samepath.rl.resume import plan_resume, rewind
from samepath.rl.run_folder import begun, claimed, clear_start, recipe_of_run
from samepath.rl.run_state import RECIPE_FILE, RunState
from samepath.rl.tracking.sink import RunStart, RunStatus
from samepath.rl.tracking.tracker import Tracker, build_tracker
from samepath.rl.training import Training


class RunError(RuntimeError):
    """A run that cannot start; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """One start of a run."""

    recipe: Recipe
    state: RunState
    prepared: Prepared
    runner: RewardRunner
    source: Path | None
    """What the learner loads; None begins with the cold start."""
    first_step: int
    messages: Sequence[str]
    """What is to be said first."""


def start_run(recipe: Recipe, recipe_dir: Path) -> dict[str, Any]:
    """Run a recipe from its beginning; returns the summary.

    Everything that can be wrong with the recipe is checked before its folder is touched. Raises RunFolderError if the folder holds a run
    that has begun to train, or another process holds it; what a start left that ended earlier gives way. A learner that is lost is
    started again as often as `learner.restarts` says.
    """
    return _with_restarts(recipe, lambda: _started(recipe, recipe_dir))


def _started(recipe: Recipe, recipe_dir: Path) -> dict[str, Any]:
    run_dir = recipe.run_dir
    begun(run_dir)
    prepared = prepare(recipe, recipe_dir)
    epochs, recipe = recipe.rl.epochs, prepared.recipe
    with RewardRunner(recipe.reward) as runner, claimed(run_dir):
        said = [clear_start(run_dir)]
        if epochs:
            said.append(f"rl.epochs={epochs:g} over {len(prepared.task.train)} rows: rl.steps={recipe.rl.steps}")
        state = RunState(recipe_dir=str(recipe_dir.resolve()))
        replace_file(run_dir / RECIPE_FILE, dump_recipe(recipe))
        state.save(run_dir)
        return _run(
            _Attempt(
                recipe=recipe,
                state=state,
                prepared=prepared,
                runner=runner,
                source=None,
                first_step=0,
                messages=[message for message in said if message],
            )
        )


def resume_run(recipe: Recipe, run_dir: Path, step: int | None = None) -> dict[str, Any]:
    """Go on from the newest checkpoint, or that of `step`; a run cut in its cold start begins again under its old run id.

    `recipe` may differ from the run's own in what does not concern the steps that are done (`MAY_CHANGE` in rl/resume.py). A finished run
    that is asked for no more steps is left as it is. Raises ResumeError, RunStateError or RunFolderError.
    """
    return _with_restarts(recipe, lambda: _resumed(recipe, run_dir, step))


def _with_restarts(recipe: Recipe, attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an attempt gives; one whose learner is lost is followed by another from the newest checkpoint, `learner.restarts` times."""
    restarts = recipe.learner.restarts
    for number in range(restarts):
        try:
            return attempt()
        except LearnerLostError as error:
            message = f"{error}\nrestart {number + 1} of learner.restarts={restarts}: the run goes on from its newest checkpoint"
            Console().print(message, markup=False, highlight=False, soft_wrap=True)
            attempt = partial(_gone_on, recipe.run_dir)
    return attempt()


def _gone_on(run_dir: Path) -> dict[str, Any]:
    """The run as its folder has it, from its newest checkpoint."""
    return _resumed(recipe_of_run(run_dir), run_dir, None)


def _resumed(recipe: Recipe, run_dir: Path, step: int | None) -> dict[str, Any]:
    plan_resume(recipe, run_dir, step)
    with claimed(run_dir):
        plan = plan_resume(recipe, run_dir, step)
        if plan.finished:
            return show_summary(run_dir)
        prepared = prepare(recipe, Path(plan.state.recipe_dir))
        with RewardRunner(recipe.reward) as runner:
            said = rewind(plan, run_dir)
            return _run(
                _Attempt(
                    recipe=recipe,
                    state=plan.state,
                    prepared=prepared,
                    runner=runner,
                    source=plan.source,
                    first_step=plan.first_step,
                    messages=said,
                )
            )


def _run(attempt: _Attempt) -> dict[str, Any]:
    recipe, state = attempt.recipe, attempt.state
    run_dir = recipe.run_dir
    faults = FaultInjector(recipe.faults, run_dir)
    tracker = build_tracker(recipe.tracking, run_dir, faults.store_away)
    started, spent_before = time.monotonic(), state.seconds
    state.run_id = tracker.start(
        RunStart(
            run_name=recipe.name,
            recipe=recipe.model_dump(mode="json"),
            recipe_yaml=dump_recipe(recipe),
            environment={**collect_environment(), "reward_isolation": attempt.runner.isolation.detail},
            run_id=state.run_id,
        )
    )
    status: RunStatus = "FAILED"
    alerts = Alerts(recipe, tracker)
    try:
        state.save(run_dir)
        with faults.injecting(attempt.first_step):
            after = _trained(attempt, tracker, faults, alerts, started)
            state.seconds = spent_before + time.monotonic() - started
            state.counters |= faults.counters
            summary = write_summary(recipe, state, after, tracker)
        state.phase = "finished"
        state.mark(run_dir, recipe.rl.steps, recipe.checkpoint.keep)
        state.save(run_dir)
        status = "FINISHED"
    except (KeyboardInterrupt, RuntimeError, ValueError, OSError) as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        show_interruption(recipe, state, tracker.links(), Console())
        if not isinstance(error, KeyboardInterrupt):
            with suppress(OSError):
                alerts.stopped(error)
        with suppress(OSError):
            # On a disk that is full: what ended the run is on its way already.
            state.save(run_dir)
        raise
    finally:
        tracker.finish(status)
    return summary


def _trained(attempt: _Attempt, tracker: Tracker, faults: FaultInjector, alerts: Alerts, started: float) -> Evaluations:
    """The run but for its beginning and end, with a cluster and a learner for that time; what the last evaluation gave."""
    recipe, state, interruption = attempt.recipe, attempt.state, Interruption()
    with (
        _cluster(recipe.runtime, recipe.ray),
        interruption.caught(),
        ProgressDisplay(
            total_steps=recipe.rl.steps,
            done_steps=attempt.first_step,
            every=recipe.tracking.log_every,
            mark=faults.mark,
        ) as display,
        compilations_said(recipe.model.backend, display.message),
    ):
        faults.say = display.message
        gone_on = alerts.go_on(recipe.run_dir, attempt.first_step)
        _announce(display, tracker, recipe.run_dir, [*faults.warning, *attempt.messages, *gone_on, *_said(attempt)])
        learner = build_learner(recipe, Path(state.recipe_dir), recipe.run_dir, attempt.source)
        try:
            training = Training(
                recipe=recipe,
                prepared=attempt.prepared,
                learner=learner_with(faults, learner),
                runner=runner_with(faults, attempt.runner),
                tracker=tracker,
                display=display,
                state=state,
                interruption=interruption,
                started=started,
                faults=faults,
                alerts=alerts,
            )
            return training.run(attempt.source, attempt.first_step)
        finally:
            learner.close()


def _said(attempt: _Attempt) -> list[str]:
    """How the reward functions are kept apart, if there are any."""
    return list(attempt.runner.isolation.said()) if attempt.recipe.reward.parts else []


@contextmanager
def _cluster(runtime: str, settings: RaySettings) -> Iterator[None]:
    """A Ray cluster for the time of the run, if the runtime needs one."""
    if runtime == "inline":
        yield
        return
    try:
        # Late: `runtime: inline` must work without Ray.
        from samepath.rl.learner.ray_cluster import running_cluster
    except ModuleNotFoundError as error:
        raise RunError(
            "runtime: ray needs the package ray: `pip install samepath[ray]`, or set runtime=inline"
        ) from error
    with running_cluster(settings):
        yield


def _announce(display: ProgressDisplay, tracker: Tracker, run_dir: Path, messages: Sequence[str]) -> None:
    display.message(f"run folder: {run_dir}")
    for message in messages:
        display.message(message)
    for line in page_lines(tracker.links()):
        display.message(line)
