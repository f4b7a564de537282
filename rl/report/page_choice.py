"""Which rollouts a page holds when a run has more than a browser takes: whole steps, evenly spread, and token values of the worst."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from samepath.rl.tracking.tracked_rollout import TrackedRollout


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLimits:
    """Up to what a page holds everything. With these numbers it takes at most about 100 MB."""

    rollouts: int = 20_000
    """Rollouts."""
    chars: int = 50_000_000
    """Characters of all prompts and responses, each cut to `text_chars`."""
    text_chars: int = 6000
    """Characters of one prompt or response; the JSON lines keep all of them."""
    tokens: int = 1_000_000
    """Tokens with values of their own."""
    tokens_of_one: int = 2000
    """Longest answer with values for each token."""
    tokens_of_conversation: int = 20_000
    """Longest conversation that is there token by token: what the model read in all its segments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """What one step would take of the page."""

    num_rollouts: int
    """Its rollouts."""
    num_chars: int
    """Characters of their texts, as far as the page holds them."""


def worst_first(rollout: TrackedRollout) -> tuple[bool, float, int]:
    """Sort key of the page: without a reward first, then the lowest reward; of equals the latest step first."""
    return (not rollout.failed, 0.0 if rollout.failed else rollout.reward, -rollout.step)


def choose_steps(sizes: Sequence[StepSize], limits: PageLimits) -> tuple[list[int], int | None]:
    """Return (indices of the steps, None): as many as fit, evenly spread with the first and last.

    Where the last step alone is too large, the second value says how many of its rollouts fit, at least one.
    """
    number = len(sizes)
    while True:
        chosen = spread_evenly(len(sizes), number)
        num_rollouts = sum(sizes[index].num_rollouts for index in chosen)
        num_chars = sum(sizes[index].num_chars for index in chosen)
        if num_rollouts <= limits.rollouts and num_chars <= limits.chars:
            return chosen, None
        if len(chosen) == 1:
            return chosen, max(1, min(limits.rollouts, num_rollouts * limits.chars // max(num_chars, 1)))
        excess = max(num_rollouts / limits.rollouts, num_chars / limits.chars)
        number = max(1, min(number - 1, math.floor(number / excess)))


def spread_evenly(length: int, number: int) -> list[int]:
    """Return `number` indices below `length`, the first and last among them; one alone is the last.

    Example:
        spread_evenly(11, 3) == [0, 5, 10]
    """
    if number >= length:
        return list(range(length))
    if number == 1:
        return [length - 1]
    return [round(place * (length - 1) / (number - 1)) for place in range(number)]


def longest_of(rollout: TrackedRollout, limits: PageLimits) -> int:
    """Up to how many tokens it may be there token by token."""
    return limits.tokens_of_conversation if rollout.segments else limits.tokens_of_one


def choose_token_values(
    rollouts: Mapping[tuple[int, int], tuple[tuple[bool, float, int], int, int]], limits: PageLimits
) -> frozenset[tuple[int, int]]:
    """Return the keys of the rollouts whose tokens are held, worst first; a rollout without tokens needs no room.

    `rollouts` gives each one's place in the order, how many tokens it has, and how many it may have.
    """
    left, chosen = limits.tokens, []
    for key, (_, num_tokens, longest) in sorted(rollouts.items(), key=lambda item: (item[1][0], item[0])):
        if num_tokens <= min(left, longest):
            chosen.append(key)
            left -= num_tokens
    return frozenset(chosen)


def ranges(numbers: Sequence[int]) -> str:
    """Return rising numbers as text.

    Example:
        ranges([1, 2, 3, 7, 9, 10]) == "1–3, 7, 9–10"
    """
    return ", ".join(f"{low}–{high}" if high > low else str(low) for low, high in _runs(numbers))


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    low = high = numbers[0]
    for number in numbers[1:]:
        if number != high + 1:
            yield low, high
            low = number
        high = number
    yield low, high
