"""What a reward function sees: one answer to one prompt, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRequest:
    """One answer to be scored.

    A reward function takes it first and the recipe's `options` as keyword arguments, plain or `async`:
    `def f(request: RewardRequest, **options) -> float | Mapping[str, float]`.
    A mapping adds the sum of its entries to the total (times the part's weight) and is recorded as `part/entry`.
    The request is pickled into a child process, so `answer` must hold plain data.

    Example:
        RewardRequest(prompt_text="12+34+5=", response_text="51", answer={"answer": "51"}, dataset="chain_sum",
                      finish_reason="stop", num_tokens=3, token_ids=(7, 3, 1), rollout_key="s3-g0/2")
    """

    prompt_text: str
    """The prompt as a person reads it."""
    response_text: str
    """The sampled tokens decoded; special tokens stand in it by name, but for the one that ended the response."""
    answer: Mapping[str, Any] = field(default_factory=dict)
    """Plain data from the prompt's row: gold answer, metadata."""
    dataset: str = ""
    """Name of the task that made the prompt."""
    finish_reason: str = ""
    """Why sampling ended: `stop`, `length`, `abort`, or empty if unknown."""
    num_tokens: int = 0
    """Number of sampled tokens."""
    token_ids: tuple[int, ...] = ()
    """The sampled tokens themselves, the one that ended the response included; empty if unknown."""
    rollout_key: str = ""
    """Unique within a run; for logs only."""
