"""Settings of low-rank adapters (arXiv:2106.09685)."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LoraSettings(BaseModel):
    """W + alpha/rank · B·A on the named linear layers; everything else is frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(0, ge=0, le=1024, description="width of the adapters; 0 trains the weights themselves")
    alpha: float = Field(32.0, gt=0, description="scale: adapters are multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="must be 0: the engine samples without dropout")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        min_length=1,
        description="last names of the linear layers that get one",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dropout:
            raise ValueError(
                f"lora.dropout must be 0: with it the learner is another policy than the one that sampled; got {self.dropout}"
            )
        return self

    @property
    def enabled(self) -> bool:
        """True if adapters are trained instead of the weights."""
        return self.rank > 0
