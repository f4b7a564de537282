"""What a recipe asks of its engine, checked against the table of what engines can do (rollout/capabilities.py)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from samepath.kernels.backend import CAPABILITIES
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.model import CheckpointModel, NewModel
from samepath.rollout.capabilities import refusal
from samepath.rollout.engine_description import Capability
from samepath.rollout.engine_settings import AnyEngine, describe
from samepath.rollout.sampling_settings import SamplingSettings

GAP_HINTS = {"float32": 0.01, "bfloat16": 0.5}
"""Gap that vLLM's kernels stay below in each type on the models measured in docs/engines.md, nats."""
NO_CUT = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Values that keep every token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUse:
    """The parts of a recipe that ask something of its engine."""

    engine: AnyEngine
    """The engine."""
    runtime: str
    """`ray` or `inline`."""
    model: NewModel | CheckpointModel
    """What it serves."""
    rl: AlgorithmSettings
    """What is replayed and compared."""
    sampling: SamplingSettings
    """How training responses are drawn."""
    evaluations: Mapping[str, SamplingSettings]
    """How held-out responses are drawn, by the dotted setting that says so."""
    conversations: bool = False
    """True if the task is an environment."""
    beside: bool = False
    """True if the engine has a process beside the learner's under `runtime: inline` (`rollout.own_process`)."""


def unmet_demands(use: EngineUse) -> list[str]:
    """One sentence for every demand of the recipe that its engine does not meet."""
    problems = [
        f"{demand}: {reason}" for demand, capability in demands(use) if (reason := refusal(capability, use.engine))
    ]
    rl = use.rl
    if rl.trains and rl.keep_routing == "sampler" and rl.keep_sampling_mask == "on" and rl.max_gap_at_lag_0 == 0:
        problems += filter(None, [gap_problem(use.engine, use.model)])
    if rl.trains:
        problems += filter(None, [correction_problem(use)])
    if rl.trains and rl.max_weight_lag:
        problems += lag_problems(use)
    return problems


def demands(use: EngineUse) -> Iterator[tuple[str, Capability]]:
    """(what asks for it, the capability)."""
    rl, sampling = use.rl, use.sampling
    if rl.trains and rl.keep_routing == "sampler":
        yield "rl.keep_routing=sampler replays the engine's experts", Capability.ROUTES
    if sampling.truncates and sampling.temperature > 0:
        yield (
            "sampling truncates (top_k, top_p or min_p), and the learner must renormalise over the same candidates",
            Capability.CANDIDATES,
        )
        # Not model_fields_set: a recipe that a run has written out holds every default.
        if sampling.support_cap != SamplingSettings.model_fields["support_cap"].default:
            yield "sampling.support_cap limits the recorded candidates", Capability.CANDIDATE_CAP
    for name, drawn in {"sampling": sampling, **use.evaluations}.items():
        if drawn.temperature and not 0.01 <= drawn.temperature <= 2:
            yield f"{name}.temperature={drawn.temperature:g}", Capability.ANY_TEMPERATURE
    for name, drawn in use.evaluations.items():
        if drawn.temperature == 0:
            yield f"{name}.temperature=0 takes the best token", Capability.GREEDY
        elif drawn.truncates:
            cuts = [cut for cut in ("top_k", "top_p", "min_p") if getattr(drawn, cut) != NO_CUT[cut]]
            yield f"{name}.{cuts[0]} truncates", Capability.CANDIDATES
    if sampling.stop_token_ids or sampling.stop_strings:
        yield "sampling.stop_token_ids and stop_strings end responses", Capability.STOPS
    if rl.trains and rl.objective.off_policy_mask.enabled:
        yield "rl.objective.off_policy_mask compares with the engine's log-probabilities", Capability.LOGPROBS
    if rl.trains and rl.objective.old_policy == "sampler":
        yield "rl.objective.old_policy=sampler divides by the engine's probabilities", Capability.LOGPROBS
    if use.conversations:
        yield "task.kind=environment goes on from what was read and drawn before", Capability.CONVERSATIONS
    if use.runtime == "inline":
        yield "runtime=inline", Capability.INLINE
    if rl.trains and rl.max_weight_lag:
        asked = f"rl.on_new_weights={rl.on_new_weights} with rl.max_weight_lag={rl.max_weight_lag}"
        yield asked, Capability[rl.on_new_weights.upper()]


