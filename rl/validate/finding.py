"""What the checks of a recipe found, one by one and together."""

from dataclasses import dataclass, field
from typing import Literal

from samepath.rl.validate.memory_plan import MemoryPlan, memory_lines

Outcome = Literal["ok", "warning", "not checked", "obstacle", "wrong"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check.

    Example:
        Finding(name="task", outcome="not checked", detail="dataset openai/gsm8k is not in the hub's cache, …")
    """

    name: str
    """What was looked at."""
    outcome: Outcome
    """`wrong`: the recipe must change. `obstacle`: the recipe is right, but this version or this machine cannot run it. `warning`: it runs,
    but hardly as it is meant."""
    detail: str
    """What was found, and what to do."""


@dataclass(slots=True, kw_only=True)
class Validation:
    """All checks of a recipe, and its memory where the model's sizes are known.

    Example: `Validation(findings=[…], memory=plan).passed(strict=False)`.
    """

    findings: list[Finding] = field(default_factory=list)
    """In the order of a run."""
    memory: MemoryPlan | None = None
    """None where the sizes are not known."""

    def is_ok(self, name: str) -> bool:
        """Whether the check of that name was made and found nothing."""
        return any(finding.name == name and finding.outcome == "ok" for finding in self.findings)

    def passed(self, *, strict: bool) -> bool:
        """Whether nothing is wrong; with `strict`, whether everything was checked and nothing stands in the way."""
        bad: set[Outcome] = {"wrong", "obstacle", "not checked", "warning"} if strict else {"wrong"}
        return not any(finding.outcome in bad for finding in self.findings)

    def lines(self) -> list[str]:
        """For people."""
        width = max(len(finding.name) for finding in self.findings)
        shown = [f"{finding.outcome:<11}  {finding.name:<{width}}  {finding.detail}" for finding in self.findings]
        return [*shown, *(["", *memory_lines(self.memory)] if self.memory is not None else [])]
