"""Safetensors files of a folder's weights: one, or several with an index, written tensor by tensor."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from samepath.model.json_file import read_json

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
SHARDS_FILE = "shards.json"
"""In the folder of a checkpoint that several ranks wrote in shards (`rl/learner/shard_files.py`)."""
MAX_SHARD_BYTES = 4 << 30
"""Size of a file, bytes; a larger tensor stands alone in one."""


def write_weights(tensors: Iterable[tuple[str, Tensor]], folder: Path, max_bytes: int) -> None:
    """Write named tensors into files of at most `max_bytes`, of which one is held in memory at a time.

    A tensor may be overwritten as soon as the next one is asked for. Raises OSError or SafetensorError if the disk does not take a file.
    """
    held: dict[str, Tensor] = {}
    files: list[tuple[Path, list[str]]] = []
    held_bytes = total_bytes = 0

    def flush() -> None:
        path = folder / f".{len(files):05d}.{WEIGHTS_FILE}"
        save_file(held, path, metadata={"format": "pt"})
        files.append((path, list(held)))
        held.clear()

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > max_bytes:
            flush()
            held_bytes = 0
        held[name] = _own(tensor)
        held_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()
    if len(files) == 1:
        files[0][0].rename(folder / WEIGHTS_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        path.rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _own(tensor: Tensor) -> Tensor:
    """A copy in memory of its own: views of one matrix, such as gate and up, are refused by safetensors."""
    there = tensor.detach().cpu().contiguous()
    return there.clone() if there.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() else there


def refuse_shards(folder: Path) -> None:
    """Raise FileNotFoundError, with what to do, for a checkpoint of sharded ranks: only their learner reads it."""
    if (folder / SHARDS_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} must hold safetensors files; it holds the shards of a learner with learner.shard=full. Write them as such first: "
            f"`samepath export {folder} OUT`, and name OUT."
        )


def weight_files(folder: Path) -> Mapping[str, Path]:
    """The file of each tensor, or of all under "" where there is no index. Raises FileNotFoundError without weights, ValueError
    for an index that is none."""
    refuse_shards(folder)
    if (folder / INDEX_FILE).is_file():
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ValueError(
                f"{folder / INDEX_FILE}: weight_map must give the file of each tensor; it does not. Fetch it again."
            )
        return {name: folder / file for name, file in weight_map.items()}
    if (folder / WEIGHTS_FILE).is_file():
        return {"": folder / WEIGHTS_FILE}
    raise FileNotFoundError(f"a checkpoint needs {WEIGHTS_FILE} or {INDEX_FILE}; neither is in {folder}")
