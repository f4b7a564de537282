"""Rules over rewards: what cannot be learned from, what is scored wrongly, and what is learned in place of the task."""

import math
from collections import deque
from collections.abc import Iterator
from statistics import fmean

from samepath.rl.alerts.rule import Look, Metrics, Rule
from samepath.rl.diagnostics.metric_name import metric_name
from samepath.rl.recipe.alerts import AlertSettings
from samepath.rl.recipe.recipe import Recipe

OFF_CENTRE = 1e-3
"""Largest mean of a group's advantages over the largest of them; rounding gives 1e-7."""
STANDARD_ERRORS = 3.0
PART = "reward/part."
DATASET, SHARE = "dataset/", "/token_share"


def reward_rules(recipe: Recipe) -> Iterator[Rule]:
    """Those that look at one step alone, and then those that compare steps."""
    settings = recipe.alerts
    yield Rule(
        name="failed_share",
        look=_failed_share(settings),
        cause="a reward function, a sandbox or an environment breaks on part of the responses; they teach nothing",
        advice="look at reward_status and failure_detail of these rollouts in rollouts/, and at reward.timeout_s and reward.memory_bytes",
    )
    yield Rule(
        name="failed_counted",
        look=_failed_counted,
        cause="rollouts that broke get a reward, most likely 0, as if the model had answered badly",
        advice="look at what judges them: a response without a result must have no usable reward (a status other than ok), never a 0",
    )
    yield Rule(
        name="no_spread",
        look=_no_spread,
        steps=settings.no_spread_steps,
        cause="the reward is constant, all samples of a prompt are the same (with an entropy near 0 the policy has collapsed), or the rows are too easy or "
        "too hard: every advantage is 0",
        advice="look at the reward and at rollouts/; take easier or harder rows, raise sampling.temperature or rl.group_size, or set rl.refill",
    )
    yield Rule(
        name="truncated",
        look=_truncated(settings),
        cause="sampling.max_new_tokens is too low, or the model does not end its answers",
        advice="raise sampling.max_new_tokens, or lead the model to shorter answers by a cold start; with rl.truncated.mode=mask nothing is learned from them",
    )
    yield Rule(
        name="off_centre",
        look=_off_centre,
        cause="the baseline is left out, or is another group's",
        advice="look at rl.advantage.baseline, and at what changes advantages after they are centred",
    )
    yield Rule(
        name="starved_part",
        look=StarvedParts(settings.starved_part_steps).look,
        cause="nothing that the model does earns it: its function looks for what the prompt never asks for, it fails quietly, or the task is beyond the model",
        advice="try the function on responses of rollouts/, look at reward.parts; else take easier rows, or a longer cold start",
    )
    yield Rule(
        name="starved_dataset",
        look=StarvedDatasets(settings.starved_dataset_steps).look,
        cause="its rows are too easy or too hard for this model, its reward is constant, or its groups are always replaced: the run learns from the others "
        "alone",
        advice="look at dataset/<name>/reward_mean and at its rollouts (samepath inspect filters by dataset); take other rows of it, or leave it out",
    )
    yield Rule(
        name="parted_parts",
        look=PartedParts(recipe.reward.main_part, settings).look,
        cause="the model earns the other parts at the cost of the first one, which says what is right",
        advice="lower the weight of the other parts in reward.parts",
    )
    yield Rule(
        name="accuracy_falls",
        look=AccuracyFalls(settings.accuracy_falls_drop).look,
        cause="the policy has left what it could do: too fast, or for a reward that pays for something else",
        advice="go on from the checkpoint of the best step (samepath resume RUN --step N); lower optimizer.lr, raise rl.objective.kl.beta, look at "
        "rl.objective.off_policy_mask",
    )


def _failed_share(settings: AlertSettings) -> Look:
    def look(step: int, metrics: Metrics) -> str | None:
        count, usable = metrics.get("rollout/count"), metrics.get("reward/status.ok")
        if not count or usable is None:
            return None
        share = 1 - usable / count
        if share <= settings.failed_share_above:
            return ""
        kinds = {
            name: value
            for name, value in sorted(metrics.items())
            if value and name.startswith(("reward/status.", "rollout/failure.")) and name != "reward/status.ok"
        }
        shown = ", ".join(f"{name} = {value:g}" for name, value in kinds.items())
        return f"{share:.0%} of {count:g} responses have no usable reward ({shown})"

    return look


def _failed_counted(step: int, metrics: Metrics) -> str | None:
    count, usable, failed = (metrics.get(name) for name in ("rollout/count", "reward/status.ok", "rollout/failed"))
    if not count or usable is None or failed is None:
        return None
    answered = round(count * (1 - failed))
    if usable <= answered:
        return ""
    return f"{usable:g} responses have a usable reward (reward/status.ok), although only {answered} of {count:g} did not fail (rollout/failed = {failed:.3g})"


def _no_spread(step: int, metrics: Metrics) -> str | None:
    if "reward/groups_no_spread" not in metrics:
        return None
    flat, unusable = metrics["reward/groups_no_spread"], metrics.get("reward/groups_unusable", 0.0)
    if flat + unusable < 1:
        return ""
    right, wrong = metrics.get("reward/groups_all_right", 0.0), metrics.get("reward/groups_all_wrong", 0.0)
    which = ", all of them right" if right == 1 else ", all of them wrong" if wrong == 1 else ""
    rest = "".join(f", {name} = {metrics[name]:.3g}" for name in ("reward/mean", "policy/entropy") if name in metrics)
    return f"no group had two different rewards{which} (reward/groups_no_spread = {flat:.3g}{rest})"


