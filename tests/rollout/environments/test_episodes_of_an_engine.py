"""Conversations with the built-in engine: complete records in every segment, equal samples on any worker, and after a worker's death."""

from pathlib import Path

import numpy as np
import pytest
import torch

from samepath.rl.learner.model_source import save_model
from samepath.rl.machine import child_environment, import_path
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.conservation import check_conservation, drift_cuts
from samepath.rollout.environments.episode_runner import EpisodeRunner
from samepath.rollout.pool.pool import InlinePool, worker_environment
from samepath.rollout.pool.process_pool import ProcessPool
from samepath.rollout.pool.settings import RolloutSettings
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
from tests.conftest import tiny_model
from tests.engine_runs import assert_learner_walks_the_same_path, assert_same_samples
from tests.random_conversations import episodes, talking_tokenizer
from tests.tiny_runs import random_prompt, request

ENGINE = BuiltinSettings(max_sequences=6, page_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    save_model(tiny_model(), talking_tokenizer(), made)
    return made


def led(**changes: object) -> tuple[list[Group], BuiltinEngine]:
    engine = BuiltinEngine(tiny_model(), talking_tokenizer(), ENGINE.model_copy(update=changes))
    runner = EpisodeRunner(engine, exact=True)
    groups = [group for request in episodes() if (group := runner.submit(request))]
    while runner.busy:
        groups += runner.step()
    runner.abort()
    return sorted(groups, key=lambda group: group.group_id), engine


@pytest.fixture(scope="module")
def once() -> tuple[list[Group], BuiltinEngine]:
    """Conversations that every test compares with."""
    return led()


def test_segments_of_conversations_are_whole_and_the_learner_walks_each_the_same_way(
    once: tuple[list[Group], BuiltinEngine],
) -> None:
    groups, engine = once
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert not any(rollout.failure for rollout in rollouts)
    assert sum(len(segment.calls) for rollout in rollouts for segment in rollout.segments) > 2 * len(rollouts)
    for rollout in rollouts:
        check_conservation(rollout.segments, "here")
        assert not drift_cuts(rollout.segments)
    assert sum(rollout.num_trained for rollout in rollouts) == engine.counters.sampled_tokens
    assert engine.counters.reused_tokens > engine.counters.prefill_tokens
    assert_learner_walks_the_same_path(groups, 1.0)


def test_conversations_are_equal_whatever_the_engine_does_at_once(once: tuple[list[Group], BuiltinEngine]) -> None:
    wanted, _ = once
    for changes in ({"max_sequences": 3, "max_batch_tokens": 16}, {"page_size": 16, "cache_tokens": 1024}):
        got, _ = led(**changes)
        for one, other in zip(wanted, got, strict=True):
            assert_same_samples(one, other)
            for left, right in zip(one.rollouts, other.rollouts, strict=True):
                assert (left.messages, left.tool_calls, left.ended) == (right.messages, right.tool_calls, right.ended)
                assert left.environment_score == right.environment_score


@pytest.mark.slow
def test_worker_killed_in_mid_conversation_begins_it_again_with_the_same_samples(folder: Path, tmp_path: Path) -> None:
    inline = InlinePool(folder, ENGINE, RolloutSettings())
    wanted = inline.sample(episodes(), lambda group: None)
    inline.close()
    settings = RolloutSettings(max_replacements=1)
    variables = worker_environment(ENGINE, settings, import_path(Path.cwd()))
    pool = ProcessPool(folder, ENGINE, settings, child_environment(variables))
    seen: list[str] = []
    try:
        got = pool.sample(episodes(killed=str(tmp_path / "killed")), lambda group: seen.append(group.group_id))
        assert pool.statistics()["replaced_workers"] == 1
    finally:
        pool.close()
    assert sorted(seen) == [group.group_id for group in wanted]
    for one, other in zip(wanted, got, strict=True):
        assert_same_samples(one, other)
        assert [left.tool_calls for left in one.rollouts] == [right.tool_calls for right in other.rollouts]


def test_single_answers_and_conversations_share_an_engine(folder: Path) -> None:
    single = request("single", random_prompt(np.random.default_rng(0), 17, 9), SamplingSettings(max_new_tokens=12))
    pool = InlinePool(folder, ENGINE, RolloutSettings())
    alone = pool.sample([single], lambda group: None)
    together = pool.sample([*episodes(2), single], lambda group: None)
    assert_same_samples(alone[0], together[-1])
    assert torch.is_grad_enabled()
    pool.close()
