"""Rules over the run itself: counts that are not the recipe's, numbers that contradict each other, and memory that grows."""

from collections import deque
from collections.abc import Callable, Iterator

from samepath.rl.alerts.rule import Look, Metrics, Rule
from samepath.rl.recipe.alerts import AlertSettings
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import EnvironmentTask

WARM_STEPS = 10
"""Steps after a start in which memory settles."""
RESIDENT = ("memory/driver_gib", "memory/learner_gib")
LR_OFF = 1e-6
"""Relative distance of the rate from the recipe's that is no rounding."""


def bookkeeping_rules(recipe: Recipe) -> Iterator[Rule]:
    """Those of one step, and memory."""
    settings = recipe.alerts
    yield Rule(
        name="setting_ignored",
        look=_setting_ignored(recipe),
        cause="an option of the recipe is dropped on its way to where it should act",
        advice="compare recipe.yaml of the run's folder with what was meant, and look at where the setting is read",
    )
    yield Rule(
        name="logged_zero",
        look=_logged_zero,
        steps=2,
        cause="a number that was not measured is logged as 0",
        advice="look at where the metric is made: what was not measured is left out, or NaN",
    )
    yield Rule(
        name="data_position",
        look=_data_position,
        cause="the order of rows began anew after a resume, or a step is sampled twice, so rows are trained again and others never",
        advice="compare the group ids of rollouts/ with the step in the file's name, and look at what was resumed",
    )
    memory = MemoryGrowth(settings)
    yield Rule(
        name="memory_growth",
        look=memory.look,
        restart=memory.restart,
        cause="something is kept that grows with the steps",
        advice="watch it on: a leak of the reward or environment shows in their own processes; lower engine.cache_tokens where the cache grows",
    )


def _setting_ignored(recipe: Recipe) -> Look:
    """What a step's counts must be."""
    rl, sampling, optimizer = recipe.rl, recipe.sampling, recipe.optimizer
    one_turn = not isinstance(recipe.task, EnvironmentTask)
    steady_rate = optimizer.schedule == "constant" and not optimizer.warmup_updates

    def checks(metrics: Metrics) -> Iterator[tuple[str, str, bool]]:
        """(metric, what it must be, whether it is something else)."""
        wanted = rl.prompts_per_step * rl.group_size
        yield "rollout/count", f"rl.prompts_per_step × rl.group_size = {wanted}", metrics["rollout/count"] != wanted
        longest = metrics.get("rollout/length_max", 0.0)
        limit = sampling.max_new_tokens
        yield "rollout/length_max", f"sampling.max_new_tokens = {limit} at most", one_turn and longest > limit
        lag = metrics.get("rollout/weight_lag_max", 0.0)
        yield "rollout/weight_lag_max", f"rl.max_weight_lag = {rl.max_weight_lag} at most", lag > rl.max_weight_lag
        if "learner/updates" not in metrics:
            return
        taken = sum(metrics.get(f"learner/updates{kind}", 0.0) for kind in ("", "_empty", "_nonfinite"))
        whole = not rl.drop_uninformative and not metrics.get("reward/groups_unusable")
        wrong = taken != rl.updates_per_rollout if whole else taken > rl.updates_per_rollout
        yield "learner/updates", f"rl.updates_per_rollout = {rl.updates_per_rollout}", wrong
        rate = metrics.get("learner/lr", optimizer.lr)
        off = steady_rate and abs(rate - optimizer.lr) > LR_OFF * optimizer.lr
        yield "learner/lr", f"optimizer.lr = {optimizer.lr:g}", off
        full = sampling.truncates and rl.keep_sampling_mask == "on" and metrics.get("policy/support_full") == 1
        yield (
            "policy/support_full",
            "less than 1 where sampling truncates, unless sampling.support_cap is too low",
            full,
        )

    def look(step: int, metrics: Metrics) -> str | None:
        if "rollout/count" not in metrics:
            return None
        wrong = [f"{name} is {metrics[name]:g}, not {wanted}" for name, wanted, broken in checks(metrics) if broken]
        if "policy/ratio" in metrics and rl.objective.kl.needs_reference and "kl/reference_k3" not in metrics:
            wrong.append(
                "there is no KL to the reference (kl/reference_k3), although rl.objective.kl.beta asks for one"
            )
        return "; ".join(wrong)

    return look


def _varies(metrics: Metrics) -> bool:
    return metrics.get("reward/std", 0.0) > 0


CONTRADICTIONS: dict[str, tuple[Callable[[Metrics], bool], str]] = {
    "policy/entropy": (_varies, "samples of one prompt differ"),
    "policy/ratio": (lambda metrics: True, "a ratio of probabilities is above 0"),
    "policy/ess": (lambda metrics: True, "at least one token has weight"),
    "policy/kept_mass": (lambda metrics: True, "the drawn tokens are among the candidates"),
    "kl/sampler_k3": (lambda metrics: metrics.get("policy/off_policy_max", 0.0) != 0, "policy/off_policy_max is not 0"),
    "reward/std": (
        lambda metrics: metrics.get("reward/groups_no_spread", 1.0) + metrics.get("reward/groups_unusable", 0.0) < 1,
        "there are groups with different rewards",
    ),
    "rollout/length_mean": (
        lambda metrics: metrics.get("rollout/length_max", 0.0) > 0,
        "rollout/length_max is above 0",
    ),
    "rollout/tokens_per_s": (lambda metrics: metrics.get("rollout/length_max", 0.0) > 0, "tokens were sampled"),
    "eval/accuracy": (lambda metrics: metrics.get("eval/scored", 1.0) == 0, "no response was scored"),
}
"""Of each metric, when an exact 0 cannot be, and why."""


def _logged_zero(step: int, metrics: Metrics) -> str | None:
    present = [name for name in CONTRADICTIONS if name in metrics]
    if not present:
        return None
    wrong = [name for name in present if metrics[name] == 0 and CONTRADICTIONS[name][0](metrics)]
    return "; ".join(f"{name} is exactly 0 although {CONTRADICTIONS[name][1]}" for name in wrong)


def _data_position(step: int, metrics: Metrics) -> str | None:
    share = metrics.get("rollout/groups_of_other_steps")
    if share is None:
        return None
    if share == 0:
        return ""
    return (
        f"{share:.0%} of the groups of step {step} are those that another step asks for (rollout/groups_of_other_steps)"
    )


class MemoryGrowth:
    """Compares the first and the last third of a window of steps, for each process."""

    def __init__(self, settings: AlertSettings) -> None:
        self._share, self._size = settings.memory_growth_share, settings.memory_growth_steps
        self._seen: dict[str, deque[float]] = {name: deque(maxlen=self._size) for name in RESIDENT}
        self._settling = WARM_STEPS

    def restart(self) -> None:
        """Another process goes on with the run: what the one before held says nothing."""
        self._settling = WARM_STEPS
        for values in self._seen.values():
            values.clear()

    def look(self, step: int, metrics: Metrics) -> str | None:
        """Say which of them holds clearly more in each of the last steps than in any of the first."""
        present = [name for name in RESIDENT if name in metrics]
        if not present:
            return None
        if self._settling:
            self._settling -= 1
            return None
        said = []
        third = self._size // 3
        for name in present:
            values = self._seen[name]
            values.append(metrics[name])
            if len(values) < self._size:
                continue
            first, last = list(values)[:third], list(values)[-third:]
            if min(last) > max(first) * (1 + self._share):
                said.append(f"{name} grew from {max(first):.3g} to {min(last):.3g} GiB in {self._size} steps")
        return "; ".join(said)
