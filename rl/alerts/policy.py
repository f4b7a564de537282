"""Rules over the policy: the off-policy mask, ratios, the gap at equal weights, and where the policy goes."""

from collections import deque
from collections.abc import Iterator

from samepath.rl.alerts.rule import Look, Metrics, Rule
from samepath.rl.alerts.windows import Beginning, RewardTrend
from samepath.rl.recipe.alerts import AlertSettings
from samepath.rl.recipe.engine_demands import gap_problem
from samepath.rl.recipe.recipe import Recipe

KL_STEPS = 10
"""Steps whose largest KL a jump is told from: early on a healthy one doubles from step to step."""
KL_JUMP_NATS = 0.05
"""A smaller KL does not jump, whatever it was before; nats per token."""
ABOVE = {"policy/off_policy_p50": 0.5, "policy/off_policy_p90": 0.1, "policy/off_policy_p99": 0.01}
"""If the quantile lies above δ, so does at least this share of what the mask decides on."""


def policy_rules(recipe: Recipe) -> Iterator[Rule]:
    """Those of one step, and then those that compare steps."""
    settings, mask = recipe.alerts, recipe.rl.objective.off_policy_mask
    if mask.enabled:
        yield Rule(
            name="mask_never",
            look=MaskNever(mask.delta, settings.mask_never_sequences).look,
            cause="the off-policy mask is ignored somewhere between statistic and loss",
            advice="look at rl.objective.off_policy_mask, and at what decides kept sequences",
        )
        yield Rule(
            name="mask_always",
            look=_mask_always(settings, mask.delta),
            steps=settings.mask_always_steps,
            cause="delta is too small for this drift, or sampler and learner disagree before there is any",
            advice="look at policy/gap_at_lag_0 and kl/sampler_k3_numerics first, then choose rl.objective.off_policy_mask.delta from "
            "policy/off_policy_p90 and _p99",
        )
    yield Rule(
        name="ratio",
        look=_ratio(settings),
        steps=settings.ratio_steps,
        cause="under the sampler's own tokens the mean ratio is 1 whatever the drift, so numerator and denominator are of different tokens, "
        "temperatures, candidates or weights, or one is a copy of the other",
        advice="look at rl.keep_sampling_mask, rl.keep_routing and rl.objective.old_policy, and compare one prompt in both programs",
    )
    if recipe.rl.keep_sampling_mask == "on" and recipe.rl.keep_routing == "sampler":
        yield Rule(
            name="gap",
            look=_gap(recipe),
            cause="the sampler holds stale weights, or the two compute differently (kernels, precision, temperature, candidates, experts)",
            advice="look at kl/sampler_k3_numerics and routing/flip_rate_at_lag_0; lower rl.max_gap_at_lag_0 to stop where it begins",
        )
    yield Rule(
        name="entropy_collapse",
        look=EntropyCollapse(settings).look,
        steps=settings.baseline_steps,
        cause="the policy always gives the same answers before it has found better ones",
        advice="lower optimizer.lr, raise rl.objective.clip_high or sampling.temperature, or raise rl.objective.kl.beta",
    )
    yield Rule(
        name="length_runaway",
        look=LengthRunaway(settings).look,
        steps=settings.baseline_steps,
        cause="long responses weigh too little in the loss, or something in the reward pays for length",
        advice="look at rl.objective.aggregation, rl.truncated and the parts of reward.parts; read the longest responses in rollouts.html",
    )
    yield Rule(
        name="kl_runaway",
        look=KlRunaway(settings).look,
        steps=settings.kl_runaway_steps,
        cause="the policy leaves the reference faster than the penalty holds it",
        advice="lower optimizer.lr or raise rl.objective.kl.beta; read what it says now in rollouts.html",
    )
    yield Rule(
        name="reference_moves",
        look=ReferenceMoves().look,
        steps=2,
        cause="the reference is the policy itself, the optimiser's steps reach no weight (lost to rounding, or never taken), or a missing KL is logged as 0",
        advice="look at model.dtype and optimizer.lr, and at whether reference and policy share tensors",
    )


class MaskNever:
    """Counts sequences above δ of which none was masked since the last one that was."""

    def __init__(self, delta: float, sequences: int) -> None:
        self._delta, self._limit = delta, sequences
        self._above = 0.0

    def look(self, step: int, metrics: Metrics) -> str | None:
        """Say when chance no longer explains that all of them had an advantage of 0 or more."""
        masked, count = metrics.get("policy/masked_sequences"), metrics.get("rollout/count")
        if masked is None or count is None:
            return None
        if masked > 0:
            self._above = 0.0
            return ""
        share = next((part for name, part in ABOVE.items() if metrics.get(name, 0.0) > self._delta), 0.0)
        flat = metrics.get("reward/groups_no_spread", 0.0) + metrics.get("reward/groups_unusable", 0.0)
        # Groups without spread have no negative advantage, and the others about as many negative as positive ones.
        self._above += share * count * max(0.0, 1 - flat)
        if self._above < self._limit:
            return ""
        worst = metrics.get("policy/off_policy_max", 0.0)
        return (
            f"no sequence was masked (policy/masked_sequences = 0), although about {self._above:.0f} lay above delta = {self._delta:g} since the last one "
            f"(policy/off_policy_max = {worst:.3g})"
        )


def _mask_always(settings: AlertSettings, delta: float) -> Look:
    def look(step: int, metrics: Metrics) -> str | None:
        share = metrics.get("policy/masked_sequences_negative")
        if share is None:
            return None
        if share < settings.mask_always_share:
            return ""
        middle = metrics.get("policy/off_policy_p50", 0.0)
        return f"{share:.0%} of the sequences with negative advantage are masked (policy/off_policy_p50 = {middle:.3g}, delta = {delta:g})"

    return look


