"""The comparison at equal weights: every sequence of a step, before its first optimiser step, by name."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import Tokenizer, character_tokenizer
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.diagnostics.numerics import NumericsMismatchError
from samepath.rl.learner.update import PolicyUpdater
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.types import Segment
from tests.conftest import ALPHABET, tiny_model
from tests.update_runs import GROUPS, SAMPLES, Descent, rollout_batch, updater

SECOND = GROUPS * SAMPLES // 2
"""First sequence of the second of two mini-batches."""


def with_segment(batch: TrainBatch, place: int, **changes: object) -> TrainBatch:
    """The batch with one sequence's records changed."""
    entries = list(batch.sequences)
    entries[place] = replace(entries[place], segment=replace(entries[place].segment, **changes))  # type: ignore[arg-type]
    return replace(batch, sequences=tuple(entries))


def shifted(segment: Segment, by: float = 0.7) -> np.ndarray:
    """Log-probabilities moved on the sampled tokens."""
    return np.where(segment.trained, segment.sampler_logprobs - np.float32(by), 0).astype(np.float32)


def assert_stopped_untouched(model: CausalLM, batch: TrainBatch, name: str, **rl: object) -> None:
    """The run stops, names the sequence, and no weight has changed."""
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(NumericsMismatchError, match=f"in {name} "):
        updater(model, rl).run(batch, 0, Descent(model, 0.5))
    assert all(map(torch.equal, before, model.parameters()))


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    """Two mini-batches of two groups, at equal weights."""
    return rollout_batch(character_tokenizer(ALPHABET))


@pytest.mark.parametrize(
    ("updates", "place", "old_policy"),
    [
        (1, SECOND, "sampler"),
        (2, 0, "sampler"),
        (2, SECOND, "sampler"),
        (4, SECOND + SAMPLES + 1, "sampler"),
        (2, SECOND, "learner"),
    ],
)
def test_run_with_a_shifted_logprob_in_any_mini_batch_is_stopped(
    batch: TrainBatch, updates: int, place: int, old_policy: str
) -> None:
    batch = with_segment(batch, place, sampler_logprobs=shifted(batch.sequences[place].segment))
    assert_stopped_untouched(
        tiny_model(),
        batch,
        batch.sequences[place].name,
        updates_per_rollout=updates,
        objective={"old_policy": old_policy},
    )


def test_run_with_routes_exchanged_in_the_second_mini_batch_is_stopped(batch: TrainBatch) -> None:
    first, second = SECOND, SECOND + SAMPLES
    one, other = (batch.sequences[place].segment for place in (first, second))
    common = min(len(one.routes), len(other.routes)) - 1
    for place, segment, routes in ((first, one, other.routes), (second, other, one.routes)):
        changed = segment.routes.copy()
        changed[:common] = routes[:common]
        batch = with_segment(batch, place, routes=changed)
    names = "|".join(batch.sequences[place].name for place in (first, second))
    assert_stopped_untouched(tiny_model(), batch, f"({names})")


def test_run_names_the_sequence_whose_logprob_is_not_a_number(batch: TrainBatch) -> None:
    place = SECOND + 2
    segment = batch.sequences[place].segment
    batch = with_segment(batch, place, sampler_logprobs=np.where(segment.trained, np.nan, 0).astype(np.float32))
    assert_stopped_untouched(tiny_model(), batch, batch.sequences[place].name)


def test_run_compares_only_tokens_of_the_current_version(batch: TrainBatch) -> None:
    """Older weights give other numbers; a single token of the current version is held to the limit all the same."""
    segment = batch.sequences[SECOND].segment
    old = np.where(segment.trained, -1, segment.weight_version).astype(np.int32)
    stale = with_segment(batch, SECOND, sampler_logprobs=shifted(segment), weight_version=old)
    model = tiny_model()
    assert updater(model).run(stale, 0, Descent(model, 0.1)).metrics["policy/gap_at_lag_0"] == 0.0
    old[-1] = 0
    mixed = with_segment(stale, SECOND, weight_version=old)
    assert_stopped_untouched(tiny_model(), mixed, batch.sequences[SECOND].name)


def test_run_without_a_token_of_the_current_version_reports_no_gap(batch: TrainBatch) -> None:
    model = tiny_model()
    report = updater(model).run(batch, 1, Descent(model, 0.1))
    assert "policy/gap_at_lag_0" not in report.metrics
    assert "kl/sampler_k1_numerics" not in report.metrics


def test_run_of_one_update_makes_no_pass_for_the_comparison(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training passes are at equal weights themselves; only later mini-batches need a forward of their own."""
    calls = {1: 0, 2: 0}
    for updates in calls:
        model = tiny_model()
        plain = type(model).forward

        def counted(self: CausalLM, *arguments: object, **named: object) -> torch.Tensor:
            calls[updates] += self is model  # noqa: B023
            return plain(self, *arguments, **named)  # type: ignore[arg-type]  # noqa: B023

        monkeypatch.setattr(type(model), "forward", counted)
        updater(model, {"updates_per_rollout": updates}, min_passes=1).run(
            rollout_batch(tokenizer), 0, Descent(model, 0.1)
        )
        monkeypatch.undo()
    assert calls == {1: 1, 2: 3}


@pytest.mark.parametrize(
    ("dense", "rl", "held"),
    [
        (False, {}, True),
        (False, {"keep_routing": "off"}, False),
        (False, {"keep_routing": "learner", "objective": {"old_policy": "learner"}}, False),
        (False, {"keep_sampling_mask": "off"}, False),
        (True, {"keep_routing": "off"}, True),
        (True, {"keep_sampling_mask": "off"}, False),
    ],
)
@pytest.mark.parametrize("place", [1, SECOND])
def test_run_is_held_to_the_limit_where_both_walk_one_path(
    batch: TrainBatch, tokenizer: Tokenizer, dense: bool, rl: dict[str, object], held: bool, place: int
) -> None:
    """Live routing or the full vocabulary is another distribution by choice; a dense model has no routes to keep."""
    shape = {"first_k_dense_replace": 3} if dense else {}
    if dense:
        batch = rollout_batch(tokenizer, BuiltinEngine(tiny_model(**shape), tokenizer, BuiltinSettings()))
    batch = with_segment(batch, place, sampler_logprobs=shifted(batch.sequences[place].segment))
    settings = AlgorithmSettings.model_validate({"prompts_per_step": GROUPS, "group_size": SAMPLES, **rl})
    model = tiny_model(**shape)
    run = PolicyUpdater(model, tiny_model(**shape), settings, LearnerSettings())
    with pytest.raises(NumericsMismatchError) if held else nullcontext():
        run.run(batch, 0, Descent(model, 0.1))
