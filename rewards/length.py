"""Rewards for the length of a response; meant as a second part beside one for the answer."""

from samepath.rewards.request import RewardRequest


def brevity(request: RewardRequest, *, max_tokens: int) -> float:
    """Give 1 − |y|/max_tokens, from 1 for no token down to 0 at `max_tokens` and above.

    Raises ValueError unless max_tokens is at least 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1; got {max_tokens}")
    return max(0.0, 1.0 - request.num_tokens / max_tokens)


def overlong(request: RewardRequest, *, max_tokens: int, buffer_tokens: int) -> float:
    """Punish responses that come near the limit, from 0 down to −1 (soft overlong punishment, arXiv:2503.14476 eq. 13).

    0 up to L_max − L_cache tokens, then ((L_max − L_cache) − |y|)/L_cache, and −1 from L_max on.
    Raises ValueError unless 1 ≤ buffer_tokens ≤ max_tokens.
    """
    if not 1 <= buffer_tokens <= max_tokens:
        raise ValueError(f"buffer_tokens must lie in [1, max_tokens = {max_tokens}]; got {buffer_tokens}")
    return min(0.0, max(-1.0, (max_tokens - buffer_tokens - request.num_tokens) / buffer_tokens))
