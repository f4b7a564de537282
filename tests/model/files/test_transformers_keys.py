"""DeepSeek-V3.2 and V3 beside transformers: what a `config.json` says, leaves out or says otherwise, and folders that transformers wrote itself."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV32Config, DeepseekV32ForCausalLM, PreTrainedConfig

from samepath.model.config import ModelConfig, family_fields
from samepath.model.files.checkpoint import load_checkpoint, save_checkpoint
from samepath.model.files.config_file import CONFIG_FILE, read_config, write_config
from samepath.model.files.config_keys import SILENT_KEYS
from samepath.model.files.weight_files import INDEX_FILE
from tests.families import family_config
from tests.tiny_runs import packed_input, random_sequences, run

CLASSES: dict[str, Any] = {"deepseek_v32": DeepseekV32Config, "deepseek_v3": DeepseekV3Config}
LENGTHS = (50, 7, 33, 90)
TOLERANCE = 2e-5
"""Of logits of order 5."""
ORIGINAL_LENGTH = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
YARN = {
    "no yarn": {"rope_type": "default", "rope_theta": 10000.0},
    "mscale_all_dim alone": {**ORIGINAL_LENGTH, "mscale_all_dim": 0.7},
    "mscale alone": {**ORIGINAL_LENGTH, "mscale": 0.7},
    "both": {**ORIGINAL_LENGTH, "mscale": 1.0, "mscale_all_dim": 0.7},
    "none": ORIGINAL_LENGTH,
}
OTHER: dict[str, object] = {
    "hidden_act": "gelu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "layer_types": ["full_attention"] * 3,
    "mlp_layer_types": ["sparse"] * 3,
    "num_key_value_heads": 2,
    "n_group": 2,
    "topk_group": 1,
    "v_head_dim": 32,
    "attention_dropout": 0.5,
    "routed_scaling_factor": 1.5,
    "rms_norm_eps": 1e-3,
    "first_k_dense_replace": 2,
    "rope_interleave": False,
}
"""Another setting of a key where twice the number, or the other side of a switch, is none."""


def sizes(name: str) -> dict[str, Any]:
    """What a file of the family says, beside what the network's own sizes are."""
    return write_config(family_config(name))


def written(folder: Path, data: dict[str, Any]) -> Path:
    (folder / CONFIG_FILE).write_text(json.dumps(data))
    return folder / CONFIG_FILE


def own_keys(name: str) -> list[str]:
    generic = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return [field.name for field in dataclasses.fields(CLASSES[name]) if field.name not in generic]


def read_unless_named(file: Path, key: str) -> ModelConfig | None:
    """None for a file that is refused by its path and the key."""
    try:
        return read_config(file)
    except ValueError as error:
        said = str(error)
    assert str(file) in said
    assert key in said
    return None


def compared(config: ModelConfig) -> dict[str, Any]:
    return {
        key: getattr(config, key)
        for key in family_fields(config.model_type)
        if key not in {*SILENT_KEYS, "rope_parameters"}
    }


@pytest.mark.parametrize("name", CLASSES)
def test_a_key_left_out_is_what_transformers_takes_it_for_or_is_named(name: str, tmp_path: Path) -> None:
    data = sizes(name)
    refused = []
    for key in own_keys(name):
        file = written(tmp_path, {other: value for other, value in data.items() if other != key})
        theirs = CLASSES[name].from_pretrained(tmp_path)
        config = read_unless_named(file, key)
        if config is None:
            refused.append(key)
            continue
        assert compared(config) == {field: getattr(theirs, field) for field in compared(config)}, key
        assert config.rope_parameters.rope_theta == theirs.rope_parameters["rope_theta"]
    assert {"hidden_size", "kv_lora_rank", "n_routed_experts"} <= set(refused)
    assert not {"topk_group", "first_k_dense_replace", "norm_topk_prob", "rms_norm_eps"} & set(refused)


def other_setting(key: str, data: dict[str, Any], theirs: Any) -> object:
    if key in OTHER:
        return OTHER[key]
    value = data.get(key, getattr(theirs, key, None))
    return not value if isinstance(value, bool) else 2 * value if value else 7


