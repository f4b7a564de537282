"""Settings of the policy loss: surrogate, importance weight, KL penalty, off-policy mask, denominators."""

from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from samepath.rollout.environments.settings import ImportPath

SurrogateName = Literal["grpo", "gspo", "cispo"]
KlEstimator = Literal["unbiased", "k1", "k2", "k3"]


class ImportanceSettings(BaseModel):
    """Weight π_old/π_sampler on the surrogate when `old_policy: learner` (three policies)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["none", "truncated", "banded"] = Field(
        default="none",
        description="`none`: weight 1. `truncated`: min(π_old/π_sampler, cap) (TIS). `banded`: 0 outside [band_low, band_high] (IcePop).",
    )
    cap: float = Field(
        default=2.0, ge=1, le=1e6, description="Upper bound of the truncated weight; a ratio, at least 1."
    )
    band_low: float = Field(default=0.5, ge=0, le=1, description="Lower edge of the band; a ratio from 0 to 1.")
    band_high: float = Field(default=5.0, ge=1, le=1e6, description="Upper edge of the band; a ratio, at least 1.")

    @model_validator(mode="after")
    def _band_has_width(self) -> Self:
        if self.mode == "banded" and self.band_low == self.band_high:
            raise ValueError(
                f"importance.band_low must be below band_high so that the band has width; got {self.band_low} and "
                f"{self.band_high}. Lower band_low or raise band_high."
            )
        return self


class KlSettings(BaseModel):
    """Penalty that holds the learner near the frozen reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimator: KlEstimator = Field(
        default="unbiased",
        description="`unbiased`: arXiv:2512.02556 eq. 7, right off-policy. `k1`, `k2`, `k3`: for comparison; biased off-policy as losses.",
    )
    beta: float = Field(
        default=0.001, ge=0, le=10, description="Weight of the KL term; loss units per nat, 0 turns it off."
    )
    beta_by_dataset: dict[str, Annotated[float, Field(ge=0, le=10)]] = Field(
        default_factory=dict,
        description="Weight for single datasets in place of beta, 0 to 10; weak or zero suits mathematics.",
    )

    @property
    def needs_reference(self) -> bool:
        """True if any weight is above zero, so that reference log-probabilities must be computed."""
        return self.beta > 0 or any(beta > 0 for beta in self.beta_by_dataset.values())


class SequenceMaskSettings(BaseModel):
    """When a rollout with negative advantage is left out of the surrogate (arXiv:2512.02556 eq. 8)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="True applies the mask. The statistic is reported either way.")
    scope: Literal["rollout", "segment"] = Field(
        default="rollout",
        description="What the mean is over and the mask takes out: all tokens of a rollout, or each segment of a conversation for itself.",
    )
    delta: float = Field(
        default=0.05,
        gt=0,
        le=100,
        description=(
            "Largest mean log(π_sampler/π) of what is kept; nats per token, above 0. The report gives no value, public ones run "
            "from 1e-4 to 0.5: choose it from the logged quantiles policy/off_policy_p50 … max."
        ),
    )


class AggregationSettings(BaseModel):
    """Which denominator each token's loss is divided by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["sequence_mean", "token_mean", "constant"] = Field(
        default="sequence_mean",
        description=(
            "`sequence_mean`: mean over groups, then sequences, then tokens (arXiv:2512.02556 eq. 5). `token_mean`: mean over "
            "all tokens of the optimiser batch. `constant`: 1/(B·fixed_length) (Dr. GRPO, arXiv:2503.20783)."
        ),
    )
    fixed_length: int = Field(
        default=0,
        ge=0,
        le=10_000_000,
        description="Tokens that stand for every sequence's length in mode `constant`, at least 1 there; 0 in the other modes.",
    )

    @model_validator(mode="after")
    def _fixed_length_only_where_used(self) -> Self:
        if self.mode == "constant" and self.fixed_length == 0:
            raise ValueError(
                "aggregation.fixed_length must be at least 1 with mode `constant`, which divides by it; got 0. "
                "Set it to the sampling limit (max_new_tokens)."
            )
        if self.mode != "constant" and self.fixed_length:
            raise ValueError(
                f"aggregation.fixed_length must be 0 with mode `{self.mode}`, which does not use it; got {self.fixed_length}. "
                "Remove it, or set mode to `constant`."
            )
        return self


class ObjectiveSettings(BaseModel):
    """The policy loss. The defaults are the DeepSeek-V3.2 report's where it gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    surrogate: SurrogateName | ImportPath = Field(
        default="grpo",
        description="`grpo`: clipped token ratio. `gspo`: clipped sequence ratio (arXiv:2507.18071). `cispo`: arXiv:2506.13585. Or a function of your own, "
        "`package.module:function`, which takes (logprobs_M, inputs, clip_low, clip_high) and returns a term for each token, to be maximised.",
    )
    surrogate_options: dict[str, JsonValue] = Field(
        default_factory=dict, description="Keyword arguments of a surrogate of your own."
    )
    clip_low: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description=(
            "ε_low: ratios are clipped at 1 − ε_low; above 0, below 1 (1, no lower bound, only with cispo). GSPO's paper uses 3e-4."
        ),
    )
    clip_high: float = Field(
        default=0.28,
        gt=0,
        le=1000,
        description="ε_high: ratios are clipped at 1 + ε_high; above 0. 0.28 as in arXiv:2503.14476. GSPO's paper uses 4e-4.",
    )
    old_policy: Literal["sampler", "learner"] = Field(
        default="sampler",
        description="Denominator of the ratio. `sampler`: the engine's log-probabilities. `learner`: the learner's at the step's start.",
    )
    importance: ImportanceSettings = Field(
        default_factory=ImportanceSettings, description="Weight π_old/π_sampler; only with `old_policy: learner`."
    )
    kl: KlSettings = Field(default_factory=KlSettings, description="Penalty that holds the learner near the reference.")
    off_policy_mask: SequenceMaskSettings = Field(
        default_factory=SequenceMaskSettings, description="Mask on off-policy sequences with negative advantage."
    )
    aggregation: AggregationSettings = Field(
        default_factory=AggregationSettings, description="Denominators, computed once over the optimiser batch."
    )

    @model_validator(mode="after")
    def _combinations_that_work(self) -> Self:
        if self.surrogate_options and self.surrogate in get_args(SurrogateName):
            raise ValueError(
                f"objective.surrogate_options are arguments of a function of your own; surrogate `{self.surrogate}` takes none; got "
                f"{', '.join(self.surrogate_options)}. Leave them out, or set surrogate to `package.module:function`."
            )
        if self.importance.mode != "none" and self.old_policy == "sampler":
            raise ValueError(
                f"objective.importance.mode must be `none` with `old_policy: sampler`, where π_old/π_sampler is 1; got "
                f"`{self.importance.mode}`. Set old_policy to `learner`, or the mode to `none`."
            )
        if self.clip_low == 1 and self.surrogate in ("grpo", "gspo"):
            raise ValueError(
                f"objective.clip_low must be below 1 with surrogate `{self.surrogate}`, whose lower bound 1 − clip_low would never be "
                "reached; got 1. Lower clip_low."
            )
        return self
