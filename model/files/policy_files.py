"""Checkpoint folders of any policy: which implementation reads one, writes one, and names its weights."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from samepath.kernels.backend import Backend
from samepath.model.files.checkpoint import (
    load_checkpoint,
    published_ends,
    published_layer,
    published_tensors,
    write_checkpoint,
    write_own_config,
)
from samepath.model.files.weight_files import MAX_SHARD_BYTES, refuse_shards, write_weights
from samepath.model.network.network import CausalLM
from samepath.model.placement import Implementation
from samepath.model.policy import Policy


def load_policy(folder: Path, implementation: Implementation, backend: Backend) -> Policy:
    """Build the policy of a checkpoint folder and fill it. Raises ValueError or FileNotFoundError that name what does not fit."""
    refuse_shards(folder)
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


def write_named(policy: Policy, tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Write `policy_tensors` that come one after the other, as `write_policy` does all at once; of the policy itself only settings are read."""
    write_settings(policy, folder)
    write_weights(tensors, folder, MAX_SHARD_BYTES)


def write_settings(policy: Policy, folder: Path) -> None:
    """Write what `write_policy` writes beside the weights."""
    if isinstance(policy, CausalLM):
        write_own_config(policy.config, folder)
        return
    # Late: as above.
    from samepath.model.transformers.policy import TransformersPolicy, write_transformers_config

    assert isinstance(policy, TransformersPolicy)
    write_transformers_config(policy, folder)


def policy_tensors(policy: Policy) -> Mapping[str, Tensor]:
    """The weights under their published names: what `save_policy` writes and every engine takes."""
    if isinstance(policy, CausalLM):
        return published_tensors(policy)
    # Late: as above.
    from samepath.model.transformers.policy import TransformersPolicy, checkpoint_tensors

    assert isinstance(policy, TransformersPolicy)
    return checkpoint_tensors(policy)


def policy_parts(policy: Policy) -> Iterator[tuple[nn.Module, Callable[[], Iterable[tuple[str, Tensor]]]]]:
    """`policy_tensors` in parts: what stands outside the layers, then layer by layer, each with the module that holds its parameters."""
    if isinstance(policy, CausalLM):
        yield policy, lambda: published_ends(policy).items()
        for number, layer in enumerate(policy.decoder_layers):
            yield layer, partial(published_layer, policy, number)
        return
    # Late: as above.
    from samepath.model.transformers.policy import TransformersPolicy, checkpoint_part

    assert isinstance(policy, TransformersPolicy)
    for part in (None, *policy.decoder_layers):
        yield policy if part is None else part, lambda part=part: checkpoint_part(policy, part).items()  # type: ignore[misc]
