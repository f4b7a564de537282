"""The tensors of a checkpoint folder: all described at once from the heads of its files, then read one at a time.

A file is mapped while its tensors are read and let go before the next one is opened, so that a folder in shards takes the memory of one.
Axes: R rows, C columns of a matrix; Y, X its blocks down and across.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from samepath.model.files.config_file import CONFIG_FILE
from samepath.model.files.fp8_blocks import QUANTIZATION_KEY, SCALE_SUFFIX, Fp8Blocks, read_quantization
from samepath.model.files.weight_files import weight_files
from samepath.model.json_file import read_json

PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FP8 = "F8_E4M3"
SCALES = ("F32", "F8_E8M0")


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor stands, and what the head of its file says of it."""

    file: Path
    kind: str
    shape: torch.Size


class StoredWeights:
    """Tensors under the names of the files. FP8 matrices come out as their values, and their scales not at all."""

    def __init__(self, folder: Path) -> None:
        """Read the heads. Raises FileNotFoundError or ValueError, naming file and tensor, for what cannot be read; no weight is read before."""
        config = folder / CONFIG_FILE
        self._blocks = read_quantization(read_json(config) if config.is_file() else {}, config)
        self._entries: dict[str, _Entry] = {}
        listed = weight_files(folder)
        files = sorted(set(listed.values()))
        missing = {file for file in files if not file.is_file()}
        for name, file in listed.items():
            if file in missing:
                raise FileNotFoundError(
                    f"{file} must hold {name}, as the index beside it says; it is not there. Fetch it."
                )
        for file in files:
            self._read_head(file)
        for name, file in listed.items():
            if name and (name not in self._entries or self._entries[name].file != file):
                raise ValueError(
                    f"{file} must hold {name}, as the index beside it says; it does not. Fetch both again."
                )
        self._check_kinds()

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of every tensor, in the order in which `read` gives them."""
        return {name: entry.shape for name, entry in self._entries.items() if not name.endswith(SCALE_SUFFIX)}

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._entries[name].file

    def read(self, names: Collection[str], dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, file by file, as they are stored, and FP8 ones in `dtype`; each may be gone once the next is asked for.

        Raises ValueError, naming file and tensor, for scales that are no finite numbers.
        """
        by_file: dict[Path, list[str]] = {}
        wanted = set(names)
        for name, entry in self._entries.items():
            if name in wanted:
                by_file.setdefault(entry.file, []).append(name)
        for file, inside in by_file.items():
            with safe_open(file, framework="pt") as reader:
                for name in inside:
                    tensor = reader.get_tensor(name)
                    yield name, self._values(name, tensor, reader, dtype) if self._entries[name].kind == FP8 else tensor

    def _values(self, name: str, codes: Tensor, reader: Any, dtype: torch.dtype) -> Tensor:
        """The values of an FP8 matrix; its scales may stand in another file."""
        own, place = self._entries[name].file, self._entries[name + SCALE_SUFFIX].file
        if place == own:
            scales = reader.get_tensor(name + SCALE_SUFFIX).float()
        else:
            with safe_open(place, framework="pt") as other:
                scales = other.get_tensor(name + SCALE_SUFFIX).float()
        if not scales.isfinite().all():
            raise ValueError(f"{place}: {name + SCALE_SUFFIX} must hold finite scales; it does not. Fetch it again.")
        assert self._blocks is not None
        return dequantised(codes, scales, self._blocks, dtype)

    def _read_head(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118 (not a mapping)
                    if name in self._entries:
                        raise ValueError(
                            f"{name} must stand in one file; it is in {self._entries[name].file} and {file}"
                        )
                    part = reader.get_slice(name)
                    self._entries[name] = _Entry(file, part.get_dtype(), torch.Size(part.get_shape()))
        except SafetensorError as error:
            _refuse_strange_types(file)
            raise ValueError(f"{file} is no whole safetensors file: {error}. Fetch it again.") from error

    def _check_kinds(self) -> None:
        """Every tensor is of a type that is read, and FP8 matrices and scales come in pairs."""
        for name, entry in self._entries.items():
            where = f"{entry.file}: {name}"
            if name.endswith(SCALE_SUFFIX):
                matrix = self._entries.get(name.removesuffix(SCALE_SUFFIX))
                if matrix is None or matrix.kind != FP8:
                    raise ValueError(f"{where} must be the scales of an FP8 matrix; there is none of that name")
                if entry.kind not in SCALES:
                    raise ValueError(f"{where} must be of type {' or '.join(SCALES)}; got {entry.kind}")
            elif entry.kind == FP8:
                self._check_scales(name, where)
            elif entry.kind not in PLAIN:
                raise ValueError(
                    f"{where} must be of type {', '.join(PLAIN)}, or {FP8} with scales; got {entry.kind}. Take unquantised weights of this model."
                )

    def _check_scales(self, name: str, where: str) -> None:
        if self._blocks is None:
            raise ValueError(
                f"{where} is of type {FP8}: {CONFIG_FILE} must say how, as {QUANTIZATION_KEY}; it does not"
            )
        scales = self._entries.get(name + SCALE_SUFFIX)
        if scales is None:
            raise ValueError(f"{where} is of type {FP8} and needs its scales, {name + SCALE_SUFFIX}; no file has them")
        try:
            wanted = self._blocks.scale_shape(self._entries[name].shape)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if tuple(scales.shape) != wanted:
            raise ValueError(
                f"{scales.file}: {name + SCALE_SUFFIX} must have shape {wanted}, a scale for each block of {self._blocks.rows} × "
                f"{self._blocks.columns}; got {tuple(scales.shape)}"
            )


def _refuse_strange_types(file: Path) -> None:
    """Raise ValueError that names the tensor, if that is why safetensors does not read a file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        head = stream.read(length) if length < file.stat().st_size else b""
    try:
        entries = json.loads(head)
    except ValueError:
        return
    for name, entry in entries.items():
        if name != "__metadata__" and entry.get("dtype") not in (*PLAIN, *SCALES, FP8):
            raise ValueError(
                f"{file}: {name} must be of type {', '.join(PLAIN)}, or {FP8} with scales; got {entry.get('dtype')}. Take unquantised weights of this model."
            )


def dequantised(codes_RC: Tensor, scales_YX: Tensor, blocks: Fp8Blocks, dtype: torch.dtype) -> Tensor:
    """`code · scale` of every element, `[…, R, C]` in `dtype`; the product is taken in float32, in float64 for that type.

    A row of blocks at a time, so that no second matrix is held.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    values_RC = torch.empty(codes_RC.shape, dtype=dtype)
    num_columns = codes_RC.shape[-1]
    for block, first in enumerate(range(0, codes_RC.shape[-2], blocks.rows)):
        span = slice(first, first + blocks.rows)
        scales_1C = scales_YX[..., block, None, :].to(wide).repeat_interleave(blocks.columns, -1)[..., :num_columns]
        values_RC[..., span, :] = codes_RC[..., span, :].to(wide) * scales_1C
    return values_RC
