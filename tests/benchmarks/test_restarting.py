"""Answers that are thrown away when weights come are trained shorter than the policy's; those that go on are the policy's own, sample by sample."""

import numpy as np
import pytest

from benchmarks.restarting import trained
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Prompt
from tests.engine_runs import TOKENIZER, tiny_model

BATCHES, PER_BATCH = 8, 16


def asked() -> list[GroupRequest]:
    prompt = Prompt(prompt_id="p", text="", token_ids=(3, 4, 5))
    sampling = SamplingSettings(max_new_tokens=60)
    return [
        GroupRequest(group_id=f"g{number}", prompt=prompt, sampling=sampling, seeds=(number,))
        for number in range(BATCHES * PER_BATCH)
    ]


def engine() -> BuiltinEngine:
    return BuiltinEngine(tiny_model(), TOKENIZER, BuiltinSettings(max_sequences=2 * PER_BATCH))


def test_restarted_answers_are_trained_shorter_and_continued_ones_as_they_are() -> None:
    alone, going_on, restarted = (
        trained(engine(), asked(), PER_BATCH, way) for way in ("alone", "continue", "restart")
    )
    assert len(set(alone.lengths.tolist())) > 10, "lengths that differ"
    assert np.array_equal(alone.lengths, going_on.lengths)
    assert alone.thrown_away == going_on.thrown_away == 0 < restarted.thrown_away
    assert restarted.lengths.mean() < 0.9 * alone.lengths.mean()


def test_another_way_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="continue, restart; got 'drop'"):
        trained(engine(), asked(), PER_BATCH, "drop")
