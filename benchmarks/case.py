"""What both peers of the benchmark are given: prompts, forced response lengths, sizes; and what each gives back.

Imports no torch, so that neither peer's memory holds anything of the other's. Axes: P prompts of a step.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.setting import PeerSetting

ALPHABET = "0123456789+-=;#"
"""One token a character, beside a start and an end token: 17 ids on both sides."""

CaseName = Literal["constant", "heavy-tailed"]


class Case(BaseModel):
    """One measurement: the same for every peer but for the setting, in which each gets what is fastest for it.

    Example:
        Case(name="heavy-tailed", setting=PeerSetting(threads=2), measured_steps=6)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: CaseName = Field(description="how response lengths are distributed")
    setting: PeerSetting = Field(PeerSetting(), description="how the peer's process is run")
    seed: int = Field(0, ge=0, description="prompts, lengths and weights follow from it")
    prompts_per_step: int = Field(16, ge=2, description="P, prompts of one rollout batch")
    group_size: int = Field(8, ge=2, description="G, samples of each prompt")
    updates_per_rollout: int = Field(2, ge=1, description="optimiser steps on one rollout batch, each on its own share")
    constant_tokens: int = Field(32, ge=1, description="length of every response of the constant case, tokens")
    shortest_tokens: int = Field(9, ge=1, description="heavy-tailed: scale of the Pareto distribution, tokens")
    longest_tokens: int = Field(256, ge=1, description="heavy-tailed: where the distribution is cut, tokens")
    beta: float = Field(0.001, gt=0, description="weight of the KL term to the reference")
    learning_rate: float = Field(2e-4, gt=0, description="of AdamW")
    warmup_steps: int = Field(2, ge=0, description="rollout batches before the clock starts")
    measured_steps: int = Field(6, ge=1, description="rollout batches timed")

    @property
    def samples_per_step(self) -> int:
        """Responses of one rollout batch."""
        return self.prompts_per_step * self.group_size

    @property
    def max_new_tokens(self) -> int:
        """Longest possible response, tokens."""
        return self.constant_tokens if self.name == "constant" else self.longest_tokens


class PeerResult(BaseModel):
    """What one process measured on one case.

    Example:
        PeerResult(peer="samepath", versions={"torch": "2.13.0"}, case=Case(name="constant"), step_s=(1.1, 1.0), sampling_s=(0.6, 0.5),
                   learning_s=(0.4, 0.4), sampled_tokens=(4096, 4096), learned_tokens=(5120, 5120), idle_bytes=300 << 20,
                   peak_bytes=500 << 20, gap_nats=0.0, parameters=1023040, active_parameters=580672)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    peer: str = Field(description="`samepath` or `trl`")
    versions: dict[str, str] = Field(description="packages that ran")
    case: Case = Field(description="what was asked")
    step_s: tuple[float, ...] = Field(description="wall time of each measured step, seconds")
    sampling_s: tuple[float, ...] = Field(description="of it in generation, seconds")
    learning_s: tuple[float, ...] = Field(
        description="of it in reference, first pass and updates (TRL: all but generation and reward), seconds"
    )
    sampled_tokens: tuple[int, ...] = Field(description="response tokens of each step, without padding")
    learned_tokens: tuple[int, ...] = Field(description="prompt and response tokens of each step, without padding")
    idle_bytes: int = Field(description="resident size after the imports")
    peak_bytes: int = Field(description="largest resident size, helper processes included")
    gap_nats: float = Field(description="largest sampler/learner log-probability difference at equal weights")
    parameters: int = Field(description="of the policy")
    active_parameters: int = Field(description="that one token uses, embedding and head included")

    @property
    def samples_per_s(self) -> float:
        """Median over the measured steps of responses a second of the whole step."""
        return float(self.case.samples_per_step / np.median(self.step_s))

    @property
    def engine_tokens_per_s(self) -> float:
        """Response tokens per second of generation."""
        return sum(self.sampled_tokens) / sum(self.sampling_s)

    @property
    def learner_tokens_per_s(self) -> float:
        """Prompt and response tokens per second of learning."""
        return sum(self.learned_tokens) / sum(self.learning_s)


def response_lengths(case: Case, step: int) -> tuple[int, ...]:
    """Tokens of the responses to each of the P prompts of a step; all samples of a prompt have the same length.

    Heavy-tailed: ⌈x⌉ with x from a Pareto distribution of shape 1 cut at `longest_tokens`, one draw from each P-th part of the
    distribution (so that steps have about equal work), in random order. Defaults: mean 32, median 18, longest 256.
    """
    count = case.prompts_per_step
    if case.name == "constant":
        return (case.constant_tokens,) * count
    rng = np.random.default_rng([case.seed, step, 0])
    shares_P = rng.permutation((np.arange(count) + rng.random(count)) / count)
    return tuple(pareto_length(share, case.shortest_tokens, case.longest_tokens) for share in shares_P.tolist())


def pareto_length(share: float, shortest: int, longest: int) -> int:
    """The length that a share 0 ≤ u < 1 of all responses stays below: ⌈s / (1 − u·(1 − s/l))⌉, between s and l."""
    return int(np.ceil(shortest / (1 - share * (1 - shortest / longest))))


def prompt_texts(case: Case, step: int) -> tuple[str, ...]:
    """P sums such as `3+5-7+9=`: eight tokens each, nine with the start token."""
    rng = np.random.default_rng([case.seed, step, 1])
    digits, signs = rng.integers(0, 10, (case.prompts_per_step, 4)), rng.integers(0, 2, (case.prompts_per_step, 3))
    return tuple(
        "".join(f"{digit}{sign}" for digit, sign in zip(row, [*("+-"[sign] for sign in places), "="], strict=True))
        for row, places in zip(digits.tolist(), signs.tolist(), strict=True)
    )


def resident_bytes(process_id: int | str = "self", *, peak: bool = True) -> int:
    """Largest (or present) resident size of a process, bytes. Raises RuntimeError where the system does not keep it."""
    field = "VmHWM:" if peak else "VmRSS:"
    status = Path(f"/proc/{process_id}/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the benchmark reads {field} from {status}, which only Linux keeps; run it on Linux")
