"""What an engine has done so far, in numbers."""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class EngineCounters:
    """Totals since the engine was made."""

    steps: int = 0
    """Forward passes."""
    prefill_tokens: int = 0
    """Prompt tokens run; of a prompt that gave its pages back again."""
    reused_tokens: int = 0
    """Prompt tokens found in the prefix cache."""
    preempted: int = 0
    """Times that a sample, or a prompt, gave its pages back to older ones and waited to be prefilled again."""
    rerun_tokens: int = 0
    """Tokens of samples run again for it."""
    sampled_tokens: int = 0
    """Tokens drawn."""
    over_cap: int = 0
    """Positions drawn from the full vocabulary because their support exceeded its cap."""
    seconds: float = 0.0
    """Time inside `step`."""
    waited_s: float = 0.0
    """Of it spent waiting for what the device drew."""
    graph_s: float = 0.0
    """Time of the replayed decode passes on the device, copies in and out included; 0 without CUDA graphs."""
