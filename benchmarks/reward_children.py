"""What each isolation of reward functions costs: `python -m benchmarks.reward_children [STARTS]`, a line for each that works here."""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from samepath.rewards.request import RewardRequest
from samepath.rewards.runner import RewardRunner
from samepath.rewards.sandbox.isolation import MODES, problem_of
from samepath.rewards.settings import RewardSettings

CALLS = 200
REQUEST = RewardRequest(prompt_text="2+2=", response_text="4", answer={"answer": "4"})


def once(folder: str, mode: str) -> tuple[float, float]:
    """Seconds until one child is ready, and of one call that does nothing."""
    settings = {"parts": {"own": "own_cost:f"}, "search_path": folder, "num_workers": 1, "isolation": mode}
    runner = RewardRunner(RewardSettings.model_validate(settings))
    began = time.perf_counter()
    with runner:
        start_s = time.perf_counter() - began
        runner.score([REQUEST])
        began = time.perf_counter()
        for _ in range(CALLS):
            runner.score([REQUEST])
        return start_s, (time.perf_counter() - began) / CALLS


def main(starts: int) -> None:
    """Print shortest and median of `starts` starts, the modes taking turns."""
    modes = [mode for mode in MODES if not problem_of(mode)]
    times: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "own_cost.py").write_text("def f(request):\n    return 1.0\n")
        for _ in range(starts):
            for mode in modes:
                times[mode].append(once(folder, mode))
    for mode, taken in times.items():
        start_s, call_s = ([pair[which] for pair in taken] for which in (0, 1))
        print(
            f"{mode}: a child starts in {min(start_s) * 1e3:.0f} ms (median {statistics.median(start_s) * 1e3:.0f}), "
            f"a call takes {min(call_s) * 1e6:.0f} µs (median {statistics.median(call_s) * 1e6:.0f})"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
