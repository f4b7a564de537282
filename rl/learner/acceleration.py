"""Where a foreign model computes, and in which precision: accelerate's choice of device and its mixed precision."""

from accelerate import Accelerator

from samepath.model.placement import DeviceName
from samepath.model.policy import Policy
from samepath.rl.recipe.learner import LearnerSettings


def accelerated(policy: Policy, settings: LearnerSettings, *, trained: bool) -> Policy:
    """Move a policy to this machine's accelerator (the CPU where there is none); `precision: bf16` computes its layers in bfloat16.

    Weights, gradients, optimiser and the log-probability head stay in float32. What is going to be sharded stays where it is: layers move one by one.
    """
    accelerator = Accelerator(mixed_precision="bf16" if settings.precision == "bf16" else "no")
    prepared: Policy = accelerator.prepare_model(
        policy, evaluation_mode=not trained, device_placement=settings.shard == "none"
    )
    return prepared


def device_type() -> DeviceName:
    """Where accelerate puts models."""
    return "cuda" if Accelerator().device.type == "cuda" else "cpu"
