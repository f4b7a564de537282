"""Checkpoint folders of any policy: which implementation reads one, writes one, and names its weights."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.model.files.checkpoint import load_checkpoint, published_tensors, write_checkpoint
from samepath.model.network.network import CausalLM
from samepath.model.placement import Implementation
from samepath.model.policy import Policy


def load_policy(folder: Path, implementation: Implementation, backend: Backend) -> Policy:
    """Build the policy of a checkpoint folder and fill it. Raises ValueError or FileNotFoundError that name what does not fit."""
    match implementation:
        case "own":
            return load_checkpoint(folder, backend)
        case "transformers":
            # Late: importing transformers' models takes seconds that no run of the own network needs.
            from samepath.model.transformers.policy import load_transformers

            return load_transformers(folder, backend)


def save_policy(policy: Policy, folder: Path) -> None:
    """Write `config.json` and safetensors into `folder`, under the published names."""
    write_policy(policy, file_tensors(policy), folder)


def file_tensors(policy: Policy) -> Mapping[str, Tensor]:
    """The weights that a folder of this policy is written from; adapters are merged."""
    if isinstance(policy, CausalLM):
        return published_tensors(policy)
    # Late: as above.
    from samepath.model.transformers.lora import merged_state
    from samepath.model.transformers.policy import TransformersPolicy

    assert isinstance(policy, TransformersPolicy)
    return merged_state(policy.model)


def write_policy(policy: Policy, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """See `save_policy`; `tensors` are the policy's `file_tensors`, or copies of them: of the policy itself only settings are read."""
    if isinstance(policy, CausalLM):
        write_checkpoint(policy.config, tensors, folder)
        return
    # Late: as above.
    from samepath.model.transformers.policy import TransformersPolicy, write_transformers

    assert isinstance(policy, TransformersPolicy)
    write_transformers(policy, tensors, folder)


def policy_tensors(policy: Policy) -> Mapping[str, Tensor]:
    """The weights under their published names: what `save_policy` writes and every engine takes."""
    if isinstance(policy, CausalLM):
        return published_tensors(policy)
    # Late: as above.
    from samepath.model.transformers.policy import TransformersPolicy, checkpoint_tensors

    assert isinstance(policy, TransformersPolicy)
    return checkpoint_tensors(policy)
