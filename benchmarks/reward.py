"""The benchmark's reward: trivial, but different from sample to sample, so that every group has a gradient."""

from samepath.rewards.request import RewardRequest


def share_of_digits(request: RewardRequest) -> float:
    """Share of the response's characters that are digits, 0 to 1."""
    return digit_share(request.response_text)


def digit_share(text: str) -> float:
    """Digits over characters; 0 for no text."""
    return sum(character.isdigit() for character in text) / max(len(text), 1)