def _ratio(settings: AlertSettings) -> Look:
    def look(step: int, metrics: Metrics) -> str | None:
        ratio = metrics.get("policy/ratio")
        if ratio is None:
            return None
        drift = metrics.get("kl/sampler_k3", 0.0)
        # Its mean over thousands of tokens is 1 to the last bit only if each of them is.
        if ratio == 1 and drift > 0 and metrics.get("learner/updates", 0.0) > 1:
            return f"policy/ratio is exactly 1 although the policy moves within the step (kl/sampler_k3 = {drift:.3g})"
        if metrics.get("rollout/weight_lag_max", 0.0) > 0 or abs(ratio - 1) <= settings.ratio_off:
            return ""
        return f"the mean importance ratio is {ratio:.4g} at lag 0 (policy/ratio, which should be 1)"

    return look


def _gap(recipe: Recipe) -> Look:
    exact = not gap_problem(recipe.engine, recipe.model)
    limit = 0.0 if exact else recipe.alerts.gap_nats
    why = "where one program on both sides gives exactly 0" if exact else f"above alerts.gap_nats = {limit:g}"

    def look(step: int, metrics: Metrics) -> str | None:
        gap = metrics.get("policy/gap_at_lag_0")
        if gap is None:
            return None
        return f"policy/gap_at_lag_0 is {gap:.3g} nats, {why}" if gap > limit else ""

    return look


class EntropyCollapse:
    """Compares the entropy with that of the first steps, unless the reward has risen: a task that is learned has answers that are sure."""

    def __init__(self, settings: AlertSettings) -> None:
        self._entropy, self._trend = Beginning(settings.baseline_steps), RewardTrend(settings.baseline_steps)
        self._share = settings.entropy_collapse_share

    def look(self, step: int, metrics: Metrics) -> str | None:
        """Say if it has collapsed."""
        if not {"policy/entropy", "reward/mean", "reward/std"} <= metrics.keys():
            return None
        self._trend.add(metrics["reward/mean"], metrics["reward/std"])
        self._entropy.add(entropy := metrics["policy/entropy"])
        if not self._entropy.whole:
            return None
        if entropy >= self._share * self._entropy.mean or self._trend.risen:
            return ""
        return f"policy/entropy fell from {self._entropy.mean:.3g} to {entropy:.3g} nats while {self._trend}"


class LengthRunaway:
    """Compares the mean length with that of the first steps, unless the reward has risen: longer answers may be better ones."""

    def __init__(self, settings: AlertSettings) -> None:
        self._length, self._trend = Beginning(settings.baseline_steps), RewardTrend(settings.baseline_steps)
        self._factor = settings.length_runaway_factor

    def look(self, step: int, metrics: Metrics) -> str | None:
        """Say if it runs away."""
        if not {"rollout/length_mean", "reward/mean", "reward/std"} <= metrics.keys():
            return None
        self._trend.add(metrics["reward/mean"], metrics["reward/std"])
        self._length.add(length := metrics["rollout/length_mean"])
        if not self._length.whole:
            return None
        if length <= self._factor * self._length.mean or self._trend.risen:
            return ""
        truncated = metrics.get("rollout/truncated", 0.0)
        return f"rollout/length_mean grew from {self._length.mean:.3g} to {length:.3g} tokens ({truncated:.0%} truncated) while {self._trend}"


class KlRunaway:
    """Compares the KL to the reference with a limit, and with the steps before."""

    def __init__(self, settings: AlertSettings) -> None:
        self._limit, self._factor = settings.kl_runaway_nats, settings.kl_runaway_factor
        self._before: deque[float] = deque(maxlen=KL_STEPS)

    def look(self, step: int, metrics: Metrics) -> str | None:
        """Say if it is above the limit, or jumps. A policy that has collapsed has a KL of 0 over its single candidates, and a large one over all tokens."""
        present = [(metrics[name], name) for name in ("kl/reference_unbiased", "kl/reference_full") if name in metrics]
        if not present:
            return None
        kl, name = max(present)
        usual = max(self._before) if len(self._before) == KL_STEPS else None
        jumps = usual is not None and kl > max(KL_JUMP_NATS, self._factor * usual)
        if not jumps:
            # What it jumped from stays what it is compared with.
            self._before.append(kl)
        if kl > self._limit:
            return f"{name} is {kl:.3g} nats per token, above {self._limit:g}"
        return (
            f"{name} jumped to {kl:.3g} nats per token from {usual:.3g} at most in the {KL_STEPS} steps before"
            if jumps
            else ""
        )


class ReferenceMoves:
    """Once the optimiser has stepped, the policy is another than the reference."""

    def __init__(self) -> None:
        self._moved = 0

    def look(self, step: int, metrics: Metrics) -> str | None:
        """Say if the two are still one to the last bit."""
        # A single candidate has probability 1 for both, as in a collapsed policy: only the full vocabulary tells them apart then.
        distance = metrics.get("kl/reference_full", metrics.get("kl/reference_k3"))
        moved, self._moved = self._moved, self._moved + _steps_taken(metrics)
        if distance is None:
            return None
        if distance != 0 or not moved:
            return ""
        return f"the KL to the reference is exactly 0 after {moved} optimiser steps with a gradient (kl/reference_full)"


def _steps_taken(metrics: Metrics) -> int:
    """Optimiser steps that must have moved a weight."""
    moves = metrics.get("learner/grad_norm", 0.0) > 0 and metrics.get("learner/lr", 1.0) > 0
    return int(metrics.get("learner/updates", 0.0)) if moves else 0
