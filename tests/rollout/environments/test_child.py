"""Children that do as they should, and every way in which they do not."""

import asyncio
import os
import select
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from samepath.rollout.environments.child import MAX_OUTPUT_CHARS, Child, Program, RequestError
from samepath.rollout.environments.protocol import EnvironmentFailure

ADAPTER = str(Path(__file__).parent / "faulty_adapter.py")
LONG_S = 60.0


def program(**changes: Any) -> Program:
    return Program(**{"what": "the child", "adapter": ADAPTER, **changes})


def with_child(body: Callable[[Child], Awaitable[Any]], **changes: Any) -> Any:
    """What `body` makes of a child in which session 0 runs."""

    async def run() -> Any:
        child = await Child.start(program(**changes), LONG_S)
        try:
            await child.ask("start", {"session": 0, "row": {}, "seed": 5}, LONG_S)
            return await body(child)
        finally:
            await child.end()

    return asyncio.run(run())


def call(child: Child, name: str, limit_s: float = LONG_S, **arguments: Any) -> Awaitable[Any]:
    return child.ask("call", {"session": 0, "name": name, "arguments": arguments, "turn": 1}, limit_s)


def failure(kind: str, match: str, body: Callable[[Child], Awaitable[Any]], **changes: Any) -> EnvironmentFailure:
    with pytest.raises(EnvironmentFailure, match=match) as caught:
        with_child(body, **changes)
    assert caught.value.kind == kind
    return caught.value


async def says(mark: Path, text: str) -> None:
    """Until a file has this text, ten seconds at most."""
    for _ in range(1000):
        if mark.is_file() and mark.read_text() == text:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{mark} never said {text}")


