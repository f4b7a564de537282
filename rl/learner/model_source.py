"""Where a run's model comes from: built new from sizes in the recipe, or a checkpoint folder or hub name."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from samepath.kernels.backend import Backend
from samepath.model.config import ModelConfig
from samepath.model.files.config_file import write_config
from samepath.model.files.policy_files import Implementation, load_policy, save_policy
from samepath.model.files.published_sizes import KNOWN_TYPES, published_sizes
from samepath.model.json_file import read_json
from samepath.model.network.network import CausalLM
from samepath.model.network.placement import DeviceName, Placement, TypeName
from samepath.model.policy import Policy
from samepath.model.text.tokenizer import Tokenizer, character_tokenizer, load_tokenizer
from samepath.rl.tasks.hub_folder import CONFIG_FILES, hub_folder


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


class NewModel(PlacedModel):
    """A network of any family (`config.model_type`) with fresh weights and a character-level tokenizer."""

    kind: Literal["new"] = Field("new", description="build from sizes")
    alphabet: str = Field(min_length=1, description="the characters of prompts and responses, each once")
    config: dict[str, Any] = Field(
        description="sizes under their published names (see model/config.py); vocab_size follows from the alphabet"
    )

    @property
    def implementation(self) -> Implementation:
        """A new network is always the own one."""
        return "own"

    @property
    def shape(self) -> ModelConfig:
        """The sizes, with the number of tokens that the alphabet gives."""
        return ModelConfig.model_validate({**self.config, "vocab_size": len(self.alphabet) + 2})

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
    check_expected(settings.expected, folder)
    policy, tokenizer = load_policy(folder, settings.implementation, settings.backend), load_tokenizer(folder)
    if tokenizer.vocab_size > policy.shape.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model only {policy.shape.vocab_size}"
        )
    return policy, tokenizer


def resolve_folder(path: str, recipe_dir: Path, *, weights: bool = True) -> Path:
    """A local folder as it stands or relative to the recipe; otherwise a hub name is downloaded (or taken from the hub cache).

    `weights` False leaves the weights out. Raises FileNotFoundError, of which HubUnreachableError is one.
    """
    for candidate in (Path(path), recipe_dir / path):
        if candidate.is_dir():
            return candidate
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise FileNotFoundError(
            f"model.path must be a folder or a hub name (organisation/name); there is no folder {path} here or beside the recipe in "
            f"{recipe_dir}"
        )
    return hub_folder(path, "model", [*CONFIG_FILES, *(["*.safetensors"] if weights else [])])


def model_config(settings: NewModel | CheckpointModel, recipe_dir: Path) -> dict[str, Any]:
    """The model's config.json, or what a new model's would say of its sizes. Fetches no weights."""
    if isinstance(settings, NewModel):
        return write_config(settings.shape)
    return check_expected(settings.expected, resolve_folder(settings.path, recipe_dir, weights=False))


def check_expected(expected: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises ValueError listing every size that is not what the recipe expects."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"a checkpoint needs {path.name}; none at {path}")
    config = read_json(path)
    wrong = [
        f"{key} is {config.get(key)!r}, expected {value!r}"
        for key, value in expected.items()
        if config.get(key) != value
    ]
    if wrong:
        raise ValueError(
            f"{path} must have the sizes of model.expected: {'; '.join(wrong)}. Correct model.path or model.expected."
        )
    return config


def save_model(policy: Policy, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a self-contained checkpoint folder."""
    save_policy(policy, folder)
    tokenizer.save(folder)
