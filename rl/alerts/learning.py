"""Rules over the updates: gradients, denominators, numbers that are none, and the experts that are followed."""

import math
from collections.abc import Iterator

from samepath.rl.alerts.rule import Look, Metrics, Rule
from samepath.rl.recipe.alerts import AlertSettings
from samepath.rl.recipe.recipe import Recipe

OF_THE_LEARNER = ("policy/", "kl/", "learner/", "indexer/")
"""Beginnings of names whose numbers are finite in every healthy step."""


def learning_rules(recipe: Recipe) -> Iterator[Rule]:
    """All of one step."""
    settings = recipe.alerts
    yield Rule(
        name="no_gradient",
        look=_no_gradient,
        steps=2,
        cause="every token with an advantage is masked, clipped or left out of the loss, or the gradient does not reach the weights",
        advice="look at policy/masked_tokens, policy/clip_low and policy/clip_high, at rl.truncated.mode, and at learner.lora",
    )
    if recipe.rl.objective.aggregation.mode != "constant":
        yield Rule(
            name="denominators",
            look=_denominators(settings),
            cause="each pass divides by its own tokens instead of the optimiser batch's, so the gradient depends on how a batch is cut",
            advice="look at rl.objective.aggregation and learner.max_tokens_per_pass: token weights are computed once over the whole mini-batch",
        )
    yield Rule(
        name="nonfinite",
        look=_nonfinite,
        cause="a log-probability, a gradient or a reward overflows or divides by 0",
        advice="look at learner.precision and model.dtype; rl.nonfinite=stop ends the run where it begins and names the token",
    )
    if recipe.rl.keep_routing != "learner":
        yield Rule(
            name="route_flips",
            look=_route_flips(settings),
            steps=settings.route_flips_steps,
            cause="the router has moved far since the tokens were drawn, or the recorded experts are of another layer, row or model",
            advice="lower optimizer.lr, rl.updates_per_rollout or rl.max_weight_lag; if it is there at lag 0, compare layers (routing/flip_rate.layer_NN)",
        )


def _no_gradient(step: int, metrics: Metrics) -> str | None:
    updates, flat = metrics.get("learner/updates"), metrics.get("reward/groups_no_spread")
    if updates is None or flat is None or metrics.get("learner/updates_nonfinite", 0.0) > 0:
        return None
    spread = 1 - flat - metrics.get("reward/groups_unusable", 0.0)
    norm = metrics.get("learner/grad_norm", 0.0)
    if spread <= 0 or (updates > 0 and norm > 0):
        return ""
    what = "learner/grad_norm is 0" if updates else "no update was taken (learner/updates = 0)"
    return f"{what} although {spread:.0%} of the groups have different rewards"


def _denominators(settings: AlertSettings) -> Look:
    def look(step: int, metrics: Metrics) -> str | None:
        total = metrics.get("learner/weight_sum")
        if total is None:
            return None
        if abs(total - 1) <= settings.denominators_off:
            return ""
        return f"the token weights of an update add up to {total:.4g} in place of 1 (learner/weight_sum)"

    return look


def _nonfinite(step: int, metrics: Metrics) -> str | None:
    if not any(name.startswith(OF_THE_LEARNER) for name in metrics):
        return None
    skipped = metrics.get("learner/updates_nonfinite", 0.0)
    bad = sorted(
        name for name, value in metrics.items() if name.startswith(OF_THE_LEARNER) and not math.isfinite(value)
    )
    if not skipped and not bad:
        return ""
    said = (
        [f"{skipped:g} updates were not taken because a number was not finite (learner/updates_nonfinite)"]
        if skipped
        else []
    )
    return "; ".join([*said, *(f"{name} is {metrics[name]}" for name in bad[:3])])


def _route_flips(settings: AlertSettings) -> Look:
    def look(step: int, metrics: Metrics) -> str | None:
        share, at_lag_0 = metrics.get("routing/flip_rate"), metrics.get("routing/flip_rate_at_lag_0", 0.0)
        if share is None:
            return None
        if at_lag_0 > settings.route_flips_at_lag_0:
            return f"at equal weights the live router leaves the recorded route in {at_lag_0:.0%} of (row, layer) (routing/flip_rate_at_lag_0)"
        if share <= settings.route_flips_share:
            return ""
        layers = {
            name.rpartition("_")[2]: value
            for name, value in metrics.items()
            if name.startswith("routing/flip_rate.layer_")
        }
        worst = max(layers, key=lambda layer: layers[layer], default="")
        most = f", most in layer {worst} with {layers[worst]:.0%}" if worst else ""
        return (
            f"the live router would have chosen other experts in {share:.0%} of (row, layer) (routing/flip_rate{most})"
        )

    return look
