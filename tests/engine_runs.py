"""Small engines, and what must hold of everything they return."""

from collections.abc import Sequence

import numpy as np
import torch

from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.learner.policy_pass import run_policy
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
from tests.conftest import ALPHABET, tiny_model
from tests.tiny_runs import learner_batch, random_prompt, request

TOKENIZER = character_tokenizer(ALPHABET)
LEARNER = tiny_model()
"""Never touched by an engine: the learner's own copy of the weights."""

SAMPLINGS = (
    SamplingSettings(max_new_tokens=14, ignore_stop=True),
    SamplingSettings(max_new_tokens=20, temperature=0.7, top_p=0.8),
    SamplingSettings(max_new_tokens=9, temperature=1.3, top_k=5, top_p=0.8, min_p=0.02),
    SamplingSettings(max_new_tokens=12, top_p=0.9, support_cap=12),
)

GREEDY = SamplingSettings(temperature=0.0, max_new_tokens=11)
STOPPED = SamplingSettings(max_new_tokens=25, stop_token_ids=(9,), stop_strings=("12", "7-"))


def make_engine(model: CausalLM | None = None, **changes: object) -> BuiltinEngine:
    return BuiltinEngine(model or tiny_model(), TOKENIZER, BuiltinSettings.model_validate(changes))


def mixed_requests() -> list[GroupRequest]:
    """Every kind of draw side by side, on prompts of 1 to 60 tokens."""
    rng = np.random.default_rng(1)
    return [
        request(f"g{n}", random_prompt(rng, 18, length), sampling, range(n, n + samples))
        for n, (length, sampling, samples) in enumerate(
            zip((1, 60, 17, 33, 5, 16), (*SAMPLINGS, GREEDY, STOPPED), (9, 2, 3, 1, 4, 6), strict=True)
        )
    ]


def steps_until_done(engine: BuiltinEngine) -> list[Group]:
    groups = []
    while engine.busy:
        groups += engine.step()
    return groups


def assert_same_samples(left: Group, right: Group) -> None:
    """Everything recorded is equal to the last bit, except times."""
    assert left.group_id == right.group_id
    for one, other in zip(left.rollouts, right.rollouts, strict=True):
        assert (one.text, one.failure, one.sample_index) == (other.text, other.failure, other.sample_index)
        for first, second in zip(one.segments, other.segments, strict=True):
            assert first.finish_reason == second.finish_reason
            for name in (
                "token_ids",
                "trained",
                "sampler_logprobs",
                "routes",
                "selection_fingerprint",
                "weight_version",
            ):
                assert np.array_equal(getattr(first, name), getattr(second, name)), name
            assert (first.support is None) == (second.support is None)
            if first.support is not None and second.support is not None:
                assert np.array_equal(first.support.counts, second.support.counts)
                assert np.array_equal(first.support.ids, second.support.ids)


def assert_learner_walks_the_same_path(groups: Sequence[Group], temperature: float, model: CausalLM = LEARNER) -> None:
    """Log-probabilities, routes and attended sets of the packed pass equal the record, with and without replay."""
    batch = learner_batch(groups, temperature, model.config)
    assert batch.missing_routes == 0
    for routes_LNX in (batch.routes_LNX, None):
        with torch.no_grad():
            seen = run_policy(model, batch, routes_LNX=routes_LNX, use_support=True, fingerprints=True)
        assert torch.equal(seen.logprobs_M, batch.sampler_logprobs_M)
        rows = slice(0, batch.num_rows)
        if model.config.moe_layers:
            assert torch.equal(torch.stack(seen.trace.live_routes)[:, rows], batch.routes_LNX[:, rows])
        if model.config.sparse_layers:
            assert torch.equal(seen.trace.stacked_fingerprints()[rows], batch.fingerprints_NL[rows])


def assert_nothing_leaked(engine: BuiltinEngine) -> None:
    assert not engine.busy
    assert engine._pages.available == engine._pages.num_pages
    assert sorted(engine._tables.free) == list(range(engine.settings.max_sequences))
