"""`alerts.jsonl` of a run's folder: what began, ended or was noted, a line each, in the order of steps."""

import json
from collections.abc import Iterable
from pathlib import Path

from samepath.model.durable_file import replace_file, whole_lines
from samepath.rl.run_folder import ALERTS_FILE
from samepath.rl.tracking.alert import Alert, alert_of

RESUMED = "resumed"
"""Rule of a note where another process went on with the run."""
STOPPED = "stopped"
"""Rule of what ended a run before its last step."""


def read_alerts(run_dir: Path) -> list[Alert]:
    """All of a run's, in their order; empty where nothing was ever said. A line that a kill cut short is left out."""
    path = run_dir / ALERTS_FILE
    if not path.is_file():
        return []
    found = []
    for line in whole_lines(path):
        try:
            found.append(alert_of(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            # Torn by a kill: the rules say it again, if they still see it.
            continue
    return found


def rewind_alerts(run_dir: Path, step: int) -> None:
    """Take out what was said of steps after `step`, which are made again."""
    path = run_dir / ALERTS_FILE
    if path.is_file():
        kept = [alert for alert in read_alerts(run_dir) if alert.step <= step]
        replace_file(path, "".join(json.dumps(alert.plain(), ensure_ascii=False) + "\n" for alert in kept))


def resumptions(alerts: Iterable[Alert]) -> list[int]:
    """Steps behind which another process went on."""
    return [alert.step for alert in alerts if alert.rule == RESUMED]
