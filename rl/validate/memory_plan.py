"""The memory that a recipe needs, as a table: of the learner in three ways, and of an engine."""

from dataclasses import dataclass, replace

from samepath.model.files.model_sizes import PublishedSizes
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rl.recipe.model import CheckpointModel, NewModel
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.validate.memory_estimate import (
    FLOAT32,
    GATHERED,
    MASTERS,
    MIXED,
    EngineMemory,
    LearnerMemory,
    engine_memory,
    learner_memory,
)
from samepath.rollout.engine_settings import describe

DEVICES = {"80 GB": 80 * 10**9, "141 GB": 141 * 10**9}
"""Memory of the accelerators that people plan with (H100, H200), bytes."""
PROMPT_TOKENS = 512
"""Length that a prompt is taken to have where task or tokenizer are not at hand, tokens."""


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
    """By the way of training; the first is what the recipe asks for."""
    ranks: int
    """Devices that share the first; 1 where each holds all of it."""
    engine: EngineMemory
    """One rollout worker's."""
    engine_type: str
    """Type of its weights."""


def memory_plan(recipe: Recipe, sizes: PublishedSizes, prompt_tokens: int = PROMPT_TOKENS) -> MemoryPlan:
    """Estimate a recipe's memory from the sizes of its model and the longest prompt."""
    longest = recipe.sampling.max_new_tokens + prompt_tokens
    groups = -(-recipe.rl.prompts_per_step // recipe.rl.updates_per_rollout)
    # What a rank holds, but no more than an update has; the prompt of a group runs once.
    update_tokens = groups * (prompt_tokens + recipe.rl.group_size * recipe.sampling.max_new_tokens)
    pass_tokens = min(max(recipe.learner.max_tokens_per_pass, longest), update_tokens)
    model, learner = recipe.model, recipe.learner
    numbers = model.dtype if model.implementation == "own" else learner.precision
    ranks = learner.ranks if learner.shard == "full" else 1
    asked = in_shards if learner.shard == "full" else one_process
    in_place = ", experts in place" if learner.expert_parallel else ""
    way = f"{ranks} ranks in shards{in_place}" if learner.shard == "full" else "one process"
    learners = {f"{way}, {numbers}": asked(sizes, model, learner, pass_tokens, recipe.rl.objective.kl.needs_reference)}
    for gather_experts in (True, False) if sizes.num_moe_layers else (True,):
        learners["sharded" if gather_experts else "sharded, experts in place"] = learner_memory(
            sizes,
            MIXED,
            pass_tokens=pass_tokens,
            checkpointing=True,
            reference=recipe.rl.objective.kl.needs_reference,
            frozen=sizes.parts["indexer"] if recipe.learner.indexer == "frozen" else 0,
            gather_experts=gather_experts,
        )
    engine = describe(recipe.engine)
    cache_tokens = engine.cache_tokens(recipe.engine, min(sizes.max_positions, longest))
    _, engine_type = engine.computes_on(recipe.engine, model.placement)
    unfolded = sizes.latent and engine.unfolds_latents(recipe.engine)
    return MemoryPlan(
        sizes=sizes,
        pass_tokens=pass_tokens,
        cache_tokens=cache_tokens,
        learners=learners,
        ranks=ranks,
        engine=engine_memory(sizes, 4 if engine_type == "float32" else 2, cache_tokens, unfolded=unfolded),
        engine_type=engine_type,
    )


def one_process(
    sizes: PublishedSizes,
    model: NewModel | CheckpointModel,
    learner: LearnerSettings,
    pass_tokens: int,
    needs_reference: bool,
) -> LearnerMemory:
    """The learner of ranks that each hold everything. Low-rank adapters themselves are not counted."""
    cast = model.implementation == "transformers" and learner.precision == "bf16"
    precision = replace(FLOAT32, compute=2) if cast else FLOAT32 if model.dtype == "float32" else MASTERS
    memory = learner_memory(
        sizes,
        precision,
        pass_tokens=pass_tokens,
        checkpointing=learner.activation_checkpointing,
        # With adapters policy and reference share the frozen weights.
        reference=needs_reference and not learner.lora.enabled,
        frozen=_frozen(sizes, learner),
    )
    # Automatic casting keeps the weights' bfloat16 copies for the length of a pass.
    copies = {"bfloat16 copies": sizes.parameters * 2 if cast else 0}
    each = {name: size for name, size in memory.each.items() if name != GATHERED}
    return LearnerMemory(sharded=memory.sharded, each={**each, **copies, GATHERED: 0})


def in_shards(
    sizes: PublishedSizes,
    model: NewModel | CheckpointModel,
    learner: LearnerSettings,
    pass_tokens: int,
    needs_reference: bool,
) -> LearnerMemory:
    """The learner of ranks that share everything; with adapters policy and reference each have their frozen weights."""
    precision = FLOAT32 if model.dtype == "float32" else MIXED
    cast = model.implementation == "transformers" and learner.precision == "bf16"
    memory = learner_memory(
        sizes,
        replace(precision, compute=2) if cast else precision,
        pass_tokens=pass_tokens,
        checkpointing=learner.activation_checkpointing,
        reference=needs_reference,
        frozen=_frozen(sizes, learner),
        gather_experts=not learner.expert_parallel,
    )
    # Automatic casting gathers float32, and keeps the bfloat16 copies of all layers for the length of a pass.
    copies = {"bfloat16 copies": sizes.parameters * 2, GATHERED: 2 * memory.each[GATHERED]} if cast else {}
    return LearnerMemory(sharded=memory.sharded, each={**memory.each, **copies})


def _frozen(sizes: PublishedSizes, learner: LearnerSettings) -> int:
    """Parameters that are not trained."""
    if learner.lora.enabled:
        return sizes.parameters
    return sizes.parts["indexer"] if learner.indexer == "frozen" else 0


def memory_lines(plan: MemoryPlan) -> list[str]:
    """The plan as a Markdown table, for `samepath validate` and the documentation."""
    sizes, engine = plan.sizes, plan.engine
    parts = ", ".join(f"{name} {_count(count)}" for name, count in sizes.parts.items() if count)
    rows = [["", *(f"learner, {name}" for name in plan.learners), f"engine, {plan.engine_type}"]]
    memories = list(plan.learners.values())
    everything: list[LearnerMemory | EngineMemory] = [*memories, engine]
    for part in memories[0].sharded:
        rows.append(
            [
                part,
                *(_size(memory.sharded[part]) for memory in memories),
                _size(engine.weights) if part == "weights" else "",
            ]
        )
    for part in memories[0].each:
        rows.append([f"{part}, each device", *(_size(memory.each.get(part, 0)) for memory in memories), ""])
    rows.append([f"cache, {plan.cache_tokens:,} tokens", *("" for _ in memories), _size(engine.cache)])
    rows.append(["on one device", *(_size(memory.per_device(1)) for memory in everything)])
    if plan.ranks > 1:
        rows.append(
            [f"on each of {plan.ranks}", _size(memories[0].per_device(plan.ranks)), *("" for _ in everything[1:])]
        )
    for name, size in DEVICES.items():
        rows.append(
            [
                f"least devices of {name}",
                _asked(plan, size),
                *(_devices(memory, size) for memory in everything[1:]),
            ]
        )
    return [
        f"parameters: {_count(sizes.parameters)}, {_count(sizes.active)} active for a token ({parts})",
        f"a learner's passes hold {plan.pass_tokens:,} tokens; sharded: float32 weights and optimiser, bfloat16 passes, activation checkpointing",
        "",
        *_markdown([row for row in rows if any(cell not in ("", "0 B") for cell in row[1:])]),
    ]


def _asked(plan: MemoryPlan, device_bytes: int) -> str:
    memory = next(iter(plan.learners.values()))
    if plan.ranks > 1:
        return _devices(memory, device_bytes)
    return "1" if memory.least_devices(device_bytes) == 1 else "does not fit one"


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
