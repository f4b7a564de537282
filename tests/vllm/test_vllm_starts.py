"""Engines that cannot start say why. Last of this folder: a failed start takes down vLLM's process groups, and with them other engines."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from samepath.rollout.engine import build_engine
from samepath.rollout.engine_errors import EngineUnavailableError
from tests.vllm.conftest import EXACT
from tests.vllm_checkpoints import BY_NAME, write_checkpoint


def test_engine_whose_cache_cannot_hold_one_sequence_does_not_start(checkpoint: Callable) -> None:
    tiny = EXACT.model_copy(update={"cache_bytes": 1 << 16})
    with pytest.raises(EngineUnavailableError, match=r"vLLM cannot serve .*raise engine\.cache_bytes=65536 or lower"):
        build_engine(checkpoint("qwen3_moe"), tiny)


def test_engine_with_a_head_size_that_the_cpu_kernels_lack_does_not_start(tmp_path: Path) -> None:
    folder = write_checkpoint(BY_NAME["llama"], tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    assert config["head_dim"] == 32
    weights = load_file(folder / "model.safetensors")
    assert weights["model.layers.0.self_attn.q_proj.weight"].shape == (128, 64)
    (folder / "config.json").write_text(
        json.dumps({**config, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16})
    )
    with pytest.raises(EngineUnavailableError, match=r"loads .* but cannot run it: .*head_dim=16"):
        build_engine(folder, EXACT)


def test_engine_on_a_folder_without_weights_does_not_start(tmp_path: Path, checkpoint: Callable) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint("llama") / name).read_bytes())
    with pytest.raises(FileNotFoundError, match="safetensors"):
        build_engine(tmp_path, EXACT)
