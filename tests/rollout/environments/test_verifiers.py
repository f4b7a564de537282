"""Real tasksets of verifiers as environments: rows, tools with a state, a user, rewards, stops, and what goes wrong."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from samepath.model.text.conversation import Message
from samepath.rollout.environments.protocol import EnvironmentFailure, EnvironmentRow
from samepath.rollout.environments.verifiers import ROWS_AT_ONCE, Verifiers, rows_of
from tests.foreign_python import interpreter_with

FOLDER = str(Path(__file__).parent / "tasksets")
LONG_S = 120.0


@pytest.fixture(scope="module")
def python() -> str:
    return interpreter_with("verifiers")


def made(python: str, **changes: Any) -> Verifiers:
    options = {"held_out_share": 0.3, "python": python, "environment": {"PYTHONPATH": FOLDER}, **changes}
    return Verifiers(**options)


def test_tools_state_rewards_and_stops_of_a_taskset(python: str) -> None:
    environment = made(python, taskset={"id": "shop_taskset", "count": 12})
    train, held_out = environment.tasks("train"), environment.tasks("held_out")
    assert {row.text for row in (*train, *held_out)} == {
        f"What do an apple and {number} pears cost?" for number in range(12)
    }
    assert {row.text for row in train} & {row.text for row in held_out} == set()
    row = train[0]
    answer = str(row.data["task"]["answer"])

    async def right(session: Any) -> None:
        assert [(message.role, message.content) for message in session.messages] == [
            ("system", "Look prices up."),
            ("user", row.text),
        ]
        assert sorted(tool.name for tool in session.tools) == ["shop_die", "shop_hang", "shop_price"]
        assert {tool.name: tool for tool in session.tools}["shop_price"].function["description"] == "Price of one item."
        assert (await session.call("shop_price", {"item": "apple"}, LONG_S)).text == "3"
        pear, wrong = await asyncio.gather(
            session.call("shop_price", {"item": "pear"}, LONG_S), session.call("shop_price", {"item": "plum"}, LONG_S)
        )
        assert ((pear.text, pear.error), wrong.error) == (("4", ""), "raised")
        unknown = await session.call("price", {}, LONG_S)
        assert (unknown.text, unknown.error) == ("there is no tool price", "bad_arguments")
        assert await session.reply(f" {answer}\n") is None
        score = await session.score()
        # Two prices were looked up in two messages, and the answer is the third.
        assert dict(score.parts) == {"right": 1.0, "looked": 2.0, "turns": 3.0}
        assert next(iter(score.parts)) == "right"
        assert score.total == 1.0 + 0.25 * 2 + 0.125 * 3

    async def stopped(session: Any) -> None:
        hung = await session.call("shop_hang", {}, 0.05)
        assert hung.error == "timeout"
        for _ in range(4):
            assert (await session.call("shop_price", {"item": "apple"}, LONG_S)).text == "3"
        late = await session.call("shop_price", {"item": "apple"}, LONG_S)
        assert (late.error, "ended" in late.text) == ("raised", True)
        # Five messages with calls had results when the task stopped it; what was said later is not judged.
        assert await session.reply(answer) is None
        assert dict((await session.score()).parts) == {"right": 0.0, "looked": 4.0, "turns": 5.0}

    async def dead(session: Any) -> None:
        with pytest.raises(EnvironmentFailure, match="the tool server 'shop' failed") as caught:
            await session.call("shop_die", {}, LONG_S)
        assert caught.value.kind == "died"

    async def run() -> None:
        sessions = await asyncio.gather(*(environment.start(row, 1) for _ in range(3)))
        assert len({session.place for session in sessions}) == 1
        results = await asyncio.gather(
            *(body(session) for body, session in zip((right, stopped, dead), sessions, strict=True)),
            return_exceptions=True,
        )
        for session in sessions:
            await session.close()
        for result in results:
            if result is not None:
                raise result

    asyncio.run(run())


def test_user_of_an_environment_answers_until_it_is_over(python: str) -> None:
    environment = made(python, taskset={"id": "guess_taskset"}, size=6, sessions_per_child=1)
    rows = sorted(
        [*environment.tasks("train"), *environment.tasks("held_out")], key=lambda row: row.data["task"]["idx"]
    )
    assert len({row.text for row in rows}) == 6
    assert rows[4].text.startswith("Guess my number. ")

    async def run() -> None:
        first, second = await asyncio.gather(*(environment.start(rows[4], 5) for _ in range(2)))
        assert first.place is not second.place
        assert first.messages == (Message(role="user", content="Guess my number."),)
        higher, same = await first.reply("1"), await second.reply("1")
        assert higher.role == "user"
        assert higher.content.startswith("higher 0.")
        # The random numbers of a process of its own begin at the seed.
        assert higher == same
        assert (await first.reply("5")).content.startswith("lower 0.")
        assert await first.reply("4") is None
        score = await first.score()
        assert (score.total, dict(score.parts)) == (1.0, {"found": 1.0, "turns": 3.0})
        # The other one is out of budget: what it said counts.
        left = await second.score()
        assert (left.total, dict(left.parts)) == (0.0, {"found": 0.0, "turns": 1.0})
        await asyncio.gather(first.close(), second.close())

    asyncio.run(run())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"taskset": {"id": "no_such_taskset"}}, "no_such_taskset"),
        ({"taskset": {"id": "guess_taskset"}}, "no end. Say with size"),
        (
            {"taskset": {"id": "shop_taskset"}, "played_by": "user-sim", "agent": "assistant"},
            "want a model of their own: user",
        ),
    ],
)
def test_what_cannot_be_played_is_said_at_the_start(python: str, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(EnvironmentFailure, match=match) as caught:
        made(python, **changes).tasks("train")
    assert caught.value.kind == "start"


def test_interpreter_without_the_package_is_told_what_to_install(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True, timeout=60)
    bare = tmp_path / "bin" / "python"
    with pytest.raises(
        EnvironmentFailure, match=r"No module named 'verifiers'.* -m pip install 'verifiers==0\.4\.0'"
    ) as caught:
        made(str(bare), taskset={"id": "any"}).tasks("train")
    assert caught.value.kind == "start"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"taskset": {"count": 1}}, "taskset must have an id"),
        ({"held_out_share": 0.0}, "exactly one of held_out_taskset and held_out_share"),
        ({"held_out_taskset": {"id": "b"}}, "exactly one of held_out_taskset and held_out_share"),
        ({"held_out_share": 1.0}, "between 0 and 1"),
        ({"size": -1}, "size must be 0"),
        ({"sessions_per_child": 0}, "sessions_per_child must be at least 1"),
        ({"start_timeout_s": 0.0}, "start_timeout_s must be more than 0"),
        ({"answer_timeout_s": -1.0}, "answer_timeout_s must be more than 0"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        made("", **{"taskset": {"id": "a"}, **changes})


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, **changes: Any) -> Verifiers:
    """An environment whose child runs `body` in place of the library's adapter."""
    adapter = tmp_path / "adapter.py"
    adapter.write_text(
        "import asyncio\nclass Adapter:\n    def __init__(self, **options):\n        self.options, self.given = options, 0\n"
        "    async def close(self, session):\n        pass\n" + body
    )
    environment = Verifiers(
        **{"taskset": {"id": "a", "part": "train"}, "held_out_taskset": {"id": "b", "part": "test"}, **changes}
    )
    for children in environment._children.values():
        monkeypatch.setattr(
            children,
            "program",
            children.program.__class__(what="it", adapter=str(adapter), options=children.program.options),
        )
    return environment


