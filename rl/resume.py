"""Where a run goes on, what of its recipe may be another by then, and what in its folder gives way."""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samepath.model.durable_file import replace_file
from samepath.rl.alerts.book import rewind_alerts
from samepath.rl.begun_journal import BegunJournal
from samepath.rl.group_journal import GroupJournal
from samepath.rl.history import History
from samepath.rl.learner.checkpoints import checkpoint_folder, checkpoint_of_step, latest_checkpoint
from samepath.rl.recipe.file import dump_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run_folder import (
    ALERTS_FILE,
    CHECKPOINTS,
    EVALUATIONS,
    OUTCOME,
    REFERENCE,
    ROLLOUTS,
    recipe_of_run,
    remove,
    set_aside,
    step_of,
    steps_after,
)
from samepath.rl.run_state import METRICS_FILE, RECIPE_FILE, RunState, metrics_bytes

MAY_CHANGE = (
    "rl.steps",
    "evaluation.every",
    "checkpoint",
    "tracking",
    "alerts",
    "ray",
    "rollout",
    "learner.ranks",
    "learner.shard",
    "learner.expert_parallel",
    "learner.restarts",
    "learner.update_timeout_s",
    "learner.weight_bucket_bytes",
    "learner.weight_deltas",
    "reward.num_workers",
    "reward.start_timeout_s",
    "faults",
)
"""Settings that say how far a run goes, what is kept of it and who waits how long, and what breaks on purpose: the steps that are done would have been the
same. `learner.ranks`, `learner.shard` and `learner.expert_parallel` alone change last bits."""
WHERE = ("runs_dir", "name")
"""Settings that say where the run's folder is: it may have been moved."""


