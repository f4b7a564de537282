"""Conversations that the engine sampled call by call: the learner walks every segment as it was sampled, in any passes, to one result."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.batch.pack import TrainSequence
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.diagnostics.numerics import NumericsMismatchError
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.conservation import check_conservation
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.segments import as_call, joined_segments
from samepath.rollout.types import Segment
from tests.conftest import ALPHABET, tiny_model
from tests.rl.learner.test_cuts import OF_THE_CUT, assert_same
from tests.tiny_runs import request
from tests.update_runs import Descent, updater

GROUPS, SAMPLES = 4, 2
SAMPLING = SamplingSettings(max_new_tokens=14, top_p=0.9, ignore_stop=True)


def sampled(engine: BuiltinEngine, prompts: Sequence[list[int]], seed: int) -> list[Segment]:
    """A call for each prompt."""
    groups = engine.run([request(f"{place}", ids, SAMPLING, (seed + place,)) for place, ids in enumerate(prompts)])
    return [group.rollouts[0].segments[0] for group in groups]


def sampled_conversations(engine: BuiltinEngine, prompts: Sequence[list[int]]) -> list[list[Segment]]:
    """Two calls with tokens between them; then what was drawn first is dropped, and a third call answers."""
    first = sampled(engine, prompts, 100)
    second = sampled(engine, [[*call.token_ids.tolist(), 3, 4, 5] for call in first], 200)
    left = [[*ids, *call.token_ids[-4:].tolist(), 6, 7] for ids, call in zip(prompts, second)]
    third = sampled(engine, left, 300)
    return [
        [as_call(call, index=index, epoch=epoch) for index, (call, epoch) in enumerate(zip(calls, (0, 0, 1)))]
        for calls in zip(first, second, third)
    ]


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    """Eight conversations of two segments; a quarter is out of the loss."""
    engine = BuiltinEngine(tiny_model(), character_tokenizer(ALPHABET), BuiltinSettings())
    prompts = [[2 + group, 9, 3, 8, 4] for group in range(GROUPS) for _ in range(SAMPLES)]
    segments = [joined_segments(calls, exact=True) for calls in sampled_conversations(engine, prompts)]
    count = len(segments)
    for own in segments:
        check_conservation(own, "g/0")
    return TrainBatch(
        sequences=tuple(
            TrainSequence(segment=segment, temperature=1.0, name=f"{place}, segment {number}")
            for place, own in enumerate(segments)
            for number, segment in enumerate(own)
        ),
        rollout_S=np.repeat(np.arange(count), 2),
        names=tuple(map(str, range(count))),
        advantages_B=np.where(np.arange(count) % 2, -0.5, 0.5).astype(np.float32),
        group_B=np.repeat(np.arange(GROUPS), SAMPLES),
        datasets=("sums",) * count,
        in_loss_B=np.arange(count) % 4 != 2,
    )


def test_learner_repeats_the_sampler_to_the_bit_in_every_segment(batch: TrainBatch) -> None:
    model = tiny_model()
    report = updater(model).run(batch, 0, Descent(model, 0.0))
    assert report.metrics["policy/gap_at_lag_0"] == 0.0
    drawn = [
        sum(entry.segment.num_trained for entry, place in zip(batch.sequences, batch.rollout_S) if place == rollout)
        for rollout in range(len(batch.names))
    ]
    assert report.weight_lag_B.tolist() == [0] * len(batch.names)
    assert [len(tokens) for tokens in report.kl_tokens] == drawn == [3 * SAMPLING.max_new_tokens] * len(batch.names)


def test_one_rendering_of_the_finished_conversation_is_stopped(batch: TrainBatch) -> None:
    """All of it as one sequence, the dropped tokens too: the third call's were not drawn behind them."""
    first, second = batch.sequences[0].segment, batch.sequences[1].segment
    begin = second.calls[0].first
    columns = ("token_ids", "trained", "sampler_logprobs", "routes", "selection_fingerprint", "weight_version")
    naive = replace(
        first,
        **{name: np.concatenate([getattr(first, name), getattr(second, name)[begin - 2 :]]) for name in columns},
        support=replace(
            first.support,  # type: ignore[type-var]
            counts=np.concatenate([first.support.counts, second.support.counts]),  # type: ignore[union-attr]
            ids=np.concatenate([first.support.ids, second.support.ids]),  # type: ignore[union-attr]
        ),
    )
    sequences = (replace(batch.sequences[0], segment=naive), *batch.sequences[2:])
    model = tiny_model()
    with pytest.raises(NumericsMismatchError, match="in 0, segment 0 "):
        updater(model).run(replace(batch, sequences=sequences, rollout_S=batch.rollout_S[1:]), 0, Descent(model, 0.1))