ROWS = f"""
    async def rows(self, count, size):
        part, wanted = self.options["taskset"]["part"], size or {ROWS_AT_ONCE} + 7
        given = [{{"text": f"{{part}} {{index}}", "data": {{"idx": index}}}} for index in range(self.given, min(wanted, self.given + count))]
        self.given += len(given)
        return given
    async def start(self, session, row, seed):
        role = "assistant" if row["idx"] == 1 else "user"
        return {{"messages": [{{"role": role, "content": f"{{self.options}}"}}], "tools": []}}
    async def reply(self, session, content):
        await asyncio.Event().wait()
    async def score(self, session):
        return {{"total": 1.5, "parts": {{"a": 1, "b": 0.5}}}}
"""


def test_rows_come_in_parts_from_the_taskset_of_each_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = stand_in(tmp_path, monkeypatch, ROWS)
    train, held_out = environment.tasks("train"), environment.tasks("held_out")
    assert [len(train), len(held_out)] == [ROWS_AT_ONCE + 7] * 2
    assert (train[-1].text, held_out[3].row_id) == (f"train {ROWS_AT_ONCE + 6}", "held_out-3")
    assert len(stand_in(tmp_path, monkeypatch, ROWS, size=3).tasks("train")) == 3

    async def opening(row: EnvironmentRow) -> str:
        session = await environment.start(row, 0)
        await session.close()
        return session.messages[0].content

    assert "'part': 'train'" in asyncio.run(opening(train[0]))
    assert "'part': 'test'" in asyncio.run(opening(held_out[0]))


def test_answer_has_its_time_and_the_last_message_must_be_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = stand_in(tmp_path, monkeypatch, ROWS, answer_timeout_s=0.5, size=3)

    async def run() -> None:
        rows = environment.tasks("train")
        with pytest.raises(EnvironmentFailure, match="the last message before the model's must be the user's"):
            await environment.start(rows[1], 0)
        session = await environment.start(rows[0], 0)
        with pytest.raises(EnvironmentFailure, match=r"no answer to reply for 0\.5 s") as caught:
            await session.reply("")
        assert caught.value.kind == "timeout"
        score = await session.score()
        assert (score.total, score.parts) == (1.5, {"a": 1.0, "b": 0.5})
        await session.close()

    asyncio.run(run())


def test_tasks_of_one_prompt_differ_by_what_is_hidden_and_true_copies_do_not() -> None:
    tasks = [{"text": "Guess", "data": {"idx": 0, "hidden": 1}}, {"text": "Guess", "data": {"idx": 1, "hidden": 2}}]
    copies = [{"text": "1+1?", "data": {"idx": index, "answer": 2}} for index in (2, 3)]
    bare = [{"text": "", "data": {"idx": 4, "goal": "a"}}]
    texts = [row.text for row in rows_of([*tasks, *copies, *bare], "train", "train")]
    assert texts == ['Guess {"hidden": 1}', 'Guess {"hidden": 2}', "1+1?", "1+1?", '{"goal": "a"}']
