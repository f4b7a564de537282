"""What went wrong in a run on text, read from its folder: numbers that are not finite, losses that rise, recall that falls, an end that is none."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from samepath.rl.alerts.diagnosis import DIED, FAILED, Diagnosis, Finding, status_of
from samepath.rl.pretraining.text_folder import text_recipe_of_run
from samepath.rl.run_state import METRICS_FILE, RunState
from samepath.rl.tracking.jsonl import read_metrics

FEWEST_STEPS = 10
"""Of a run whose curves are looked at."""
END_SHARE = 0.2
"""Of the steps, at the beginning and at the end, whose means are compared."""
RISE = 1.02
"""Last mean over the first one from which a loss rises; below it is noise."""
FALL = 0.01
"""Share of attention, or of perplexity above that over all keys, by which a measurement gets worse."""
Steps = Mapping[int, Mapping[str, float]]


def diagnose_text(run_dir: Path) -> Diagnosis:
    """Read the folder of a run on text; writes nothing. Raises FileNotFoundError, RecipeError or RunStateError for a folder that is none."""
    recipe, state = text_recipe_of_run(run_dir), RunState.load(run_dir)
    path = run_dir / METRICS_FILE
    steps = read_metrics(path) if path.is_file() else {}
    done = max((step for step, metrics in steps.items() if "text/loss" in metrics), default=0)
    status = status_of(run_dir, state, ())
    losses = ("text/indexer_kl",) if recipe.stage.kind == "warmup" else ("text/loss", "text/indexer_kl")
    found = [
        *_not_finite(steps),
        *(one for name in losses for one in _rising(steps, name)),
        *_worse(steps, recipe.stage.kind),
    ]
    found.sort(key=lambda one: one.step)
    for how, alert in (("died", DIED), ("failed", FAILED)):
        if status == how:
            found.append(Finding(step=done, rule=how, seen=alert.seen, cause=alert.cause, advice=alert.advice))
    return Diagnosis(
        run_dir=run_dir,
        status=status,
        steps_done=done,
        steps_planned=recipe.stage.steps,
        findings=tuple(found),
        notes=(),
    )


def _not_finite(steps: Steps) -> Iterator[Finding]:
    for step, metrics in steps.items():
        wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
        if wrong:
            yield Finding(
                step=step,
                rule="not_finite",
                seen=f"{', '.join(wrong)} not finite",
                cause="a learning rate too high, or weights that were not finite before",
                advice="lower stage.optimizer.lr, or give it warmup_updates, and begin again from the checkpoint before",
            )
            return


def _rising(steps: Steps, name: str) -> Iterator[Finding]:
    """Of a loss that was higher over the last steps than over the first."""
    values = [(step, metrics[name]) for step, metrics in steps.items() if math.isfinite(metrics.get(name, math.nan))]
    if len(values) < FEWEST_STEPS:
        return
    count = max(1, int(END_SHARE * len(values)))
    first, last = (sum(value for _, value in part) / count for part in (values[:count], values[-count:]))
    if last > RISE * first:
        yield Finding(
            step=values[-count][0],
            rule="loss_rising",
            seen=f"{name} rose from {first:.4g} to {last:.4g}, means of {count} steps at each end",
            cause="a learning rate too high, or text at the end that is unlike that at the beginning",
            advice="lower stage.optimizer.lr (of the indexer: stage.indexer_lr_scale), or give it warmup_updates",
        )


def _worse(steps: Steps, kind: str) -> Iterator[Finding]:
    """Of the held-out measurements, the last against the first."""
    before = "" if kind == "warmup" else ", and begin from the last checkpoint of a warm-up (stage.kind=warmup)"
    for name, rule, sign in (("sparse/recall", "recall_falling", -1), ("sparse/excess", "excess_rising", 1)):
        values = [
            (step, metrics[name]) for step, metrics in steps.items() if math.isfinite(metrics.get(name, math.nan))
        ]
        if len(values) > 1 and sign * (values[-1][1] - values[0][1]) > FALL:
            yield Finding(
                step=values[-1][0],
                rule=rule,
                seen=f"{name} went from {values[0][1]:.4f} to {values[-1][1]:.4f} on the held-out text",
                cause="an indexer that does not follow the attention, whose rate is too low or too high",
                advice=f"look at text/indexer_kl and change stage.optimizer.lr or stage.indexer_lr_scale{before}",
            )
