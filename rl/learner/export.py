"""A run's checkpoint as a folder for others: safetensors, configuration and tokenizer, in transformers' layout where that knows the model."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from samepath.model.files.config_file import CONFIG_FILE, read_config
from samepath.model.files.policy_files import policy_tensors
from samepath.model.files.weight_files import INDEX_FILE, SHARDS_FILE, WEIGHTS_FILE, weight_files, write_weights
from samepath.model.json_file import read_json
from samepath.model.manifest import MANIFEST_FILE, require_whole
from samepath.model.network.network import CausalLM
from samepath.model.network.placement import TYPES
from samepath.model.policy import Policy
from samepath.model.transformers.lora import add_adapters
from samepath.model.transformers.lora_settings import LoraSettings
from samepath.rl.learner.checkpoints import STEP_FILE, best_checkpoint, latest_checkpoint
from samepath.rl.learner.shard_files import read_shards
from samepath.rl.learner.snapshot import STATE_FILE
from samepath.rl.run_folder import REFERENCE
from samepath.rl.run_state import RECIPE_FILE, TEXT_RECIPE_FILE

LEFT_OUT = {MANIFEST_FILE, STEP_FILE, STATE_FILE, SHARDS_FILE, INDEX_FILE}
"""What a checkpoint needs to go on with a run alone, and what is written anew."""


class ExportError(ValueError):
    """A checkpoint that cannot be exported so; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    checkpoint: Path
    """Folder that it was made of."""
    folder: Path
    tensors: int
    size_bytes: int
    """Of the weights."""
    files: int
    """Safetensors files."""


def export(source: Path, out: Path, max_bytes: int, *, best: bool = False) -> Exported:
    """Write a run's newest whole checkpoint, its best, or a checkpoint folder, into `out`; weights in files of at most `max_bytes`.

    `out` is there whole or not at all. Raises ExportError if there is no checkpoint or `out` is taken, BrokenFolderError, with the file's
    name, if the checkpoint is torn, CheckpointError if none of the run's is whole, OSError if the disk does not take it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"OUT must be a new or an empty folder; {out} holds something. Name another.")
    checkpoint = _checkpoint(source, best)
    require_whole(checkpoint)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for path in sorted(checkpoint.iterdir()):
            if path.is_file() and path.name not in LEFT_OUT and path.suffix != ".safetensors":
                shutil.copyfile(path, partial / path.name)
        write_weights(_tensors(checkpoint), partial, max_bytes)
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    except SafetensorError as error:
        raise OSError(f"{out}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = weight_files(out)
    paths = sorted(set(files.values()))
    return Exported(
        checkpoint=checkpoint,
        folder=out,
        tensors=len(files) if "" not in files else _count(out / WEIGHTS_FILE),
        size_bytes=sum(path.stat().st_size for path in paths),
        files=len(paths),
    )


def _checkpoint(source: Path, best: bool) -> Path:
    if not any((source / name).is_file() for name in (RECIPE_FILE, TEXT_RECIPE_FILE)):
        if not (source / CONFIG_FILE).is_file():
            raise ExportError(f"samepath export needs a run's folder or one of its checkpoints; {source} is neither")
        if best:
            raise ExportError(f"--best goes with a run's folder; {source} is a checkpoint. Leave --best out.")
        return source
    if best:
        return best_checkpoint(source)[0]
    if found := latest_checkpoint(source):
        return found[0]
    if (source / REFERENCE).is_dir():
        return source / REFERENCE
    raise ExportError(
        f"{source} has no checkpoint yet. Wait for its first (checkpoint.every), or go on with `samepath resume`."
    )


def _tensors(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """All weights under their published names, those in shards as the learner publishes them."""
    if (checkpoint / SHARDS_FILE).is_file():
        yield from policy_tensors(_policy(checkpoint)).items()
        return
    for path in sorted(set(weight_files(checkpoint).values())):
        with safe_open(path, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 (not a mapping)
                yield name, reader.get_tensor(name)


def _policy(checkpoint: Path) -> Policy:
    """The model of a sharded checkpoint, whole in memory, in the type that its passes computed with."""
    said: dict[str, Any] = read_json(checkpoint / SHARDS_FILE)
    if said["implementation"] == "own":
        model = CausalLM(read_config(checkpoint / CONFIG_FILE))
        read_shards(checkpoint, model)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(TYPES[said["dtype"]])
        return model
    # Late: importing transformers' models takes seconds that the own network does not need.
    from samepath.model.transformers.policy import new_transformers

    policy = new_transformers(checkpoint)
    if said["lora"] is not None:
        add_adapters(policy, LoraSettings.model_validate(said["lora"]), seed=0)
    read_shards(checkpoint, policy)
    return policy


def _count(path: Path) -> int:
    with safe_open(path, framework="pt") as reader:
        return len(reader.keys())
