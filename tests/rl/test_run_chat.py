"""A whole run of a chat model: the conversation is what the policy reads, the question what the reward and people see."""

import json
from pathlib import Path

import pytest

from samepath.model.files.checkpoint import save_checkpoint
from samepath.model.text.tokenizer import Tokenizer, load_tokenizer
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import resume_run, start_run
from samepath.rl.tasks.requests import group_request
from samepath.rl.tasks.row import TaskRow
from samepath.rl.tasks.tasks import build_task
from samepath.rl.tracking.jsonl import read_rollouts
from samepath.rollout.sampling_settings import SamplingSettings
from tests.conftest import tiny_model
from tests.rl.tasks.test_requests import chatty

CHAT = (
    "model={kind: checkpoint, path: chat}",
    "task={kind: file, path: sums.jsonl, held_out_fraction: 0.3, chat: {enabled: true, system: '7 '}, "
    "answer_rewrite: {match: '#### (.+)', template: '{1}'}}",
    "reward={right: {function: 'samepath.rewards.exact:number'}, short: {function: 'samepath.rewards.length:brevity', "
    "options: {max_tokens: 16}}}",
    "cold_start.steps=0",
    "~cold_start.dense_warmup_steps",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with a chat template, and problems beside it."""
    save_checkpoint(tiny_model(), tmp_path / "chat")
    chatty().save(tmp_path / "chat")
    rows = [{"question": f"{i}+1", "answer": f"so\n#### {i + 1}"} for i in range(20)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_start_run_chat_prompts_are_learned_from_and_shown_as_questions(tiny_recipe, folder: Path) -> None:
    recipe: Recipe = tiny_recipe(*CHAT)
    summary = start_run(recipe, folder)
    assert (summary["gap_at_lag_0"], summary["failures"]) == (0.0, {})
    files = sorted((folder / "runs" / "tiny" / "rollouts").glob("step-*.jsonl"))
    shown = [record for file in files for record in read_rollouts(file)]
    assert len(shown) == 3 * 16
    task = build_task(recipe.task, folder)
    assert {record.prompt_text for record in shown} <= {row.text for row in task.train}
    assert {record.gold for record in shown} <= {str(row.answer["answer"]) for row in task.train}
    assert {record.reward_status for record in shown} == {"ok"}


def test_checkpoint_of_a_chat_run_keeps_the_template_and_resumes(tiny_recipe, folder: Path) -> None:
    recipe: Recipe = tiny_recipe(*CHAT)
    start_run(recipe.model_copy(update={"rl": recipe.rl.model_copy(update={"steps": 1})}), folder)
    kept = load_tokenizer(folder / "runs" / "tiny" / "checkpoints" / "step-000001")
    assert ids(kept, build_task(recipe.task, folder).train[0]) == ids(
        chatty(), build_task(recipe.task, folder).train[0]
    )
    assert resume_run(recipe, folder / "runs" / "tiny")["steps"] == 3


def ids(tokenizer: Tokenizer, row: TaskRow) -> tuple[int, ...]:
    return group_request(row, tokenizer, SamplingSettings(), "g", (1,)).prompt.token_ids
