"""Files that run under other interpreters: old syntax, and nothing of this project."""

import ast
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "rollout" / "environments" / "foreign"
MAY_IMPORT = {
    "main": set(),
    "mcp_client": {"mcp", "mcp_types"},
    "verifiers_client": {"verifiers", "verifiers_seat"},
    "verifiers_seat": {"verifiers", "mcp", "mcp_types"},
}
"""Beside the standard library."""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_file_is_read_by_python_3_10_and_needs_its_own_package_alone(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names == MAY_IMPORT[path.stem]
    newer = {
        "timeout",
        "TaskGroup",
        "Runner",
        "Barrier",
        "ExceptionGroup",
        "BaseExceptionGroup",
        "tomllib",
        "Self",
        "StrEnum",
        "UTC",
        "batched",
    }
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name)
    }
    assert used & newer == set()
