"""Which child a session is in, what one session's end means for the others, and what is taken for a tool's result."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from samepath.rollout.environments.child import Program
from samepath.rollout.environments.child_sessions import (
    MAX_RESULT_CHARS,
    ChildLimits,
    Children,
    ChildSession,
    clean,
    read_tools,
)
from samepath.rollout.environments.protocol import EnvironmentFailure

ADAPTER = str(Path(__file__).parent / "faulty_adapter.py")
LONG_S = 60.0


def children(sessions_per_child: int = 1, start_timeout_s: float = LONG_S, **options: Any) -> Children:
    program = Program(what="the child", adapter=ADAPTER, options=options)
    return Children(program, ChildLimits(sessions_per_child=sessions_per_child, start_timeout_s=start_timeout_s))


async def begun(of: Children, number: int) -> ChildSession:
    session = ChildSession(children=of, place=await of.take(), number=number)
    await session.ask("start", {"row": {}, "seed": number}, LONG_S)
    return session


async def pid(session: ChildSession) -> str:
    return (await session.call("where", {}, LONG_S)).text


def alone(body: Callable[[ChildSession], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        session = await begun(children(), 0)
        try:
            return await body(session)
        finally:
            await session.close()

    return asyncio.run(run())


def test_sessions_share_a_child_up_to_its_limit_and_it_ends_with_the_last() -> None:
    async def run() -> None:
        of = children(sessions_per_child=2)
        sessions = await asyncio.gather(*(begun(of, number) for number in range(3)))
        pids = [await pid(session) for session in sessions]
        assert pids[0] == pids[1] != pids[2]
        await sessions[0].close()
        fourth = await begun(of, 3)
        assert await pid(fourth) == pids[1]
        await sessions[1].close()
        await fourth.close()
        fifth = await begun(of, 4)
        assert await pid(fifth) == pids[2]
        await fifth.close()
        await sessions[2].close()
        assert of._places == []

    asyncio.run(run())


def test_child_that_died_takes_its_sessions_along_and_no_new_ones() -> None:
    async def run() -> None:
        of = children(sessions_per_child=3)
        first, second = await begun(of, 0), await begun(of, 1)
        with pytest.raises(EnvironmentFailure, match="exit code 4") as caught:
            await first.call("die", {"code": 4}, LONG_S)
        assert caught.value.kind == "died"
        with pytest.raises(EnvironmentFailure, match="exit code 4"):
            await second.call("echo", {"text": ""}, LONG_S)
        third = await begun(of, 2)
        assert (await third.call("echo", {"text": "alive"}, LONG_S)).text == "alive"
        for session in (first, second, third):
            await session.close()
        assert of._places == []

    asyncio.run(run())


def test_child_that_does_not_answer_a_close_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samepath.rollout.environments.child_sessions.CLOSE_WAIT_S", 0.05)

    async def run() -> None:
        of = children()
        session = await begun(of, 0)
        blocked = await session.call("block", {}, 0.05)
        assert (blocked.error, blocked.text) == ("timeout", "Error: block gave no result within 0.05 s.")
        child = session.place.child
        await session.close()
        assert child._process.returncode == -9
        assert not child.alive

    asyncio.run(run())


def test_start_that_fails_fails_all_who_waited_for_it_and_leaves_nothing() -> None:
    async def run() -> None:
        of = children(sessions_per_child=2, fault="raise")
        failures = await asyncio.gather(begun(of, 0), begun(of, 1), return_exceptions=True)
        assert [failure.kind for failure in failures] == ["start", "start"]
        assert of._places == []

    asyncio.run(run())


def test_start_takes_no_longer_than_its_limit() -> None:
    async def run() -> None:
        with pytest.raises(EnvironmentFailure, match=r"no answer to open for 0\.05 s") as caught:
            await children(start_timeout_s=0.05, fault="hang").take()
        assert caught.value.kind == "start"

    asyncio.run(run())


def test_waiting_for_a_child_can_be_cancelled() -> None:
    async def run() -> None:
        of = children(fault="hang")
        taking = asyncio.ensure_future(of.take())
        while not of._places:
            await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait([taking])
        assert taking.cancelled()
        assert of._places == []

    asyncio.run(run())


def test_sessions_of_another_loop_have_a_child_of_their_own() -> None:
    async def run() -> None:
        of = children(sessions_per_child=9)
        first = await begun(of, 0)

        async def elsewhere() -> str:
            other = await begun(of, 1)
            found = await pid(other)
            await other.close()
            return found

        assert await asyncio.to_thread(asyncio.run, elsewhere()) != await pid(first)
        await first.close()

    asyncio.run(run())


def test_loop_that_ends_takes_its_children_along() -> None:
    """As the conversations' loop does: it cancels everything, the readers of children too, and waits a moment."""
    loop = asyncio.new_event_loop()
    of = children()

    going: list[bool] = []

    async def session() -> None:
        begun_here = await begun(of, 0)
        try:
            going.append(True)
            await asyncio.Event().wait()
        finally:
            await begun_here.close()

    task = loop.create_task(session())
    while not going:
        loop.run_until_complete(asyncio.sleep(0))
    process = of._places[0].child._process
    tasks = asyncio.all_tasks(loop)
    for one in tasks:
        one.cancel()
    loop.run_until_complete(asyncio.wait(tasks, timeout=LONG_S))
    loop.close()
    assert task.cancelled()
    assert process.returncode == -9
    assert of._places == []


