"""Files of a checkpoint that hold one JSON object."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """Return the object. Raises FileNotFoundError, or ValueError naming the file, the line and what is wrong there."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must hold JSON: {error}. Fetch the file again.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object; got {str(data)[:80]!r}")
    return data
