"""A user with a script: what is said when, and how several answers are judged."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from samepath.model.text.conversation import Message
from samepath.rewards.score import Score
from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.scripted_user import ScriptedSession, ScriptedUser, mean_score

LINE: dict[str, Any] = {
    "user": ["12+34?", "Thanks.", "And 7 more?"],
    "answers": ["46", None, "53"],
    "system": "Be brief.",
}


def scripted(path: Path, *lines: dict[str, Any]) -> ScriptedUser:
    path.write_text("\n".join(map(json.dumps, lines)))
    reward = {"answer": "samepath.rewards.exact:number", "num_workers": 1}
    return ScriptedUser(path=str(path), reward=reward, held_out_share=1e-9)


async def talk(user: ScriptedUser, row: EnvironmentRow, answers: list[str]) -> tuple[list[Message | None], Score]:
    session = await user.start(row, seed=0)
    said = [await session.reply(answer) for answer in answers]
    score = await session.score()
    await session.close()
    return said, score


def test_scripted_user_says_every_message_whatever_the_answers(tmp_path: Path) -> None:
    user = scripted(tmp_path / "talks.jsonl", LINE)
    (row,) = user.tasks("train")
    session = asyncio.run(user.start(row, seed=0))
    assert session.messages == (Message(role="system", content="Be brief."), Message(role="user", content="12+34?"))
    assert (session.tools, asyncio.run(session.call("get", {}, 1.0)).error) == ((), "bad_arguments")
    said, _ = asyncio.run(talk(user, row, ["46", "You are welcome.", "wrong"]))
    assert said == [Message(role="user", content="Thanks."), Message(role="user", content="And 7 more?"), None]


@pytest.mark.parametrize(
    ("answers", "right", "share"),
    [(["46", "", "53"], 1.0, 1.0), (["46", "46", "46"], 0.0, 0.5), (["46"], 0.0, 0.5), ([], 0.0, 0.0)],
)
def test_scripted_user_judges_each_answer_that_has_a_right_one(
    tmp_path: Path, answers: list[str], right: float, share: float
) -> None:
    user = scripted(tmp_path / "talks.jsonl", LINE)
    _, score = asyncio.run(talk(user, user.tasks("train")[0], answers))
    assert (score.total, list(score.parts.items())) == (share, [("right", right), ("answer", share)])


def test_rows_of_a_script_differ_by_everything_that_is_said(tmp_path: Path) -> None:
    other = {**LINE, "system": "Be long."}
    plain = {"user": ["12+34?"], "answers": ["46"]}
    rows = scripted(tmp_path / "talks.jsonl", LINE, other, plain).tasks("train")
    assert len({row.text for row in rows}) == 3
    session = ScriptedSession(rows[2], None, "")  # type: ignore[arg-type]
    assert session.messages == (Message(role="user", content="12+34?"),)


def test_mean_score_is_the_mean_behind_the_worst_first_part() -> None:
    one = Score(total=1.0, parts={"answer": 1.0, "style": 0.0})
    two = Score(total=0.5, parts={"answer": 0.0, "style": 0.5})
    assert mean_score([one, two]) == Score(total=0.75, parts={"right": 0.0, "answer": 0.5, "style": 0.25})
    failed = Score(total=math.nan, status="timeout", detail="too slow")
    assert mean_score([one, failed, two]) is failed


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"user": "12?", "answers": ["1"]}, "'user' must be a list"),
        ({"user": [], "answers": []}, "'user' must be a list"),
        ({"user": ["a", ""], "answers": ["1", "2"]}, "'user' must be a list"),
        ({"user": ["a", "b"], "answers": ["1"]}, "one for each of the 2 messages"),
        ({"user": ["a"], "answers": [None]}, "not all null"),
        ({"user": ["a"], "answers": ["1"], "system": 3}, "'system' must be text"),
    ],
)
def test_line_that_is_no_script_is_refused(tmp_path: Path, line: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"talks\.jsonl:1: {reason}|{reason}"):
        scripted(tmp_path / "talks.jsonl", line).tasks("train")
