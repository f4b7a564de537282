"""What two cards of one host give a run: every measurement as a part of its own, each run in processes of its own with a limit.

    python -m benchmarks.two_cards OUT                               # all parts, 25 minutes at most
    python -m benchmarks.two_cards OUT --parts link killed --minutes 8
    python -m benchmarks.two_cards OUT --device cpu                  # the same on two processes of CPUs over gloo, with a tiny model

OUT/two_cards.json and OUT/two_cards.md are written after every case: a cut loses what was not done. Losses, gradient norms and weights of several
ranks are compared with one rank's: the same seeds and equal weights draw the same samples. NVLink multicast is off (NCCL_NVLS_ENABLE=0).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.process import TooSlowError
from benchmarks.two_cards_parts import PARTS
from benchmarks.two_cards_runs import Bench, OutOfTimeError
from samepath.model.durable_file import replace_file
from samepath.rl.machine import collect_environment

Results = dict[str, dict[str, dict[str, Any]]]
"""What each case of each part gave."""


def measure(bench: Bench, parts: list[str]) -> Results:
    """Run the parts in order; a case that fails or takes too long is a result too, and the next part goes on."""
    results: Results = {}
    bench.out.mkdir(parents=True, exist_ok=True)
    for part in parts:
        results[part] = {}
        try:
            for case, found in PARTS[part](bench):
                results[part][case] = found
                print(f"{part}: {case}: {'failed' if 'error' in found else 'done'}", flush=True)
                write(bench, results)
        except (TooSlowError, OutOfTimeError, RuntimeError, OSError, LookupError) as error:
            results[part]["cut short"] = {"error": f"{type(error).__name__}: {error}"}
            print(f"{part}: cut short: {error}", flush=True)
        write(bench, results)
    return results


def write(bench: Bench, results: Results) -> None:
    """Leave what is known so far."""
    known = {"device": bench.device, "machine": collect_environment(), "commands": bench.commands, "parts": results}
    replace_file(bench.out / "two_cards.json", json.dumps(known, indent=1))
    replace_file(bench.out / "two_cards.md", table(results))


def table(results: Results) -> str:
    """A Markdown table of each part: a row for each number, a column for each case."""
    lines: list[str] = []
    for part, cases in results.items():
        names = list(dict.fromkeys(name for found in cases.values() for name in found))
        lines += [f"## {part}", "", "| | " + " | ".join(cases) + " |", "|---" * (1 + len(cases)) + "|"]
        for name in names:
            cells = (_cell(found.get(name, "–")) for found in cases.values())
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split()).replace("|", "/")[-400:]


def main() -> None:
    """Measure, and say where the results are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--minutes", type=float, default=25.0, help="of all parts together")
    parser.add_argument("--limit", type=float, default=420.0, help="of a single run, seconds")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=3, help="RL steps of a run, 2 or more")
    asked = parser.parse_args()
    until_s = time.monotonic() + 60 * asked.minutes
    bench = Bench(out=asked.out, device=asked.device, until_s=until_s, limit_s=asked.limit, steps=asked.steps)
    results = measure(bench, asked.parts)
    failed = [f"{part}: {case}" for part, cases in results.items() for case, found in cases.items() if "error" in found]
    print(f"{bench.out / 'two_cards.md'}" + (f"; failed: {', '.join(failed)}" if failed else ""))


if __name__ == "__main__":
    main()
