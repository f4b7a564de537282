"""Settings of which rows an evaluation set asks: the run's own held-out ones, or all rows of a source that nothing is trained on."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from samepath.rl.recipe.prompt import PromptSettings
from samepath.rl.recipe.task import FileFormat, FilePath, HubConfig, HubPath, HubRevision, TableRows, check_params


class HeldOutRows(BaseModel):
    """The held-out rows of the run's own task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["held_out"] = Field(default="held_out", description="Names this kind of rows.")


class GymRows(PromptSettings):
    """Problems of one reasoning_gym dataset."""

    kind: Literal["reasoning_gym"] = Field(default="reasoning_gym", description="Names this kind of rows.")
    dataset: str = Field(min_length=1, description="Name of the dataset, for example chain_sum.")
    params: dict[str, JsonValue] = Field(
        default={},
        description="The dataset's own settings, for example {min_terms: 3, max_terms: 3}; no seed, no size.",
    )
    num_rows: int = Field(default=128, ge=1, description="Rows, all different (count).")
    seed: int = Field(
        default=0,
        ge=0,
        description="Seed of the rows (at least 0); that of the run's task gives the rows held out there.",
    )

    @field_validator("params")
    @classmethod
    def _no_seed(cls, params: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return check_params(params, "num_rows")


class FileRows(TableRows):
    """All rows of a file."""

    kind: Literal["file"] = Field(default="file", description="Names this kind of rows.")
    path: FilePath
    format: FileFormat = "auto"


class HubRows(TableRows):
    """All rows of a split of a dataset on the hub."""

    kind: Literal["hub"] = Field(default="hub", description="Names this kind of rows.")
    path: HubPath
    config: HubConfig = ""
    revision: HubRevision = ""
    split: str = Field(default="test", min_length=1, description="Split, or a part of one such as `test[:500]`.")


class EnvironmentRows(BaseModel):
    """Rows of the run's own environment, made with other options: harder ones, say. Its conversations are led as the run's are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["environment"] = Field(default="environment", description="Names this kind of rows.")
    options: dict[str, JsonValue] = Field(
        default={}, description="Keyword arguments of the environment, laid over those of the task."
    )
    split: Literal["train", "held_out"] = Field(default="held_out", description="Which of its rows.")


EvaluationRows = Annotated[HeldOutRows | GymRows | FileRows | HubRows | EnvironmentRows, Field(discriminator="kind")]
"""Rows of an evaluation set; `kind` chooses."""
