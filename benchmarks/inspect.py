"""`samepath inspect` over made-up runs: how long it takes to open one, to filter, sort and search it, and to show one rollout.

    python -m benchmarks.inspect                         # 1,000 and 100,000 rollouts of about 100 tokens
    python -m benchmarks.inspect --rollouts 100000 --tokens 1000
    python -m benchmarks.inspect --json times.json

A run's files are written as a run writes them (`JsonlSink`), with every value of every token. Times are of whole questions over HTTP on loopback, as the
page asks them, the median of `--repeats`; each filter is new, so none is answered from what was kept. The page cache is warm.
"""

import argparse
import gc
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import psutil

from samepath.rl.report.inspector.rollout_index import RolloutIndex
from samepath.rl.report.inspector.server import InspectorServer
from samepath.rl.tracking.jsonl import JsonlSink
from samepath.rl.tracking.tracked_rollout import TrackedRollout

STEP = 128
"""Rollouts of one step."""
GROUP = 8
WORDS = (
    "so",
    "we",
    "take",
    "seven",
    "and",
    "three",
    "which",
    "gives",
    "ten",
    "then",
    "minus",
    "four",
    "is",
    "six",
    "#",
    "check",
)
RECIPE = "rl:\n  objective:\n    off_policy_mask: {enabled: true, delta: 0.05, scope: rollout}\n"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--tokens", type=int, default=100, help="of an answer, on average")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the times there")
    asked = parser.parse_args()
    results = {}
    for count in asked.rollouts:
        with tempfile.TemporaryDirectory(prefix="inspect-") as folder:
            results[count] = measured(Path(folder) / "run", count, asked.tokens, asked.repeats)
    names = list(results[asked.rollouts[0]])
    sys.stdout.write("".join([f"{'':44}", *(f"{count:>14,}" for count in asked.rollouts), "\n"]))
    for name in names:
        sys.stdout.write("".join([f"{name:44}", *(f"{results[count][name]:>14.4g}" for count in asked.rollouts), "\n"]))
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=2) + "\n")


def measured(run_dir: Path, count: int, tokens: int, repeats: int) -> dict[str, float]:
    """Times in milliseconds by name, and sizes."""
    write_run(run_dir, count, tokens)
    files = list((run_dir / "rollouts").glob("step-*.jsonl"))
    results = {"rollout files, MiB": sum(path.stat().st_size for path in files) / 2**20}
    results["bytes per rollout"] = sum(path.stat().st_size for path in files) / count
    results["first opening: reading every line, ms"] = _ms(lambda: RolloutIndex(run_dir / "rollouts").refresh())
    kept = sum(path.stat().st_size for path in (run_dir / "rollouts" / "index").iterdir())
    results["index on disk, bytes per rollout"] = kept / count
    gc.collect()
    before = psutil.Process().memory_info().rss
    index = RolloutIndex(run_dir / "rollouts")
    results["later opening, from the index, ms"] = _ms(index.refresh)
    results["looking for new steps, none there, ms"] = statistics.median(_ms(index.refresh) for _ in range(repeats))
    results["memory of the columns, MiB"] = (psutil.Process().memory_info().rss - before) / 2**20
    with _serving(run_dir) as ask:
        for name, questions in _questions(count, repeats).items():
            results[f"{name}, ms"] = statistics.median(
                _ms(lambda question=question: ask(*question)) for question in questions
            )  # type: ignore[misc]
    return results


