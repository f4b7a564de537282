"""The control of the path: a single rendering of finished conversations is refused by the law, and not what the engine drew behind."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.single_rendering import Drawn, compared, drawn_messages, single_rendering
from samepath.model.network.network import CausalLM
from samepath.model.text.conversation import Conversation, Message, ToolCall
from samepath.model.text.encodings.deepseek_v32 import DeepSeekV32Renderer
from samepath.model.text.encodings.learned_tokenizer import byte_tokenizer
from samepath.rl.batch.pack import TrainSequence, pack
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.learner.worked_conversation import WorkedSegment, worked_segments
from samepath.rollout.environments.store import GET
from samepath.rollout.token_digest import token_digest
from samepath.rollout.types import MISSING_ROUTE, CallSpan, Rollout, Segment, Support
from tests.conftest import tiny_model

LOOK = ToolCall(name="get", arguments={"key": "C"})
TALK = Conversation(
    messages=(
        Message(role="user", content="C?"),
        Message(role="assistant", reasoning="look", calls=(LOOK,)),
        Message(role="tool", content="17"),
        Message(role="assistant", reasoning="got it", content="17"),
        Message(role="user", content="And?"),
        Message(role="assistant", reasoning="no more", content="nothing"),
    ),
    tools=(GET,),
)


@pytest.fixture(scope="module")
def renderer() -> DeepSeekV32Renderer:
    return DeepSeekV32Renderer(byte_tokenizer())


@pytest.fixture(scope="module")
def model(renderer: DeepSeekV32Renderer) -> CausalLM:
    return tiny_model(vocab_size=renderer.tokenizer.vocab_size, max_position_embeddings=4096)


@pytest.fixture(scope="module")
def rollout(model: CausalLM, renderer: DeepSeekV32Renderer) -> Rollout:
    """The conversation as if an engine had drawn it: what it says of each token is the model's own probability behind what was read."""
    numbers = itertools.count()
    segments = tuple(
        scored(model, worked, epoch, numbers) for epoch, worked in enumerate(worked_segments(TALK, renderer))
    )
    drawn = iter(tuple(message.ids.tolist()) for message in drawn_messages_of(segments))
    messages = tuple(
        replace(message, sampled=next(drawn)) if message.role == "assistant" else message for message in TALK.messages
    )
    return Rollout(
        prompt_id="0", group_id="g", sample_index=0, segments=segments, text="", ended="answer", messages=messages
    )


def drawn_messages_of(segments: tuple[Segment, ...]) -> Iterator[Drawn]:
    return drawn_messages(Rollout(prompt_id="0", group_id="g", sample_index=0, segments=segments, text=""))


def scored(model: CausalLM, worked: WorkedSegment, epoch: int, numbers: "itertools.count[int]") -> Segment:
    ids = np.array(worked.token_ids, np.int32)
    trained = np.zeros(len(ids), np.bool_)
    for first, end in worked.answers:
        trained[first:end] = True
    total, shape = len(ids), model.shape
    # Every other token and the one that was drawn: as a truncated distribution would be.
    kept = [np.unique([*range(0, shape.vocab_size, 2), int(id_)]).astype(np.int32) for id_ in ids[trained]]
    segment = Segment(
        token_ids=ids,
        trained=trained,
        sampler_logprobs=np.zeros(total, np.float32),
        routes=np.full((total, len(shape.moe_layers), shape.num_experts_per_tok), MISSING_ROUTE, np.int16),
        support=Support(counts=np.array([len(row) for row in kept], np.int32), ids=np.concatenate(kept)),
        selection_fingerprint=None,
        weight_version=np.where(trained, 0, -1).astype(np.int32),
        finish_reason="stop",
        epoch=epoch,
        calls=tuple(
            CallSpan(index=next(numbers), first=first, end=end, finish_reason="stop", digest=token_digest(ids[:end]))
            for first, end in worked.answers
        ),
    )
    packed = pack([TrainSequence(segment=segment, temperature=1.0, name="")], shape)
    with torch.no_grad():
        logprobs_M = run_policy(model, packed, routes_LNX=None, use_support=True).logprobs_M
    filled = segment.sampler_logprobs.copy()
    filled[trained] = logprobs_M.numpy()
    return replace(segment, sampler_logprobs=filled)


def test_single_rendering_trains_what_is_left_of_each_message(rollout: Rollout, renderer: DeepSeekV32Renderer) -> None:
    naive = single_rendering(rollout, renderer, TALK.tools)
    tokenizer = renderer.tokenizer
    texts = [tokenizer.text(naive.token_ids[span.first : span.end].tolist()) for span in naive.calls]
    assert [span.index for span in naive.calls] == [0, 1, 2]
    assert texts[0].startswith("\n\n<｜DSML｜function_calls>")
    assert texts[1:] == ["17<｜end▁of▁sentence｜>", "no more</think>nothing<｜end▁of▁sentence｜>"]
    drawn = list(drawn_messages(rollout))
    for span, message in zip(naive.calls, drawn, strict=True):
        left = span.end - span.first
        assert naive.sampler_logprobs[span.first : span.end].tolist() == message.logprobs[-left:].tolist()
    assert naive.support is not None
    assert len(naive.support.counts) == naive.num_trained == sum(span.end - span.first for span in naive.calls)
    assert "look" not in tokenizer.text(naive.token_ids.tolist()).split("</functions>")[1]


def test_compared_conversation_is_exact_as_drawn_and_refused_in_one_rendering(
    model: CausalLM, rollout: Rollout, renderer: DeepSeekV32Renderer
) -> None:
    one_segment = replace(rollout, segments=rollout.segments[:1])
    drawn, single = compared(model, [rollout, one_segment], renderer, TALK.tools, 1.0)
    assert (drawn["conversations"], drawn["segments"], single["segments"]) == (1, 2, 1)
    assert (drawn["refused"], drawn["reason"], drawn["largest_gap"]) == (0, "", 0.0)
    assert drawn["trained_tokens"] == drawn["drawn_tokens"] == rollout.num_trained
    assert single["refused"] == 1
    assert "must end the tokens that it read and drew" in str(single["reason"])
    assert float(single["trained_tokens"]) < float(single["drawn_tokens"])
    assert float(single["largest_gap"]) > 0.01


def test_compared_without_a_conversation_of_several_segments_says_so(
    model: CausalLM, rollout: Rollout, renderer: DeepSeekV32Renderer
) -> None:
    with pytest.raises(ValueError, match="none of 1 conversations has several segments"):
        compared(model, [replace(rollout, ended="malformed")], renderer, TALK.tools, 1.0)
