"""Small groups as an engine returns them, scored or not, and reward children that answer at once."""

from concurrent.futures import Future
from typing import Any

import numpy as np

from samepath.rewards.request import RewardRequest
from samepath.rewards.score import Score
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.token_digest import token_digest
from samepath.rollout.types import CallSpan, Group, Prompt, Rollout, Segment

PROMPT_LENGTH = 2
SAMPLING = SamplingSettings(temperature=0.75)


def segment(token_ids: tuple[int, ...], finish_reason: str = "stop") -> Segment:
    """A prompt of two tokens and the given response; log-probabilities −0.5, −1.0, …"""
    total = PROMPT_LENGTH + len(token_ids)
    trained = np.arange(total) >= PROMPT_LENGTH
    logprobs = np.where(trained, -0.5 * (np.arange(total) - PROMPT_LENGTH + 1), 0.0)
    ids = np.array([2, 3, *token_ids], np.int32)
    span = CallSpan(index=0, first=PROMPT_LENGTH, end=total, finish_reason=finish_reason, digest=token_digest(ids))
    return Segment(
        token_ids=ids,
        trained=trained,
        sampler_logprobs=logprobs.astype(np.float32),
        routes=np.full((total, 1, 1), -1, np.int16),
        support=None,
        selection_fingerprint=None,
        weight_version=np.where(trained, 0, -1).astype(np.int32),
        finish_reason=finish_reason,
        calls=(span,),
    )


def rollout(group_id: str, index: int, reward: float | Score | None = None, **changes: Any) -> Rollout:
    """One response of `index + 1` tokens; a number is a reward that was scored, None was not scored."""
    score = Score(total=reward, parts={"answer": reward}) if isinstance(reward, float | int) else reward
    finish_reason = changes.pop("finish_reason", "stop")
    values: dict[str, Any] = {
        "prompt_id": group_id,
        "group_id": group_id,
        "sample_index": index,
        "segments": (segment(tuple(range(4, 5 + index)), finish_reason),),
        "text": f"{group_id} says {index}",
        "score": score,
    }
    return Rollout(**{**values, **changes})


def group(group_id: str, *rewards: float | Score | None, dataset: str = "sums", **prompt: Any) -> Group:
    """One rollout a reward."""
    values = {"prompt_id": group_id, "text": "1+2=", "token_ids": (2, 3), "dataset": dataset, "answer": {"answer": "3"}}
    rollouts = tuple(rollout(group_id, index, reward) for index, reward in enumerate(rewards))
    return Group(group_id=group_id, prompt=Prompt(**{**values, **prompt}), sampling=SAMPLING, rollouts=rollouts)


class Children:
    """In place of the reward children: keeps the requests and gives each the score of its key, else a full one."""

    def __init__(self, scores: dict[str, Score] | None = None) -> None:
        self.requests: list[RewardRequest] = []
        self.scores = scores or {}

    def submit(self, request: RewardRequest) -> "Future[Score]":
        """Answer at once."""
        self.requests.append(request)
        future: Future[Score] = Future()
        future.set_result(self.scores.get(request.rollout_key, Score(total=1.0, parts={"short": 1.0, "answer": 1.0})))
        return future
