"""Settings of the task, one class a kind: generated problems, a file, a dataset of the hub."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from samepath.rl.recipe.prompt import PromptRewrite, PromptSettings
from samepath.rollout.environments.settings import EnvironmentSettings, EpisodeSettings


def check_params(params: dict[str, JsonValue], sizes: str) -> dict[str, JsonValue]:
    """Return a dataset's params; raises ValueError for those that are settings here, `sizes` among them."""
    for name, instead in (("seed", "seed"), ("size", sizes)):
        if name in params:
            raise ValueError(f"params must not hold {name}; set {instead} of the task instead")
    return params


FilePath = Annotated[str, Field(min_length=1, description="JSONL or Parquet file, relative to the recipe.")]
FileFormat = Annotated[
    Literal["auto", "jsonl", "parquet"],
    Field(description="Format of the files; auto goes by suffix (.jsonl, .ndjson, .json, .parquet, .pq)."),
]
HubPath = Annotated[
    str,
    Field(
        min_length=1,
        description="Name such as openai/gsm8k, or a local folder of JSONL or Parquet files, relative to the recipe.",
    ),
]
HubConfig = Annotated[str, Field(description="The dataset's configuration, such as main; empty where it has only one.")]
HubRevision = Annotated[str, Field(description="Branch, tag or commit; empty takes the newest.")]
"""Where rows of a file and of the hub are, the same for a task and for an evaluation set."""


class ReasoningGymTask(PromptSettings):
    """Problems of one reasoning_gym dataset."""

    kind: Literal["reasoning_gym"] = Field(default="reasoning_gym", description="Names this kind of task.")
    dataset: str = Field(min_length=1, description="Name of the dataset, for example chain_sum.")
    params: dict[str, JsonValue] = Field(
        default={},
        description="The dataset's own settings, for example {min_terms: 3, max_terms: 3}; no seed, no size.",
    )
    num_train: int = Field(default=100_000, ge=1, description="Training rows in an epoch (count, at least 1).")
    num_held_out: int = Field(default=128, ge=1, description="Rows held out for evaluation, all different (count).")
    seed: int = Field(default=0, ge=0, description="Seed of both splits and of the epoch order (at least 0).")

    @field_validator("params")
    @classmethod
    def _no_seed(cls, params: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return check_params(params, "num_train and num_held_out")


class ColumnMap(BaseModel):
    """Which column of the table holds what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(
        default="question",
        min_length=1,
        description="Column of the question (text, or a conversation: a list of {role, content}).",
    )
    answer: str = Field(default="answer", min_length=1, description="Column of the gold answer (text or number).")
    id: str = Field(default="", description="Column of an id, unique in its split; empty: row numbers serve as ids.")
    dataset: str = Field(
        default="",
        description="Column of the name of the dataset that a row is from, for a table that mixes several; empty: all are of one, the table's own.",
    )
    extra: tuple[str, ...] = Field(default=(), description="More columns that the reward function is to see.")

    @property
    def names(self) -> list[str]:
        """Columns that the table must have, each once."""
        named = [name for name in (self.id, self.dataset) if name]
        return list(dict.fromkeys([self.prompt, self.answer, *named, *self.extra]))


class TableRows(PromptSettings):
    """How rows are made of a table."""

    columns: ColumnMap = Field(default=ColumnMap(), description="Which column holds what.")
    answer_rewrite: PromptRewrite = Field(
        default=PromptRewrite(),
        description="Cuts the gold answer out of its column; by default keeps it.",
    )


class TableSettings(TableRows):
    """What tasks made from a table have."""

    held_out_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Part of the different prompts to hold out (0 to 1); 0: rows of their own are named.",
    )
    max_held_out: int = Field(
        default=0, ge=0, description="Evaluate on so many of the held-out rows, the first ones (count); 0: on all."
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of the epoch order (at least 0); the split does not change with it."
    )


class FileTask(TableSettings):
    """Problems of a file; part of it, or another file, is held out."""

    kind: Literal["file"] = Field(default="file", description="Names this kind of task.")
    path: FilePath
    format: FileFormat = "auto"
    held_out_path: str = Field(
        default="", description="File of the held-out rows, relative to the recipe; empty: held_out_fraction says."
    )

    @model_validator(mode="after")
    def _check_held_out(self) -> "FileTask":
        if (self.held_out_fraction > 0) == bool(self.held_out_path):
            raise ValueError(
                "give exactly one of held_out_fraction (above 0) and held_out_path, so that there are rows to evaluate on; "
                f"got {self.held_out_fraction} and {self.held_out_path!r}"
            )
        return self


class HubTask(TableSettings):
    """Problems of a dataset on the hub; another split, or part of the same one, is held out."""

    kind: Literal["hub"] = Field(default="hub", description="Names this kind of task.")
    path: HubPath
    config: HubConfig = ""
    revision: HubRevision = ""
    train_split: str = Field(
        default="train", min_length=1, description="Split to train on, or a part of one such as `train[1000:]`."
    )
    held_out_split: str = Field(
        default="test", description="Split to evaluate on; empty: held_out_fraction of the training split."
    )

    @model_validator(mode="after")
    def _check_held_out(self) -> "HubTask":
        if (self.held_out_fraction > 0) == bool(self.held_out_split):
            raise ValueError(
                'give held_out_split, or held_out_fraction above 0 with held_out_split: ""; '
                f"got {self.held_out_split!r} and {self.held_out_fraction}"
            )
        if self.held_out_split == self.train_split:
            raise ValueError(
                f"held_out_split must not be train_split, {self.train_split!r}; set it to another split or give held_out_fraction"
            )
        return self


class EnvironmentTask(EnvironmentSettings):
    """Tasks of an environment, each worked in a conversation with tools and a user, which the environment judges."""

    kind: Literal["environment"] = Field(default="environment", description="Names this kind of task.")
    episode: EpisodeSettings = Field(default=EpisodeSettings(), description="How a conversation is led.")
    max_held_out: int = Field(
        default=0, ge=0, description="Evaluate on so many of the held-out rows, the first ones (count); 0: on all."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the epoch order (at least 0).")


TaskSettings = Annotated[ReasoningGymTask | FileTask | HubTask | EnvironmentTask, Field(discriminator="kind")]
"""Settings of a task; `kind` chooses."""
