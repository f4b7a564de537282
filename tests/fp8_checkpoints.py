"""Checkpoints whose matrices stand in FP8 with a scale for each block, as DeepSeek publishes them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from samepath.model.files.config_file import CONFIG_FILE
from samepath.model.files.weight_files import INDEX_FILE

LARGEST = 448.0
"""Of e4m3."""
KEPT = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "weights_proj")
"""Left in sixteen or thirty-two bits by DeepSeek too."""


def block_scales(values_RC: Tensor, rows: int, columns: int, *, powers: bool) -> Tensor:
    """The scale of each block that maps its largest value to FP8's, or to the next power of two."""
    scales = torch.ones(-(-values_RC.shape[0] // rows), -(-values_RC.shape[1] // columns))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = values_RC[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            scale = block.abs().max() / LARGEST
            scales[i, j] = 2.0 ** scale.log2().ceil() if powers else scale
    return scales


def expanded(scales_YX: Tensor, shape: tuple[int, ...], rows: int, columns: int) -> Tensor:
    """Each element's scale, in float64."""
    every = torch.arange(shape[0])[:, None] // rows, torch.arange(shape[1])[None] // columns
    return scales_YX.double()[every]


def quantise(
    folder: Path, blocks: tuple[int, int], *, powers: bool = False, scale_type: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Rewrite a plain folder in FP8, each file by itself; returns the values that its tensors then stand for, in float64."""
    places, values = {}, {}
    for file in sorted(folder.glob("*.safetensors")):
        stored = {}
        for name, tensor in load_file(file).items():
            if tensor.ndim != 2 or any(part in name for part in KEPT):
                stored[name], values[name] = tensor, tensor.double()
                continue
            scales = block_scales(tensor, *blocks, powers=powers)
            every = expanded(scales, tuple(tensor.shape), *blocks)
            codes = (tensor.double() / every).to(torch.float8_e4m3fn)
            stored |= {name: codes, name + "_scale_inv": scales.to(scale_type)}
            values[name] = codes.double() * every
        save_file(stored, file, metadata={"format": "pt"})
        places |= dict.fromkeys(stored, file.name)
    if (folder / INDEX_FILE).is_file():
        (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    said = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": list(blocks),
        **({"scale_fmt": "ue8m0"} if powers else {}),
    }
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "quantization_config": said}))
    return values
