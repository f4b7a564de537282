"""Settings of a run on text instead of rewards: the stages in which a sparse attention is trained (arXiv:2512.02556 §2.1.1).

A recipe with a `stage` is one of these; without it, it is a recipe of reinforcement learning.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from samepath.rl.recipe.checkpoint import CheckpointSettings
from samepath.rl.recipe.learner import RankSettings
from samepath.rl.recipe.model import CheckpointModel, short_form
from samepath.rl.recipe.optimizer import OptimizerSettings
from samepath.rl.recipe.tracking import TrackingSettings


class TextSettings(BaseModel):
    """Documents, and how they become sequences: laid end to end, an end token behind each, and cut to one length."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["files", "hub"] = Field("files", description="files beside the recipe, or a dataset of the hub")
    paths: tuple[str, ...] = Field(
        (),
        description="files: names or patterns (`corpus/**/*.txt`), relative to the recipe; JSONL and Parquet have a document a row, any other file is one",
    )
    path: str = Field("", description="hub: name, or a folder in its layout, relative to the recipe")
    config: str = Field("", description="hub: configuration of the dataset")
    split: str = Field("train", description="hub: split, `train[:1%]` for a part")
    revision: str = Field("", description="hub: commit, tag or branch")
    column: str = Field("text", min_length=1, description="where a row of JSONL, Parquet or the hub has its text")
    length: int = Field(1024, ge=16, description="tokens of a sequence")
    held_out: int = Field(8, ge=1, description="sequences at the text's end that are measured on and never trained on")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "files") != bool(self.paths) or (self.kind == "hub") != bool(self.path):
            raise ValueError("kind: files needs paths and no path, kind: hub needs path and no paths")
        return self


class NeedleSettings(BaseModel):
    """Values that are named once in held-out text and asked for at its end: does the selection find them?"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lengths: tuple[Annotated[int, Field(ge=16)], ...] = Field(
        (),
        description="tokens of a prompt with its answer, each above the model's index_topk; empty asks for no needles",
    )
    depths: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0),
        min_length=1,
        description="where the needle stands: 0 at the beginning, 1 right before the question",
    )
    samples: int = Field(4, ge=1, description="prompts for each length and depth")
    others: int = Field(2, ge=0, description="pairs with other keys, anywhere in a prompt")
    digits: int = Field(5, ge=1, le=9, description="decimal digits of a key and of a value")
    text: str = Field(
        "\nThe number of {key} is {value}.\n",
        description="the needle, which the tokenizer must be able to write; asked is what stands before {value}",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        ahead, found, behind = self.text.partition("{value}")
        if not found or ahead.count("{key}") != 1 or "{key}" in behind or "{value}" in behind:
            raise ValueError(
                f"needles.text must have {{key}} once and {{value}} once behind it; got {self.text!r}. Write for example '{{key}}={{value}};'"
            )
        if 10**self.digits <= self.others:
            raise ValueError(
                f"there are {10**self.digits} keys of needles.digits={self.digits}, and needles.others={self.others} needs one more than itself"
            )
        return self


class StageSettings(BaseModel):
    """What is trained, by which loss, for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["warmup", "sparse"] = Field(
        description="`warmup`: the indexer alone, against attention over all keys; `sparse`: everything, with top-k selection, the indexer by its own loss "
        "over the selected keys and all else by the next token"
    )
    steps: int = Field(ge=1, description="optimiser steps")
    sequences_per_step: int = Field(16, ge=1, description="sequences of a step")
    optimizer: OptimizerSettings = Field(
        default_factory=lambda: OptimizerSettings(), description="AdamW and its schedule, over all steps"
    )
    indexer_lr_scale: float = Field(1.0, gt=0, description="the indexer's learning rate over `optimizer.lr`")
    max_tokens_per_pass: int = Field(
        4096, ge=16, description="rows of one forward and backward pass; a longer sequence stands alone"
    )
    activation_checkpointing: bool = Field(
        False, description="keep only the layers' inputs for the backward: less memory, same gradients"
    )
    measure_every: int = Field(
        0, ge=0, description="steps between measurements on the held-out text; 0: at begin and end"
    )
    measured_topk: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="numbers of selected keys that are measured beside the model's own"
    )
    needles: NeedleSettings = Field(
        default_factory=lambda: NeedleSettings(), description="retrieval that is measured beside perplexity and recall"
    )


class TextRecipe(BaseModel):
    """One run on text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]*$", description="folder of the run below runs_dir, and its name in MLflow"
    )
    seed: int = Field(0, ge=0, description="order of the sequences")
    runs_dir: str = Field("runs", description="folder of all runs, relative to where the command is started")
    model: Annotated[CheckpointModel, BeforeValidator(short_form)] = Field(
        description="checkpoint whose attention has an indexer (`samepath convert --indexer`)"
    )
    text: TextSettings = Field(description="what is trained on")
    stage: StageSettings = Field(description="what is trained")
    learner: RankSettings = Field(default_factory=lambda: RankSettings(), description="processes that train together")
    checkpoint: CheckpointSettings = Field(default_factory=lambda: CheckpointSettings(), description="checkpoints")
    tracking: TrackingSettings = Field(default_factory=lambda: TrackingSettings(), description="metrics")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.implementation != "own":
            raise ValueError(f"model.implementation must be own, which has an indexer; got {self.model.implementation}")
        if self.model.placement.problem is not None:
            raise ValueError(self.model.placement.problem)
        return self

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return Path(self.runs_dir) / self.name
