"""Conversations beside tools that take their time: `python -m benchmarks.conversations runs/store`, a finished run of recipes/store.yaml.

The run's model leads held-out conversations with its own recipe while every tool call takes 0, 50 or 200 ms, and once more while calls take
between nothing and twice that, as tools do (`--even` leaves this out). Beside it, in the same process:
the same conversations turn by turn (nobody draws until every tool of the turn has answered, all tools at once), without keys kept between the
calls, as many tokens drawn for single prompts, and as many drawn for single prompts of which as many are prefilled. Axes: none.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from samepath.model.files.checkpoint import load_checkpoint
from samepath.model.text.conversation import JsonValue
from samepath.model.text.tokenizer import load_tokenizer
from samepath.rl.measure import checkpoint_of_run
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run_folder import recipe_of_run
from samepath.rl.tasks.requests import group_request
from samepath.rl.tasks.tasks import build_task
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.environments.episode_runner import EpisodeRunner
from samepath.rollout.environments.first_context import first_context
from samepath.rollout.environments.protocol import EnvironmentRow, ToolResult
from samepath.rollout.environments.request import EpisodeRequest
from samepath.rollout.environments.settings import EnvironmentSettings
from samepath.rollout.environments.store import StoreEnvironment, StoreSession
from samepath.rollout.request import GroupRequest
from samepath.rollout.seeds import seed_of
from samepath.rollout.types import Group, Prompt


class SlowSession(StoreSession):
    """A store whose tools take `delay_s`, or with a spread anything up to twice that."""

    def __init__(self, row: EnvironmentRow, seed: int, delay_s: float, spread: bool) -> None:
        super().__init__(row)
        self._delay_s, self._spread, self._rng = delay_s, spread, random.Random(seed)

    async def call(self, name: str, arguments: Mapping[str, JsonValue], deadline_s: float) -> ToolResult:
        """See `Session.call`."""
        await asyncio.sleep(self._delay_s * (2 * self._rng.random() if self._spread else 1))
        return await super().call(name, arguments, deadline_s)


class SlowStore:
    """The store with slow tools."""

    def __init__(self, delay_s: float, spread: bool, **options: Any) -> None:
        self._store, self._delay_s, self._spread = StoreEnvironment(**options), delay_s, spread

    def tasks(self, split: Any) -> Sequence[EnvironmentRow]:
        """See `Environment.tasks`."""
        return self._store.tasks(split)

    async def start(self, row: EnvironmentRow, seed: int) -> SlowSession:
        """See `Environment.start`."""
        return SlowSession(row, seed, self._delay_s, self._spread)


class TurnByTurn(EpisodeRunner):
    """Hands messages to the engine only when every conversation in flight waits for one: tools are waited for, all at once."""

    _held: tuple[Any, ...] = ()

    def _submit(self, asked: Sequence[Any]) -> None:
        self._held = (*self._held, *asked)
        if self._held and not self.engine.busy and len(self._held) == len(self._playing):
            held, self._held = self._held, ()
            super()._submit(held)


class WithoutKeys(BuiltinEngine):
    """Only prompts are kept, as between single answers."""

    def submit(self, request: GroupRequest) -> Group | None:
        """See `Engine.submit`."""
        return super().submit(replace(request, keep_keys=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is led."""

    recipe: Recipe
    recipe_dir: Path
    folder: Path
    count: int
    """Conversations."""
    rows: int
    """Samples that the engine decodes together."""

    def engine(self, kind: type[BuiltinEngine] = BuiltinEngine, **changes: object) -> BuiltinEngine:
        """A fresh engine, nothing in its cache."""
        assert isinstance(self.recipe.engine, BuiltinSettings)
        settings = self.recipe.engine.model_copy(update={"max_sequences": self.rows, **changes})
        return kind(load_checkpoint(self.folder), load_tokenizer(self.folder), settings)

    def requests(self, delay_s: float, *, spread: bool) -> list[EpisodeRequest]:
        """One conversation each of the first held-out rows."""
        task = build_task(self.recipe.task, self.recipe_dir)
        tokenizer, made = load_tokenizer(self.folder), []
        for index in range(self.count):
            row = task.held_out[index % len(task.held_out)]
            request = group_request(row, tokenizer, self.recipe.sampling, f"c{index}", (seed_of("bench", index),))
            assert isinstance(request, EpisodeRequest)
            slow = EnvironmentSettings(
                environment="benchmarks.conversations:SlowStore",
                options={**request.environment.options, "delay_s": delay_s, "spread": spread},
            )
            made.append(replace(request, environment=slow))
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a round took."""

    seconds: float
    """By the clock."""
    engine_cpu_s: float
    """Of the processor in the engine's thread: what other programs beside it change least."""


class Stopwatch:
    """Times from its making."""

    def __init__(self) -> None:
        self._clock_s, self._cpu_s = time.perf_counter(), time.thread_time()

    def read(self) -> Spent:
        """Time so far."""
        return Spent(seconds=time.perf_counter() - self._clock_s, engine_cpu_s=time.thread_time() - self._cpu_s)


