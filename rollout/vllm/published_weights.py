"""What new weights for a running engine must be: those of the checkpoint that it was started from, by name, shape and kind of number."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
HEAD = "lm_head.weight"


class PublishedWeights:
    """Names and shapes that new weights must have: those of the checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        """Read the headers of the folder's safetensors files. Raises FileNotFoundError if there are none."""
        config = json.loads((folder / "config.json").read_text())
        self._num_layers = int(config.get("text_config", config)["num_hidden_layers"])
        self._tied = bool(config.get("tie_word_embeddings", False))
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"an engine starts from safetensors files; none in {folder}")
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118 (not a mapping)
                    if self._is_policy(name):
                        self._shapes[name] = tuple(reader.get_slice(name).get_shape())

    def checked(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The policy's own tensors. Raises ValueError naming what is missing, unknown, misshapen or of a wrong type."""
        policy = {name: tensor for name, tensor in tensors.items() if self._is_policy(name)}
        wanted = dict(self._shapes)
        if self._tied:
            # With one matrix for embedding and head, writers differ in whether they store it twice.
            wanted.pop(HEAD, None)
            policy.pop(HEAD, None)
        missing, unknown = sorted(set(wanted) - set(policy)), sorted(set(policy) - set(wanted))
        if missing or unknown:
            raise ValueError(
                f"new weights must have the names of the engine's checkpoint; missing {missing[:5]} ({len(missing)}), "
                f"unknown {unknown[:5]} ({len(unknown)})"
            )
        for name, tensor in policy.items():
            if tuple(tensor.shape) != wanted[name]:
                raise ValueError(f"{name} must have shape {wanted[name]}; got {tuple(tensor.shape)}")
            if not tensor.is_floating_point():
                raise ValueError(f"{name} must be a floating-point tensor; got {tensor.dtype}")
        return policy

    def _is_policy(self, name: str) -> bool:
        """False for a multi-token-prediction layer, which stands behind the last layer in published checkpoints."""
        found = _LAYER.search(name)
        return found is None or int(found[1]) < self._num_layers
