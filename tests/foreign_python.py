"""Interpreters that have a package which this project does not need: its own where it is installed, or one that a variable names."""

import importlib.util
import os
import subprocess
import sys

import pytest


def interpreter_with(package: str) -> str:
    """Path of an interpreter that imports `package`; skips the test where there is none."""
    if importlib.util.find_spec(package) is not None:
        return sys.executable
    variable = f"SAMEPATH_TEST_PYTHON_{package.upper()}"
    named = os.environ.get(variable)
    if not named:
        pytest.skip(f"{package} is not installed, and {variable} names no interpreter that has it")
    subprocess.run([named, "-c", f"import {package}"], check=True, timeout=60)
    return named
