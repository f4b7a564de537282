"""Which reward functions a recipe uses, with what weight, and the limits of the processes they run in."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

_FUNCTION_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
FunctionPath = Annotated[str, StringConstraints(pattern=_FUNCTION_PATH)]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")]
PartName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.\-]*$")]


class RewardPart(BaseModel):
    """One named term of the reward. A plain string stands for its function with weight 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    function: FunctionPath = Field(description="Import path of the reward function, `package.module:function`.")
    weight: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="Factor of this part in the total; any finite number, 0 = log only.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments given to the function with every request; plain data."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, data: Any) -> Any:
        return {"function": data} if isinstance(data, str) else data


class RewardSettings(BaseModel):
    """The reward of a recipe.

    Three spellings are read: a string (`samepath.rewards.math:answer`, one part named `answer`), parts by their names beside the
    limits, and the full form with `parts` beside the limits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: dict[PartName, RewardPart] = Field(
        default_factory=dict,
        description="Named terms of the reward; the total is the weighted sum. At least one, but for an environment, which judges by itself "
        "and takes none.",
    )
    timeout_s: float = Field(
        default=10.0, gt=0, le=86400, description="Wall time for all parts of one request, seconds, (0, 86400]."
    )
    memory_bytes: int = Field(
        default=2 << 30,
        ge=0,
        description="Address space a child may map beyond what its imports mapped, bytes; 0 = no limit. Linux only.",
    )
    isolation: Literal["auto", "bubblewrap", "landlock", "none"] = Field(
        default="auto",
        description="What keeps the children from writing outside their private folders, and more (docs/rewards.md); auto = the strongest "
        "that works on the machine, which the run names; another name is refused where it does not work.",
    )
    network: bool = Field(
        default=False,
        description="True: the children may use the network, such as for a judge. Otherwise bubblewrap blocks all of it, landlock TCP, none "
        "nothing.",
    )
    max_processes: int = Field(
        default=256,
        ge=1,
        le=1 << 20,
        description="Most processes below one child at a time, itself left out; one that has more is ended with them. Linux only.",
    )
    disk_bytes: int = Field(
        default=256 << 20,
        ge=1 << 16,
        description="Most bytes in a child's private folder, and in any one file that it writes, at least 65536. Under bubblewrap the folder, "
        "`/tmp` and `/dev/shm` lie in memory and hold that much each.",
    )
    max_abs: float = Field(
        default=1e6,
        gt=0,
        le=1e12,
        description="Largest size of a total; a reward beyond it is `invalid`, like one that is no finite number. Reward units.",
    )
    max_failed_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Largest share of a step's responses, or of an evaluation's, without a usable reward before the run stops; judged over 8 "
        "responses or more, as soon as that many have failed. 1 = never.",
    )
    num_workers: int = Field(default=2, ge=1, le=512, description="Child processes scoring at the same time, 1 to 512.")
    search_path: str = Field(
        default=".",
        min_length=1,
        description="Folder put first on the children's `sys.path`, for reward modules of your own; `.` = where the run starts.",
    )
    environment: dict[VariableName, str] = Field(
        default_factory=dict,
        description="Variables for the children, by name; the recipe is kept with the run, so no secrets here.",
    )
    pass_environment: tuple[VariableName, ...] = Field(
        default=(),
        description="Names of the driver's variables that the children get too, such as a key; of the others only those for "
        "paths, language and threads.",
    )
    start_timeout_s: float = Field(
        default=60.0, gt=0, le=86400, description="Wall time for a child to import every part, seconds, (0, 86400]."
    )

    @property
    def main_part(self) -> str:
        """Name of the first part, which says whether a response is right; empty where an environment's own first part does."""
        return next(iter(self.parts), "")

    @model_validator(mode="before")
    @classmethod
    def _from_short_forms(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"parts": {data.rpartition(":")[2]: data}}
        if not isinstance(data, Mapping) or "parts" in data:
            return data
        names = [key for key, value in data.items() if key not in cls.model_fields and is_part(value)]
        limits = {key: value for key, value in data.items() if key not in names}
        return {"parts": {name: data[name] for name in names}, **limits} if names else data


def is_part(value: Any) -> bool:
    """Tell whether a value, as pydantic takes it, can be a part of a reward: an import path, or a mapping with a function."""
    if isinstance(value, str):
        return re.match(_FUNCTION_PATH, value) is not None
    return isinstance(value, RewardPart) or (isinstance(value, Mapping) and "function" in value)
