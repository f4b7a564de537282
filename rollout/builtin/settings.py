"""Settings of the built-in engine."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from samepath.kernels.backend import CAPABILITIES, Backend, backends_that


class BuiltinSettings(BaseModel):
    """Size of the built-in engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["builtin"] = Field(
        "builtin", description="this package's engine: equal to the learner to the last bit"
    )
    dtype: Literal["model", "bfloat16"] = Field(
        "model",
        description="weights and activations of the engine: `model` is the learner's type, with a gap of 0; `bfloat16` samples in it beside a learner "
        "in float32, with a gap, as engines do that are built for speed (to study it: on a CPU it is not faster)",
    )
    max_sequences: int = Field(128, ge=1, le=4096, description="samples decoded together")
    max_batch_tokens: int = Field(
        1024, ge=16, description="rows of one forward pass, tokens; longer prompts are prefilled in chunks"
    )
    page_size: int = Field(16, ge=1, le=256, description="tokens of a cache page")
    cache_tokens: int = Field(32768, ge=64, description="capacity of the key cache, tokens")
    prefix_cache: bool = Field(True, description="reuse full prompt pages between groups of one weight version")
    cuda_graph: Literal["auto", "on", "off"] = Field(
        "auto",
        description="decode by replaying CUDA graphs: `auto` with `model.device: cuda` and `model.backend: triton`, `on` demands both",
    )

    def graph_problem(self, device: str, backend: Backend) -> str:
        """Why `cuda_graph: on` is impossible for a model on this device with these kernels; empty if it is not asked for, or possible."""
        if self.cuda_graph != "on" or (device == "cuda" and CAPABILITIES[backend].graphs):
            return ""
        return (
            f"engine.cuda_graph=on needs model.device=cuda and model.backend={backends_that('graphs')}, whose kernels never wait for the host; got "
            f"{device} and {backend}. Set these, or engine.cuda_graph=auto or off."
        )
