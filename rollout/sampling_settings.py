"""Settings of how a response is drawn, and a prompt's own ones over the recipe's."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field


class SamplingSettings(BaseModel):
    """How a response is drawn. A prompt may override any of these for itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(
        1.0, ge=0, le=10, description="divides the logits; 0 takes the best token (evaluation only)"
    )
    top_k: int = Field(0, ge=0, description="keep the k most likely tokens, and any as likely as the k-th; 0 keeps all")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="keep the fewest tokens whose probability, among those that top_k and min_p left, reaches p; 1 keeps all",
    )
    min_p: float = Field(
        0.0, ge=0, lt=1, description="keep tokens at least min_p times as likely as the best; 0 keeps all"
    )
    max_new_tokens: int = Field(256, ge=1, description="longest response, tokens")
    stop_token_ids: tuple[int, ...] = Field(
        (), description="ids that end a response, beside the tokenizer's end of sequence"
    )
    stop_strings: tuple[str, ...] = Field((), description="texts that end a response once they appear in it")
    ignore_stop: bool = Field(False, description="run every response to max_new_tokens (benchmarks)")
    support_cap: int = Field(
        4096,
        ge=1,
        description="largest recorded support, tokens; a position with more candidates is drawn from the full vocabulary, and counted",
    )

    @property
    def truncates(self) -> bool:
        """True if some tokens can be left out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def resolve_sampling(settings: SamplingSettings, overrides: Mapping[str, object]) -> SamplingSettings:
    """The recipe's settings with a prompt's own overrides; raises pydantic's ValidationError on unknown or bad ones."""
    return SamplingSettings.model_validate({**settings.model_dump(), **overrides}) if overrides else settings
