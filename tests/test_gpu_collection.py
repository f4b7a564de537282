"""Machines with a GPU have neither Ray nor MLflow: `python -m pytest -m gpu` must get to its tests there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COLLECT_WITHOUT_RAY_AND_MLFLOW = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in ("ray", "mlflow")
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import pytest
sys.exit(pytest.main(["--co", "-q", "-m", "gpu", "--assert=plain", "-p", "no:cacheprovider", "tests"]))
"""


@pytest.mark.slow
def test_gpu_tests_are_collected_without_ray_and_mlflow() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLLECT_WITHOUT_RAY_AND_MLFLOW],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    found = re.search(r"(\d+)/\d+ tests collected", done.stdout)
    assert found is not None
    assert int(found[1]) > 100
