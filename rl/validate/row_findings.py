"""What reading every row of a task shows about the recipe."""

from samepath.rl.tasks.survey import Survey
from samepath.rl.validate.finding import Finding

READ_LIMIT_S = 120.0
"""Longest time that `samepath validate` reads rows."""


def row_findings(found: Survey, num_train: int) -> list[Finding]:
    """Rows that would fail in the run, rows that were not reached, and a task of a single row; the name of each is `rows`.

    Raises ValueError if no training row or no held-out row can be asked.
    """
    all_read = found.num_read == found.total
    if found.faults and not (found.usable_held_out and (found.usable_train or not all_read)):
        what = "training" if found.usable_held_out else "held-out"
        raise ValueError(f"no {what} row can be asked; {found.described()}")
    findings = []
    if found.faults:
        detail = f"{found.described()}. In the run their samples count as rollout/failure.<reason>; mend them or leave them out."
        findings.append(Finding(name="rows", outcome="warning", detail=detail))
    if not all_read:
        detail = f"{found.num_read:,} of {found.total:,} rows were read within {READ_LIMIT_S:g} s; the others are as they are"
        findings.append(Finding(name="rows", outcome="not checked", detail=detail))
    if num_train == 1:
        detail = (
            "there is one training row: every group of every step answers the same prompt. Give the task more rows."
        )
        findings.append(Finding(name="rows", outcome="warning", detail=detail))
    return findings
