"""The engine's promise holds for every family: the learner's log-probabilities are the sampler's, to the last bit."""

import numpy as np
import pytest

from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.sampling_settings import SamplingSettings
from tests.engine_runs import TOKENIZER, assert_learner_walks_the_same_path, assert_nothing_leaked, assert_same_samples
from tests.families import FAMILIES, family_model
from tests.tiny_runs import random_prompt, request

SAMPLING = SamplingSettings(max_new_tokens=12, ignore_stop=True)
LONG = SamplingSettings(max_new_tokens=60, ignore_stop=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_engine_any_batch_equals_the_learner_bit_for_bit(name: str) -> None:
    """Responses of 12 tokens after prompts of 1 to 47, in one batch, one by one, and with prompts in chunks of 16."""
    rng = np.random.default_rng(3)
    requests = [
        request(f"g{number}", random_prompt(rng, 18, length), SAMPLING, tuple(range(number, number + samples)))
        for number, (length, samples) in enumerate([(1, 1), (47, 4), (20, 3), (33, 2), (5, 7)])
    ]
    together = BuiltinEngine(family_model(name), TOKENIZER, BuiltinSettings())
    groups = together.run(requests)
    assert_nothing_leaked(together)
    assert_learner_walks_the_same_path(groups, 1.0, family_model(name))
    chunked = BuiltinEngine(family_model(name), TOKENIZER, BuiltinSettings(max_batch_tokens=16, page_size=4))
    for entry, wanted in zip(requests, groups, strict=True):
        assert_same_samples(chunked.run([entry])[0], wanted)


def test_engine_every_end_id_of_the_tokenizer_ends_a_response() -> None:
    """With all eighteen ids as ends, each response is one token long."""
    tokenizer = Tokenizer(TOKENIZER.fast, "<eos>", "<bos>", other_end_ids=range(18))
    engine = BuiltinEngine(family_model("llama"), tokenizer, BuiltinSettings())
    (group,) = engine.run([request("g", (2, 3, 4), SamplingSettings(max_new_tokens=9), (1, 2, 3))])
    for rollout in group.rollouts:
        assert rollout.segments[0].trained.sum() == 1
        assert rollout.segments[0].finish_reason == "stop"


@pytest.mark.parametrize("name", ["smollm", "qwen3_moe", "deepseek_v3"])
def test_engine_past_a_block_of_keys_and_of_the_vocabulary_equals_the_learner_bit_for_bit(name: str) -> None:
    """Prompts of up to 300 tokens (three blocks of keys) and draws from 1500 tokens (three blocks of the search)."""
    sizes = {"vocab_size": 1500, "max_position_embeddings": 512}
    rng = np.random.default_rng(5)
    requests = [
        request(f"g{number}", random_prompt(rng, 1500, length), LONG, tuple(range(number, number + samples)))
        for number, (length, samples) in enumerate([(300, 3), (90, 2), (120, 4), (7, 1)])
    ]
    groups = BuiltinEngine(family_model(name, **sizes), TOKENIZER, BuiltinSettings()).run(requests)
    assert len({int(token) for group in groups for token in group.rollouts[0].segments[0].token_ids}) > 100
    assert_learner_walks_the_same_path(groups, 1.0, family_model(name, **sizes))
    chunked = BuiltinEngine(family_model(name, **sizes), TOKENIZER, BuiltinSettings(max_batch_tokens=64))
    for entry, wanted in zip(requests, groups, strict=True):
        assert_same_samples(chunked.run([entry])[0], wanted)