class ResumeError(ValueError):
    """A run that cannot go on as it is asked to; the message says what can be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """Where a run goes on."""

    recipe: Recipe
    """What it goes on with."""
    state: RunState
    """How it stands."""
    source: Path | None
    """Checkpoint, or the reference, that the learner loads; None begins with the cold start."""
    first_step: int
    """Steps that are done."""
    changes: tuple[str, ...] = ()
    """What is another in the recipe, for people."""
    later_set_aside: bool = False
    """True if a step was asked for: what came after it is kept beside the run instead of being made again."""

    @property
    def finished(self) -> bool:
        """True if nothing is left to do."""
        return self.state.phase == "finished" and self.first_step == self.recipe.rl.steps and not self.later_set_aside


def plan_resume(recipe: Recipe, run_dir: Path, step: int | None) -> Resumption:
    """Find where the run goes on: at its newest checkpoint, or that of `step`; reads only. Raises ResumeError or RunStateError."""
    state = RunState.load(run_dir)
    if recipe.rl.epochs:
        raise ResumeError(
            f"a run that goes on counts steps: when {run_dir} began, epochs became steps. Set rl.steps, and leave rl.epochs out."
        )
    changes = _allowed_changes(recipe_of_run(run_dir), recipe)
    source, first_step = _source(run_dir, state, step)
    if recipe.rl.steps < first_step:
        raise ResumeError(
            f"rl.steps must be at least the {first_step} steps that {run_dir} goes on from; got {recipe.rl.steps}. "
            "Name an earlier checkpoint with --step."
        )
    return Resumption(
        recipe=recipe,
        state=state,
        source=source,
        first_step=first_step,
        changes=changes,
        later_set_aside=step is not None,
    )


def rewind(plan: Resumption, run_dir: Path) -> list[str]:
    """Bring the folder to where the run goes on, so that every step is kept once; returns sentences about it.

    May be cut short anywhere: files go first, latest first, and `run.json` is written last.
    """
    state, said = plan.state, [f"changed: {change}" for change in plan.changes]
    aside = [run_dir / name for name in OUTCOME] if state.phase == "finished" or plan.later_set_aside else []
    later = steps_after(run_dir / ROLLOUTS, plan.first_step)
    if plan.later_set_aside:
        aside += [*later, *steps_after(run_dir / CHECKPOINTS, plan.first_step)]
        aside += steps_after(run_dir / EVALUATIONS, plan.first_step)
    if present := [path for path in aside if path.exists()]:
        folder = set_aside(run_dir, present)
        if (run_dir / METRICS_FILE).exists():
            shutil.copyfile(run_dir / METRICS_FILE, folder / METRICS_FILE)
        if (run_dir / ALERTS_FILE).exists():
            shutil.copyfile(run_dir / ALERTS_FILE, folder / ALERTS_FILE)
        said.append(f"what came after step {plan.first_step}, and the summary, are in {folder} now")
    written = [path for folder in (ROLLOUTS, EVALUATIONS) for path in steps_after(run_dir / folder, plan.first_step)]
    for path in [*written, *(run_dir / CHECKPOINTS).glob(".*.partial")]:
        remove(path)
    said += _rewind_samples(plan, run_dir)
    if plan.source is None:
        keep_bytes = 0
    else:
        state.rewind(plan.first_step)
        keep_bytes = state.marks[plan.first_step].metrics_bytes
        best = state.best
        if best is not None and best.step and not checkpoint_folder(run_dir, best.step).is_dir():
            said.append(
                f"the best checkpoint up to here, of step {best.step} (accuracy {best.accuracy:.3f}), is not kept any more: the next is the "
                "best from here on"
            )
            state.best = None
    if metrics_bytes(run_dir) > keep_bytes:
        os.truncate(run_dir / METRICS_FILE, keep_bytes)
    rewind_alerts(run_dir, plan.first_step)
    if plan.changes:
        replace_file(run_dir / RECIPE_FILE, dump_recipe(plan.recipe))
    if state.phase == "finished":
        state.phase = "training"
    state.save(run_dir)
    return said


def _rewind_samples(plan: Resumption, run_dir: Path) -> list[str]:
    """What was sampled stays, because steps that are made again give the same weights; where a step was asked for, they may be others."""
    groups, begun = GroupJournal(run_dir), BegunJournal(run_dir)
    if not plan.later_set_aside:
        groups.mend()
        begun.mend()
        return []
    History(run_dir).rewind(plan.first_step)
    begun.rewind(plan.first_step)
    lost = groups.rewind(plan.first_step)
    again = "which are made anew: their groups are sampled again"
    return [f"{lost} tokens were sampled with weights later than step {plan.first_step}, {again}"] if lost else []


def _source(run_dir: Path, state: RunState, step: int | None) -> tuple[Path | None, int]:
    if state.phase == "cold start":
        if step:
            raise ResumeError(
                f"{run_dir} has no checkpoint of step {step}: its start was not finished. Leave --step out."
            )
        return None, 0
    if step is None:
        return latest_checkpoint(run_dir) or (run_dir / REFERENCE, 0)
    known = {step_of(path): path for path in (run_dir / CHECKPOINTS).glob("step-*")}
    known.setdefault(0, run_dir / REFERENCE)
    if step not in known:
        raise ResumeError(f"--step must be one of {sorted(known)}, whose checkpoints {run_dir} holds; got {step}")
    return (known[step], 0) if step == 0 else checkpoint_of_step(run_dir, step)


def _allowed_changes(before: Recipe, after: Recipe) -> tuple[str, ...]:
    changes = {
        name: values
        for name, values in _differences(before.model_dump(mode="json"), after.model_dump(mode="json"), "")
        if name not in WHERE
    }
    refused = [name for name in changes if not any(name == free or name.startswith(f"{free}.") for free in MAY_CHANGE)]
    falling = "rl.steps" in changes and after.optimizer.schedule != "constant"
    if falling:
        refused.append("rl.steps")
    if refused:
        raise ResumeError(
            f"a run that goes on may change {', '.join(MAY_CHANGE)}; {', '.join(refused)} would have changed the steps that are done"
            + (f" (optimizer.schedule={after.optimizer.schedule} falls over all of them). " if falling else ". ")
            + "Start another run with it (model.path may name this run's checkpoint)."
        )
    return tuple(f"{name} {old!r} → {new!r}" for name, (old, new) in changes.items())


def _differences(before: Any, after: Any, name: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Dotted names of what differs, with both values."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from _differences(before.get(key), after.get(key), f"{name}.{key}" if name else str(key))
    elif repr(before) != repr(after):
        yield name, (before, after)
