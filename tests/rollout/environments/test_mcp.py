"""Real MCP servers as environments, over standard streams and over HTTP on loopback."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from samepath.model.text.conversation import Message
from samepath.rollout.environments.mcp import McpServer, McpSession
from samepath.rollout.environments.protocol import EnvironmentFailure
from tests.foreign_python import interpreter_with

SERVER = str(Path(__file__).parent / "mcp_test_server.py")
ROWS = [
    {"question": "What does an apple cost?", "answer": "3", "shop": "north"},
    {"question": "And a pear?", "answer": "4"},
    {"question": "And nothing?", "answer": "0", "shop": "closed"},
]
LONG_S = 60.0


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("shop") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def shop(python: str, rows: str, **changes: Any) -> McpServer:
    options = {"path": rows, "held_out_path": rows, "command": ["{python}", SERVER], "python": python, **changes}
    return McpServer(**options)


class Market:
    """A child with one server that all sessions share, on an event loop of its own: starting either takes a second."""

    def __init__(self, python: str, rows: str) -> None:
        self._python, self._rows = python, rows
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._first = shop(python, rows, shared=True)
        self._anchor = self._wait(self._first.start(self._first.tasks("train")[0], 1))

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LONG_S)

    def run(self, body: Callable[[McpSession], Awaitable[Any]], **changes: Any) -> Any:
        """What `body` makes of a session of an environment with these options, in the same child."""
        environment = shop(self._python, self._rows, shared=True, **changes)
        environment._children, environment._numbers = self._first._children, self._first._numbers
        return self._wait(within(environment, body))

    def close(self) -> None:
        self._wait(self._anchor.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONG_S)
        self._loop.close()


async def within(
    environment: McpServer, body: Callable[[McpSession], Awaitable[Any]], row: int = 0, seed: int = 1
) -> Any:
    session = await environment.start(environment.tasks("train")[row], seed)
    try:
        return await body(session)
    finally:
        await session.close()


@pytest.fixture(scope="module")
def python() -> str:
    return interpreter_with("mcp")


@pytest.fixture(scope="module")
def market(python: str, rows: str) -> Iterator[Market]:
    market = Market(python, rows)
    yield market
    market.close()


def test_tools_are_those_of_the_server_and_their_results_are_read(market: Market) -> None:
    async def body(session: McpSession) -> Any:
        calls = [
            session.call("price", {"item": "apple"}, LONG_S),
            session.call("price", {"item": "grape"}, LONG_S),
            session.call("price", {"item": 5}, LONG_S),
            session.call("no_such_tool", {}, LONG_S),
            session.call("picture", {}, LONG_S),
        ]
        return session.tools, session.messages, await asyncio.gather(*calls)

    tools, messages, (apple, grape, wrong, unknown, picture) = market.run(body, system="Be brief.")
    assert [tool.name for tool in tools] == ["price", "set_price", "variable", "hang", "die", "flood", "picture"]
    assert tools[0].function["description"] == "Price of one item."
    assert tools[0].parameters["properties"]["item"]["type"] == "string"
    assert messages == (Message(role="system", content="Be brief."), Message(role="user", content=ROWS[0]["question"]))
    assert (apple.text, apple.error) == ("3", "")
    assert (grape.text, grape.error) == ("Error executing tool price", "raised")
    assert wrong.error in ("raised", "bad_arguments")
    assert unknown.error in ("raised", "bad_arguments")
    assert "no_such_tool" in unknown.text
    assert (picture.text, picture.error) == ("a dot:\n[image, image/png, not shown]", "")


def test_tools_option_keeps_the_named_ones_in_that_order(market: Market) -> None:
    async def body(session: McpSession) -> Any:
        return [tool.name for tool in session.tools], session.messages

    names, messages = market.run(body, tools=["flood", "price"])
    assert names == ["flood", "price"]
    assert [message.role for message in messages] == ["user"]
    with pytest.raises(EnvironmentFailure, match="has no tool prize; it has price, ") as caught:
        market.run(body, tools=["prize"])
    assert caught.value.kind == "start"


def test_answer_is_judged_by_the_reward_function_of_the_recipe(market: Market) -> None:
    async def body(session: McpSession) -> Any:
        before = await session.score()
        assert await session.reply("It costs\n#### 3") is None
        return before, await session.score()

    silent, wrong = market.run(body)
    assert (silent.total, silent.status) == (0.0, "ok")
    assert wrong.total == 0.0
    _, right = market.run(
        body, reward={"right": {"function": "samepath.rewards.exact:number", "options": {"marker": "####"}}}
    )
    assert (right.total, right.status) == (1.0, "ok")


def test_shared_server_knows_no_row_and_what_one_session_changes_all_see(market: Market) -> None:
    async def change(session: McpSession) -> Any:
        await session.call("set_price", {"item": "melon", "value": 9}, LONG_S)

    async def look(session: McpSession) -> Any:
        price = await session.call("price", {"item": "melon"}, LONG_S)
        return price.text, (await session.call("variable", {"key": "SAMEPATH_SEED"}, LONG_S)).text

    market.run(change)
    assert market.run(look) == ("9", "not set")


def test_tool_that_hangs_is_given_up_and_the_server_goes_on(market: Market) -> None:
    async def body(session: McpSession) -> Any:
        return await session.call("hang", {}, 0.05), await session.call("price", {"item": "pear"}, LONG_S)

    hung, price = market.run(body)
    assert (hung.text, hung.error) == ("Error: hang gave no result within 0.05 s.", "timeout")
    assert price.text == "4"


def test_flood_of_a_tool_is_cut(market: Market) -> None:
    async def body(session: McpSession) -> Any:
        return await session.call("flood", {"length": 2_000_000}, LONG_S)

    result = market.run(body)
    assert result.text.startswith("x" * (2**18 - 100))
    assert result.text.endswith("[cut: 2000000 characters in all]")
    assert len(result.text) <= 2**18


def test_each_session_has_a_server_of_its_own_that_knows_row_and_seed(python: str, rows: str) -> None:
    """And its death, or that it cannot begin, is no matter of the others in the same child."""

    async def run() -> None:
        environment = shop(python, rows, environment={"MORE": "given"})
        apple, pear, closed = environment.tasks("train")
        first, second = await asyncio.gather(environment.start(apple, 77), environment.start(pear, 78))
        assert first.place is second.place
        await second.call("set_price", {"item": "apple", "value": 9}, LONG_S)
        told = [
            (await first.call("variable", {"key": key}, LONG_S)).text
            for key in ("SAMEPATH_SEED", "MORE", "SAMEPATH_ROW")
        ]
        assert [*told[:2], json.loads(told[2])] == ["77", "given", ROWS[0]]
        with pytest.raises(EnvironmentFailure) as caught:
            await environment.start(closed, 79)
        assert caught.value.kind == "start"
        with pytest.raises(EnvironmentFailure, match="ended") as caught:
            await second.call("die", {}, LONG_S)
        assert caught.value.kind == "died"
        await second.close()
        assert (await first.call("price", {"item": "apple"}, LONG_S)).text == "3"
        await first.close()

    asyncio.run(run())


def test_server_is_reached_over_http_and_its_end_is_a_failure(python: str, rows: str) -> None:
    async def run(url: str) -> None:
        environment = shop(python, rows, command=[], url=url)
        row = environment.tasks("train")[0]
        session = await environment.start(row, 1)
        assert (await session.call("price", {"item": "pear"}, LONG_S)).text == "4"
        with pytest.raises(EnvironmentFailure) as caught:
            await session.call("die", {}, LONG_S)
        assert caught.value.kind == "died"
        with pytest.raises(EnvironmentFailure, match=url) as caught:
            await environment.start(row, 1)
        assert caught.value.kind == "start"
        await session.close()

    process = subprocess.Popen([python, SERVER, "http"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        asyncio.run(run(f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"))
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_interpreter_without_the_package_is_told_what_to_install(tmp_path: Path, rows: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True, timeout=60)
    bare = tmp_path / "bin" / "python"
    with pytest.raises(
        EnvironmentFailure, match=r"No module named '(mcp|mcp_types)'.* -m pip install 'mcp>=2\.0,<3'"
    ) as caught:
        asyncio.run(within(shop(str(bare), rows), never))
    assert caught.value.kind == "start"


async def never(session: McpSession) -> None:
    raise AssertionError("no session can begin here")


def test_rows_come_from_a_file_and_its_held_out_share(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "1+1?", "a": 2}\n{"q": "2+2?", "a": 4}\n')
    train = McpServer(path=str(path), held_out_path=rows, question="q", command=["x"]).tasks("train")
    assert [(row.text, row.data) for row in train] == [("1+1?", {"q": "1+1?", "a": 2}), ("2+2?", {"q": "2+2?", "a": 4})]
    environment = McpServer(path=rows, held_out_share=0.5, command=["x"])
    splits = [{row.text for row in environment.tasks(split)} for split in ("train", "held_out")]
    assert splits[0] | splits[1] == {row["question"] for row in ROWS}
    assert not splits[0] & splits[1]
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: 'question' must be the question"):
        McpServer(path=str(path), held_out_share=0.5, command=["x"]).tasks("train")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({}, "exactly one of command and url"),
        ({"command": ["x"], "url": "http://127.0.0.1/mcp"}, "exactly one of command and url"),
        ({"url": "127.0.0.1"}, "url must begin with http"),
        ({"command": ["x"], "sessions_per_child": 0}, "sessions_per_child must be at least 1"),
        ({"command": ["x"], "start_timeout_s": 0.0}, "start_timeout_s must be more than 0"),
        ({"command": ["x"], "held_out_share": 0.0}, "exactly one of held_out_path and held_out_share"),
        ({"command": ["x"], "reward": "no path"}, "reward|path|function"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        McpServer(**{"path": "rows.jsonl", "held_out_share": 0.1, **changes})
