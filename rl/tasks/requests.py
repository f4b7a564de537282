"""From task rows to requests: token ids, sampling overrides, and a seed for every sample."""

import hashlib

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.tasks.row import TaskRow
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Prompt


def seed_of(*parts: object) -> int:
    """A 64-bit seed from run seed, step, group and sample: equal parts give equal samples on any machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "little")


def group_request(
    row: TaskRow, tokenizer: Tokenizer, sampling: SamplingSettings, group_id: str, seeds: tuple[int, ...]
) -> GroupRequest:
    """One prompt to be answered once for each seed."""
    prompt = Prompt(
        prompt_id=row.row_id,
        text=row.text,
        token_ids=row.encode(tokenizer),
        answer=row.answer,
        dataset=row.dataset,
        row=row.row,
    )
    return GroupRequest(group_id=group_id, prompt=prompt, sampling=sampling, seeds=seeds)
