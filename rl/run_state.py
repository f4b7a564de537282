"""What must survive an interruption beside the learner's checkpoint."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

STATE_FILE = "run.json"
RECIPE_FILE = "recipe.yaml"
"""The resolved recipe of a run, in its folder."""


@dataclass(slots=True, kw_only=True)
class RunState:
    """What must survive an interruption beside the learner's checkpoint; kept in `run.json`."""

    run_id: str = ""
    """MLflow run id."""
    recipe_dir: str = "."
    """Folder that the recipe's paths are relative to."""
    accuracy_before: float = math.nan
    """Held-out accuracy after the cold start."""
    gap_at_lag_0: float = 0.0
    """Largest sampler/learner gap at equal weights so far, nats."""
    seconds: float = 0.0
    """Wall time spent, interruptions left out."""
    peak_bytes: float = 0.0
    """Largest sum of the processes' peak memory."""
    gpu_peak_bytes: float = 0.0
    """Largest memory that tensors of one process held on its GPU, 0 on the CPU."""
    counters: dict[str, float] = field(default_factory=dict)
    """Totals of failures over the run."""

    def save(self, run_dir: Path) -> None:
        """Write `run.json`."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        (run_dir / STATE_FILE).write_text(json.dumps(data, indent=2) + "\n")

    @classmethod
    def load(cls, run_dir: Path) -> "RunState":
        """Read `run.json`."""
        return cls(**json.loads((run_dir / STATE_FILE).read_text()))
