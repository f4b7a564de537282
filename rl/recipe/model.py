"""Settings of the model: built new from sizes, or a checkpoint; and where it computes."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from samepath.kernels.backend import Backend
from samepath.model.config import ModelConfig
from samepath.model.files.published_sizes import KNOWN_TYPES, published_sizes
from samepath.model.placement import DeviceName, Implementation, Placement, TypeName

LEAST_IDS = 262
"""Every byte and the six control tokens of the form: ids of a learned tokenizer without pieces."""


class PlacedModel(BaseModel):
    """Where a model computes; learner and built-in engine alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Backend = Field(
        "torch",
        description="kernels; `triton`: fused ones for `device: cuda`, with a gap of 0 between sampler and learner",
    )
    device: DeviceName = Field(
        "cpu",
        description="own network: the CPU, or one GPU a process, which CUDA_VISIBLE_DEVICES or Ray chooses; transformers models go where accelerate puts them",
    )
    dtype: TypeName = Field(
        "float32",
        description="own network: weights and activations in the passes; with `bfloat16` (backend triton) the optimiser keeps float32 masters",
    )

    batch_invariant: bool = Field(
        True,
        description=(
            "a row's bits do not depend on its batch, so sampler and learner agree exactly; `false` (with `device: cuda`, `backend: triton`) "
            "runs dense attention below a measured length, and the library's products: faster, and it leaves a gap"
        ),
    )

    @property
    def placement(self) -> Placement:
        """The four as one."""
        return Placement(
            device=self.device, dtype=self.dtype, backend=self.backend, batch_invariant=self.batch_invariant
        )


class LearnedTokenizer(BaseModel):
    """A tokenizer for conversations, learned from the worked ones of the first training rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["bpe"] = Field(
        "bpe",
        description="bytes, each digit a token, DeepSeek-V3.2's control tokens, and pieces joined from neighbours that stand together",
    )
    vocab_size: int = Field(
        512,
        ge=LEAST_IDS,
        description="ids at most: bytes, control tokens and the pieces that save most tokens; fewer where the texts have no more pieces",
    )
    rows: int = Field(
        64,
        ge=16,
        description="training rows whose worked conversations are read; a piece stands in each once or more, on average",
    )


class NewModel(PlacedModel):
    """A network of any family (`config.model_type`) with fresh weights, and a tokenizer of characters or a learned one."""

    kind: Literal["new"] = Field("new", description="build from sizes")
    alphabet: str = Field(
        "", description="the characters of prompts and responses, each once and a token; empty: `tokenizer` is given"
    )
    tokenizer: LearnedTokenizer | None = Field(None, description="for conversations, in place of an alphabet")
    config: dict[str, Any] = Field(
        description="sizes under their published names (see model/config.py); vocab_size follows from the tokenizer"
    )

    @property
    def implementation(self) -> Implementation:
        """A new network is always the own one."""
        return "own"

    @property
    def shape(self) -> ModelConfig:
        """The sizes, with the number of ids that the alphabet gives; of a learned tokenizer, which may have fewer, the most."""
        ids = len(self.alphabet) + 2 if self.tokenizer is None else self.tokenizer.vocab_size
        return ModelConfig.model_validate({**self.config, "vocab_size": ids})

    @model_validator(mode="after")
    def _check_tokenizer(self) -> Self:
        if bool(self.alphabet) == (self.tokenizer is not None):
            raise ValueError(
                "give exactly one of alphabet (a token for each character) and tokenizer (learned, for conversations); got "
                f"{'both' if self.alphabet else 'none'}"
            )
        return self

    @field_validator("config")
    @classmethod
    def _check_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        for key in ("vocab_size", "eos_token_id", "bos_token_id"):
            if key in config:
                raise ValueError(f"{key} follows from the tokenizer; leave it out")
        try:
            ModelConfig.model_validate({"vocab_size": 2, **config})
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, item['loc'])) or 'config'}: {item['msg']}" for item in error.errors()
            )
            raise ValueError(problems) from error
        return config


class CheckpointModel(PlacedModel):
    """A checkpoint folder in the published layout, or a hub name that transformers' hub client resolves."""

    kind: Literal["checkpoint"] = Field("checkpoint", description="load weights")
    path: str = Field(min_length=1, description="folder (relative to the recipe) or hub name such as organisation/name")
    implementation: Implementation = Field(
        "own", description="`own`: this package's network; `transformers`: any of its causal language models"
    )
    expected: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "sizes that the checkpoint's config.json must have, under its own names; where the hub cannot be reached, "
            "`samepath validate` goes by them"
        ),
    )

    @field_validator("expected")
    @classmethod
    def _check_expected(cls, expected: dict[str, Any]) -> dict[str, Any]:
        if expected and "model_type" not in expected:
            raise ValueError("model_type must be among the sizes, as it is in config.json")
        # Sizes of other types are compared, only not counted.
        if expected.get("model_type") in KNOWN_TYPES:
            published_sizes(expected)
        return expected


def short_form(value: object) -> object:
    """`model: NAME` stands for `{kind: checkpoint, path: NAME}`."""
    return {"kind": "checkpoint", "path": value} if isinstance(value, str) else value


ModelSettings = Annotated[
    Annotated[NewModel | CheckpointModel, Field(discriminator="kind")], BeforeValidator(short_form)
]
