"""The memory that a recipe needs, as a table: of the learner in three ways, and of an engine."""

from dataclasses import dataclass

from samepath.model.model_sizes import PublishedSizes
from samepath.rl.memory_estimate import (
    FLOAT32,
    GATHERED,
    MIXED,
    EngineMemory,
    LearnerMemory,
    Precision,
    engine_memory,
    learner_memory,
)
from samepath.rl.recipe import Recipe
from samepath.rollout.engine_settings import BuiltinSettings

DEVICES = {"80 GB": 80 * 10**9, "141 GB": 141 * 10**9}
"""Memory of the accelerators that people plan with (H100, H200), bytes."""
PROMPT_TOKENS = 512
"""Length that a prompt is taken to have where the engine's settings do not bound the cache, tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a recipe needs.

    Example: `plan.learners["float32"].least_devices(80 * 10**9)`.
    """

    sizes: PublishedSizes
    """Of the model."""
    pass_tokens: int
    """Tokens of the learner's passes that are held at the same time."""
    cache_tokens: int
    """Tokens that one engine's cache holds."""
    learners: dict[str, LearnerMemory]
    """By the way of training; the first is what this version does."""
    engine: EngineMemory
    """One rollout worker's."""
    engine_type: str
    """Type of its weights."""


def memory_plan(recipe: Recipe, sizes: PublishedSizes) -> MemoryPlan:
    """Estimate a recipe's memory from the sizes of its model."""
    learner, builtin = recipe.learner, isinstance(recipe.engine, BuiltinSettings)
    pass_tokens = max(learner.max_tokens_per_pass, recipe.sampling.max_new_tokens) * learner.threads
    frozen = sizes.parts["indexer"] if learner.indexer == "frozen" else 0

    def learn(precision: Precision, checkpointing: bool, gather_experts: bool) -> LearnerMemory:
        return learner_memory(
            sizes,
            precision,
            pass_tokens=pass_tokens,
            checkpointing=checkpointing,
            reference=recipe.rl.objective.kl.needs_reference,
            frozen=frozen,
            gather_experts=gather_experts,
        )

    learners = {"float32": learn(FLOAT32, False, True), "mixed": learn(MIXED, True, True)}
    if sizes.num_moe_layers:
        learners["mixed, experts in place"] = learn(MIXED, True, False)
    if isinstance(recipe.engine, BuiltinSettings):
        cache_tokens = recipe.engine.cache_tokens
    else:
        cache_tokens = recipe.engine.max_sequences * (recipe.sampling.max_new_tokens + PROMPT_TOKENS)
    return MemoryPlan(
        sizes=sizes,
        pass_tokens=pass_tokens,
        cache_tokens=cache_tokens,
        learners=learners,
        engine=engine_memory(sizes, 4 if builtin else 2, cache_tokens),
        engine_type="float32" if builtin else "bfloat16",
    )


def memory_lines(plan: MemoryPlan) -> list[str]:
    """The plan as a Markdown table, for `samepath validate` and the documentation."""
    sizes, engine = plan.sizes, plan.engine
    parts = ", ".join(f"{name} {_count(count)}" for name, count in sizes.parts.items() if count)
    rows = [["", *(f"learner, {name}" for name in plan.learners), f"engine, {plan.engine_type}"]]
    for part in next(iter(plan.learners.values())).sharded:
        shown = [_size(memory.sharded[part]) for memory in plan.learners.values()]
        rows.append([part, *shown, _size(engine.weights) if part == "weights" else ""])
    for part in next(iter(plan.learners.values())).each:
        label = f"{part}, each device" + (" if several" if part == GATHERED else "")
        rows.append([label, *(_size(memory.each[part]) for memory in plan.learners.values()), ""])
    rows.append([f"cache, {plan.cache_tokens:,} tokens", *("" for _ in plan.learners), _size(engine.cache)])
    everything: list[LearnerMemory | EngineMemory] = [*plan.learners.values(), engine]
    rows.append(["on one device", *(_size(memory.per_device(1)) for memory in everything)])
    for name, size in DEVICES.items():
        rows.append([f"least devices of {name}", *(_devices(memory, size) for memory in everything)])
    return [
        f"parameters: {_count(sizes.parameters)}, {_count(sizes.active)} active for a token ({parts})",
        f"a pass holds {plan.pass_tokens:,} tokens; mixed: float32 master weights, bfloat16 passes, activation checkpointing",
        "",
        *_markdown(rows),
    ]


def _devices(memory: LearnerMemory | EngineMemory, device_bytes: int) -> str:
    count = memory.least_devices(device_bytes)
    return "none: too much on each" if count is None else f"{count} ({_size(memory.per_device(count))} each)"


def _markdown(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _size(count: int) -> str:
    """Bytes in decimal units, three digits."""
    for factor, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 1000 * factor else f"{count / factor:,.0f} {unit}"
    return f"{count} B"


def _count(count: int) -> str:
    """Parameters, three digits."""
    for factor, unit in ((10**9, " billion"), (10**6, " million"), (10**3, " thousand")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return str(count)
