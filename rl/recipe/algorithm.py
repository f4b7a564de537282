"""Settings of the reinforcement-learning step and of the optimiser."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from samepath.rl.recipe.advantage import AdvantageSettings, TruncationSettings
from samepath.rl.recipe.objective import ObjectiveSettings
from samepath.rollout.pool.settings import OnNewWeights


class AlgorithmSettings(BaseModel):
    """One step: sample groups, score, several updates on them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(100, ge=0, description="rollout batches; 0 only evaluates")
    epochs: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="passes over the training rows, in place of steps (give one of the two): rows × epochs ÷ prompts_per_step, rounded up; "
        "of generated problems a pass is task.num_train of them; 0: steps says",
    )
    prompts_per_step: int = Field(16, ge=1, description="P, prompts of one rollout batch")
    group_size: int = Field(8, ge=2, description="G, samples of each prompt; at least 2 so that rewards can be centred")
    updates_per_rollout: int = Field(
        2, ge=1, description="mini-batches, one optimiser step each, that a rollout batch is split into by groups"
    )
    max_weight_lag: int = Field(
        0,
        ge=0,
        le=64,
        description="K, versions that weights may be behind the learner's when their tokens are trained. 0: sampling and learning take turns; "
        "from 1 on rollout workers sample while the learner learns, K steps ahead of it at most (needs `runtime: ray`, or `rollout.own_process`)",
    )
    on_new_weights: OnNewWeights = Field(
        "finish",
        description="with max_weight_lag ≥ 1, for samples that are under way when weights come: `finish` lets them end on the old ones, `continue` "
        "goes on behind the keys of the old ones, `recompute` behind a context that the new ones compute anew, which alone is exact",
    )
    keep_routing: Literal["sampler", "learner", "off"] = Field(
        "sampler",
        description="experts the learner follows: the sampler's, those of its own first pass of the step, or its live router's",
    )
    keep_sampling_mask: Literal["on", "off"] = Field(
        "on", description="renormalise over the sampler's recorded candidates"
    )
    reference_support: Literal["sampled", "full"] = Field(
        "sampled", description="renormalise the reference too, or leave it over the full vocabulary"
    )
    drop_uninformative: bool = Field(
        False,
        description="leave out groups whose rewards are all equal (dynamic sampling without refill); with refill only what it could not replace",
    )
    refill: int = Field(
        0,
        ge=0,
        le=4096,
        description="R, groups that a step may sample beside its P, in place of groups whose rewards are all equal (dynamic sampling, arXiv:2503.14476): "
        "each such group is replaced by the next prompt, until P have spread or R are asked; 0 replaces none",
    )
    oversample: int = Field(
        0,
        ge=0,
        description="E, groups that are sampled beside the P of a step, so that a batch does not wait for its slowest: a step trains the groups that the one "
        "before left over, and of the next P the first P − E that are done. None is dropped, and none is left over twice. Needs max_weight_lag ≥ 1, of "
        "which it takes one version",
    )
    max_missing_routes: float = Field(
        0.01, ge=0, le=1, description="largest share of (row, layer) without a recorded route before the run stops"
    )
    max_gap_at_lag_0: float = Field(
        0.0, ge=0, description="largest sampler/learner gap at equal weights before the run stops, nats"
    )
    strict_segments: bool = Field(
        True,
        description="a conversation whose next prompt does not begin with all tokens so far, where no rule drops any, stops the run; "
        "else it is cut there and counted (`segments/drift`)",
    )
    nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="a log-probability or gradient that is no finite number stops the run, or costs its mini-batch the optimiser step; "
        "the weights stay as they were either way",
    )
    advantage: AdvantageSettings = Field(default_factory=AdvantageSettings, description="baseline and scale")
    truncated: TruncationSettings = Field(
        default_factory=TruncationSettings, description="responses that hit max_new_tokens"
    )
    objective: ObjectiveSettings = Field(default_factory=ObjectiveSettings, description="loss")

    @property
    def recomputes(self) -> bool:
        """True if each trained segment is of one weight version in every row."""
        return self.on_new_weights == "recompute"

    @model_validator(mode="before")
    @classmethod
    def _no_default_steps_beside_epochs(cls, data: Any) -> Any:
        return {"steps": 0, **data} if isinstance(data, Mapping) and data.get("epochs") else data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs and self.steps:
            raise ValueError(
                f"give one of steps and epochs; got {self.steps} steps and {self.epochs:g} epochs. Take the other out "
                "(~rl.steps on the command line)."
            )
        if self.epochs and self.refill:
            raise ValueError(
                f"epochs counts {self.prompts_per_step} rows a step, and with refill a step may ask for more; got epochs={self.epochs:g}, "
                f"refill={self.refill}. Set rl.steps in place of rl.epochs."
            )
        if problem := self._oversample_problem():
            raise ValueError(problem)
        if self.updates_per_rollout > self.prompts_per_step:
            raise ValueError(
                f"updates_per_rollout must be at most prompts_per_step={self.prompts_per_step}, because mini-batches hold whole groups; "
                f"got {self.updates_per_rollout}"
            )
        if self.keep_routing == "learner" and self.objective.old_policy != "learner":
            raise ValueError(
                "keep_routing: learner replays the learner's first pass, which only old_policy: learner runs. "
                "Set rl.objective.old_policy=learner or rl.keep_routing=sampler."
            )
        # Not model_fields_set: a recipe that a run has written out holds every default.
        if self.on_new_weights != "finish" and not self.max_weight_lag:
            raise ValueError(
                f"on_new_weights={self.on_new_weights} says what becomes of samples that are under way when weights come; with max_weight_lag=0 "
                "there are none. Set rl.max_weight_lag=1 or more, or leave rl.on_new_weights out."
            )
        return self

    def _oversample_problem(self) -> str:
        """Why groups cannot be left over to the next step; empty if they can, or none is."""
        if not self.oversample:
            return ""
        if not self.max_weight_lag:
            return (
                f"oversample={self.oversample} leaves groups over to the next step, whose weights are others; with max_weight_lag=0 they would have to be "
                "dropped, and a model that is trained on what is done first learns to answer briefly. Set rl.max_weight_lag=1 or more, or rl.oversample=0."
            )
        if self.oversample >= self.prompts_per_step:
            return (
                f"oversample must be below prompts_per_step={self.prompts_per_step}: that many groups are left over to the next step, which trains some new "
                f"ones too; got {self.oversample}"
            )
        if self.refill:
            return f"give one of oversample and refill: which groups a step may ask for follows from one of them; got {self.oversample} and {self.refill}"
        return ""

    @property
    def trains(self) -> bool:
        """True if there is anything to train: the number of steps may still be open where epochs are given."""
        return self.steps > 0 or self.epochs > 0

    def counted(self, num_rows: int) -> Self:
        """These settings with epochs over so many training rows turned into steps."""
        if not self.epochs:
            return self
        # Exact, so that 0.1 of 1000 rows are 100 and not one more.
        steps = math.ceil(Fraction(str(self.epochs)) * num_rows / self.prompts_per_step)
        return self.model_copy(update={"steps": steps, "epochs": 0.0})

    def described(self, longest: int) -> str:
        """What one step does, in a line; `longest` is a response's limit, tokens."""
        responses = self.prompts_per_step * self.group_size
        return f"a step: {responses} responses of at most {longest} tokens, {self.updates_per_rollout} updates"
