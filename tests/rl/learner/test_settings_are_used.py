"""No setting of the algorithm, the objective, the learner or the optimiser can be ignored: for each there is a test that would fail."""

import ast
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from samepath.model.text.tokenizer import Tokenizer, character_tokenizer
from samepath.rl.batch.score_groups import training_batch
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.loop import Loop
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.faults import FaultSettings, PlannedFault
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rl.recipe.objective import ObjectiveSettings
from samepath.rl.recipe.optimizer import OptimizerSettings
from tests.conftest import ALPHABET, tiny_model
from tests.rl.sampled import group
from tests.rl.test_loop import loop
from tests.update_runs import Descent, rollout_batch, updater

TESTS = Path(__file__).resolve().parents[2]
ADAMW = "rl/learner/test_optimizer.py::test_steps_equal_adamw_written_out"
UPDATE = "rl/learner/test_settings_are_used.py::test_update_moves_the_weights_otherwise_with"
OPTIMIZER = "rl/learner/test_learner.py::test_learner_steps_by_the_recipes_optimizer_and_the_indexers_own_rate"
BATCH = "rl/batch/test_training_batch.py::test_batch"
AHEAD = "rl/learner/test_overlapped_run.py::test_overlapped"
FOREIGN = "rl/learner/test_transformers_learner.py::test"
INJECTED = "rl/faults/test_injector.py::test"
SHOWN: dict[type[BaseModel], dict[str, str]] = {
    AlgorithmSettings: {
        "steps": "rl/test_loop.py::test_run_saves_after_every_so_many_steps",
        "epochs": "rl/recipe/test_algorithm.py::test_epochs_are_as_many_steps_as_ask_every_row_so_often",
        "prompts_per_step": "rl/learner/test_settings_are_used.py::test_step_asks_for_as_many_prompts_and_samples_as_set",
        "group_size": "rl/learner/test_settings_are_used.py::test_step_asks_for_as_many_prompts_and_samples_as_set",
        "updates_per_rollout": UPDATE,
        "max_weight_lag": "rl/test_feed.py::test_feed_asks_for_what_the_synchronous_loop_asks_for",
        "on_new_weights": f"{AHEAD}_run_trains_every_group_once_and_each_token_has_a_gap_of_zero_to_its_own_version",
        "keep_routing": UPDATE,
        "keep_sampling_mask": UPDATE,
        "reference_support": UPDATE,
        "drop_uninformative": f"{BATCH}_drop_uninformative_leaves_out_groups_without_spread_and_only_where_asked",
        "refill": "rl/test_rollout_stream.py::test_synchronous_loop_replaces_the_same_groups",
        "oversample": "rl/test_rollout_stream.py::test_batch_does_not_wait_for_its_slowest_group_but_the_next_one_does",
        "max_missing_routes": "rl/learner/test_update.py::test_run_with_too_many_missing_routes_is_stopped",
        "max_gap_at_lag_0": "rl/learner/test_cuts.py::test_step_in_any_passes_has_the_report_and_the_gradient_of_one",
        "strict_segments": f"{BATCH}_conversation_that_drifted_stops_the_run_or_is_cut_as_set",
        "nonfinite": "rl/learner/test_empties.py::test_run_numbers_that_are_not_finite_stop_or_cost_their_mini_batch_as_the_recipe_says",
        "advantage": "rl/learner/test_settings_are_used.py::test_training_batch_scales_advantages_as_set",
        "truncated": f"{BATCH}_truncated_rollout_follows_the_rule",
        "objective": UPDATE,
    },
    ObjectiveSettings: dict.fromkeys(
        (
            "surrogate",
            "surrogate_options",
            "clip_low",
            "clip_high",
            "old_policy",
            "importance",
            "kl",
            "off_policy_mask",
            "aggregation",
        ),
        UPDATE,
    ),
    LearnerSettings: {
        "ranks": "rl/learner/test_ranks.py::test_learner_runs_as_many_processes_as_ranks",
        "min_passes": "rl/learner/test_mini_batches.py::test_passes_are_as_many_as_asked_and_no_longer_than_max_tokens",
        "update_timeout_s": "rl/learner/test_ray_learner.py::test_ray_learner_waits_no_longer_than_the_recipe_says",
        "shard": "rl/learner/test_sharded_ranks.py::test_rank_holds_its_share_of_weights_gradients_and_moments",
        "expert_parallel": "rl/learner/test_expert_parallel.py::test_checkpoint_is_read_with_experts_elsewhere",
        "restarts": "rl/test_lost_rank.py::test_run_whose_rank_is_killed_goes_on_by_itself_to_the_weights_of_a_whole_run_on_one_rank",
        "max_tokens_per_pass": "rl/learner/test_mini_batches.py::test_passes_are_as_many_as_asked_and_no_longer_than_max_tokens",
        "precision": f"{FOREIGN}_update_in_bf16_keeps_float32_weights_and_rounds_its_passes",
        "activation_checkpointing": "rl/learner/test_learner.py::test_learner_recomputes_activations_of_the_trained_model_alone",
        "lora": f"{FOREIGN}_lora_trains_its_adapters_alone_and_merges_them",
        "weight_bucket_bytes": "rl/learner/test_learner.py::test_learner_hands_its_weights_out_in_buckets_as_set",
        "weight_deltas": "rl/learner/test_learner.py::test_learner_hands_out_what_changed_where_asked",
        "indexer": "rl/learner/test_learner.py::test_learner_trains_the_indexer_only_if_asked",
        "indexer_lr_scale": OPTIMIZER,
    },
    FaultSettings: {
        "at": f"{INJECTED}_fault_comes_at_its_step_and_phase_and_not_again_after_a_resume",
        "every_s": f"{INJECTED}_drawn_faults_wait_for_the_first_step_and_for_their_time",
        "kinds": f"{INJECTED}_drawn_faults_follow_from_their_seed_over_all_attempts",
        "seed": f"{INJECTED}_drawn_faults_follow_from_their_seed_over_all_attempts",
    },
    PlannedFault: {
        "fault": f"{INJECTED}_fault_comes_at_its_step_and_phase_and_not_again_after_a_resume",
        "step": f"{INJECTED}_fault_comes_at_its_step_and_phase_and_not_again_after_a_resume",
        "during": f"{INJECTED}_fault_comes_at_its_step_and_phase_and_not_again_after_a_resume",
        "file": f"{INJECTED}_disk_is_full_from_the_named_write_on",
        "for_s": f"{INJECTED}_store_is_away_for_as_long_as_planned",
    },
    OptimizerSettings: {
        "lr": ADAMW,
        "warmup_updates": ADAMW,
        "schedule": "rl/learner/test_schedule.py::test_learning_rate_linear_falls_to_its_share_and_stays_there",
        "min_lr_share": "rl/learner/test_schedule.py::test_learning_rate_linear_falls_to_its_share_and_stays_there",
        **dict.fromkeys(("beta1", "beta2", "epsilon", "weight_decay", "max_grad_norm"), ADAMW),
    },
}
"""The test that shows each field at work; what the optimiser does with its own, the learner's test hands to it."""


