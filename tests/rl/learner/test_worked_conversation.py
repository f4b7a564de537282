"""Worked conversations are laid out as rollouts of them would be: the law of drawn tokens holds, one segment an epoch."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from samepath.model.text.conversation import Conversation, Message, ToolCall
from samepath.model.text.encodings.deepseek_v32 import DeepSeekV32Renderer
from samepath.model.text.encodings.template import TemplateRenderer
from samepath.model.text.renderer import Renderer
from samepath.rl.learner.worked_answers import AnswerKindError, try_answers, try_traces
from samepath.rl.learner.worked_batches import WorkedBatches
from samepath.rl.learner.worked_conversation import worked_segments
from samepath.rl.recipe.cold_start import ColdStartSettings
from samepath.rl.tasks.row import RowEpisode, Task, TaskRow
from samepath.rollout.conservation import check_conservation, drift_cuts
from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.settings import EnvironmentSettings, EpisodeSettings, FormSettings
from samepath.rollout.token_digest import token_digest
from samepath.rollout.types import CallSpan, Segment
from tests.conftest import tiny_model
from tests.marked_conversations import ADD, GET, KEYS, marked_tokenizer
from tests.model.text.encodings.test_conversation_laws import CALLS, QUICK, TEXTS
from tests.model.text.encodings.test_template import KEEPS, SMALL, THINKS

MARKED = marked_tokenizer()
TOOLS = (GET, ADD, KEYS)
RENDERERS: dict[str, Renderer] = {
    "v32": DeepSeekV32Renderer(MARKED),
    "r1": DeepSeekV32Renderer(MARKED, retention="r1"),
    "retain_all": DeepSeekV32Renderer(MARKED, retention="retain_all"),
    "chat": DeepSeekV32Renderer(MARKED, thinking=False),
    "template that keeps": TemplateRenderer(KEEPS),
    "template that drops": TemplateRenderer(THINKS),
    "template without tools": TemplateRenderer(SMALL),
}
CALL = ToolCall(name="get", arguments={"key": "C"}, call_id="c")
TWO_QUESTIONS = Conversation(
    messages=(
        Message(role="user", content="q"),
        Message(role="assistant", reasoning="r1", calls=(CALL,)),
        Message(role="tool", content="17", call_id="c"),
        Message(role="assistant", reasoning="r2", content="a"),
        Message(role="user", content="p"),
        Message(role="assistant", reasoning="r3", content="b"),
    ),
    tools=(GET,),
)


@st.composite
def conversations(draw: st.DrawFn, *, reasoning: bool) -> Conversation:
    """Up to three questions, some asked twice, each with up to two messages of calls and, of the last at least, an answer."""
    thoughts = TEXTS if reasoning else st.just("")
    told = [Message(role="system", content=draw(TEXTS))] if draw(st.booleans()) else []
    for question in reversed(range(draw(st.integers(1, 3)))):
        told += [Message(role="user", content=draw(TEXTS)) for _ in range(draw(st.sampled_from([1, 1, 1, 2])))]
        for _ in range(draw(st.integers(0, 2))):
            calls = draw(CALLS.filter(bool))
            told.append(Message(role="assistant", reasoning=draw(thoughts), content=draw(TEXTS), calls=calls))
            results = [Message(role="tool", content=draw(TEXTS), call_id=call.call_id) for call in calls]
            told += draw(st.permutations(results))[: draw(st.integers(1, len(results)))]
        if question == 0 or draw(st.booleans()):
            told.append(Message(role="assistant", reasoning=draw(thoughts), content=draw(TEXTS)))
    return Conversation(messages=tuple(told), tools=TOOLS)


@pytest.mark.parametrize("name", RENDERERS)
@settings(QUICK, max_examples=25)
@given(data=st.data())
def test_worked_segments_train_each_message_once_behind_what_a_rollout_would_have_read(
    name: str, data: st.DataObject
) -> None:
    renderer = RENDERERS[name]
    conversation = data.draw(conversations(reasoning=name not in ("chat", "template without tools")))
    try:
        segments = worked_segments(conversation, renderer)
    except ValueError as error:
        assume("must be read as it was meant" not in str(error))
        raise
    # What each message reads, by opening the conversation anew before each: no bridge, no reply.
    drawn: list[Message] = []
    calls: list[CallSpan] = []
    answers: list[tuple[int, ...]] = []
    for message in conversation.messages:
        if message.role != "assistant":
            drawn.append(message)
        else:
            read, ids = renderer.open(drawn, TOOLS).ids, renderer.answer(message).ids
            digest = token_digest(np.array((*read, *ids), np.int32))
            calls.append(
                CallSpan(
                    index=len(calls),
                    first=len(read),
                    end=len(read) + len(ids),
                    finish_reason="stop",
                    digest=digest,
                )
            )
            answers.append(ids)
            drawn.append(replace(message, sampled=ids))
    spans = iter(calls)
    held = []
    for epoch, one in enumerate(segments):
        trained = np.zeros(len(one.token_ids), np.bool_)
        for first, end in one.answers:
            trained[first:end] = True
        held.append(segment(one.token_ids, trained, epoch, tuple(next(spans) for _ in one.answers)))
    assert next(spans, None) is None
    check_conservation(held, "worked")
    assert drift_cuts(held) == []
    assert [one.token_ids[first:end] for one in segments for first, end in one.answers] == answers
    # Nothing is cut that could have gone on.
    for before, after in pairwise(segments):
        assert after.token_ids[: len(before.token_ids)] != before.token_ids


def segment(ids: Sequence[int], trained: np.ndarray, epoch: int, calls: tuple[CallSpan, ...]) -> Segment:
    return Segment(
        token_ids=np.array(ids, np.int32),
        trained=trained,
        sampler_logprobs=np.zeros(len(ids), np.float32),
        routes=np.zeros((len(ids), 0, 0), np.int16),
        support=None,
        selection_fingerprint=None,
        weight_version=np.where(trained, 0, -1).astype(np.int32),
        finish_reason="stop",
        epoch=epoch,
        calls=calls,
    )


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("v32", [["r1", "r2"], ["r3"]]),
        ("r1", [["r1"], ["r2"], ["r3"]]),
        ("retain_all", [["r1", "r2", "r3"]]),
        ("template that keeps", [["r1", "r2", "r3"]]),
        ("template that drops", [["r1", "r2"], ["r3"]]),
    ],
)
def test_worked_segments_are_one_an_epoch(name: str, trained: list[list[str]]) -> None:
    """By the reasoning of the messages that each trains."""
    renderer = RENDERERS[name]
    segments = worked_segments(TWO_QUESTIONS, renderer)
    text = {**dict.fromkeys(["template that keeps", "template that drops"], KEEPS.text)}.get(name, MARKED.text)
    assert [
        ["r" + text(one.token_ids[first:end]).partition("r")[2][:1] for first, end in one.answers] for one in segments
    ] == trained
    assert all(text(one.token_ids[first:end]).count("r") for one in segments for first, end in one.answers)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ((), "must end with the assistant's message; got none"),
        (TWO_QUESTIONS.messages[:3], "must end with the assistant's message; got the tool"),
        (TWO_QUESTIONS.messages[1:2], "message 0 answers nobody"),
        ((*TWO_QUESTIONS.messages, TWO_QUESTIONS.messages[-1]), "message 6 answers nobody"),
        (
            (TWO_QUESTIONS.messages[0], Message(role="assistant", sampled=(3,))),
            "is told in words; message 1 has drawn ids",
        ),
    ],
)
def test_worked_segments_refuse_what_no_rollout_can_be(messages: tuple[Message, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        worked_segments(Conversation(messages=messages), RENDERERS["v32"])


def tells(row: EnvironmentRow, rng: random.Random) -> Conversation:
    """Two questions of a row, as settings of these tests name it."""
    assert row.text
    return TWO_QUESTIONS


def says(row: TaskRow, rng: random.Random) -> str:
    """Text for a row."""
    return row.text


ROW = TaskRow(row_id="0", question="q", text="q", dataset="d", row=0)
EPISODE = RowEpisode(
    environment=EnvironmentSettings(environment="tests.scripted_engine:Toy"),
    row=EnvironmentRow(row_id="0", text="q"),
    settings=EpisodeSettings(),
)
LED = replace(ROW, episode=EPISODE)


def batches(name: str, renderer: Renderer | None) -> WorkedBatches:
    made = ColdStartSettings(steps=1, batch_size=2, traces=f"{__name__}:{name}")
    rows = [ROW if renderer is None else LED]
    return WorkedBatches(MARKED, Task(name="d", train=rows, held_out=[], seed=0), made, 0, renderer=renderer)


def test_batch_of_conversations_has_every_segment_of_as_many() -> None:
    shape = tiny_model().shape
    wide = shape.model_copy(update={"max_position_embeddings": 4096})
    sequences = batches("tells", RENDERERS["v32"]).batch(0, wide)
    segments = worked_segments(TWO_QUESTIONS, RENDERERS["v32"])
    assert [tuple(entry.segment.token_ids.tolist()) for entry in sequences] == [one.token_ids for one in segments] * 2
    assert [entry.segment.epoch for entry in sequences] == [0, 1, 0, 1]
    for entry, one in zip(sequences, segments * 2, strict=True):
        assert np.flatnonzero(entry.segment.trained).tolist() == [
            place for first, end in one.answers for place in range(first, end)
        ]
        assert np.array_equal(entry.segment.weight_version >= 0, entry.segment.trained)
    longest = max(len(one.token_ids) for one in segments)
    narrow = shape.model_copy(update={"max_position_embeddings": longest - 1})
    with pytest.raises(ValueError, match=f"must fit max_position_embeddings={longest - 1}; got {longest} tokens"):
        batches("tells", RENDERERS["v32"]).batch(0, narrow)


def test_batch_of_the_other_kind_is_refused_at_once() -> None:
    shape = tiny_model().shape
    with pytest.raises(AnswerKindError, match="must write a Conversation for each row of an environment; got a str"):
        batches("says", RENDERERS["v32"]).batch(0, shape)
    with pytest.raises(AnswerKindError, match="must write text for each row of this task; got a Conversation"):
        batches("tells", None).batch(0, shape)
    assert len(batches("says", None).batch(0, shape)) == 2
    for writer, wrong, right in ((says, LED, ROW), (tells, ROW, LED)):
        with pytest.raises(AnswerKindError):
            try_answers(writer, [wrong], ({},))
        try_answers(writer, [right], ({},))


def test_try_traces_lays_conversations_out_in_the_form_of_the_task() -> None:
    """Reasoning has no place in chat mode."""
    made = ColdStartSettings(steps=1, traces=f"{__name__}:tells")
    for thinking in (True, False):
        episode = replace(EPISODE, settings=EpisodeSettings(form=FormSettings(thinking=thinking)))
        task = Task(name="d", train=[replace(ROW, episode=episode)], held_out=[], seed=0)
        try_traces(made, task, None)
        if thinking:
            try_traces(made, task, MARKED)
        else:
            with pytest.raises(ValueError, match="answers none of the first training rows: messages in chat mode"):
                try_traces(made, task, MARKED)
