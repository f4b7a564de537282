"""Settings of the rotary position embedding, under the names of the published `config.json`, and the temperature that YaRN takes from them."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RopeParameters(BaseModel):
    """Rotary position embedding; YaRN as in arXiv:2309.00071, `llama3` as published with Llama 3.1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rope_type: Literal["default", "linear", "llama3", "yarn"] = Field(
        "default", description="plain frequencies, all divided by the factor, or only the slow ones (llama3, YaRN)"
    )
    rope_theta: float = Field(10000.0, gt=0, description="base of the frequencies")
    factor: float = Field(1.0, ge=1, description="context extension factor (all but default)")
    original_max_position_embeddings: int = Field(
        4096, ge=1, description="YaRN and llama3: context length before extension, tokens"
    )
    beta_fast: float = Field(32.0, gt=0, description="YaRN: rotations above which a frequency is kept")
    beta_slow: float = Field(1.0, gt=0, description="YaRN: rotations below which a frequency is interpolated")
    truncate: bool = Field(True, description="YaRN: round the ramp's two bounds to whole channels")
    mscale: float = Field(
        1.0, ge=0, description="YaRN: attention temperature coefficient of the cosines; 0 is a file without it"
    )
    mscale_all_dim: float = Field(
        1.0,
        ge=0,
        description="YaRN: temperature coefficient taken from the cosines, and given to MLA's softmax scale; 0 is a file without it",
    )
    attention_factor: float = Field(
        0.0, ge=0, description="YaRN: factor of the cosines; 0 works it out from the factor and both mscales"
    )
    partial_rotary_factor: float = Field(
        1.0, gt=0, le=1, description="share of a head's channels, from the first on, that are rotated (glm4_moe)"
    )
    low_freq_factor: float = Field(1.0, gt=0, description="llama3: rotations below which a frequency is interpolated")
    high_freq_factor: float = Field(4.0, gt=0, description="llama3: rotations above which a frequency is kept")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rope_type == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor must be above low_freq_factor={self.low_freq_factor:g}; got {self.high_freq_factor:g}"
            )
        if self.rope_type != "yarn" and self.attention_factor:
            raise ValueError(f"attention_factor belongs to rope_type=yarn; got {self.rope_type}")
        return self

    @property
    def amplitude(self) -> float:
        """Factor of cosines and sines: the YaRN temperature, which goes to the softmax scale instead where both mscales are given and equal."""
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)
        return yarn_mscale(self.factor, 1.0)


def yarn_mscale(factor: float, coefficient: float) -> float:
    """0.1 · coefficient · ln(factor) + 1 (arXiv:2309.00071 eq. 22)."""
    return 0.1 * coefficient * math.log(factor) + 1.0 if factor > 1 else 1.0