def step(batch: TrainBatch, max_tokens: int, objective: dict[str, object]) -> tuple[UpdateReport, Descent]:
    """A step that moves no weight, in float64, behind weights that have moved."""
    model = tiny_model().double()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    descent = Descent(model, 0.0)
    rl = {"updates_per_rollout": 1, "objective": {"kl": {"beta": 0.1}, **objective}}
    return updater(model, rl, max_tokens_per_pass=max_tokens, min_passes=1).run(batch, 2, descent), descent


@pytest.mark.parametrize(
    "objective",
    [
        {"surrogate": "gspo", "off_policy_mask": {"delta": 0.01}},
        {"surrogate": "grpo", "off_policy_mask": {"delta": 0.01, "scope": "segment"}},
    ],
)
def test_step_of_rollouts_larger_than_a_pass_has_the_report_and_the_gradient_of_one(
    batch: TrainBatch, objective: dict[str, object]
) -> None:
    """With 40 rows a pass, each of the segments of 35 and 24 rows is one."""
    later = batch.sequences[1].segment
    later = replace(later, weight_version=np.where(later.trained, 1, -1).astype(np.int32))
    entries = (batch.sequences[0], replace(batch.sequences[1], segment=later), *batch.sequences[2:])
    batch = replace(batch, sequences=entries)
    whole, whole_descent = step(batch, 100_000, objective)
    report, descent = step(batch, 40, objective)
    assert 0 < whole.metrics["policy/masked_sequences"] < 1
    assert_same(report, whole, OF_THE_CUT)
    assert report.weight_lag_B.tolist() == [2] * len(batch.names), "of the oldest token in any segment"
    means = [float(tokens.mean()) for tokens in report.kl_tokens]
    assert report.kl_B.tolist() == pytest.approx(means, rel=1e-5)
    assert np.nonzero(report.kl_B)[0].tolist() == np.nonzero(batch.in_loss_B)[0].tolist()
    for one, other in zip(descent.first, whole_descent.first, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_step_reports_every_token_of_a_rollout_wherever_its_segments_ran(batch: TrainBatch) -> None:
    objective: dict[str, object] = {"off_policy_mask": {"delta": 0.01, "scope": "segment"}}
    report, whole = (step(batch, max_tokens, objective)[0] for max_tokens in (40, 100_000))
    assert report.moe_layers == tuple(tiny_model().shape.moe_layers)
    assert len(report.tokens) == len(batch.names)
    for place, (one, other) in enumerate(zip(report.tokens, whole.tokens, strict=True)):
        assert len(one.log_ratio_T) == len(one.entropy_T) == len(one.role_T) == 3 * SAMPLING.max_new_tokens
        if batch.in_loss_B[place]:
            assert -one.log_ratio_T.mean() == pytest.approx(report.off_policy_B[place], abs=1e-6)
            assert bool((one.role_T == 1).any()) == bool(report.masked_B[place])
            assert set(one.role_T.tolist()) <= {1, 2}
        else:
            assert np.isnan(one.log_ratio_T).all()
            assert not one.role_T.any()
        assert (one.entropy_T > 0).all()
        np.testing.assert_allclose(one.entropy_T, other.entropy_T, rtol=1e-6)
        np.testing.assert_allclose(one.log_ratio_T, other.log_ratio_T, atol=1e-6)
        assert np.array_equal(one.flips, other.flips)
        assert np.array_equal(one.role_T, other.role_T)
    assert any(len(one.flips) for one in report.tokens), "the weights have moved"
    assert any(set(one.role_T.tolist()) == {1, 2} for one in report.tokens), "a segment alone is masked"
