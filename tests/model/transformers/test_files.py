"""Weights of foreign models leave and enter under the names of their published checkpoints."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from samepath.model.files.checkpoint import load_checkpoint, published_tensors
from samepath.model.files.policy_files import load_policy, policy_tensors, save_policy
from samepath.model.transformers.policy import TransformersPolicy
from tests.conftest import tiny_model
from tests.model.transformers.test_policy import packed, run, sequences
from tests.tiny_transformers import FAMILIES, MIXTURES, save_tiny, tiny_transformers

EXPERT_NAMES = {
    "Mixtral": r"model\.layers\.\d+\.block_sparse_moe\.experts\.\d+\.w[123]\.weight",
    "default": r"model\.layers\.\d+\.mlp\.experts\.\d+\.(gate|up|down)_proj\.weight",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load_give_the_same_policy(family: str, tmp_path: Path) -> None:
    policy = TransformersPolicy(tiny_transformers(family))
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path, "transformers", "torch")
    assert isinstance(loaded, TransformersPolicy)
    before, after = policy.model.state_dict(), loaded.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    batch = packed(sequences())
    with torch.no_grad():
        assert torch.equal(run(policy, batch)[0], run(loaded, batch)[0])
    assert loaded.shape == policy.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_policy_tensors_are_what_a_checkpoint_holds(family: str, tmp_path: Path) -> None:
    policy = TransformersPolicy(tiny_transformers(family))
    save_policy(policy, tmp_path)
    written: dict[str, Tensor] = load_file(tmp_path / "model.safetensors")
    tensors = policy_tensors(policy)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in written)


@pytest.mark.parametrize("family", MIXTURES)
def test_policy_tensors_name_every_expert_by_itself(family: str) -> None:
    policy = TransformersPolicy(tiny_transformers(family))
    pattern = EXPERT_NAMES.get(family, EXPERT_NAMES["default"])
    names = [name for name in policy_tensors(policy) if re.fullmatch(pattern, name)]
    assert len(names) == 3 * 8 * len(policy.shape.moe_layers)
    assert not [name for name in policy_tensors(policy) if "gate_up_proj" in name]


def test_saved_config_of_a_sigmoid_router_says_how_it_routes(tmp_path: Path) -> None:
    save_policy(TransformersPolicy(tiny_transformers("DeepseekV3")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")


def test_load_of_a_checkpoint_with_a_hole_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "Llama")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing \['model\.layers\.1\.mlp\.up_proj\.weight'\]"):
        load_policy(tmp_path, "transformers", "torch")


def test_load_ignores_layers_of_multi_token_prediction_and_nothing_else(tmp_path: Path) -> None:
    save_tiny(tmp_path, "DeepseekV3")
    tensors = load_file(tmp_path / "model.safetensors")
    gate = tensors["model.layers.2.mlp.gate.weight"]
    extra = {"model.layers.3.mlp.gate.weight": gate.clone(), "model.layers.3.eh_proj.weight": gate.clone()}
    save_file({**tensors, **extra}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    policy = load_policy(tmp_path, "transformers", "torch")
    assert policy.shape.moe_layers == (1, 2)
    assert not [name for name in policy_tensors(policy) if ".layers.3." in name]
    wrong = {"model.layers.2.eh_proj.weight": gate.clone()}
    save_file({**tensors, **wrong}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"unknown \['model\.layers\.2\.eh_proj\.weight'\]"):
        load_policy(tmp_path, "transformers", "torch")


def test_load_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "Llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["StrangeForCausalLM"]}))
    with pytest.raises(ValueError, match="StrangeForCausalLM"):
        load_policy(tmp_path, "transformers", "torch")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_policy(tmp_path / "nowhere", "transformers", "torch")


def test_load_of_a_deepseek_v32_checkpoint_points_to_the_own_network(tmp_path: Path) -> None:
    save_policy(tiny_model(), tmp_path)
    with pytest.raises(ValueError, match=r"model\.implementation: own"):
        load_policy(tmp_path, "transformers", "torch")
    assert published_tensors(load_checkpoint(tmp_path)).keys() == policy_tensors(tiny_model()).keys()


def test_load_of_quantised_weights_is_refused_with_the_cure(tmp_path: Path) -> None:
    save_policy(TransformersPolicy(tiny_transformers("DeepseekV3")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(
        ValueError, match=r"config\.json: quantization_config must not be there.*`samepath convert FOLDER OUT`"
    ):
        load_policy(tmp_path, "transformers", "torch")
