"""Safetensors files of a folder's weights: one, or several with an index, written tensor by tensor."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

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

    def flush() -> None:
        path = folder / f".{len(files):05d}.{WEIGHTS_FILE}"
        save_file(held, path, metadata={"format": "pt"})
        files.append((path, list(held)))
        held.clear()

    for name, tensor in tensors:
        if held and sum(one.nbytes for one in held.values()) + tensor.nbytes > max_bytes:
            flush()
        held[name] = _own(tensor)
    flush()
    if len(files) == 1:
        files[0][0].rename(folder / WEIGHTS_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        path.rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2))


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
    """The file of each tensor, or of all under "" where there is no index. Raises FileNotFoundError without weights."""
    refuse_shards(folder)
    if (folder / INDEX_FILE).is_file():
        weight_map = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
        return {name: folder / file for name, file in weight_map.items()}
    if (folder / WEIGHTS_FILE).is_file():
        return {"": folder / WEIGHTS_FILE}
    raise FileNotFoundError(f"a checkpoint needs {WEIGHTS_FILE} or {INDEX_FILE}; neither is in {folder}")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's files. Raises FileNotFoundError, or ValueError for a file that is torn."""
    tensors = {}
    for file in sorted(set(weight_files(folder).values())):
        try:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118 (not a mapping)
                    tensors[name] = reader.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{file} is no whole safetensors file: {error}. Fetch it again.") from error
    return tensors
