"""Settings of the engines; `kind` chooses one."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class BuiltinSettings(BaseModel):
    """Size of the built-in engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["builtin"] = Field(
        "builtin", description="this package's engine: equal to the learner to the last bit"
    )
    max_sequences: int = Field(128, ge=1, le=4096, description="samples decoded together")
    max_batch_tokens: int = Field(
        1024, ge=16, description="rows of one forward pass, tokens; longer prompts are prefilled in chunks"
    )
    page_size: int = Field(16, ge=1, le=256, description="tokens of a cache page")
    cache_tokens: int = Field(32768, ge=64, description="capacity of the key cache, tokens")
    prefix_cache: bool = Field(True, description="reuse full prompt pages between groups of one weight version")


class VllmSettings(BaseModel):
    """Size of a vLLM engine. One engine lives in each rollout worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vllm"] = Field("vllm", description="vLLM: throughput on Hugging Face models")
    max_sequences: int = Field(128, ge=1, le=4096, description="samples decoded together")


def _short_form(value: object) -> object:
    """`engine: vllm` stands for `{kind: vllm}`, and settings without a kind are the built-in engine's."""
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "builtin", **value} if isinstance(value, dict) else value


EngineSettings = Annotated[
    Annotated[BuiltinSettings | VllmSettings, Field(discriminator="kind")], BeforeValidator(_short_form)
]
