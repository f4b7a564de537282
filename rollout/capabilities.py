"""The one table that the recipe check and docs/engines.md are made from: what every engine can do of what a recipe may ask.

`python -m samepath.rollout.capabilities` prints the Markdown table.
"""

import sys

from samepath.rollout.engine_description import Capability, Cell
from samepath.rollout.engine_settings import ENGINES, AnyEngine, describe


def refusal(capability: Capability, engine: AnyEngine) -> str:
    """Why this engine does not offer it with these settings, or empty."""
    cell = describe(engine).cells[capability]
    if not cell.supported:
        return f"engine.kind {engine.kind} does not offer it: {cell.note}"
    if cell.setting is not None and getattr(engine, cell.setting[0]) != cell.setting[1]:
        name, value = cell.setting
        return f"it needs engine.{name}={_as_yaml(value)}" + (f" ({cell.note})" if cell.note else "")
    return ""


def capability_table() -> str:
    """The Markdown table of docs/engines.md."""
    lines = ["| | " + " | ".join(f"`{engine.kind}`" for engine in ENGINES) + " |", "|---" * (len(ENGINES) + 1) + "|"]
    for capability in Capability:
        lines.append(
            f"| {capability.value} | " + " | ".join(_words(engine.cells[capability]) for engine in ENGINES) + " |"
        )
    return "\n".join(lines) + "\n"


def _words(cell: Cell) -> str:
    if not cell.supported:
        return f"no: {cell.note}"
    words = "yes" if cell.setting is None else f"with `{cell.setting[0]}: {_as_yaml(cell.setting[1])}`"
    return f"{words}; {cell.note}" if cell.note else words


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.stdout.write(capability_table())
