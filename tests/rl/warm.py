"""What a program that starts many runs does once, before it forks the first."""

from importlib import import_module
from typing import Any, BinaryIO

from matplotlib.figure import Figure

from samepath.rl.report import report

IMPORTED_LATE = ("reasoning_gym", "torch._dynamo", "samepath.rl.cli", "samepath.rollout.builtin.builtin_engine")
"""Half of a tiny run's time: its data set, what the first step of an optimizer imports, the command, the engine."""


def unpainted(figure: Figure, file: BinaryIO, **settings: object) -> None:
    """In place of `savefig`: the curves are laid out as ever and not painted, which takes a third of a tiny run's time."""
    file.write(b"\x89PNG")


def undrawn(by_step: object, delta: object) -> tuple[()]:
    """In place of `drawn_sections`: a report without its thirty pictures."""
    return ()


def warm_up() -> None:
    """Import what every child would, and let none paint."""
    for name in IMPORTED_LATE:
        import_module(name)
    savefig: Any = unpainted
    Figure.savefig = savefig
    sections: Any = undrawn
    report.drawn_sections = sections
