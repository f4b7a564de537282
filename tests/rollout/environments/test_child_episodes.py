"""Faults of sessions in real child processes, as a conversation beside an engine meets them: what the model reads, and what fails the sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from samepath.model.text.conversation import Message, ToolCall, ToolSchema
from samepath.model.text.encodings import dsml_text as form
from samepath.rewards.score import Score
from samepath.rollout.environments.child import Program
from samepath.rollout.environments.child_sessions import ChildLimits, Children, ChildSession
from samepath.rollout.environments.episode_runner import EpisodeRunner
from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.request import EpisodeRequest
from samepath.rollout.environments.settings import EnvironmentSettings, EpisodeSettings
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group, Prompt
from tests.scripted_engine import ScriptedEngine, calling, thought

ADAPTER = str(Path(__file__).parent / "faulty_adapter.py")
LONG_S = 60.0
ANY = {"type": "object", "properties": {}, "additionalProperties": True}
TOOLS = [
    ToolSchema(function={"name": name, "description": "", "parameters": ANY})
    for name in ("echo", "hang", "die", "fail", "noisy", "long", "odd", "wire")
]


class FaultySession(ChildSession):
    answer = ""

    async def reply(self, content: str) -> Message | None:
        self.answer = content
        return None

    async def score(self) -> Score:
        return Score(total=1.0, parts={"answered": float(bool(self.answer))})


class Faulty:
    """An environment whose child does what the recipe or the model tells it."""

    starts = 0

    def __init__(self, **options: Any) -> None:
        program = Program(what="the child", adapter=ADAPTER, options=options)
        self._children = Children(program, ChildLimits(sessions_per_child=4))

    def tasks(self, split: str) -> Sequence[EnvironmentRow]:
        return [EnvironmentRow(row_id="train-0", text="Go on.")]

    async def start(self, row: EnvironmentRow, seed: int) -> FaultySession:
        type(self).starts += 1
        session = FaultySession(
            children=self._children,
            place=await self._children.take(),
            number=seed,
            messages=(Message(role="user", content="Go on."),),
            tools=TOOLS,
        )
        try:
            await session.ask("start", {"row": dict(row.data), "seed": seed}, LONG_S)
        except BaseException:
            await session.close()
            raise
        return session


def played(*calls: ToolCall, options: Any = (), row: Any = (), **budgets: Any) -> Group:
    """A group of two whose model makes these calls in one message, then answers."""

    def policy(context: str, seed: int) -> str:
        answered = form.RESULTS_OPEN.strip() in context.rpartition(form.USER)[2]
        return thought("done") if answered else calling(*calls)

    Faulty.starts = 0
    runner = EpisodeRunner(ScriptedEngine(policy), exact=True)
    request = EpisodeRequest(
        group_id="g",
        prompt=Prompt(prompt_id="p", text="Go on.", token_ids=()),
        sampling=SamplingSettings(max_new_tokens=2000),
        seeds=(1, 2),
        environment=EnvironmentSettings(environment=f"{__name__}:Faulty", options=dict(options)),
        row=EnvironmentRow(row_id="train-0", text="Go on.", data=dict(row)),
        episode=EpisodeSettings.model_validate({"budgets": budgets}),
    )
    assert runner.submit(request) is None
    done: list[Group] = []
    while runner.busy:
        done += runner.step()
    runner.abort()
    (group,) = done
    return group


def test_tool_that_hangs_is_told_to_the_model_and_the_conversation_is_judged() -> None:
    group = played(ToolCall(name="hang"), tool_timeout_s=0.05)
    for rollout in group.rollouts:
        (hung,) = rollout.tool_calls
        assert (hung.text, hung.error) == ("Error: hang gave no result within 0.05 s.", "timeout")
        assert (rollout.failure, rollout.ended) == ("", "answer")
        assert rollout.environment_score == Score(total=1.0, parts={"answered": 1.0})


def test_floods_of_tools_are_cut_and_the_conversation_is_judged() -> None:
    calls = [
        ToolCall(name="long", arguments={"length": 500_000}),
        ToolCall(name="noisy", arguments={"megabytes": 3}),
        ToolCall(name="odd", arguments={"what": "half"}),
        ToolCall(name="echo", arguments={"text": "as it should be"}),
    ]
    group = played(*calls, max_result_chars=100)
    for rollout in group.rollouts:
        assert (rollout.failure, rollout.ended) == ("", "answer")
        assert rollout.environment_score == Score(total=1.0, parts={"answered": 1.0})
        long, noisy, half, good = rollout.tool_calls
        assert long.text.startswith("z" * 100 + "\n[")
        assert len(long.text) < 150
        assert (noisy.text, half.text, good.text) == ("quiet", "a?b", "as it should be")


@pytest.mark.parametrize(
    ("call", "failure", "detail"),
    [
        (ToolCall(name="die", arguments={"code": 3}), "environment_died", "exit code 3"),
        (ToolCall(name="fail", arguments={"kind": "other"}), "environment_died", "not as it should be"),
        (ToolCall(name="fail", arguments={"kind": "memory"}), "environment_resource", "MemoryError"),
        (ToolCall(name="odd", arguments={"what": "number"}), "environment_protocol", "must be"),
        (ToolCall(name="wire", arguments={"text": "\u00ff\u00fe\n"}), "environment_protocol", "no JSON"),
    ],
)
def test_child_that_fails_is_tried_once_more_and_gives_no_reward(call: ToolCall, failure: str, detail: str) -> None:
    group = played(call)
    assert [rollout.failure for rollout in group.rollouts] == [failure, failure]
    assert all(detail in rollout.failure_detail for rollout in group.rollouts)
    assert all(rollout.environment_score is None for rollout in group.rollouts)
    assert Faulty.starts == 4


@pytest.mark.parametrize(
    ("options", "row", "detail"),
    [({"fault": "raise"}, {}, "these options cannot be"), ({}, {"refuse": True}, "no such world")],
)
def test_session_that_cannot_start_fails_its_samples(options: Any, row: Any, detail: str) -> None:
    group = played(options=options, row=row)
    assert [rollout.failure for rollout in group.rollouts] == ["environment_start"] * 2
    assert all(detail in rollout.failure_detail for rollout in group.rollouts)
    assert Faulty.starts == 4