def _truncated(settings: AlertSettings) -> Look:
    def look(step: int, metrics: Metrics) -> str | None:
        share = metrics.get("rollout/truncated")
        if share is None:
            return None
        if share < settings.truncated_share:
            return ""
        return f"{share:.0%} of the responses ran into sampling.max_new_tokens (rollout/truncated = {share:.3g})"

    return look


def _off_centre(step: int, metrics: Metrics) -> str | None:
    off = metrics.get("reward/off_centre")
    if off is None:
        return None
    if off <= OFF_CENTRE:
        return ""
    return f"the advantages of a group do not add up to 0 (reward/off_centre = {off:.3g} of the largest one)"


class StarvedParts:
    """Counts the steps in which a part earned exactly nothing since the run began."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._flat: dict[str, int] = {}

    def look(self, step: int, metrics: Metrics) -> str | None:
        """Name the parts that have never paid."""
        parts = {name.removeprefix(PART): value for name, value in metrics.items() if name.startswith(PART)}
        if not parts:
            return None
        for name, value in parts.items():
            # Whatever has paid, or cost, once is no part that cannot.
            self._flat[name] = -1 if value or self._flat.get(name, 0) < 0 else self._flat.get(name, 0) + 1
        starved = sorted(name for name, count in self._flat.items() if count >= self._steps)
        if not starved:
            return ""
        named = ", ".join(f"{PART}{name}" for name in starved)
        return f"{named} has been 0 in all of {max(self._flat.values())} steps"


class StarvedDatasets:
    """Counts, for each dataset, the steps since one last learned from it, of those that asked it and learned from another."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._without: dict[str, tuple[int, float]] = {}
        """By name: so many steps, and so many groups in them."""

    def look(self, step: int, metrics: Metrics) -> str | None:
        """Name the datasets that nothing has been learned from for long."""
        shares = {
            name.removeprefix(DATASET).removesuffix(SHARE): value
            for name, value in metrics.items()
            if name.startswith(DATASET) and name.endswith(SHARE)
        }
        if not shares:
            return None
        for name, share in shares.items():
            steps, groups = self._without.get(name, (0, 0.0))
            if share:
                self._without[name] = (0, 0.0)
            elif any(shares.values()):
                self._without[name] = (steps + 1, groups + metrics.get(f"{DATASET}{name}/groups", 0.0))
        starved = [(name, *seen) for name, seen in sorted(self._without.items()) if seen[0] >= self._steps]
        return "; ".join(
            f"nothing was learned from {name} in {steps} steps ({groups:g} groups, {DATASET}{name}{SHARE} = 0), but from others"
            for name, steps, groups in starved
        )


class PartedParts:
    """Compares the first part of the reward, and the total, with the window in which the first part was best."""

    def __init__(self, main: str, settings: AlertSettings) -> None:
        self._name, self._size = f"{PART}{metric_name(main)}" if main else "", settings.parted_parts_steps
        self._drop = settings.parted_parts_drop
        self._main: deque[float] = deque(maxlen=self._size)
        self._total: deque[float] = deque(maxlen=self._size)
        self._best: tuple[float, float, int] | None = None

    def look(self, step: int, metrics: Metrics) -> str | None:
        """Say if the first part is clearly below its best while the total is above what it was then."""
        others = any(name.startswith(PART) and name != self._name for name in metrics)
        if self._name not in metrics or "reward/mean" not in metrics or not others:
            return None
        self._main.append(metrics[self._name])
        self._total.append(metrics["reward/mean"])
        if len(self._main) < self._size:
            return None
        main, total = fmean(self._main), fmean(self._total)
        if self._best is None or main >= self._best[0]:
            self._best = (main, total, step)
            return ""
        best, total_then, when = self._best
        if main > best - self._drop or total <= total_then:
            return ""
        return (
            f"{self._name} fell from {best:.3g} (the {self._size} steps up to {when}) to {main:.3g} while reward/mean went from {total_then:.3g} "
            f"to {total:.3g}"
        )


class AccuracyFalls:
    """Compares held-out accuracy with its best."""

    def __init__(self, drop: float) -> None:
        self._drop = drop
        self._best: tuple[float, float, int] | None = None

    def look(self, step: int, metrics: Metrics) -> str | None:
        """Say if it lies below its best by more than chance gives."""
        accuracy, scored = metrics.get("eval/accuracy", math.nan), metrics.get("eval/scored", 0.0)
        if not math.isfinite(accuracy) or not scored:
            return None
        if self._best is None or accuracy >= self._best[0]:
            self._best = (accuracy, scored, step)
            return ""
        best, then, when = self._best
        pooled = (best * then + accuracy * scored) / (then + scored)
        error = math.sqrt(pooled * (1 - pooled) * (1 / then + 1 / scored))
        if best - accuracy <= max(self._drop, STANDARD_ERRORS * error):
            return ""
        return f"eval/accuracy is {accuracy:.3g} ({scored:g} responses), after {best:.3g} at step {when}"
