"""Rewards and worked answers of recipe.yaml: change them, and `samepath validate recipe.yaml` tries them."""

import random
from typing import Any

from samepath.rewards.request import RewardRequest


def right(request: RewardRequest) -> float:
    """Give 1 for exactly the right word, else 0. `request.answer` is the problem's line."""
    return float(request.response_text == request.answer["answer"])


def close(request: RewardRequest) -> float:
    """Give the share of letters that stand where they should."""
    said, wanted = request.response_text, str(request.answer["answer"])
    return sum(one == other for one, other in zip(said, wanted)) / max(len(said), len(wanted), 1)


def worked(row: Any, rng: random.Random, habit: float = 0.0) -> str:
    """Write the answer of a training row; a share `habit` of them just repeats the word, for RL to find the better way."""
    word = str(row.answer["answer"])
    return word[::-1] if rng.random() < habit else word