def gone(pid: int) -> bool:
    """True once a process has ended; whoever adopted it may not have reaped it. The kernel has five seconds for a signal that was sent."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_answers_come_in_any_order_to_those_who_asked() -> None:
    async def body(child: Child) -> Any:
        return await asyncio.gather(
            *(call(child, "rendezvous", key=key) for key in "ab"), call(child, "echo", text="ü\n")
        )

    first, second, third = with_child(body)
    assert (first["text"], second["text"], third["text"]) == ("a", "b", "ü\n")


def test_options_and_variables_reach_the_child_and_keys_of_the_parent_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "do not tell")

    async def body(child: Child) -> Any:
        started = await child.ask("start", {"session": 1, "row": {}, "seed": 9}, LONG_S)
        return started, [(await call(child, "variable", key=key))["text"] for key in ("A_SECRET", "GIVEN", "PATH")]

    started, values = with_child(body, options={"greeting": "hello"}, environment={"GIVEN": "yes"})
    assert (started["greeting"], started["seed"]) == ("hello", 9)
    assert values == ["not set", "yes", os.environ["PATH"]]


def test_hashes_of_text_are_the_same_in_every_child() -> None:
    async def body(child: Child) -> Any:
        return await child.ask("start", {"session": 1, "row": {}, "seed": 9}, LONG_S)

    assert with_child(body) == with_child(body)


def test_interpreter_of_the_option_runs_the_child_without_the_folder_of_its_file(tmp_path: Path) -> None:
    interpreter = tmp_path / "another-python"
    interpreter.symlink_to(sys.executable)

    async def body(child: Child) -> Any:
        return (await call(child, "where"))["text"]

    assert with_child(body, python=str(interpreter)).split()[1].endswith("foreign") is False
    assert Path(os.readlink(interpreter)) == Path(sys.executable)


def test_what_foreign_code_prints_breaks_nothing_and_only_its_end_is_kept() -> None:
    async def body(child: Child) -> Any:
        quiet = await call(child, "noisy", megabytes=20)
        assert len(child._output) <= MAX_OUTPUT_CHARS
        return quiet["text"], await asyncio.gather(call(child, "die", code=3), return_exceptions=True)

    text, (error,) = with_child(body)
    assert text == "quiet"
    assert isinstance(error, EnvironmentFailure)
    assert error.kind == "died"
    assert "exit code 3" in error.detail
    assert error.detail.endswith("about to die")
    assert "from below" in error.detail
    assert len(error.detail) < MAX_OUTPUT_CHARS + 200


def test_death_fails_every_request_and_all_later_ones() -> None:
    async def body(child: Child) -> Any:
        results = await asyncio.gather(call(child, "hang"), call(child, "kill"), return_exceptions=True)
        return [*results, *await asyncio.gather(call(child, "echo", text=""), return_exceptions=True)], child.alive

    errors, alive = with_child(body)
    assert [error.kind for error in errors] == ["died", "died", "died"]
    assert all("SIGKILL" in error.detail for error in errors)
    assert not alive


def test_request_without_an_answer_times_out_is_given_up_there_and_the_child_goes_on(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    async def body(child: Child) -> Any:
        with pytest.raises(EnvironmentFailure, match=r"no answer to call for 0\.5 s") as caught:
            await call(child, "hang", limit_s=0.5, mark=str(mark))
        await says(mark, "given up")
        return caught.value.kind, (await call(child, "echo", text="still here"))["text"]

    assert with_child(body) == ("timeout", "still here")


def test_caller_who_is_cancelled_gives_the_request_up(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    async def body(child: Child) -> Any:
        asked = asyncio.ensure_future(call(child, "hang", mark=str(mark)))
        await says(mark, "begun")
        asked.cancel()
        await says(mark, "given up")
        return (await call(child, "echo", text="still here"))["text"]

    assert with_child(body) == "still here"


def test_child_that_blocks_is_killed_all_the_same() -> None:
    async def body(child: Child) -> Any:
        pid = int((await call(child, "where"))["text"].split()[0])
        with pytest.raises(EnvironmentFailure, match="no answer"):
            await call(child, "block", limit_s=0.05)
        await child.end()
        return pid

    assert gone(with_child(body))


def test_end_takes_everything_that_the_child_started_with_it() -> None:
    async def body(child: Child) -> Any:
        return [int(pid) for pid in (await call(child, "offspring"))["text"].split()]

    pids = with_child(body)
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
    ("text", "times", "match"),
    [
        ("hello\n", 1, "no JSON"),
        ("\xff\xfe\x00\n", 1, "no JSON"),
        ("[1]\n", 1, "no answer"),
        ('{"id": "1", "result": 2}\n', 1, "no answer"),
        ('{"id": 99, "result": 2}\n', 1, "nobody asked for"),
        ('{"id": 2, "error": "text"}\n', 1, "no object"),
        ("[" * 100_000 + "\n", 1, "no JSON"),
        ("x" * 2**20, 17, "more than 16777216 bytes"),
    ],
)
def test_lines_that_are_no_answers_end_the_child(text: str, times: int, match: str) -> None:
    failure("protocol", match, lambda child: call(child, "wire", text=text, times=times))


@pytest.mark.parametrize(
    ("what", "match"), [("set", "JSON cannot say"), ("nan", "JSON cannot say"), ("huge", "can be handed over")]
)
def test_results_that_cannot_be_handed_over_are_errors_of_their_request(what: str, match: str) -> None:
    async def body(child: Child) -> Any:
        with pytest.raises(RequestError, match=match) as caught:
            await call(child, "odd", what=what)
        return caught.value.kind, (await call(child, "echo", text="still here"))["text"]

    assert with_child(body) == ("protocol", "still here")


def test_request_that_is_too_long_is_refused_before_it_is_sent() -> None:
    failure("protocol", "can be sent", lambda child: call(child, "echo", text="x" * (17 * 2**20)))


@pytest.mark.parametrize(("kind", "expected"), [("memory", "resource"), ("other", "raised")])
def test_errors_of_a_request_say_what_they_are(kind: str, expected: str) -> None:
    async def body(child: Child) -> Any:
        with pytest.raises(RequestError) as caught:
            await call(child, "fail", kind=kind)
        return caught.value.kind

    assert with_child(body) == expected


async def nothing(child: Child) -> None:
    pass


def test_interpreter_that_is_not_there_is_named() -> None:
    failure("start", "python must name an interpreter.*'/no/such/python'", nothing, python="/no/such/python")
    failure("start", "python must name an interpreter", nothing, python=ADAPTER)


def test_package_that_is_missing_is_named_with_the_command_that_installs_it() -> None:
    found = failure("start", "a_package_that_nobody_has", nothing, options={"fault": "package"}, install="a-package==1")
    assert found.detail.endswith(f"{sys.executable} -m pip install 'a-package==1'")


def test_child_that_cannot_begin_says_why() -> None:
    assert "the last words" in failure("start", "exit code 7", nothing, options={"fault": "exit"}).detail
    failure("start", "ValueError: these options cannot be", nothing, options={"fault": "raise"})
    failure("start", "unexpected keyword argument 'nonsense'", nothing, options={"nonsense": 1})


def test_child_that_never_opens_is_ended_in_time() -> None:
    with pytest.raises(EnvironmentFailure, match=r"no answer to open for 0\.05 s") as caught:
        asyncio.run(Child.start(program(options={"fault": "hang"}), 0.05))
    assert caught.value.kind == "start"


def test_start_that_is_cancelled_leaves_no_process() -> None:
    async def run() -> None:
        starting = asyncio.ensure_future(Child.start(program(options={"fault": "hang"}), LONG_S))
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()

    asyncio.run(run())


def test_child_dies_with_the_process_that_started_it() -> None:
    """Killed, it can tell nobody; the child runs no loop then that would see its socket close."""
    code = f"""
import asyncio
from samepath.rollout.environments.child import Child, Program
async def main():
    child = await Child.start(Program(what="it", adapter={ADAPTER!r}), 60.0)
    await child.ask("start", {{"session": 0, "row": {{}}, "seed": 0}}, 60.0)
    print((await child.ask("call", {{"session": 0, "name": "where", "arguments": {{}}, "turn": 1}}, 60.0))["text"].split()[0], flush=True)
    await child.ask("call", {{"session": 0, "name": "block", "arguments": {{}}, "turn": 2}}, 60.0)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    handle = os.pidfd_open(pid)
    parent.kill()
    parent.communicate(timeout=LONG_S)
    assert select.select([handle], [], [], LONG_S)[0] == [handle]
    os.close(handle)
