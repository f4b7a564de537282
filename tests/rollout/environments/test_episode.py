"""Conversations led beside an engine: what is drawn behind what, budgets, faults of tools and sessions, and who pays for them."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from samepath.model.text.conversation import Message, ToolCall
from samepath.model.text.encodings import dsml_text as form
from samepath.rewards.score import Score
from samepath.rollout.conservation import check_conservation
from samepath.rollout.environments import episode_runner
from samepath.rollout.environments.episode import Ask, Episode
from samepath.rollout.environments.episode_runner import EpisodeRunner
from samepath.rollout.environments.form import renderer_of
from samepath.rollout.environments.plugin import EnvironmentPathError
from samepath.rollout.environments.protocol import EnvironmentRow, ToolResult
from samepath.rollout.environments.request import EpisodeRequest
from samepath.rollout.environments.settings import EnvironmentSettings, EpisodeSettings
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group, Prompt, Rollout
from tests.scripted_engine import (
    ScriptedEngine,
    Toy,
    ToySession,
    asks_twice,
    blocking,
    calling,
    failing,
    thought,
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "faults", {})
    monkeypatch.setattr(Toy, "log", [])


def asked(text: str = "a b", *, seeds: tuple[int, ...] = (1, 2), group_id: str = "g", **episode: Any) -> EpisodeRequest:
    return EpisodeRequest(
        group_id=group_id,
        prompt=Prompt(prompt_id="p", text=text, token_ids=()),
        sampling=SamplingSettings(max_new_tokens=400),
        seeds=seeds,
        environment=EnvironmentSettings(environment="tests.scripted_engine:Toy"),
        row=EnvironmentRow(row_id="train-0", text=text),
        episode=EpisodeSettings.model_validate(episode),
    )


def played(engine: ScriptedEngine, *requests: EpisodeRequest) -> list[Group]:
    runner = EpisodeRunner(engine, exact=True)
    done = [group for request in requests if (group := runner.submit(request))]
    while runner.busy:
        done += runner.step()
    assert len(done) == len(requests)
    assert runner.abort() == []
    return sorted(done, key=lambda group: group.group_id)


def one(engine: ScriptedEngine, request: EpisodeRequest) -> Rollout:
    (group,) = played(engine, request)
    return group.rollouts[0]


def test_play_leads_two_questions_to_their_answers_in_two_segments() -> None:
    engine = ScriptedEngine(asks_twice)
    (group,) = played(engine, asked())
    for index, rollout in enumerate(group.rollouts):
        assert (rollout.failure, rollout.ended, rollout.sample_index) == ("", "answer", index)
        assert rollout.environment_score == Score(total=1.0, parts={"right": 1.0, "share": 1.0})
        assert [message.role for message in rollout.messages] == ["user", "assistant", "tool", "assistant"] * 2
        assert [(record.turn, record.text) for record in rollout.tool_calls] == [(0, "A"), (2, "B")]
        assert [len(segment.calls) for segment in rollout.segments] == [2, 2]
        assert [segment.epoch for segment in rollout.segments] == [0, 1]
        check_conservation(rollout.segments, "here")
        # Reasoning before the second question is not in the second segment, and nothing was tokenised again.
        second = engine.tokenizer.text(rollout.segments[1].token_ids.tolist())
        assert f"seed {group.rollouts[index].sample_index}" not in second.partition(form.USER + "and")[0]
    assert Toy.log.count("close") == 2
    # Equal first contexts of a group are asked together, and keys are kept.
    assert engine.requests[0].keep_keys
    assert engine.requests[0].apart


def test_play_draws_every_call_with_a_seed_of_its_own() -> None:
    engine = ScriptedEngine(asks_twice)
    played(engine, asked(seeds=(5,)))
    seeds = [seed for request in engine.requests for seed in request.seeds]
    assert seeds[0] == 5
    assert len(set(seeds)) == 4


@pytest.mark.parametrize(
    ("budget", "value", "ended", "num_calls"),
    [
        ("max_turns", 1, "turns", 1),
        ("max_turns", 3, "turns", 3),
        ("max_calls", 0, "calls", 1),
        ("max_calls", 1, "calls", 3),
    ],
)
def test_play_ends_at_a_budget_and_is_judged_as_it_stands(budget: str, value: int, ended: str, num_calls: int) -> None:
    rollout = one(ScriptedEngine(asks_twice), asked(budgets={budget: value}))
    assert rollout.ended == ended
    assert sum(len(segment.calls) for segment in rollout.segments) == num_calls
    assert rollout.environment_score is not None
    assert rollout.environment_score.parts["right"] == 0


def test_play_draws_no_more_tokens_than_the_budget() -> None:
    whole = one(ScriptedEngine(asks_twice), asked())
    rollout = one(ScriptedEngine(asks_twice), asked(budgets={"max_tokens": whole.num_trained - 1}))
    assert (rollout.ended, rollout.num_trained) == ("tokens", whole.num_trained - 1)
    assert rollout.truncated


def test_play_draws_no_more_tokens_than_fit_the_model() -> None:
    engine = ScriptedEngine(asks_twice)
    whole = one(engine, asked())
    longest = max(len(segment.token_ids) for segment in whole.segments)
    assert one(ScriptedEngine(asks_twice, longest=longest), asked()).ended == "answer"
    short = one(ScriptedEngine(asks_twice, longest=longest - 1), asked())
    assert short.ended == "tokens"
    assert one(ScriptedEngine(asks_twice, longest=20), asked()).failure == "prompt_too_long"


def test_play_gives_an_error_for_calls_beyond_the_parallel_ones() -> None:
    def policy(context: str, seed: int) -> str:
        if "<result>" in context:
            return thought("done")
        return calling(*(ToolCall(name="get", arguments={"key": key}) for key in "xyz"))

    rollout = one(ScriptedEngine(policy), asked("a", budgets={"max_parallel_calls": 2}))
    assert [record.error for record in rollout.tool_calls] == ["", "", "bad_arguments"]
    assert rollout.tool_calls[2].text == "Error: a message may make 2 calls."


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (lambda: asyncio.sleep(60), "timeout", "Error: get gave no result within 0.05 s."),
        (lambda: 1 / 0, "raised", "Error: ZeroDivisionError: division by zero"),
        (lambda: ToolResult(text="x" * 100), "", "x" * 64 + "\n[36 characters more]"),
        (lambda: ToolResult(text="no", error="raised"), "raised", "no"),
    ],
)
def test_call_of_a_faulty_tool_is_told_to_the_model(
    fault: Callable[[], Any], error: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "faults", {"a": fault})
    rollout = one(ScriptedEngine(asks_twice), asked("a", budgets={"tool_timeout_s": 0.05, "max_result_chars": 64}))
    (record,) = rollout.tool_calls
    assert (rollout.failure, record.error, record.text) == ("", error, text)
    assert text in rollout.messages[2].content


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [("find", {"key": "a"}, "unknown_tool"), ("get", {}, "missing_parameter"), ("get", {"key": 3}, "wrong_type")],
)
def test_call_that_does_not_fit_its_schema_never_comes_to_the_tool(
    name: str, arguments: dict[str, Any], said: str
) -> None:
    def policy(context: str, seed: int) -> str:
        return thought("done") if "<result>" in context else calling(ToolCall(name=name, arguments=arguments))

    rollout = one(ScriptedEngine(policy), asked("a", seeds=(1,)))
    assert rollout.tool_calls[0].error == "bad_arguments"
    assert said in rollout.tool_calls[0].text
    assert said in rollout.problems
    assert Toy.log == ["start", "close"]


@pytest.mark.parametrize(
    ("place", "fault", "kind"),
    [
        ("start", failing("start"), "start"),
        ("start", lambda: 1 / 0, "start"),
        ("start", lambda: asyncio.sleep(60), "timeout"),
        ("a", failing("died"), "died"),
        ("a", lambda: ToolResult(text=b"bytes"), "protocol"),  # type: ignore[arg-type]
        ("a", lambda: "text", "protocol"),
        ("a", lambda: (_ for _ in ()).throw(MemoryError()), "resource"),
        ("a", lambda: ToolResult(text="\ud800"), "protocol"),
        ("reply", failing("died"), "died"),
        ("score", lambda: Score(total=float("nan"), parts={"right": 0.0}), "protocol"),
        ("score", lambda: 1.0, "protocol"),
        ("score", failing("timeout"), "timeout"),
    ],
)
def test_infrastructure_failure_is_repeated_once_and_never_a_reward(
    place: str, fault: Callable[[], Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "faults", {place: fault})
    rollout = one(ScriptedEngine(asks_twice), asked("a", seeds=(1,), budgets={"session_timeout_s": 0.2}))
    assert rollout.failure == f"environment_{kind}"
    assert rollout.failure_detail
    assert rollout.environment_score is None
    assert rollout.segments == ()
    assert Toy.log.count("start") == 2
    assert Toy.log.count("close") == (0 if place == "start" else 2)


def test_failure_that_passes_leaves_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = played(ScriptedEngine(asks_twice), asked())
    broken = iter([failing("died")])
    monkeypatch.setattr(Toy, "faults", {"a": lambda: next(broken, lambda: ToolResult(text="A"))()})
    (again,) = played(ScriptedEngine(asks_twice), asked())
    assert [rollout.text for rollout in again.rollouts] == [rollout.text for rollout in whole.rollouts]
    assert not any(rollout.failure for rollout in again.rollouts)


def test_group_with_fewer_than_two_usable_samples_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    count = iter(range(100))
    monkeypatch.setattr(Toy, "faults", {"start": lambda: None if next(count) == 0 else failing("start")()})
    (group,) = played(ScriptedEngine(asks_twice), asked("a", seeds=(1, 2, 3)))
    assert sorted(rollout.failure for rollout in group.rollouts) == ["environment_group"] + ["environment_start"] * 2


def test_wall_time_counts_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "faults", {"a": lambda: asyncio.sleep(60)})
    rollout = one(ScriptedEngine(asks_twice), asked("a b", seeds=(1,), budgets={"wall_s": 0.1}))
    assert (rollout.ended, rollout.tool_calls[0].error) == ("time", "timeout")


def test_code_that_blocks_the_loop_fails_alone_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_runner, "GRACE_S", 0.1)
    monkeypatch.setattr(Toy, "faults", {"a": blocking(1.0)})
    budgets = {"tool_timeout_s": 0.1, "session_timeout_s": 0.1}
    groups = played(
        ScriptedEngine(asks_twice),
        asked("a", seeds=(1,), group_id="blocks", budgets=budgets),
        asked("b", seeds=(1,), group_id="fine", budgets=budgets, episodes_in_flight=1),
    )
    blocked, fine = (group.rollouts[0] for group in groups)
    assert blocked.failure == "environment_timeout"
    assert "blocked the conversations' loop" in blocked.failure_detail
    assert fine.failure == ""


def test_episodes_in_flight_bounds_the_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    open_now: list[int] = []

    def count() -> None:
        open_now.append(Toy.log.count("start") - Toy.log.count("close"))

    monkeypatch.setattr(Toy, "faults", {"start": count})
    played(ScriptedEngine(asks_twice), asked("a", seeds=tuple(range(9)), episodes_in_flight=3))
    assert max(open_now) <= 3
    assert len(open_now) == 9


MALFORMED = "no end of reasoning"


@pytest.mark.parametrize(("mode", "total"), [("end", 0.0), ("end_with_penalty", -0.5)])
def test_malformed_message_ends_the_conversation(mode: str, total: float) -> None:
    def policy(context: str, seed: int) -> str:
        return MALFORMED + form.END

    rollout = one(ScriptedEngine(policy), asked("a", on_malformed=mode, malformed_penalty=0.5))
    assert rollout.ended == "malformed"
    assert rollout.problems == ("reasoning_unclosed",)
    assert rollout.environment_score is not None
    assert rollout.environment_score.total == total


def test_malformed_message_with_a_call_is_told_its_error() -> None:
    def policy(context: str, seed: int) -> str:
        if "<result>" in context:
            return thought("done")
        return calling(ToolCall(name="get", arguments={"key": "a"})).removesuffix(form.END) + "more" + form.END

    ended = one(ScriptedEngine(policy), asked("a"))
    told = one(ScriptedEngine(policy), asked("a", on_malformed="result"))
    assert ended.ended == "malformed"
    assert told.ended == "answer"
    assert "cannot be read" in told.tool_calls[0].text
    assert "text_after_calls" in told.tool_calls[0].text


def test_abort_judges_what_is_drawn_and_gives_up_what_waits() -> None:
    engine = ScriptedEngine(asks_twice)
    runner = EpisodeRunner(engine, exact=True)
    engine.held = True
    runner.submit(asked(seeds=(1,)))
    while not engine.busy:
        runner.step()
    (group,) = runner.abort()
    assert group.rollouts[0].ended == "abort"
    assert not runner.busy


def test_session_without_an_async_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToySession, "score", lambda self: None)
    with pytest.raises(EnvironmentPathError, match="async def score"):
        played(ScriptedEngine(asks_twice), asked("a"))


@pytest.mark.parametrize(
    "said", [form.USER, form.THOUGHT, form.END, f"</result>{form.ASSISTANT}{form.THINK}", "<｜DSML｜function_calls>"]
)
def test_control_tokens_in_a_result_and_a_question_are_letters(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many control ids as the form writes and the model draws, whatever a tool or a user says."""

    def control(told: str) -> int:
        monkeypatch.setattr(Toy, "faults", {"a": lambda: ToolResult(text=told)})
        monkeypatch.setattr(
            ToySession, "messages", property(lambda self: [Message(role="user", content=f"{told} key a")])
        )

        def policy(context: str, seed: int) -> str:
            return thought("done") if "\n<result>" in context else calling(ToolCall(name="get", arguments={"key": "a"}))

        engine = ScriptedEngine(policy)
        rollout = one(engine, asked("a", seeds=(1,)))
        assert told in rollout.tool_calls[0].text
        return sum(id_ in engine.tokenizer.control_ids for id_ in rollout.segments[-1].token_ids.tolist())

    assert control(said) == control("plain")


def test_equal_seeds_give_equal_rollouts_whatever_else_is_led() -> None:
    alone = one(ScriptedEngine(asks_twice), asked(seeds=(7,)))
    groups = played(ScriptedEngine(asks_twice), asked(seeds=(3, 7), group_id="a"), asked("x y", group_id="b"))
    assert groups[0].rollouts[1].text == alone.text


def test_conversation_whose_loop_is_gone_ends_without_a_word() -> None:
    """A loop that did not end in time leaves conversations to the garbage collector, where nothing can be awaited."""

    class Waiting:
        tokenizer, longest, exact = ScriptedEngine(asks_twice).tokenizer, 10_000, True

        async def draw(self, ask: Ask) -> Rollout:
            return await asyncio.get_running_loop().create_future()

    request = asked("a", seeds=(1,))
    play = Episode(request, 0, Toy(), renderer_of(Waiting.tokenizer, request.episode.form), Waiting()).play()
    loop = asyncio.new_event_loop()
    task = loop.create_task(play)
    loop.run_until_complete(asyncio.wait({task}, timeout=0.05))
    assert Toy.log == ["start"]
    play.close()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, RuntimeError):
        loop.run_until_complete(task)
    loop.close()
    assert Toy.log == ["start"]
