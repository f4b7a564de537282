"""From task rows to requests: token ids, sampling overrides, and a seed for every sample. A row that cannot be asked fails like a sample."""

from collections.abc import Callable, Sequence

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.tasks.row import RowEpisode, Task, TaskError, TaskRow
from samepath.rollout.environments.request import EpisodeRequest, Request
from samepath.rollout.pool.pool import RolloutPool
from samepath.rollout.record import failed_rollouts
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group, Prompt

NOT_ENCODABLE = "prompt_not_encodable"
"""Failure of the samples of a row whose prompt the tokenizer, or the chat template, refuses."""
NOT_MADE = "row_not_made"
"""Failure of the samples of a row that the task's generator does not give."""


def train_request(
    task: Task, index: int, tokenizer: Tokenizer, sampling: SamplingSettings, group_id: str, seeds: tuple[int, ...]
) -> Request | Group:
    """The row at place `index` of the task's endless order as a request, or as the group of its failed samples."""
    try:
        row = task.train_row(index)
    except TaskError as error:
        prompt = Prompt(prompt_id=f"place-{index}", text="", token_ids=(), dataset=task.name)
        return failed_rollouts(_request(prompt, sampling, group_id, seeds), NOT_MADE, str(error))
    return group_request(row, tokenizer, sampling, group_id, seeds)


def group_request(
    row: TaskRow, tokenizer: Tokenizer, sampling: SamplingSettings, group_id: str, seeds: tuple[int, ...]
) -> Request | Group:
    """One row to be worked once for each seed; the group of its failed samples if its prompt cannot be encoded."""
    if row.episode is not None:
        return _episode_request(row, row.episode, sampling, group_id, seeds)
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


def answered(pool: RolloutPool, asked: Sequence[Request | Group], on_group: Callable[[Group], None]) -> list[Group]:
    """Sample the requests; groups that failed before they could be asked stand where they stood."""
    sampled = iter(pool.sample([one for one in asked if not isinstance(one, Group)], on_group))
    return [one if isinstance(one, Group) else next(sampled) for one in asked]


def _episode_request(
    row: TaskRow, episode: RowEpisode, sampling: SamplingSettings, group_id: str, seeds: tuple[int, ...]
) -> EpisodeRequest:
    prompt = Prompt(
        prompt_id=row.row_id, text=row.text, token_ids=(), answer=row.answer, dataset=row.dataset, row=row.row
    )
    return EpisodeRequest(
        group_id=group_id,
        prompt=prompt,
        sampling=sampling,
        seeds=seeds,
        environment=episode.environment,
        row=episode.row,
        episode=episode.settings,
    )


def _request(prompt: Prompt, sampling: SamplingSettings, group_id: str, seeds: tuple[int, ...]) -> GroupRequest:
    return GroupRequest(group_id=group_id, prompt=prompt, sampling=sampling, seeds=seeds)
