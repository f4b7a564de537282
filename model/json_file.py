"""Files that hold one JSON object."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samepath.model.durable_file import replace_file


def read_json(path: Path) -> dict[str, Any]:
    """Return the object. Raises FileNotFoundError, or ValueError naming the file, the line and what is wrong there."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must hold JSON: {error}. Fetch the file again.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object; got {str(data)[:80]!r}")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace `path` in one step by strict JSON: a number that is not finite is `null`."""
    replace_file(path, json.dumps(with_nulls(data), indent=2, allow_nan=False) + "\n")


def with_nulls(value: Any) -> Any:
    """Put None in place of NaN and infinities, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {name: with_nulls(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_nulls(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
