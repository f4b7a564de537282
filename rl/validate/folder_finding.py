"""Whether a run could have its folder: looked at, not tried."""

from pathlib import Path

from samepath.rl.run_folder import RunFolderError, begun, unusable
from samepath.rl.validate.finding import Finding, Outcome


def folder_finding(run_dir: Path) -> Finding:
    """Wrong where it could not be written; an obstacle where a run stands that has trained."""
    outcome: Outcome = "wrong"
    detail = unusable(run_dir)
    if not detail:
        try:
            begun(run_dir)
        except RunFolderError as error:
            outcome, detail = "obstacle", str(error)
        else:
            outcome, detail = "ok", f"{run_dir} can be written"
    return Finding(name="run folder", outcome=outcome, detail=detail)
