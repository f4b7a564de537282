"""FP8 weights with one scale a block, as DeepSeek-V3 and V3.2 are published: what `quantization_config` says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

QUANTIZATION_KEY = "quantization_config"
SCALE_SUFFIX = "_scale_inv"
"""A matrix `x.weight` has its scales in `x.weight_scale_inv`."""

_ONE_SETTING: dict[str, tuple[Any, ...]] = {
    "quant_method": ("fp8",),
    "fmt": ("e4m3", None),
    "activation_scheme": ("dynamic", None),
    "scale_fmt": ("ue8m0", "float", None),
}
"""What may be said; None is a file without the key. How a scale is stored, and so its value, each tensor tells by its own type."""
_NO_MATTER = ("modules_to_not_convert", "modules_to_convert", "ignored_layers", "dequantize")
"""Which matrices are in FP8 is told by the tensors themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Blocks:
    """How the matrices are cut.

    Example: DeepSeek-V3.2: Fp8Blocks(rows=128, columns=128)
    """

    rows: int
    """Rows of a block; the last one may be cut off."""
    columns: int
    """Columns of a block, likewise."""

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape `[…, Y, X]` of the scales of matrices `[…, R, C]`. Raises ValueError for a vector."""
        if len(shape) < 2:
            raise ValueError(f"an FP8 weight must be a matrix; got shape {tuple(shape)}")
        return (*shape[:-2], -(-shape[-2] // self.rows), -(-shape[-1] // self.columns))


def read_quantization(config: Mapping[str, Any], where: object) -> Fp8Blocks | None:
    """Blocks of a published `config.json` (the file `where`), None if its weights are plain. Raises ValueError that names file and key."""
    said = config.get(QUANTIZATION_KEY)
    if not said:
        return None
    stem = f"{where}: {QUANTIZATION_KEY}"
    if not isinstance(said, Mapping):
        raise ValueError(f"{stem} must be an object; got {said!r}")
    for key, allowed in _ONE_SETTING.items():
        if said.get(key) not in allowed:
            names = " or ".join(str(value) for value in allowed if value is not None)
            raise ValueError(
                f"{stem}.{key} must be {names}, the one kind of quantised weights that is read; got {said.get(key)!r}. "
                "Take the bfloat16 or float32 weights of this model."
            )
    unknown = sorted(set(said) - {*_ONE_SETTING, *_NO_MATTER, "weight_block_size"})
    if unknown:
        raise ValueError(f"{stem} has keys that are not known here: {', '.join(unknown)}")
    sizes = said.get("weight_block_size", [128, 128])
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"{stem}.weight_block_size must be two whole numbers above 0, rows and columns; got {sizes!r}")
    return Fp8Blocks(rows=sizes[0], columns=sizes[1])
