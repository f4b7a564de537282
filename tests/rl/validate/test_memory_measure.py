"""The estimate against a measured run."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc gives a freed tensor back at once; by default it learns not to, and the peak then hangs on what it happens to keep."""


def figures(tokens: int) -> tuple[int, int, int]:
    """(tokens of the pass, MB estimated, MB measured) as the command prints them, in a process of its own."""
    command = ["-m", "samepath.rl.validate.memory_measure", "recipes/quickstart.yaml"]
    said = subprocess.run(
        [sys.executable, *command, f"learner.max_tokens_per_pass={tokens}"],
        cwd=ROOT,
        env={**os.environ, **GIVEN_BACK},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout
    found = re.search(r"a pass of (\d+) tokens: estimated (\d+) MB, measured (\d+) MB beyond the \d+ MB", said)
    assert found, said
    return int(found[1]), int(found[2]), int(found[3])


def test_measured_growth_with_the_pass_is_between_one_and_two_estimates() -> None:
    """The difference of two passes tells what a token takes (docs/memory.md): libraries loaded on the way are in both."""
    small, large = figures(512), figures(4096)
    assert large[0] > small[0] > 0
    assert large[1] - small[1] > 100, "MB enough for rounding to a whole one not to matter"
    assert 1.0 < (large[2] - small[2]) / (large[1] - small[1]) < 2.0
