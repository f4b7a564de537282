"""Whether a recipe's memory can be had: on this machine, on the devices that its engine asks for, in one process."""

import psutil

from samepath.rl.machine import list_gpus
from samepath.rl.recipe.model import CheckpointModel, NewModel
from samepath.rl.validate.finding import Finding
from samepath.rl.validate.memory_estimate import ENGINE_SHARE, LEARNER_SHARE
from samepath.rl.validate.memory_plan import DEVICES, MemoryPlan
from samepath.rollout.engine_description import FixedCache
from samepath.rollout.engine_settings import AnyEngine, describe


def memory_findings(model: NewModel | CheckpointModel, engine: AnyEngine, plan: MemoryPlan) -> list[Finding]:
    """Findings on the learner, and on the cache of an engine where that has a size of its own."""
    on_gpu = model.device == "cuda" or (model.implementation == "transformers" and bool(list_gpus()))
    findings = [_learner(plan, on_gpu, own=model.implementation == "own")]
    cache = describe(engine).fixed_cache(engine)
    if cache is not None:
        findings.append(_cache(cache, engine.max_sequences, plan))
    return findings


def _learner(plan: MemoryPlan, on_gpu: bool, *, own: bool) -> Finding:
    asked, *sharded = plan.learners.values()
    needed, memory = asked.per_device(plan.ranks), memory_bytes()
    name, largest = max(DEVICES.items(), key=lambda entry: entry[1])
    said = f"the learner needs {needed / 1e9:,.1f} GB" + (f" on each of {plan.ranks} ranks" if plan.ranks > 1 else "")
    # Ranks without devices of their own share this machine.
    if needed > largest * LEARNER_SHARE if on_gpu else needed * plan.ranks > memory:
        here = "" if on_gpu else f"; this machine has {memory / 1e9:,.1f} GB"
        if needed > largest * LEARNER_SHARE:
            devices = sharded[0].least_devices(largest)
            apart = f"at least {devices} devices of {name}" if devices else "no number of devices is enough"
            # A dense model has no column for experts in place, and transformers models leave none there.
            in_place = sharded[1].least_devices(largest) if own and len(sharded) > 1 else None
            fewer = f", with learner.expert_parallel=true too {in_place}" if in_place else ""
            here = f", with learner.shard=full {apart}{fewer}{here}"
        return Finding(name="memory", outcome="obstacle", detail=said + here)
    engine = plan.engine.per_device(1) / 1e9
    detail = f"{said} and an engine {engine:,.2f} GB; this machine has {memory / 1e9:,.1f} GB"
    return Finding(name="memory", outcome="ok", detail=detail)


def memory_bytes() -> int:
    """Memory of this machine."""
    return int(psutil.virtual_memory().total)


def _cache(cache: FixedCache, max_sequences: int, plan: MemoryPlan) -> Finding:
    name, largest = max(DEVICES.items(), key=lambda entry: entry[1])
    weights = -(-plan.engine.weights // cache.num_devices)
    divided = cache.num_devices if plan.engine.cache_divides else 1
    held = cache.size_bytes * divided * plan.cache_tokens // max(plan.engine.cache, 1)
    longest = plan.cache_tokens // max_sequences
    said = (
        f"{weights / 1e9:,.1f} GB of weights and {cache.size_bytes / 1e9:,.1f} GB of cache on each device, "
        f"which hold {held:,} tokens"
    )
    if held < longest:
        detail = (
            f"{said}; one sequence may have {longest:,}. Raise engine.cache_bytes or lower engine.max_model_tokens."
        )
        return Finding(name="cache", outcome="wrong", detail=detail)
    if cache.gpu and weights + cache.size_bytes > largest * ENGINE_SHARE:
        detail = f"{said}; a device of {name} is too small. Raise engine.tensor_parallel or lower engine.cache_bytes."
        return Finding(name="cache", outcome="wrong", detail=detail)
    together = min(held // longest, max_sequences)
    detail = f"{said}: {together} of {max_sequences} sequences at their longest"
    return Finding(name="cache", outcome="ok", detail=detail)