def led(runner: EpisodeRunner, requests: Sequence[EpisodeRequest]) -> tuple[list[Group], Spent]:
    """Groups in order, and their time."""
    watch = Stopwatch()
    groups = [group for request in requests if (group := runner.submit(request)) is not None]
    while runner.busy:
        groups += runner.step()
    spent = watch.read()
    runner.abort()
    return sorted(groups, key=lambda group: int(group.group_id[1:])), spent


def single_turns(case: Case, groups: Sequence[Group], requests: Sequence[EpisodeRequest], prefilled: int) -> Spent:
    """Time to draw as many tokens for single prompts, each in one go.

    With `prefilled` 0 the prompts are the conversations' first contexts, whose beginnings are found in the cache; else nothing is, and each prompt
    is repeated or cut to its share of that many tokens.
    """
    engine, asked = case.engine(prefix_cache=not prefilled), []
    for number, (group, request) in enumerate(zip(groups, requests, strict=True)):
        (rollout,) = group.rollouts
        ids = first_context(engine.tokenizer, request.environment, request.row, request.episode).ids
        if prefilled:
            length = prefilled * (number + 1) // len(groups) - prefilled * number // len(groups)
            ids = (ids * -(-length // len(ids)))[:length]
        sampling = request.sampling.model_copy(update={"max_new_tokens": rollout.num_trained, "ignore_stop": True})
        prompt = Prompt(prompt_id=group.group_id, text="", token_ids=ids)
        asked.append(GroupRequest(group_id=group.group_id, prompt=prompt, sampling=sampling, seeds=request.seeds))
    watch = Stopwatch()
    engine.run(asked)
    return watch.read()


def measured(
    case: Case, delays_s: Sequence[float], repeats: int, *, spreads: Sequence[bool]
) -> list[dict[str, float | str]]:
    """The fastest of `repeats` rounds of each way; rounds take turns."""
    best: dict[str, dict[str, float | str]] = {}
    cases = [(delay_s, spread) for spread in spreads for delay_s in delays_s if delay_s or not spread]
    for _ in range(repeats):
        for delay_s, spread in cases:
            requests = case.requests(delay_s, spread=spread)
            took = f"0 to {2000 * delay_s:.0f} ms" if spread else f"{1000 * delay_s:.0f} ms"
            ways: dict[str, tuple[type[EpisodeRunner], type[BuiltinEngine]]] = {
                "beside the engine": (EpisodeRunner, BuiltinEngine),
                "turn by turn": (TurnByTurn, BuiltinEngine),
            }
            if delay_s == 0:
                ways["prompt pages only"] = (EpisodeRunner, WithoutKeys)
            for name, (kind, engine_kind) in ways.items():
                engine = case.engine(engine_kind)
                groups, spent = led(kind(engine, exact=True), requests)
                counters = engine.counters
                tokens = sum(rollout.num_trained for group in groups for rollout in group.rollouts)
                row = _row(f"{name}, {took}", spent, tokens)
                row["steps"], row["prefilled"] = counters.steps, counters.prefill_tokens
                row["cache_share"] = counters.reused_tokens / (counters.reused_tokens + counters.prefill_tokens)
                row["calls"] = sum(len(rollout.tool_calls) for group in groups for rollout in group.rollouts)
                _keep(best, row)
                if delay_s == 0 and kind is EpisodeRunner and engine_kind is BuiltinEngine:
                    equal = {"drawn": 0, "drawn and prefilled": counters.prefill_tokens}
                    for what, prefilled in equal.items():
                        alone = single_turns(case, groups, requests, prefilled)
                        _keep(best, _row(f"single prompts, as many tokens {what}", alone, tokens))
    return list(best.values())


def _row(name: str, spent: Spent, tokens: int) -> dict[str, float | str]:
    return {
        "way": name,
        "seconds": spent.seconds,
        "engine_cpu_s": spent.engine_cpu_s,
        "tokens": tokens,
        "tokens_per_s": tokens / spent.seconds,
    }


def _keep(best: dict[str, dict[str, float | str]], row: dict[str, float | str]) -> None:
    """Keep the least of both times, which may come from different rounds."""
    known = best.setdefault(str(row["way"]), row)
    least_cpu_s = min(float(known["engine_cpu_s"]), float(row["engine_cpu_s"]))
    if float(row["seconds"]) < float(known["seconds"]):
        best[str(row["way"])] = row
    best[str(row["way"])]["engine_cpu_s"] = least_cpu_s


def main() -> None:
    """Print one line of JSON for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of recipes/store.yaml")
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--rows", type=int, default=64, help="samples decoded together")
    parser.add_argument("--delays-ms", type=float, nargs="+", default=[0, 50, 200])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--even", action="store_true", help="only tools that all take the same time")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    recipe = recipe_of_run(asked.run, [])
    folder, _ = checkpoint_of_run(asked.run, None)
    case = Case(recipe=recipe, recipe_dir=asked.run, folder=folder, count=asked.conversations, rows=asked.rows)
    spreads = (False,) if asked.even else (False, True)
    for row in measured(case, [one / 1000 for one in asked.delays_ms], asked.repeats, spreads=spreads):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
