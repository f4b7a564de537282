"""What the page says of the run itself: its name, whether it runs, and what its recipe masks."""

import json
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from samepath.rl.report.report import REPORT_FILE
from samepath.rl.run_folder import LOCK_FILE, ROLLOUTS
from samepath.rl.run_state import RECIPE_FILE, STATE_FILE, TEXT_RECIPE_FILE

STARTED_SLACK_S = 2.0
"""A process that began this much after a lock was taken has only the number of the one that took it; clocks count whole seconds."""


class NoRunError(FileNotFoundError):
    """The folder is none of a run."""


def rollouts_of(run_dir: Path) -> Path:
    """The folder of rollouts of a run, which may not exist yet. Raises NoRunError."""
    if not run_dir.is_dir():
        raise NoRunError(f"{run_dir} must be the folder of a run, such as runs/quickstart; there is no such folder")
    if (run_dir / TEXT_RECIPE_FILE).is_file():
        raise NoRunError(
            f"{run_dir} is a run on text, which samples nothing: it has no rollouts to look at. See `samepath doctor {run_dir}`, its "
            f"{REPORT_FILE}, and `samepath eval {run_dir} --suite sparse`."
        )
    if not (run_dir / RECIPE_FILE).is_file():
        inside = run_dir.resolve().parent if run_dir.resolve().name == ROLLOUTS else None
        there = f" Did you mean {inside}?" if inside is not None and (inside / RECIPE_FILE).is_file() else ""
        raise NoRunError(f"{run_dir} is no run folder: it has no {RECIPE_FILE}.{there}")
    return run_dir / ROLLOUTS


def run_facts(run_dir: Path) -> dict[str, Any]:
    """JSON data: `name`, `state` (a sentence), `running`, and `mask` with what the recipe says of the off-policy mask."""
    running, state = _state(run_dir)
    return {"name": run_dir.resolve().name, "running": running, "state": state, "mask": _mask(run_dir / RECIPE_FILE)}


def _state(run_dir: Path) -> tuple[bool, str]:
    phase = _json(run_dir / STATE_FILE).get("phase", "")
    if phase == "finished":
        return False, "finished"
    holder = _json(run_dir / LOCK_FILE)
    during = f" ({phase})" if phase else ""
    if holder.get("host") not in (None, socket.gethostname()):
        return (
            True,
            f"perhaps running{during}: held by process {holder.get('pid')} on {holder['host']}, which cannot be seen from here",
        )
    if _alive(holder):
        return True, f"running{during}"
    return False, f"ended early{during}"


def _alive(holder: dict[str, Any]) -> bool:
    """True if the process that took the lock still is; its number may be another's by now."""
    try:
        since = datetime.fromisoformat(holder["since"]).timestamp()
        return psutil.Process(int(holder["pid"])).create_time() < since + STARTED_SLACK_S
    except (KeyError, ValueError, TypeError, psutil.Error):
        return False


def _json(path: Path) -> dict[str, Any]:
    """The object in a file that the run may be replacing; an empty one where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _mask(recipe: Path) -> dict[str, Any]:
    """`enabled`, `delta` (nats) and `scope`; an empty object where the recipe, perhaps of another version, does not say."""
    try:
        settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))["rl"]["objective"]["off_policy_mask"]
        return {
            "enabled": bool(settings["enabled"]),
            "delta": float(settings["delta"]),
            "scope": str(settings["scope"]),
        }
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return {}
