"""Where a run's model comes from: built new from sizes in the recipe, or a checkpoint folder or hub name."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from samepath.kernels.backend import Backend
from samepath.model.config import ModelConfig
from samepath.model.network import CausalLM
from samepath.model.policy import Policy
from samepath.model.policy_files import Implementation, load_policy, save_policy
from samepath.model.tokenizer import Tokenizer, character_tokenizer, load_tokenizer


class NewModel(BaseModel):
    """A network with fresh weights and a character-level tokenizer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["new"] = Field("new", description="build from sizes")
    alphabet: str = Field(min_length=1, description="the characters of prompts and responses, each once")
    config: dict[str, Any] = Field(
        description="sizes under their published names (see model/config.py); vocab_size follows from the alphabet"
    )
    backend: Backend = Field("torch", description="kernels")

    @property
    def implementation(self) -> Implementation:
        """A new network is always the own one."""
        return "own"

    @field_validator("config")
    @classmethod
    def _check_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        for key in ("vocab_size", "eos_token_id", "bos_token_id"):
            if key in config:
                raise ValueError(f"{key} follows from the alphabet; leave it out")
        try:
            ModelConfig.model_validate({"vocab_size": 2, **config})
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, item['loc'])) or 'config'}: {item['msg']}" for item in error.errors()
            )
            raise ValueError(problems) from error
        return config


class CheckpointModel(BaseModel):
    """A checkpoint folder in the published layout, or a hub name that transformers' hub client resolves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["checkpoint"] = Field("checkpoint", description="load weights")
    path: str = Field(min_length=1, description="folder (relative to the recipe) or hub name such as organisation/name")
    implementation: Implementation = Field(
        "own", description="`own`: this package's network; `transformers`: any of its causal language models"
    )
    backend: Backend = Field("torch", description="kernels")


def _short_form(value: object) -> object:
    """`model: NAME` stands for `{kind: checkpoint, path: NAME}`."""
    return {"kind": "checkpoint", "path": value} if isinstance(value, str) else value


ModelSettings = Annotated[
    Annotated[NewModel | CheckpointModel, Field(discriminator="kind")], BeforeValidator(_short_form)
]


def build_model(settings: NewModel | CheckpointModel, recipe_dir: Path, seed: int) -> tuple[Policy, Tokenizer]:
    """The model and its tokenizer. Raises ValueError or FileNotFoundError that name what is missing."""
    if isinstance(settings, NewModel):
        tokenizer = character_tokenizer(settings.alphabet)
        ids = {"vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.end_id, "bos_token_id": tokenizer.start_id}
        model = CausalLM(ModelConfig.model_validate({**settings.config, **ids}), settings.backend)
        model.initialise(seed)
        return model, tokenizer
    folder = resolve_folder(settings.path, recipe_dir)
    policy, tokenizer = load_policy(folder, settings.implementation, settings.backend), load_tokenizer(folder)
    if tokenizer.vocab_size > policy.shape.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model only {policy.shape.vocab_size}"
        )
    return policy, tokenizer


def resolve_folder(path: str, recipe_dir: Path) -> Path:
    """A local folder as it stands or relative to the recipe; otherwise a hub name is downloaded (or taken from the hub cache)."""
    for candidate in (Path(path), recipe_dir / path):
        if candidate.is_dir():
            return candidate
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise FileNotFoundError(
            f"model.path must be a folder or a hub name; no folder {path} here or beside the recipe in {recipe_dir}"
        )
    # Late: only a hub name needs the hub client.
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))


def save_model(policy: Policy, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a self-contained checkpoint folder."""
    save_policy(policy, folder)
    tokenizer.save(folder)
