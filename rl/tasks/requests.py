"""From task rows to requests: token ids, sampling overrides, and a seed for every sample. A row that cannot be asked fails like a sample."""

import hashlib
from collections.abc import Callable, Sequence

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.tasks.row import Task, TaskError, TaskRow
from samepath.rollout.pool.pool import RolloutPool
from samepath.rollout.record import failed_rollouts
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group, Prompt

NOT_ENCODABLE = "prompt_not_encodable"
"""Failure of the samples of a row whose prompt the tokenizer, or the chat template, refuses."""
NOT_MADE = "row_not_made"
"""Failure of the samples of a row that the task's generator does not give."""


def seed_of(*parts: object) -> int:
    """A 64-bit seed from run seed, step, group and sample: equal parts give equal samples on any machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "little")


def train_request(
    task: Task, index: int, tokenizer: Tokenizer, sampling: SamplingSettings, group_id: str, seeds: tuple[int, ...]
) -> GroupRequest | Group:
    """The row at place `index` of the task's endless order as a request, or as the group of its failed samples."""
    try:
        row = task.train_row(index)
    except TaskError as error:
        prompt = Prompt(prompt_id=f"place-{index}", text="", token_ids=(), dataset=task.name)
        return failed_rollouts(_request(prompt, sampling, group_id, seeds), NOT_MADE, str(error))
    return group_request(row, tokenizer, sampling, group_id, seeds)


def group_request(
    row: TaskRow, tokenizer: Tokenizer, sampling: SamplingSettings, group_id: str, seeds: tuple[int, ...]
) -> GroupRequest | Group:
    """One prompt to be answered once for each seed; the group of its failed samples if the prompt cannot be encoded."""
    failure = ""
    try:
        token_ids = row.encode(tokenizer)
    except ValueError as error:
        failure, token_ids = f"{row.where or row.row_id}: {error}", ()
    prompt = Prompt(
        prompt_id=row.row_id,
        text=row.text,
        token_ids=token_ids,
        answer=row.answer,
        dataset=row.dataset,
        row=row.row,
    )
    request = _request(prompt, sampling, group_id, seeds)
    return failed_rollouts(request, NOT_ENCODABLE, failure) if failure else request


def answered(
    pool: RolloutPool, asked: Sequence[GroupRequest | Group], on_group: Callable[[Group], None]
) -> list[Group]:
    """Sample the requests; groups that failed before they could be asked stand where they stood."""
    sampled = iter(pool.sample([one for one in asked if isinstance(one, GroupRequest)], on_group))
    return [next(sampled) if isinstance(one, GroupRequest) else one for one in asked]


def _request(prompt: Prompt, sampling: SamplingSettings, group_id: str, seeds: tuple[int, ...]) -> GroupRequest:
    return GroupRequest(group_id=group_id, prompt=prompt, sampling=sampling, seeds=seeds)
