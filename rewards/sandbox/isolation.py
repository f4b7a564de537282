"""Which isolation the children get: what the recipe names, or with `auto` the strongest that works here, said aloud."""

from dataclasses import dataclass
from typing import Literal

from samepath.rewards.sandbox.bubblewrap import bubblewrap_problem, bubblewrap_version
from samepath.rewards.sandbox.landlock import landlock_abi, still_open
from samepath.rewards.settings import RewardSettings

Mode = Literal["bubblewrap", "landlock", "none"]
MODES: tuple[Mode, ...] = ("bubblewrap", "landlock", "none")
"""From the strongest to none at all."""


class IsolationUnavailableError(RuntimeError):
    """The recipe names an isolation that does not work here; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What keeps the children away from everything else.

    Example:
        Isolation(mode="landlock", detail="landlock (ABI 7), no TCP", notice="bubblewrap does not work here: …")
    """

    mode: Mode
    detail: str
    """For people and records: the mode with its version and what it leaves open."""
    notice: str = ""
    """Why `auto` did not take something stronger; empty if it took the strongest, or the recipe names the mode."""

    def said(self) -> list[str]:
        """What a run says of it before it begins."""
        chosen = (
            f"reward functions run under {self.detail}" if self.mode != "none" else f"reward isolation {self.detail}"
        )
        return [f"{chosen} (docs/rewards.md)", *([f"notice: {self.notice}"] if self.notice else [])]


def problem_of(mode: Mode) -> str:
    """Why a mode does not work here; empty if it does."""
    if mode == "bubblewrap":
        return bubblewrap_problem()
    if mode == "landlock" and not landlock_abi():
        return "this system has no Landlock (Linux 5.13 or later, with `landlock` among its security modules)"
    return ""


def chosen_isolation(settings: RewardSettings) -> Isolation:
    """The isolation that `reward.isolation` means here. Raises IsolationUnavailableError for a named one that does not work."""
    if settings.isolation != "auto":
        if problem := problem_of(settings.isolation):
            raise IsolationUnavailableError(
                f"reward.isolation={settings.isolation} must work on this machine; it does not: {problem}. Mend that, or set "
                "reward.isolation to auto, which takes the strongest that works (`samepath doctor` says which do)."
            )
        return Isolation(mode=settings.isolation, detail=described(settings.isolation, settings.network))
    problems = []
    for mode in MODES:
        if problem := problem_of(mode):
            problems.append(f"{mode} does not work here: {problem}")
            continue
        notice = "; ".join(problems)
        return Isolation(mode=mode, detail=described(mode, settings.network), notice=notice)
    raise AssertionError("`none` works everywhere")


def described(mode: Mode, network: bool) -> str:
    """A mode that works here, in words."""
    if mode == "bubblewrap":
        return f"{bubblewrap_version()}, {'with' if network else 'no'} network"
    if mode == "landlock":
        abi = landlock_abi()
        states = ["with network"] if network else ["no TCP"] if abi >= 4 else []
        return ", ".join([f"landlock (ABI {abi})", *states, *still_open(abi, network)])
    return "none: reward functions can do all that the driver's user can"