@pytest.mark.parametrize("settings", SHOWN, ids=lambda settings: settings.__name__)
def test_every_field_has_a_test_that_shows_it(settings: type[BaseModel]) -> None:
    assert list(SHOWN[settings]) == list(settings.model_fields)
    for shown in SHOWN[settings].values():
        path, name = shown.split("::")
        defined = {
            node.name for node in ast.parse((TESTS / path).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in defined, shown


LEARNER = {"old_policy": "learner"}
OWN = "tests.rl.objective.test_own_surrogate"
CHANGES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "updates_per_rollout": ({}, {"updates_per_rollout": 4}),
    "keep_routing": ({}, {"keep_routing": "off"}),
    "keep_sampling_mask": ({}, {"keep_sampling_mask": "off"}),
    "reference_support": ({}, {"reference_support": "full"}),
    "objective.surrogate": ({}, {"objective": {"surrogate": "gspo"}}),
    "objective.surrogate_options": (
        {"objective": {"surrogate": f"{OWN}:by_token"}},
        {"objective": {"surrogate": f"{OWN}:by_token", "surrogate_options": {"power": 2}}},
    ),
    "objective.clip_low": ({}, {"objective": {"clip_low": 0.001}}),
    "objective.clip_high": ({}, {"objective": {"clip_high": 0.001}}),
    "objective.old_policy": ({"keep_sampling_mask": "off"}, {"objective": LEARNER}),
    "objective.importance": (
        {"keep_sampling_mask": "off", "objective": LEARNER},
        {"objective": {**LEARNER, "importance": {"mode": "truncated", "cap": 1.0}}},
    ),
    "objective.kl.estimator": ({}, {"objective": {"kl": {"beta": 0.5, "estimator": "k2"}}}),
    "objective.kl.beta": ({}, {"objective": {"kl": {"beta": 0.4}}}),
    "objective.kl.beta_by_dataset": ({}, {"objective": {"kl": {"beta": 0.5, "beta_by_dataset": {"sums": 0.1}}}}),
    "objective.off_policy_mask": ({}, {"objective": {"off_policy_mask": {"enabled": True, "delta": 1e-9}}}),
    "objective.aggregation": ({}, {"objective": {"aggregation": {"mode": "token_mean"}}}),
}
"""Name of a field: what the two runs have in common, and what the second has beside it."""
BASE = {"kl": {"beta": 0.5}, "off_policy_mask": {"enabled": False}}


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    """Rollouts with recorded candidates, sampled before the learner's weights moved."""
    return rollout_batch(character_tokenizer(ALPHABET), top_p=0.7)


def moved_weights(batch: TrainBatch, rl: dict[str, object]) -> torch.Tensor:
    """All weights after the updates of one step, at weights two versions on: off-policy from the first."""
    model = tiny_model()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    objective = {**BASE, **rl.get("objective", {})}  # type: ignore[dict-item]
    updater(model, {**rl, "objective": objective}, min_passes=1).run(batch, 2, Descent(model, 0.1))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("field", CHANGES)
def test_update_moves_the_weights_otherwise_with(field: str, batch: TrainBatch) -> None:
    common, changed = CHANGES[field]
    assert not torch.equal(moved_weights(batch, common), moved_weights(batch, {**common, **changed}))


def test_update_twice_with_one_setting_moves_the_weights_alike(batch: TrainBatch) -> None:
    """Otherwise the test above could not fail."""
    assert torch.equal(moved_weights(batch, {}), moved_weights(batch, {}))


def test_changes_cover_every_field_of_the_objective() -> None:
    named = {field.split(".")[1] for field in CHANGES if field.startswith("objective.")}
    assert named == set(ObjectiveSettings.model_fields)


@pytest.mark.parametrize(("prompts", "samples"), [(4, 2), (3, 5)])
def test_step_asks_for_as_many_prompts_and_samples_as_set(
    prompts: int, samples: int, tiny_recipe, tokenizer: Tokenizer
) -> None:
    recipe = tiny_recipe(f"rl.prompts_per_step={prompts}", f"rl.group_size={samples}")
    requests = loop(Loop, recipe, tokenizer).requests(0)
    assert [len(request.seeds) for request in requests] == [samples] * prompts


def test_training_batch_scales_advantages_as_set() -> None:
    """Rewards 1, 0 and 0: the mean of the others is 0, ½ and ½."""
    settings = AlgorithmSettings.model_validate({"advantage": {"baseline": "leave_one_out"}})
    batch, _ = training_batch([group("a", 1.0, 0.0, 0.0)], settings)
    assert batch is not None
    assert batch.advantages_B.tolist() == pytest.approx([1.0, -0.5, -0.5])
