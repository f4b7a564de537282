"""How a peer's process is run, and the ways that its search tries. Imports no torch: memory is the peer's own."""

from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

WaitPolicy = Literal["unset", "active", "passive"]
Experts = Literal["own", "eager", "batched_mm", "grouped_mm"]

TRANSFORMERS_EXPERTS: tuple[Experts, ...] = ("grouped_mm", "eager", "batched_mm")
"""transformers' implementations of a mixture-of-experts layer that run on CPU, its default first (5.19: `deepgemm` and `sonicmoe` need a
GPU)."""
OWN_EXPERTS: tuple[Experts, ...] = ("own",)


class PeerSetting(BaseModel):
    """Threads, wait policy and expert implementation of one peer's process.

    Example:
        PeerSetting(threads=2, wait_policy="passive", experts="grouped_mm")
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(1, ge=1, le=256, description="CPU threads of the process")
    wait_policy: WaitPolicy = Field(
        "unset",
        description="OMP_WAIT_POLICY: waiting threads spin (active) or sleep (passive); unset leaves it to the OpenMP library, whose "
        "threads spin for a while, then sleep",
    )
    experts: Experts = Field("own", description="transformers' expert implementation; `own`: the peer has no choice")

    def __str__(self) -> str:
        """For tables and messages: `2 threads, passive, grouped_mm`."""
        words = [f"{self.threads} thread{'s' if self.threads > 1 else ''}"]
        if self.threads > 1:
            words.append("no wait policy" if self.wait_policy == "unset" else self.wait_policy)
        return ", ".join([*words, *([] if self.experts == "own" else [self.experts])])


def settings_to_try(threads: Sequence[int], experts: Sequence[Experts]) -> list[PeerSetting]:
    """Every combination of threads, wait policy and expert implementation; a single thread waits for no other, so it has no policy."""
    return [
        PeerSetting(threads=count, wait_policy=policy, experts=name)
        for count in threads
        for policy in (get_args(WaitPolicy) if count > 1 else ("unset",))
        for name in experts
    ]