def test_session_that_refuses_its_row_is_a_failure_to_start() -> None:
    async def body(session: ChildSession) -> Any:
        with pytest.raises(EnvironmentFailure, match="no such world") as caught:
            await session.ask("start", {"row": {"refuse": True}, "seed": 0}, LONG_S)
        return caught.value.kind

    assert alone(body) == "start"


@pytest.mark.parametrize(("kind", "expected"), [("memory", "resource"), ("other", "died")])
def test_tool_whose_adapter_raises_is_a_failure_of_the_environment(kind: str, expected: str) -> None:
    async def body(session: ChildSession) -> Any:
        with pytest.raises(
            EnvironmentFailure, match="the child: call: (MemoryError|RuntimeError: not as it should be)"
        ) as caught:
            await session.call("fail", {"kind": kind}, LONG_S)
        return caught.value.kind

    assert alone(body) == expected


@pytest.mark.parametrize("what", ["number", "nan"])
def test_result_that_is_none_is_a_breach_of_the_protocol(what: str) -> None:
    async def body(session: ChildSession) -> Any:
        with pytest.raises(EnvironmentFailure) as caught:
            await session.call("odd", {"what": what}, LONG_S)
        return caught.value.kind

    assert alone(body) == "protocol"


def test_text_that_cannot_be_encoded_or_is_too_long_is_mended() -> None:
    async def body(session: ChildSession) -> Any:
        half = await session.call("odd", {"what": "half"}, LONG_S)
        return half.text, (await session.call("long", {"length": 2 * MAX_RESULT_CHARS}, LONG_S)).text

    half, long = alone(body)
    assert half == "a?b"
    assert long.endswith(f"z … [cut: {2 * MAX_RESULT_CHARS} characters in all]")
    assert len(long) <= MAX_RESULT_CHARS
    assert clean("z" * MAX_RESULT_CHARS) == "z" * MAX_RESULT_CHARS


def test_calls_that_overlap_belong_to_one_message() -> None:
    async def body(session: ChildSession) -> Any:
        await asyncio.gather(*(session.call("rendezvous", {"key": key}, LONG_S) for key in "ab"))
        await session.call("echo", {"text": ""}, LONG_S)
        return await session.ask("score", {}, LONG_S)

    assert alone(body) == [["rendezvous", 1], ["rendezvous", 1], ["echo", 2]]


@pytest.mark.parametrize("tools", [5, [5], [{"name": "a"}], [{"name": "", "description": "", "parameters": {}}]])
def test_tools_that_are_none_are_a_breach_of_the_protocol(tools: Any) -> None:
    with pytest.raises(EnvironmentFailure, match="tools must have a name") as caught:
        read_tools(tools, "the child")
    assert caught.value.kind == "protocol"