def gap_problem(engine: AnyEngine, model: NewModel | CheckpointModel) -> str:
    """Why `rl.max_gap_at_lag_0: 0` cannot hold, and what to set; empty if it can: one implementation, of one arithmetic, on both sides."""
    device, dtype = describe(engine).computes_on(engine, model.placement)
    reason = f"model.implementation={model.implementation} rounds differently"
    if model.implementation == "own":
        reason = refusal(Capability.ZERO_GAP, engine)
        if not reason and device != model.device:
            reason = f"the engine computes on {device}, the learner with model.device={model.device}"
        if not reason and model.device not in CAPABILITIES[model.backend].exact_on:
            exact = [name for name, able in CAPABILITIES.items() if model.device in able.exact_on]
            reason = (
                f"with model.backend={model.backend} on model.device={model.device} the library's products depend on the batch "
                f"(those of model.backend={' or '.join(exact)} do not)"
            )
        if not reason and not model.batch_invariant:
            reason = "model.batch_invariant=false lets a row's bits depend on its batch"
    if not reason:
        return ""
    hint = GAP_HINTS[dtype]
    return (
        f"rl.max_gap_at_lag_0=0 asks for log-probabilities equal to the learner's to the last bit: {reason}. "
        f"Set rl.max_gap_at_lag_0={hint} and watch policy/gap_at_lag_0."
    )


def lag_problems(use: EngineUse) -> list[str]:
    """What cannot go with sampling while learning."""
    rl, problems = use.rl, []
    asked = f"rl.max_weight_lag={rl.max_weight_lag}"
    if use.runtime == "inline" and not use.beside:
        problems.append(
            f"{asked} samples while the learner learns, in other processes; runtime: inline has one. Set runtime=ray, or rl.max_weight_lag=0, "
            "or rollout.own_process=true."
        )
    if rl.on_new_weights == "continue" and rl.max_gap_at_lag_0 == 0:
        problems.append(
            "rl.on_new_weights=continue draws tokens behind keys of older weights, so that no learner scores them alike, and "
            "rl.max_gap_at_lag_0=0 stops the run for that. Set rl.on_new_weights=recompute or finish, or a limit that policy/gap_at_lag_0 stays below."
        )
    objective = rl.objective
    if (
        objective.old_policy == "learner"
        and objective.importance.mode == "none"
        and not objective.off_policy_mask.enabled
    ):
        problems.append(
            f"{asked} trains on tokens of older weights, and nothing here corrects for it: rl.objective.old_policy=learner divides by the learner's own "
            "probabilities. Set rl.objective.old_policy=sampler, rl.objective.importance.mode=truncated or rl.objective.off_policy_mask.enabled=true."
        )
    return problems


def correction_problem(use: EngineUse) -> str:
    """Why the objective must not ignore the gap that `model.batch_invariant: false` leaves at equal weights; empty if it does not."""
    objective = use.rl.objective
    ratio_holds_it = objective.old_policy == "sampler" or objective.importance.mode != "none"
    if use.model.batch_invariant or ratio_holds_it or objective.off_policy_mask.enabled:
        return ""
    return (
        "model.batch_invariant=false lets sampler and learner differ at equal weights, and nothing here corrects for it: "
        "rl.objective.old_policy=learner divides by the learner's own probabilities. Set rl.objective.importance.mode=truncated, "
        "rl.objective.off_policy_mask.enabled=true, rl.objective.old_policy=sampler, or model.batch_invariant=true."
    )