def _questions(count: int, repeats: int) -> dict[str, list[tuple[str, dict[str, object]]]]:
    """What is asked, by name; no two alike."""
    # Of the whole ones: the last may be short.
    steps = max(count // STEP, 1)
    tries = range(repeats)

    def listed(**asked: object) -> tuple[str, dict[str, object]]:
        return "rollouts", {"count": 100, **asked}

    return {
        "all, worst first": [listed(step=f"{-n}..") for n in tries],
        "filter: reward, masked, task": [listed(reward=f"..{0.5 + n / 1000}", masked="no", task="sums") for n in tries],
        "order by KL": [listed(order="kl", down="yes", step=f"{-n}..") for n in tries],
        "order by task": [listed(order="task", step=f"{-n}..") for n in tries],
        "search, found often": [listed(text=f"{WORDS[n % len(WORDS)]} {WORDS[(n + 3) % len(WORDS)]}") for n in tries],
        "search, found nowhere": [listed(text=f"needle {n}") for n in tries],
        "the next window of the same list": [listed(order="step", first=100 * n) for n in range(1, repeats + 1)],
        "one rollout with its tokens": [
            ("rollout", {"step": 1 + n * 7 % steps, "group": f"s{1 + n * 7 % steps}-g{n % 5}", "sample": n % GROUP})
            for n in tries
        ],
        "a group of eight": [
            ("group", {"step": 1 + n * 5 % steps, "group": f"s{1 + n * 5 % steps}-g{n % 5}"}) for n in tries
        ],
        "the run's head and curve": [("run", {}) for _ in tries],
    }


@contextmanager
def _serving(run_dir: Path) -> Iterator[Callable[[str, dict[str, object]], None]]:
    with InspectorServer(run_dir) as server:
        server.index.refresh()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)

        def ask(path: str, asked: dict[str, object]) -> None:
            connection.request("GET", f"/api/{path}?{urlencode(asked)}")
            reply = connection.getresponse()
            content = reply.read()
            if reply.status != 200:
                raise RuntimeError(f"{path} {asked}: {content.decode()}")

        try:
            yield ask
        finally:
            connection.close()
            server.shutdown()
            thread.join()


def _ms(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - begun)


def write_run(run_dir: Path, count: int, tokens: int, seed: int = 0) -> None:
    """Write a run of `count` rollouts in steps of `STEP`, with a value of every kind for each token."""
    rng = np.random.default_rng(seed)
    run_dir.mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text(RECIPE)
    (run_dir / "run.json").write_text('{"phase": "finished"}')
    sink = JsonlSink(run_dir)
    for step in range(1, -(-count // STEP) + 1):
        number = min(STEP, count - STEP * (step - 1))
        sink.log_rollouts(step, [rollout(rng, step, place, tokens) for place in range(number)])


def rollout(rng: np.random.Generator, step: int, place: int, tokens: int) -> TrackedRollout:
    """One rollout of random words."""
    length = int(rng.integers(tokens // 2, tokens + tokens // 2 + 1))
    words = tuple(f" {WORDS[word]}" for word in rng.integers(len(WORDS), size=length))
    logprobs = (-rng.exponential(0.4, length)).astype(np.float32).tolist()
    small = [float(f"{value:.4g}") for value in rng.normal(0, 0.01, length)]
    off_policy = -float(np.mean(small))
    reward = float(rng.integers(0, 5)) / 4
    return TrackedRollout(
        step=step,
        group_id=f"s{step}-g{place // GROUP}",
        sample_index=place % GROUP,
        prompt_text=f"7+3-4+{place // GROUP}+{step}=",
        response_text="".join(words),
        dataset="sums" if place % 16 < GROUP else "words",
        gold=str(6 + step),
        reward=reward,
        reward_parts={"answer": reward},
        advantage=reward - 0.5,
        kl=float(rng.exponential(0.02)),
        off_policy=off_policy,
        masked=bool(rng.random() < 0.02),
        route_flips=float(rng.exponential(0.01)),
        num_tokens=length,
        finish_reason="stop" if rng.random() < 0.95 else "length",
        generate_s=1.0,
        tokens=words,
        sampler_logprobs=tuple(logprobs),
        kl_tokens=tuple(rng.exponential(0.02, length).astype(np.float32).tolist()),
        log_ratios=tuple(small),
        entropies=tuple(abs(value) for value in small),
        roles="t" * length,
        support_sizes=tuple(rng.integers(1, 30, length).tolist()),
        weight_versions=((step - 1, length),),
        segment_tokens=(length,),
    )


if __name__ == "__main__":
    main()
