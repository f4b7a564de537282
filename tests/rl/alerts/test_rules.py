"""Each rule has a series that fires it and one that does not, a switch, and thresholds that act."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from samepath.rl.alerts.rules import rules_of
from samepath.rl.alerts.watch import Watch
from samepath.rl.recipe.alerts import AlertSettings
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tracking.alert import Alert
from tests.rl.alerts.series import CASES, HEALTHY, NAN, Case, Changes

BY_RULE = {case.rule: case for case in CASES}
NOTES = {"first_failure", "one_row"}
"""Switches of what is no rule over metrics: see test_alerts.py."""


def said(recipe: Recipe, changes: Callable[[int], Changes], steps: int) -> list[Alert]:
    """All that a watch says of a series."""
    watch = Watch(rules_of(recipe))
    return [alert for step in range(1, steps + 1) for alert in watch.step(step, {**HEALTHY, **changes(step)})]


def begun(recipe: Recipe, changes: Callable[[int], Changes], steps: int) -> dict[str, int]:
    """Rule → step at which it began."""
    return {alert.rule: alert.step for alert in said(recipe, changes, steps) if alert.event == "begins"}


def test_every_rule_has_a_case_and_a_switch(tiny_recipe) -> None:
    names = [rule.name for rule in rules_of(tiny_recipe())]
    assert len(names) == len(set(names))
    assert set(names) == set(BY_RULE)
    switches = {name for name, field in AlertSettings.model_fields.items() if field.annotation is bool}
    assert switches == set(names) | NOTES


def test_healthy_series_says_nothing(tiny_recipe) -> None:
    assert said(tiny_recipe(), lambda step: {}, 60) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule_fires_on_its_series_alone_and_says_what_it_sees(case: Case, tiny_recipe) -> None:
    alerts = said(tiny_recipe(*case.overrides), case.changes, case.steps)
    assert [alert.rule for alert in alerts] == [case.rule]
    (alert,) = alerts
    assert (alert.event, alert.step) == ("begins", case.begins)
    assert case.says in alert.seen
    assert alert.cause
    assert alert.advice


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule_that_is_switched_off_says_nothing(case: Case, tiny_recipe) -> None:
    assert said(tiny_recipe(*case.overrides, f"alerts.{case.rule}=false"), case.changes, case.steps) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule_without_its_metrics_says_nothing(case: Case, tiny_recipe) -> None:
    """As of an engine or a step that does not measure them."""
    watch = Watch(rules_of(tiny_recipe(*case.overrides)))
    assert [alert for step in range(1, 41) for alert in watch.step(step, {"cold_start/loss": 1.0})] == []


THRESHOLDS: dict[str, tuple[str, str, Callable[[int], Changes], int]] = {
    "failed_share_above": ("0.2", "failed_share", BY_RULE["failed_share"].changes, 12),
    "no_spread_steps": ("11", "no_spread", BY_RULE["no_spread"].changes, 12),
    "starved_part_steps": ("21", "starved_part", BY_RULE["starved_part"].changes, 20),
    "starved_dataset_steps": ("21", "starved_dataset", BY_RULE["starved_dataset"].changes, 22),
    "parted_parts_drop": ("0.2", "parted_parts", BY_RULE["parted_parts"].changes, 16),
    "parted_parts_steps": ("16", "parted_parts", BY_RULE["parted_parts"].changes, 16),
    "accuracy_falls_drop": ("0.5", "accuracy_falls", BY_RULE["accuracy_falls"].changes, 12),
    "denominators_off": ("1", "denominators", lambda step: {"learner/weight_sum": 1.5}, 2),
    "mask_never_sequences": ("1000", "mask_never", BY_RULE["mask_never"].changes, 12),
    "mask_always_share": ("0.96", "mask_always", BY_RULE["mask_always"].changes, 12),
    "mask_always_steps": ("13", "mask_always", BY_RULE["mask_always"].changes, 12),
    "ratio_off": ("0.21", "ratio", BY_RULE["ratio"].changes, 12),
    "ratio_steps": ("11", "ratio", BY_RULE["ratio"].changes, 12),
    "route_flips_share": ("0.5", "route_flips", BY_RULE["route_flips"].changes, 12),
    "route_flips_at_lag_0": ("0.6", "route_flips", lambda step: {"routing/flip_rate_at_lag_0": 0.5}, 12),
    "route_flips_steps": ("13", "route_flips", BY_RULE["route_flips"].changes, 12),
    "entropy_collapse_share": ("0.05", "entropy_collapse", BY_RULE["entropy_collapse"].changes, 12),
    "length_runaway_factor": ("4", "length_runaway", BY_RULE["length_runaway"].changes, 12),
    "baseline_steps": ("8", "length_runaway", BY_RULE["length_runaway"].changes, 12),
    "kl_runaway_nats": ("3", "kl_runaway", BY_RULE["kl_runaway"].changes, 6),
    "kl_runaway_factor": ("100", "kl_runaway", lambda step: {"kl/reference_unbiased": 0.02 if step < 11 else 0.5}, 12),
    "kl_runaway_steps": ("9", "kl_runaway", BY_RULE["kl_runaway"].changes, 12),
    "memory_growth_share": ("0.4", "memory_growth", BY_RULE["memory_growth"].changes, 40),
    "memory_growth_steps": ("31", "memory_growth", BY_RULE["memory_growth"].changes, 40),
}
"""Of each threshold a value with which a series no longer fires the rule, which it does with the default."""


@pytest.mark.parametrize("setting", THRESHOLDS)
def test_threshold_is_used(setting: str, tiny_recipe) -> None:
    value, rule, changes, steps = THRESHOLDS[setting]
    assert rule in begun(tiny_recipe(), changes, steps)
    assert rule not in begun(tiny_recipe(f"alerts.{setting}={value}"), changes, steps)


def test_every_threshold_has_a_test() -> None:
    numbers = {name for name, field in AlertSettings.model_fields.items() if field.annotation is not bool}
    assert numbers == set(THRESHOLDS) | {"truncated_share", "gap_nats"}


def test_truncated_share_says_it_of_fewer(tiny_recipe) -> None:
    changes = {"rollout/truncated": 0.6}
    assert begun(tiny_recipe(), lambda step: changes, 2) == {}
    assert begun(tiny_recipe("alerts.truncated_share=0.5"), lambda step: changes, 2) == {"truncated": 1}


def test_gap_nats_is_for_engines_that_round_otherwise(tiny_recipe) -> None:
    gpu = ("model.device=cuda", "model.backend=triton", "model.batch_invariant=false")
    other = (*gpu, "rl.max_gap_at_lag_0=1")
    changes = {"policy/gap_at_lag_0": 0.06}
    assert begun(tiny_recipe(*other), lambda step: changes, 1) == {"gap": 1}
    assert begun(tiny_recipe(*other, "alerts.gap_nats=0.1"), lambda step: changes, 1) == {}
    assert begun(tiny_recipe("rl.max_gap_at_lag_0=1", "alerts.gap_nats=0.1"), lambda step: changes, 1) == {"gap": 1}


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("rl.objective.off_policy_mask.enabled=false", "mask_never"),
        ("rl.objective.off_policy_mask.enabled=false", "mask_always"),
        ("rl.keep_sampling_mask='off'", "gap"),
        ("rl.keep_routing='off'", "gap"),
        ("rl.objective.aggregation={mode: constant, fixed_length: 16}", "denominators"),
    ],
)
def test_rule_about_what_the_recipe_leaves_out_is_not_there(override: str, rule: str, tiny_recipe) -> None:
    assert rule not in [one.name for one in rules_of(tiny_recipe(override))]


def test_accuracy_of_few_responses_may_fall_by_chance(tiny_recipe) -> None:
    def changes(step: int) -> Changes:
        return {"eval/accuracy": 0.75 if step < 5 else 0.25, "eval/scored": 8.0}

    assert begun(tiny_recipe(), changes, 8) == {}
    assert begun(tiny_recipe(), lambda step: {**changes(step), "eval/scored": 80.0}, 8) == {"accuracy_falls": 5}


def test_accuracy_that_was_not_measured_is_no_fall(tiny_recipe) -> None:
    assert begun(tiny_recipe(), lambda step: {"eval/accuracy": NAN if step > 2 else 0.9, "eval/scored": 0.0}, 5) == {}


@pytest.mark.parametrize("name", ["entropy_collapse", "length_runaway"])
def test_a_reward_that_rises_explains_sure_and_long_answers(name: str, tiny_recipe) -> None:
    case = BY_RULE[name]
    rising = lambda step: {**case.changes(step), "reward/mean": 0.5 if step < 6 else 0.7}  # noqa: E731
    assert begun(tiny_recipe(), rising, 12) == {}


def test_kl_that_jumps_is_said_below_the_limit_and_stays_said(tiny_recipe) -> None:
    changes = lambda step: {"kl/reference_unbiased": 0.01 if step < 12 else 0.4}  # noqa: E731
    alerts = said(tiny_recipe(), changes, 40)
    assert [(alert.rule, alert.step) for alert in alerts] == [("kl_runaway", 13)]
    assert "jumped to 0.4 nats per token from 0.02" in alerts[0].seen


def test_kl_over_a_single_candidate_is_0_without_a_fault(tiny_recipe) -> None:
    """As of a policy that has collapsed: both probabilities are 1."""
    single: Changes = {"kl/reference_k3": 0.0, "kl/reference_unbiased": 0.0}
    assert begun(tiny_recipe(), lambda step: single, 6) == {}
    metrics = {name: value for name, value in HEALTHY.items() if name != "kl/reference_full"} | single
    watch = Watch(rules_of(tiny_recipe()))
    assert [alert.rule for step in range(1, 4) for alert in watch.step(step, metrics)] == ["reference_moves"]


def test_kl_of_a_collapsed_policy_runs_away_over_the_full_vocabulary(tiny_recipe) -> None:
    collapsed: Changes = {"kl/reference_unbiased": 0.0, "kl/reference_full": 4.0}
    (alert,) = said(tiny_recipe(), lambda step: collapsed, 6)
    assert (alert.rule, "kl/reference_full is 4 nats per token, above 2" in alert.seen) == ("kl_runaway", True)


def test_ratio_that_stands_still_at_1_is_said(tiny_recipe) -> None:
    still: Changes = {"policy/ratio": 1.0}
    (alert,) = said(tiny_recipe(), lambda step: still, 4)
    assert "policy/ratio is exactly 1 although the policy moves within the step" in alert.seen
    assert begun(tiny_recipe(), lambda step: {**still, "kl/sampler_k3": 0.0, "policy/off_policy_max": 0.0}, 4) == {}


def test_ratio_off_1_with_older_weights_is_drift(tiny_recipe) -> None:
    changes: Changes = {"policy/ratio": 0.8, "rollout/weight_lag_max": 2.0}
    assert "ratio" not in begun(tiny_recipe(), lambda step: changes, 6)


def test_part_that_paid_once_is_not_starved(tiny_recipe) -> None:
    changes = lambda step: {"reward/part.style": float(step == 3)}  # noqa: E731
    assert begun(tiny_recipe(), changes, 60) == {}


def starving(step: int) -> Changes:
    return {"dataset/hard/token_share": 0.0, "dataset/easy/token_share": 1.0}


def test_dataset_that_is_learned_from_now_and_then_is_not_starved(tiny_recipe) -> None:
    changes = lambda step: {} if step % 19 == 0 else starving(step)  # noqa: E731
    assert begun(tiny_recipe(), changes, 80) == {}


def test_steps_that_learn_from_no_dataset_and_such_that_do_not_ask_it_starve_none(tiny_recipe) -> None:
    nothing = {"dataset/hard/token_share": 0.0, "dataset/easy/token_share": 0.0}
    assert begun(tiny_recipe(), lambda step: nothing, 60) == {}
    watch = Watch(rules_of(tiny_recipe()))
    without = {name: value for name, value in HEALTHY.items() if not name.startswith("dataset/hard")}
    alerts = []
    for step in range(1, 61):
        alerts += watch.step(step, {**HEALTHY, **starving(step)} if step % 4 == 0 and step < 80 else without)
    assert alerts == []
    for step in range(61, 82):
        alerts += watch.step(step, {**HEALTHY, **starving(step)} if step % 4 == 0 else without)
    assert [(alert.rule, alert.step, alert.event) for alert in alerts] == [("starved_dataset", 80, "begins")]


def test_starved_dataset_is_over_when_something_is_learned_from_it(tiny_recipe) -> None:
    alerts = said(tiny_recipe(), lambda step: starving(step) if step < 25 else {}, 30)
    assert [(alert.event, alert.step) for alert in alerts] == [("begins", 20), ("ends", 25)]


def test_mask_that_fires_now_and_then_is_no_fault(tiny_recipe) -> None:
    changes = lambda step: {"policy/masked_sequences": 0.06 * (step % 3 == 0), "policy/off_policy_p50": 0.06}  # noqa: E731
    assert begun(tiny_recipe(), changes, 30) == {}


def test_memory_that_rises_and_falls_does_not_grow(tiny_recipe) -> None:
    assert begun(tiny_recipe(), lambda step: {"memory/driver_gib": 1 + (step % 7) / 5}, 60) == {}


def test_memory_of_another_process_is_not_compared(tiny_recipe) -> None:
    watch, case = Watch(rules_of(tiny_recipe())), BY_RULE["memory_growth"]
    alerts = []
    for step in range(1, 60):
        alerts += watch.step(step, {**HEALTHY, **case.changes(step)})
        if step == 25:
            watch.restart()
    assert [(alert.rule, alert.step) for alert in alerts] == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learner/updates": 1.0}, "learner/updates is 1, not rl.updates_per_rollout = 2"),
        ({"rollout/length_max": 17.0}, "rollout/length_max is 17, not sampling.max_new_tokens = 16 at most"),
        ({"learner/lr": 2e-3}, "learner/lr is 0.002, not optimizer.lr = 0.001"),
        ({"policy/support_full": 1.0}, "policy/support_full is 1, not less than 1 where sampling truncates"),
        ({"rollout/weight_lag_max": 1.0}, "rollout/weight_lag_max is 1, not rl.max_weight_lag = 0 at most"),
    ],
)
def test_each_setting_that_a_step_shows_is_compared(changes: Changes, says: str, tiny_recipe) -> None:
    (alert,) = said(tiny_recipe(), lambda step: changes, 1)
    assert (alert.rule, alert.seen[: len(says)]) == ("setting_ignored", says)


def test_kl_that_is_missing_although_it_is_asked_for_is_said(tiny_recipe) -> None:
    metrics = {name: value for name, value in HEALTHY.items() if not name.startswith("kl/reference")}
    (alert,) = Watch(rules_of(tiny_recipe())).step(1, metrics)
    assert "no KL to the reference" in alert.seen
    assert Watch(rules_of(tiny_recipe("rl.objective.kl.beta=0"))).step(1, metrics) == []


def test_page_has_a_row_for_every_rule_and_names_settings_that_exist() -> None:
    page = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(BY_RULE)
    assert set(re.findall(r"`(\w+)`", page)) >= NOTES
    named = re.findall(r"`((?!test_)\w+_(?:steps|share|drop|nats|sequences))`", page)
    assert len(named) > 5
    assert [name for name in named if name not in AlertSettings.model_fields] == []


def test_parts_that_fall_together_have_not_parted(tiny_recipe) -> None:
    changes = lambda step: {"reward/part.short": 0.9 - step / 45, "reward/mean": 0.9 - step / 45}  # noqa: E731
    assert begun(tiny_recipe(), changes, 20) == {}


def test_step_without_spread_needs_no_gradient(tiny_recipe) -> None:
    changes: Changes = {"learner/grad_norm": 0.0, "reward/groups_no_spread": 1.0, "reward/std": 0.0}
    assert begun(tiny_recipe(), lambda step: changes, 4) == {}


@pytest.mark.parametrize("restarted", [False, True])
def test_memory_that_settles_in_its_first_ten_steps_does_not_grow(restarted: bool, tiny_recipe) -> None:
    watch = Watch(rules_of(tiny_recipe("alerts.memory_growth_steps=9")))
    if restarted:
        for step in range(1, 30):
            watch.step(step, HEALTHY)
        watch.restart()
    settling = [{**HEALTHY, "memory/driver_gib": min(1.0, 0.1 * step)} for step in range(1, 40)]
    assert [alert for step, metrics in enumerate(settling, 30) for alert in watch.step(step, metrics)] == []
