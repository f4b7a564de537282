"""Rows of prompts beside decoding samples: one key window for each row and one for each prompt give the same bits."""

import pytest

from samepath.model.plan import plan_spans
from samepath.rollout.builtin import mixed_pass
from tests.engine_runs import assert_learner_walks_the_same_path, assert_same_samples, make_engine, mixed_requests


@pytest.mark.parametrize("max_batch_tokens", [23, 1024])
def test_mixed_pass_of_windows_for_rows_equals_one_of_windows_for_prompts(
    max_batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[int] = []

    def spy(spans: list[mixed_pass.Span], num_rows: int, heads: int) -> mixed_pass.AttentionPlan:
        planned.append(len(spans))
        return plan_spans(spans, num_rows, heads)

    monkeypatch.setattr(mixed_pass, "plan_spans", spy)
    by_row = make_engine(max_batch_tokens=max_batch_tokens).run(mixed_requests())
    assert not planned
    monkeypatch.setattr(mixed_pass, "MOST_LONE_PAIRS", 0)
    by_prompt = make_engine(max_batch_tokens=max_batch_tokens).run(mixed_requests())
    assert planned
    for one, other in zip(by_row, by_prompt, strict=True):
        assert_same_samples(one, other)
    assert_learner_walks_the_same_path(by_prompt[:1], 1.0)
