"""What a step learns from each dataset, worked by hand."""

from dataclasses import replace

from samepath.rl.batch.refill import trained_groups
from samepath.rl.diagnostics.datasets import dataset_metrics
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group, Prompt, Rollout
from tests.rl.diagnostics.test_rollouts import rollout


def group(name: str, dataset: str, *rollouts: Rollout) -> Group:
    prompt = Prompt(prompt_id=name, text="", token_ids=(0,), dataset=dataset)
    return Group(group_id=name, prompt=prompt, sampling=SamplingSettings(), rollouts=rollouts)


def measured(groups: list[Group], settings: AlgorithmSettings, own: str = "mix") -> dict[str, float]:
    return dataset_metrics(groups, trained_groups(groups, settings), settings, own)


def test_dataset_metrics_hand_worked() -> None:
    groups = [
        group("a", "sums", rollout(1.0, length=3), rollout(0.0, length=5)),
        group("b", "sums", rollout(1.0, length=9), rollout(1.0, length=9)),
        group("c", "code (py)", rollout(0.5, length=2), rollout(0.25, length=6), rollout(7.0, 99, status="timeout")),
        group("d", "proofs", rollout(0.0), rollout(0.0)),
        group("e", "proofs", rollout(float("nan"), status="error"), replace(rollout(None), failure="no_tokens")),
    ]
    assert measured(groups, AlgorithmSettings()) == {
        "dataset/sums/groups": 2.0,
        "dataset/sums/groups_spread": 0.5,
        "dataset/sums/token_share": 0.5,
        "dataset/sums/reward_mean": 0.75,
        "dataset/code__py_/groups": 1.0,
        "dataset/code__py_/groups_spread": 1.0,
        "dataset/code__py_/token_share": 0.5,
        "dataset/code__py_/reward_mean": 0.375,
        "dataset/proofs/groups": 2.0,
        "dataset/proofs/groups_spread": 0.0,
        "dataset/proofs/token_share": 0.0,
        "dataset/proofs/reward_mean": 0.0,
    }


def test_dataset_metrics_of_a_single_dataset_are_left_out_but_not_where_one_of_several_stands_alone() -> None:
    groups = [group("a", "sums", rollout(1.0), rollout(0.0))]
    assert measured(groups, AlgorithmSettings(), own="sums") == {}
    unlike = [*groups, group("b", "proofs", rollout(1.0), rollout(0.0))]
    assert measured(unlike, AlgorithmSettings(), own="sums") == measured(unlike, AlgorithmSettings())
    assert measured(groups, AlgorithmSettings())["dataset/sums/token_share"] == 1.0


def test_dataset_metrics_know_groups_that_were_replaced() -> None:
    settings = AlgorithmSettings(prompts_per_step=1, refill=2, updates_per_rollout=1)
    groups = [
        group("a", "hard", rollout(0.0), rollout(0.0)),
        group("b", "easy", rollout(1.0), rollout(0.0)),
        group("c", "late", rollout(1.0), rollout(0.0)),
    ]
    metrics = measured(groups, settings)
    assert (metrics["dataset/hard/groups"], metrics["dataset/hard/token_share"]) == (1.0, 0.0)
    assert (metrics["dataset/easy/token_share"], metrics["dataset/late/token_share"]) == (1.0, 0.0)
    assert metrics["dataset/late/groups_spread"] == 1.0


def test_dataset_metrics_see_spread_as_the_update_does() -> None:
    """A penalty for truncated answers spreads equal rewards."""
    groups = [group("a", "sums", rollout(1.0), rollout(1.0, finish_reason="length"))]
    assert measured(groups, AlgorithmSettings())["dataset/sums/groups_spread"] == 0.0
    penalised = AlgorithmSettings.model_validate({"truncated": {"mode": "penalise"}})
    assert measured(groups, penalised)["dataset/sums/token_share"] == 1.0
