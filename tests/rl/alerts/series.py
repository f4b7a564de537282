"""Step metrics of a healthy run, and what is changed in them so that one rule fires."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Changes = dict[str, float]
HEALTHY: Changes = {
    "dataset/easy/groups": 3.0,
    "dataset/easy/groups_spread": 1.0,
    "dataset/easy/token_share": 0.8,
    "dataset/hard/groups": 1.0,
    "dataset/hard/groups_spread": 1.0,
    "dataset/hard/token_share": 0.2,
    "eval/accuracy": 0.5,
    "eval/scored": 64.0,
    "kl/reference_full": 0.02,
    "kl/reference_k3": 0.01,
    "kl/reference_unbiased": 0.01,
    "kl/sampler_k3": 1e-4,
    "learner/grad_norm": 0.3,
    "learner/lr": 1e-3,
    "learner/updates": 2.0,
    "learner/updates_empty": 0.0,
    "learner/updates_nonfinite": 0.0,
    "learner/weight_sum": 1.0,
    "memory/driver_gib": 1.0,
    "memory/learner_gib": 1.0,
    "policy/entropy": 1.0,
    "policy/ess": 0.9,
    "policy/gap_at_lag_0": 0.0,
    "policy/kept_mass": 0.95,
    "policy/masked_sequences": 0.05,
    "policy/masked_sequences_negative": 0.1,
    "policy/off_policy_max": 0.03,
    "policy/off_policy_p50": 0.0,
    "policy/off_policy_p90": 0.01,
    "policy/off_policy_p99": 0.02,
    "policy/ratio": 1.001,
    "policy/support_full": 0.1,
    "reward/groups_all_right": 0.0,
    "reward/groups_all_wrong": 0.0,
    "reward/groups_no_spread": 0.25,
    "reward/groups_unusable": 0.0,
    "reward/mean": 0.5,
    "reward/off_centre": 1e-8,
    "reward/part.short": 0.5,
    "reward/part.style": 0.2,
    "reward/status.ok": 16.0,
    "reward/std": 0.2,
    "rollout/count": 16.0,
    "rollout/failed": 0.0,
    "rollout/groups_of_other_steps": 0.0,
    "rollout/length_max": 16.0,
    "rollout/length_mean": 10.0,
    "rollout/tokens_per_s": 100.0,
    "rollout/truncated": 0.1,
    "rollout/weight_lag_max": 0.0,
    "routing/flip_rate": 0.01,
    "routing/flip_rate.layer_01": 0.0,
    "routing/flip_rate.layer_02": 0.02,
    "routing/flip_rate_at_lag_0": 0.0,
}
"""A step of the tests' small recipe: 4 prompts, 4 samples each."""
NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A series that fires a rule."""

    rule: str
    changes: Callable[[int], Changes]
    """Of a step, in place of the healthy numbers."""
    begins: int
    """Step at which it is said."""
    says: str
    """Part of what is seen."""
    steps: int = 12
    """Length of the series."""
    overrides: Sequence[str] = field(default=())
    """Of the recipe."""


def always(**changes: float) -> Callable[[int], Changes]:
    """The same changes in every step; `__` stands for the slash."""
    named = {name.replace("__", "/"): value for name, value in changes.items()}
    return lambda step: named


def from_step(first: int, changes: Changes) -> Callable[[int], Changes]:
    """Changes from a step on."""
    return lambda step: changes if step >= first else {}


CASES = [
    Case(
        rule="failed_share",
        changes=from_step(3, {"reward/status.ok": 13.0, "reward/status.timeout": 3.0}),
        begins=3,
        says="19% of 16 responses have no usable reward (reward/status.timeout = 3)",
    ),
    Case(
        rule="failed_counted",
        changes=from_step(2, {"rollout/failed": 0.25}),
        begins=2,
        says="16 responses have a usable reward (reward/status.ok), although only 12 of 16 did not fail",
    ),
    Case(
        rule="no_spread",
        changes=from_step(3, {"reward/groups_no_spread": 0.75, "reward/groups_unusable": 0.25}),
        begins=7,
        says="in 5 steps in a row: no group had two different rewards (reward/groups_no_spread = 0.75, reward/mean = 0.5, policy/entropy = 1)",
    ),
    Case(rule="truncated", changes=from_step(2, {"rollout/truncated": 1.0}), begins=2, says="(rollout/truncated = 1)"),
    Case(rule="off_centre", changes=always(reward__off_centre=0.5), begins=1, says="(reward/off_centre = 0.5"),
    Case(
        rule="starved_part",
        changes=lambda step: {"reward/part.style": 0.0},
        begins=20,
        says="reward/part.style has been 0 in all of 20 steps",
        steps=20,
    ),
    Case(
        rule="starved_dataset",
        changes=from_step(
            3, {"dataset/hard/groups": 2.0, "dataset/hard/token_share": 0.0, "dataset/easy/token_share": 1.0}
        ),
        begins=22,
        says="nothing was learned from hard in 20 steps (40 groups, dataset/hard/token_share = 0), but from others",
        steps=22,
    ),
    Case(
        rule="parted_parts",
        changes=lambda step: {"reward/part.short": 0.8 - step / 45, "reward/mean": 0.5 + step / 45},
        begins=15,
        says="reward/part.short fell from 0.678 (the 10 steps up to 10) to 0.567 while reward/mean went from 0.622 to 0.733",
        steps=16,
    ),
    Case(
        rule="accuracy_falls",
        changes=lambda step: {"eval/accuracy": 0.9 if step < 5 else 0.5},
        begins=5,
        says="eval/accuracy is 0.5 (64 responses), after 0.9 at step 4",
    ),
    Case(
        rule="no_gradient",
        changes=from_step(2, {"learner/grad_norm": 0.0}),
        begins=3,
        says="in 2 steps in a row: learner/grad_norm is 0 although 75% of the groups have different rewards",
    ),
    Case(
        rule="denominators",
        changes=always(learner__weight_sum=3.0),
        begins=1,
        says="add up to 3 in place of 1 (learner/weight_sum)",
    ),
    Case(
        rule="nonfinite",
        changes=from_step(4, {"learner/updates_nonfinite": 1.0, "learner/updates": 1.0, "kl/sampler_k3": NAN}),
        begins=4,
        says="1 updates were not taken because a number was not finite (learner/updates_nonfinite); kl/sampler_k3 is nan",
    ),
    Case(
        rule="route_flips",
        changes=always(**{"routing__flip_rate": 0.4, "routing__flip_rate.layer_02": 0.8}),
        begins=2,
        says="in 40% of (row, layer) (routing/flip_rate, most in layer 02 with 80%)",
    ),
    Case(
        rule="mask_never",
        changes=always(policy__masked_sequences=0.0, policy__off_policy_p50=0.06, policy__off_policy_max=0.3),
        begins=4,
        says="no sequence was masked (policy/masked_sequences = 0), although about 24 lay above delta = 0.05",
    ),
    Case(
        rule="mask_always",
        changes=always(policy__masked_sequences_negative=0.95),
        begins=2,
        says="95% of the sequences with negative advantage are masked (policy/off_policy_p50 = 0, delta = 0.05)",
    ),
    Case(
        rule="ratio",
        changes=from_step(3, {"policy/ratio": 0.8}),
        begins=4,
        says="the mean importance ratio is 0.8 at lag 0",
    ),
    Case(
        rule="gap",
        changes=from_step(2, {"policy/gap_at_lag_0": 1e-6}),
        begins=2,
        says="is 1e-06 nats, where one program",
    ),
    Case(
        rule="entropy_collapse",
        changes=from_step(6, {"policy/entropy": 0.1}),
        begins=10,
        says="policy/entropy fell from 1 to 0.1 nats while reward/mean 0.5 → 0.5",
    ),
    Case(
        rule="length_runaway",
        changes=from_step(6, {"rollout/length_mean": 30.0, "rollout/truncated": 0.9}),
        begins=10,
        says="rollout/length_mean grew from 10 to 30 tokens (90% truncated) while reward/mean 0.5 → 0.5",
    ),
    Case(
        rule="kl_runaway",
        changes=from_step(5, {"kl/reference_unbiased": 2.5}),
        begins=6,
        says="kl/reference_unbiased is 2.5 nats per token, above 2",
    ),
    Case(
        rule="reference_moves",
        changes=always(kl__reference_full=0.0),
        begins=3,
        says="the KL to the reference is exactly 0 after 4 optimiser steps with a gradient",
    ),
    Case(
        rule="logged_zero",
        changes=from_step(2, {"policy/entropy": 0.0}),
        begins=3,
        says="policy/entropy is exactly 0 although samples of one prompt differ",
        steps=4,
    ),
    Case(
        rule="setting_ignored",
        changes=from_step(1, {"rollout/count": 32.0, "reward/status.ok": 32.0}),
        begins=1,
        says="rollout/count is 32, not rl.prompts_per_step × rl.group_size = 16",
    ),
    Case(
        rule="data_position",
        changes=from_step(4, {"rollout/groups_of_other_steps": 1.0}),
        begins=4,
        says="100% of the groups of step 4 are those that another step asks for",
    ),
    Case(
        rule="memory_growth",
        changes=lambda step: {"memory/learner_gib": 1 + step / 25},
        begins=40,
        says="memory/learner_gib grew from 1.8 to 2.24 GiB in 30 steps",
        steps=40,
    ),
]
"""One for each rule over metrics."""