@pytest.mark.parametrize("name", CLASSES)
def test_every_key_of_transformers_is_expressed_or_refused_by_its_name_or_says_nothing(
    name: str, tmp_path: Path
) -> None:
    data = sizes(name)
    plain = read_config(written(tmp_path, data))
    outcomes: dict[str, list[str]] = {"expressed": [], "refused": [], "silent": []}
    for key in own_keys(name):
        changed = {**data, key: other_setting(key, data, CLASSES[name]())}
        file = written(tmp_path, changed)
        config = read_unless_named(file, key)
        if config is None:
            outcomes["refused"].append(key)
            continue
        if config == plain or key in SILENT_KEYS:
            assert key in SILENT_KEYS
            outcomes["silent"].append(key)
            continue
        theirs = CLASSES[name].from_pretrained(tmp_path)
        # Of the two that say which layers have experts, transformers takes this one.
        field = "first_k_dense_replace" if key == "mlp_layer_types" else key
        ours = getattr(config, field)
        assert ours == (0 if key == "mlp_layer_types" else getattr(theirs, key)) or key == "rope_parameters"
        outcomes["expressed"].append(key)
    assert {"hidden_act", "attention_bias", "num_key_value_heads"} <= set(outcomes["refused"])
    assert {"routed_scaling_factor", "norm_topk_prob", "rms_norm_eps", "rope_parameters"} <= set(outcomes["expressed"])
    if name == "deepseek_v32":
        assert {"index_topk", "index_n_heads", "mlp_layer_types"} <= set(outcomes["expressed"])
        assert {"layer_types", "mlp_bias"} <= set(outcomes["refused"])
    allowed = {
        "attention_dropout",
        "initializer_range",
        "use_cache",
        "output_router_logits",
        "head_dim",
        "pretraining_tp",
        "num_mtp_layers",
    }
    assert set(outcomes["silent"]) <= allowed | {key for key in SILENT_KEYS if key.endswith("token_id")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping: not known of model_type=deepseek_v32"),
        ({"moe_layer_freq": 2}, "moe_layer_freq must be 1; got 2"),
        ({"num_key_value_heads": 2}, "num_key_value_heads must be num_attention_heads=4.*; got 2"),
        ({"mlp_layer_types": ["sparse", "dense", "sparse"]}, "mlp_layer_types must be 'dense' for the first layers"),
        ({"mlp_layer_types": ["dense", "sparse"]}, "mlp_layer_types must be .*num_hidden_layers in all"),
        ({"index_head_dim": 4}, "index_head_dim must be at least qk_rope_head_dim=8; got 4"),
        ({"hidden_size": "64 channels"}, "hidden_size: Input should be a valid integer"),
    ],
)
def test_a_key_that_cannot_be_expressed_is_named_with_its_file(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    file = written(tmp_path, {**sizes("deepseek_v32"), **changes})
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        read_config(file)


def test_what_is_off_or_says_nothing_is_no_obstacle(tmp_path: Path) -> None:
    beside = {"use_mla_bias": False, "some_scale": None, "_name_or_path": "x", "ep_size": 1, "aux_loss_alpha": 0.001}
    plain, more = tmp_path / "plain", tmp_path / "more"
    for folder, changes in ((plain, {}), (more, beside)):
        folder.mkdir()
        written(folder, {**sizes("deepseek_v3"), **changes})
    assert read_config(more / CONFIG_FILE) == read_config(plain / CONFIG_FILE)


PUBLISHED: dict[str, object] = {
    "architectures": ["DeepseekV32ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v32",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.2",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
"""Every key of the published model's file."""


def test_the_published_file_is_the_class_of_transformers_with_nothing_changed(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, PUBLISHED))
    theirs = DeepseekV32Config()
    assert compared(config) == {field: getattr(theirs, field) for field in compared(config)}
    assert config.rope_parameters.amplitude == 1.0
    assert config.softmax_scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)


def foreign_model(rope: dict[str, Any]) -> Any:
    """Made by transformers alone: its own configuration class and weights. Sixteen indexer heads, so that no tie decides."""
    config = DeepseekV32Config(
        vocab_size=18,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_hidden_layers=3,
        mlp_layer_types=["dense", "sparse", "sparse"],
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        index_n_heads=16,
        index_head_dim=32,
        index_topk=12,
        max_position_embeddings=128,
        initializer_range=0.15,
        rms_norm_eps=1e-3,
        rope_parameters=rope,
    )
    torch.manual_seed(3)
    model = DeepseekV32ForCausalLM._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("norm.weight"):
                tensor.uniform_(0.5, 1.5)
            elif key.endswith(("e_score_correction_bias", "k_norm.bias")):
                tensor.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("rope", YARN.values(), ids=YARN)
def test_a_sharded_folder_of_transformers_own_making_goes_there_and_back(rope: dict[str, Any], tmp_path: Path) -> None:
    theirs = foreign_model(rope)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=200_000)
    assert (tmp_path / "theirs" / INDEX_FILE).is_file()
    model = load_checkpoint(tmp_path / "theirs")
    assert model.config.first_k_dense_replace == 1
    sequences = random_sequences(model.config, LENGTHS)
    save_checkpoint(model, tmp_path / "ours", max_bytes=200_000)
    assert (tmp_path / "ours" / INDEX_FILE).is_file()
    back = DeepseekV32ForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    for key, tensor in back.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[key]), key
    with torch.no_grad():
        wanted = [theirs(ids[None]).logits[0] for ids in sequences]
        hidden_ND, _ = run(model, packed_input(model.config, sequences))
        again = [back(ids[None]).logits[0] for ids in sequences]
    ours = (hidden_ND[: sum(LENGTHS)] @ model.head_weight.T).split(LENGTHS)
    for got, there, truth in zip(ours, again, wanted, strict=True):
        assert 1 < float(truth.abs().max()) < 20
        torch.testing.assert_close(got, truth, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(there, truth, rtol=0, atol=TOLERANCE)
