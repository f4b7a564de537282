"""The parts of benchmarks.two_cards; each yields (case, what it gave) as it gets on."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.two_cards_runs import RECIPES, TINY, Bench

Case = tuple[str, dict[str, Any]]
SHARDED = ("learner.ranks=2", "learner.shard=full")
EXPERTS = (*SHARDED, "learner.expert_parallel=true")


def _ranks(bench: Bench, model: str, ways: dict[str, tuple[str, ...]]) -> Iterator[Case]:
    """One rank, then each of the ways beside it."""
    alone = f"{model}-one"
    first = {"error": "not run"}
    if not (bench.folder(alone) / "summary.json").is_file():
        first = bench.run(model, alone, "learner.ranks=1")
        yield alone, first
    for way, settings in ways.items():
        name = f"{model}-{way}"
        found = bench.run(model, name, *settings)
        if "error" not in found and (bench.folder(alone) / "summary.json").is_file():
            found |= bench.compared(alone, name)
        yield name, found


def ranks_small(bench: Bench) -> Iterator[Case]:
    """The 224 M model on one rank, two replicated and two sharded ones."""
    yield from _ranks(bench, "small", {"two-replicated": ("learner.ranks=2",), "two-sharded": SHARDED})


def ranks_wide(bench: Bench) -> Iterator[Case]:
    """The same of the 2.7 B mixture of experts; nothing on CPUs, where all models are one tiny one."""
    ways = {"two-replicated": ("learner.ranks=2",), "two-sharded": SHARDED}
    if bench.device == "cuda":
        yield from _ranks(bench, "qwen3_moe", ways)


def experts(bench: Bench) -> Iterator[Case]:
    """Expert parallelism on both models."""
    yield from _ranks(bench, "small", {"two-experts": EXPERTS})
    if bench.device == "cpu":
        return
    yield from _ranks(bench, "qwen3_moe", {"two-experts": EXPERTS})


def link(bench: Bench) -> Iterator[Case]:
    """The rates that copies reach."""
    ended = bench.command("-m", "benchmarks.two_cards_link", bench.device, "1024" if bench.device == "cuda" else "16")
    if ended.code:
        yield "copies", {"error": ended.output, "exit_code": ended.code}
        return
    yield "copies", json.loads(ended.output.strip().splitlines()[-1])


def apart(bench: Bench) -> Iterator[Case]:
    """Sampler and learner on one card, and on a card each, in turn and beside each other; bytes and seconds of new weights among the metrics."""
    beside = ("learner.ranks=1", "rollout.own_process=true")
    ahead = (*beside, "rl.max_weight_lag=1", "rl.on_new_weights=recompute", f"rl.steps={max(4, bench.steps)}")
    for model in ("small", "qwen3_moe"):
        yield f"{model}, one card", bench.run(model, f"{model}-shared", "learner.ranks=1")
        yield f"{model}, a card each, lag 0", bench.run(model, f"{model}-apart", *beside)
        yield f"{model}, a card each, lag 1", bench.run(model, f"{model}-ahead", *ahead)
        if bench.device == "cpu":
            return


def repeated(bench: Bench) -> Iterator[Case]:
    """Where runs of one recipe part that should be one to the bit: twice on a card, once on the other one, and on two ranks."""
    steps = [
        "cold_start.steps=200",
        "cold_start.late_steps=60",
        "cold_start.dense_warmup_steps=60",
        "cold_start.batch_size=256",
    ]
    if bench.device == "cpu":
        steps = [
            "cold_start.steps=4",
            "cold_start.late_steps=1",
            "cold_start.dense_warmup_steps=2",
            "cold_start.batch_size=8",
        ]
    traces = "cold_start.traces=samepath.rl.learner.worked_answers:arithmetic_sum"
    ways = {"once": ("0", "1"), "again": ("0", "1"), "on the other card": ("1", "1"), "on two ranks": ("", "2")}
    for way, (card, ranks) in ways.items():
        name = f"repeated-{way.replace(' ', '-')}"
        settings = [traces, *steps, f"learner.ranks={ranks}", "learner.min_passes=2", "rl.steps=1"]
        found = bench.run("small", name, *settings, card=card)
        if "error" not in found and way != "once":
            found |= bench.parted("repeated-once", name)
        yield way, found


def killed(bench: Bench) -> Iterator[Case]:
    """A rank killed in the second step, what the run says, and the run resumed beside one that was left in peace."""
    two = ("learner.ranks=2",)
    whole = bench.run("small", "whole", *two)
    yield "in peace", whole
    # The plan stands in the run's folder: it is done once, however often the run is resumed.
    fault = "faults.at=[{fault: rank_killed, step: 2}]"
    lost = bench.run("small", "killed", *two, fault)
    said = [line for line in str(lost.get("error", "")).splitlines() if "rank" in line]
    yield "a rank killed", {"ended with an error": float("error" in lost), "said": " ".join(said)[-600:]}
    ended = bench.samepath("resume", str(bench.folder("killed")))
    if ended.code or "error" in whole:
        yield "resumed", {"error": ended.output, "exit_code": ended.code}
        return
    yield "resumed", bench.compared("whole", "killed", bench.steps)


def loaded(bench: Bench) -> Iterator[Case]:
    """A checkpoint of two sharded ranks, gone on from by one."""
    first = bench.run("small", "sharded-then-one", *SHARDED)
    yield "two sharded ranks", first
    if "error" in first:
        return
    before = bench.steps
    ended = bench.samepath(
        "resume",
        str(bench.folder("sharded-then-one")),
        "learner.ranks=1",
        "learner.shard=none",
        f"rl.steps={before + 1}",
    )
    if ended.code:
        yield "gone on by one", {"error": ended.output, "exit_code": ended.code}
        return
    step = bench.steps_of("sharded-then-one")[before + 1]
    kept = ("learner/loss", "learner/grad_norm", "policy/gap_at_lag_0")
    yield "gone on by one", {name: step[name] for name in kept if name in step}


def recipes(bench: Bench) -> Iterator[Case]:
    """The recipes as they stand on two ranks for a few steps, with gap and accuracy; on CPUs the quickstart's."""
    names = ("h200_small", "h200_store") if bench.device == "cuda" else ("quickstart",)
    for name in names:
        settings = [f"name=recipe-{name}", "runs_dir=runs", "runtime=inline", "tracking.kind=jsonl", "learner.ranks=2"]
        settings += ["rl.steps=3", "evaluation.every=0", "checkpoint.every=0"]
        if bench.device == "cpu":
            settings += [*TINY, "rl.prompts_per_step=2", "rl.group_size=4", "task.num_held_out=16"]
            settings += ["cold_start.steps=2", "cold_start.late_steps=1", "cold_start.dense_warmup_steps=1"]
        ended = bench.samepath("run", str(RECIPES / f"{name}.yaml"), *settings)
        if ended.code:
            yield name, {"error": ended.output, "exit_code": ended.code}
        else:
            yield name, {"seconds": ended.seconds, **bench.measured(f"recipe-{name}")}


PARTS: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "link": link,
    "ranks-small": ranks_small,
    "apart": apart,
    "experts": experts,
    "repeated": repeated,
    "killed": killed,
    "loaded": loaded,
    "ranks-wide": ranks_wide,
    "recipes": recipes,
}
"""By name, in the order in which they are run: the short ones first."""
