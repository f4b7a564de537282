"""Settings of a vLLM engine."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class VllmSettings(BaseModel):
    """A vLLM engine in each rollout worker; the adapter is tested with one exact version (rollout/vllm/version.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vllm"] = Field("vllm", description="the vLLM engine: throughput, and Hugging Face models")
    device: Literal["cpu", "cuda"] = Field("cpu", description="which build of vLLM the workers have; only cpu was run")
    network: Literal["vllm", "own"] = Field(
        "vllm",
        description="`vllm`: its own model classes and kernels; `own`: this package's network under vLLM's scheduler, on CPU in float32, exact",
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="weights and activations of the engine")
    max_sequences: int = Field(128, ge=1, le=4096, description="samples decoded together")
    max_batch_tokens: int = Field(
        2048, ge=16, description="rows of one forward pass, tokens; longer prompts are prefilled in chunks"
    )
    max_model_tokens: int = Field(0, ge=0, description="longest prompt and response, tokens; 0 takes the model's limit")
    page_size: int = Field(32, ge=16, multiple_of=16, description="tokens of a cache page")
    cache_bytes: int = Field(256 << 20, ge=1 << 16, description="memory of the key cache, bytes")
    prefix_cache: bool = Field(True, description="reuse full prompt pages; recording routes needs it")
    return_routes: bool = Field(True, description="record the experts of every token; nothing to do in a dense model")
    return_sampling_mask: bool = Field(
        False,
        description="record the candidates that top-k, top-p and min-p left; training on truncated samples needs it",
    )
    latent_kernels: bool = Field(
        False,
        description="kernels that vLLM has for latent attention on GPUs; otherwise it runs as ordinary attention",
    )
    eager: bool = Field(True, description="no graph capture; the CPU build always runs this way")
    tensor_parallel: int = Field(1, ge=1, le=64, description="GPUs of one engine; above 1 was not run")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.return_routes and not self.prefix_cache:
            raise ValueError(
                "return_routes needs prefix_cache: vLLM keeps the routes of a cached prompt beside its pages. "
                "Set prefix_cache=true, or return_routes=false."
            )
        if self.max_batch_tokens < self.max_sequences:
            raise ValueError(
                f"max_batch_tokens must hold a token of each of max_sequences={self.max_sequences}; got {self.max_batch_tokens}"
            )
        if self.network == "own" and (self.device, self.dtype) != ("cpu", "float32"):
            raise ValueError(f"network=own runs with device=cpu and dtype=float32; got {self.device} and {self.dtype}")
        if self.device == "cpu":
            if self.network == "vllm" and self.page_size % 32:
                raise ValueError(
                    f"page_size must be a multiple of 32 for vLLM's own attention on CPU; got {self.page_size}. Set page_size=32."
                )
            for name, wanted in (("latent_kernels", False), ("eager", True), ("tensor_parallel", 1)):
                if getattr(self, name) != wanted:
                    raise ValueError(f"{name}={getattr(self, name)} needs device=cuda")
        return self
