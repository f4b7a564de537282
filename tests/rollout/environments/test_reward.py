"""A reward function as an environment: what it is asked, where it runs, and what happens when it fails."""

import asyncio
import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from samepath.model.text.conversation import Message
from samepath.rewards.score import Score
from samepath.rollout.environments.protocol import EnvironmentFailure, EnvironmentRow
from samepath.rollout.environments.reward import RewardEnvironment

OWN_MODULE = """
import os

def seen(request, *, wanted):
    asked, said, data = request.prompt_text, request.response_text, dict(request.answer)
    assert (asked, said, data, request.dataset) == tuple(wanted), (asked, said, data, request.dataset)
    return 1.0

async def later(request):
    return 0.25

def dies(request):
    os._exit(3)
"""


@pytest.fixture
def rows_file(tmp_path: Path) -> str:
    (tmp_path / "own_rewards.py").write_text(OWN_MODULE)
    path = tmp_path / "sums.jsonl"
    lines = [{"question": f"{number}+1?", "answer": number + 1, "level": 3} for number in range(40)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def environment(rows_file: str, reward: Any, **options: Any) -> RewardEnvironment:
    reward = {"search_path": str(Path(rows_file).parent), "num_workers": 1, "own": reward}
    return RewardEnvironment(path=rows_file, reward=reward, held_out_share=0.2, **options)


def scores(made: RewardEnvironment, row: EnvironmentRow, said: Sequence[str]) -> list[Score]:
    """Scores of answers to one row, each given in a session of its own, all at once."""

    async def score(answer: str) -> Score:
        session = await made.start(row, seed=0)
        assert await session.reply(answer) is None
        judged = await session.score()
        await session.close()
        return judged

    async def together() -> list[Score]:
        return list(await asyncio.gather(*map(score, said)))

    return asyncio.run(together())


def test_reward_environment_scores_as_the_function_does(rows_file: str) -> None:
    made = environment(rows_file, "samepath.rewards.exact:number")
    row = made.tasks("train")[0]
    right = row.text.partition("+")[0]
    found = scores(made, row, [str(int(right) + 1), right, ""])
    assert [score.total for score in found] == [1.0, 0.0, 0.0]
    assert found[0].parts == {"own": 1.0}


def test_reward_environment_gives_the_function_the_whole_row(rows_file: str) -> None:
    wanted = ["0+1?", "so", {"question": "0+1?", "answer": 1, "level": 3}, "sums"]
    made = environment(rows_file, {"function": "own_rewards:seen", "options": {"wanted": wanted}})
    row = next(row for split in ("train", "held_out") for row in made.tasks(split) if row.text == "0+1?")
    assert [score.status for score in scores(made, row, ["so", "no"])] == ["ok", "error"]


def test_reward_environment_takes_weights_and_async_functions(rows_file: str) -> None:
    made = environment(rows_file, {"function": "own_rewards:later", "weight": 2.0})
    (score,) = scores(made, made.tasks("train")[0], ["1"])
    assert (score.total, score.parts) == (0.5, {"own": 0.25})


def test_reward_environment_survives_a_function_that_ends_its_process(rows_file: str) -> None:
    made = environment(rows_file, "own_rewards:dies")
    assert [score.status for score in scores(made, made.tasks("train")[0], ["1", "2"])] == ["died", "died"]


def test_reward_environment_whose_function_does_not_load_is_a_failure_of_its_start(rows_file: str) -> None:
    made = environment(rows_file, "own_rewards:absent")
    with pytest.raises(EnvironmentFailure, match="absent") as failed:
        scores(made, made.tasks("train")[0], ["1"])
    assert failed.value.kind == "start"


def test_reward_environment_starts_children_with_the_first_score_and_ends_them_with_itself(rows_file: str) -> None:
    before = children()
    made = environment(rows_file, "own_rewards:later")
    rows = made.tasks("train")
    assert not children() - before
    scores(made, rows[0], ["1"])
    started = children() - before
    assert started
    del made
    gc.collect()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def test_reward_environment_asks_with_the_system_text_and_offers_no_tools(rows_file: str) -> None:
    made = environment(rows_file, "own_rewards:later", system="Be brief.", question="answer_me")
    row = EnvironmentRow(row_id="train-1", text="1+1?")
    session = asyncio.run(made.start(row, seed=0))
    assert session.messages == (Message(role="system", content="Be brief."), Message(role="user", content="1+1?"))
    assert not session.tools
    assert asyncio.run(session.call("get", {}, 1.0)).error == "bad_arguments"
    with pytest.raises(ValueError, match="'answer_me' must be the question"):
        made.tasks("train")


def test_reward_that_is_none_is_refused(rows_file: str) -> None:
    with pytest.raises(ValueError, match="parts"):
        RewardEnvironment(path=rows_file, reward="no path", held_out_share=0.2)
