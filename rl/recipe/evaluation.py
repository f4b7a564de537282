"""Settings of the evaluation: the held-out prompts in a few words, or named sets with rows and sampling of their own."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from samepath.rl.recipe.evaluation_rows import EvaluationRows, HeldOutRows
from samepath.rollout.sampling_settings import SamplingSettings

SetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
PLAIN = ""
"""Name of the only set of a recipe that names none."""


class SetSampling(BaseModel):
    """How the responses of a set are drawn; they end where the training's end (stop ids and strings)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(0.0, ge=0, le=10, description="0 takes the best token")
    top_k: int = Field(0, ge=0, description="keep the k most likely tokens; 0 keeps all")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the fewest tokens whose probability reaches p; 1 keeps all")
    min_p: float = Field(
        0.0, ge=0, lt=1, description="keep tokens at least min_p times as likely as the best; 0 keeps all"
    )
    max_new_tokens: int = Field(0, ge=0, description="longest response, tokens; 0: as in training")

    def over(self, training: SamplingSettings) -> SamplingSettings:
        """The training's sampling with this set's own temperature, truncation and length."""
        changes = self.model_dump()
        if not self.max_new_tokens:
            del changes["max_new_tokens"]
        return training.model_copy(update=changes)


class SetSettings(BaseModel):
    """One named set of an evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: EvaluationRows = Field(
        default=HeldOutRows(), description="Its rows; by default the held-out ones of the run's own task."
    )
    max_prompts: int = Field(0, ge=0, description="ask so many of the rows, the first ones; 0: all")
    sampling: SetSampling = Field(default=SetSampling(), description="How its responses are drawn.")
    num_samples: int = Field(1, ge=1, description="responses to each prompt (n)")
    pass_at: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="each pass@k to report, by its k of at most n: the chance that one of k responses is right, estimated without bias "
        "from all n (arXiv:2107.03374 eq. 1)",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pass_at and max(self.pass_at) > self.num_samples:
            raise ValueError(
                f"pass_at must hold no k above num_samples={self.num_samples}, because pass@k needs k responses to a prompt; "
                f"got {max(self.pass_at)}. Raise num_samples."
            )
        if len(set(self.pass_at)) < len(self.pass_at):
            raise ValueError(f"pass_at must name each k once; got {list(self.pass_at)}")
        if self.num_samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"num_samples={self.num_samples} at sampling.temperature=0 would be as many equal responses. Give the set a temperature, or "
                "leave num_samples out."
            )
        return self


class EvaluationSettings(BaseModel):
    """Accuracy on held-out prompts, or on each of several named sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(0, ge=0, description="steps between evaluations; 0 only before and after training")
    samples: int = Field(1, ge=1, description="responses to each held-out prompt; sets have num_samples")
    temperature: float = Field(0.0, ge=0, le=10, description="0 takes the best token; sets have sampling")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="keep the fewest tokens whose probability reaches p; 1 keeps all; sets have sampling",
    )
    full_reward: float = Field(1.0, description="a response is right if the reward's first part is at least this")
    sets: dict[SetName, SetSettings] = Field(
        default={},
        description="Evaluate on these instead, each with rows, sampling and pass@k of its own; the first also stands in `eval/…`.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = type(self).model_fields
        for name, instead in (
            ("samples", "num_samples"),
            ("temperature", "sampling.temperature"),
            ("top_p", "sampling.top_p"),
        ):
            if self.sets and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)} says nothing beside sets, which have {instead} each; set it there and leave {name} out"
                )
        return self

    @property
    def named(self) -> Mapping[str, SetSettings]:
        """The sets by name, the first being the headline; a recipe that names none has one, called `PLAIN`."""
        plain = SetSettings.model_construct(
            task=HeldOutRows(),
            max_prompts=0,
            sampling=SetSampling(temperature=self.temperature, top_p=self.top_p),
            num_samples=self.samples,
            pass_at=(),
        )
        return self.sets or {PLAIN: plain}

    def samplings(self, training: SamplingSettings) -> dict[str, SamplingSettings]:
        """How each set is sampled, by the dotted setting that says so."""
        return {
            f"evaluation.sets.{name}.sampling" if name else "evaluation": one.sampling.over(training)
            for name, one in self.named.items()
        }
