"""The network's sizes: what is refused, what the published file means, and that nothing is lost on the way there and back."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from samepath.model.config import ModelConfig
from samepath.model.files.config_file import read_config, write_config
from samepath.model.files.fp8_blocks import Fp8Blocks, read_quantization
from samepath.model.network.rope import rope_table
from samepath.model.rope_parameters import RopeParameters, yarn_mscale
from tests.conftest import tiny_config
from tests.families import family_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_k_dense_replace": 4}, "at most num_hidden_layers=3; got 4"),
        ({"n_group": 3}, "n_group must divide n_routed_experts=8; got 3"),
        ({"topk_group": 5}, "topk_group must be at most n_group=4; got 5"),
        ({"n_group": 8, "topk_group": 2}, "two best experts"),
        ({"num_experts_per_tok": 5}, "exceeds the experts in 2 groups"),
        ({"index_head_dim": 4}, "index_head_dim must be at least qk_rope_head_dim=8; got 4"),
        ({"hidden_size": 72}, "multiple of 16"),
        ({"qk_rope_head_dim": 7}, "multiple of 2"),
        ({"index_topk": 0}, "greater than or equal to 1"),
        ({"hidden_sise": 64}, "Extra inputs"),
    ],
)
def test_model_config_bad_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_config(**changes)


def test_model_config_derived_sizes_are_worked_by_hand() -> None:
    config = tiny_config()
    assert config.moe_layers == (1, 2)
    assert config.key_width == 32 + 8
    assert config.softmax_scale == pytest.approx(24**-0.5)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"q_lora_rank": 32}, "of other families: q_lora_rank"),
        ("qwen2", {"attention_bias": True}, "of other families: attention_bias"),
        ("qwen3", {"n_routed_experts": 8}, "of other families: n_routed_experts"),
        ("deepseek_v3", {"index_topk": 8}, "of other families: index_topk"),
        ("llama", {"model_type": "qwen3_moe"}, "missing: n_routed_experts, num_experts_per_tok, moe_intermediate_size"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads must divide num_attention_heads=4; got 3"),
        ("llama", {"num_attention_heads": 6, "num_key_value_heads": 3}, "hidden_size=64 must be an even multiple"),
        ("qwen3_moe", {"mlp_only_layers": (3,)}, "mlp_only_layers must lie in 0 … 2"),
        ("qwen3_moe", {"num_experts_per_tok": 9}, "exceeds the experts"),
        ("deepseek_v32", {"q_lora_rank": 0}, "takes its queries from the query latent"),
        (
            "llama3",
            {"rope_parameters": {"rope_type": "llama3", "high_freq_factor": 1.0}},
            "high_freq_factor must be above",
        ),
    ],
)
def test_model_config_sizes_that_do_not_fit_the_family_are_refused(
    name: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        family_config(name, **changes)


def test_model_config_of_each_family_has_the_shape_worked_by_hand() -> None:
    dense, experts, latent = family_config("smollm"), family_config("qwen3_moe"), family_config("deepseek_v3")
    assert (dense.key_heads, dense.key_width, dense.key_row_width) == (1, 16, 32)
    assert (dense.moe_layers, dense.n_routed_experts, dense.sparse_layers) == ((), 0, ())
    assert (experts.moe_layers, experts.n_routed_experts, experts.head_width) == ((0, 2), 8, 24)
    assert family_config("qwen3_moe sparse step").moe_layers == (1,)
    assert (latent.moe_layers, latent.sparse_layers, latent.key_row_width) == ((1, 2), (), 40)
    assert (dense.window_heads, latent.window_heads, tiny_config().window_heads) == (3, 4, 4)


def test_softmax_scale_with_yarn_is_times_mscale_squared() -> None:
    rope = RopeParameters(rope_type="yarn", factor=40.0)
    config = tiny_config(rope_parameters=rope)
    assert config.softmax_scale == pytest.approx(24**-0.5 * (0.1 * math.log(40) + 1) ** 2)
    assert yarn_mscale(40.0, 1.0) == pytest.approx(1.3688879454)
    assert yarn_mscale(1.0, 1.0) == 1.0


@pytest.mark.parametrize(
    "rope",
    [
        RopeParameters(rope_theta=500.0),
        RopeParameters(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=4.0, mscale=0.5),
    ],
)
def test_read_config_of_a_written_one_is_the_same_config(tmp_path: Path, rope: RopeParameters) -> None:
    config = tiny_config(rope_parameters=rope, eos_token_id=1, routed_scaling_factor=1.5)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(write_config(config)))
    assert read_config(path) == config


def written(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**write_config(tiny_config()), **changes}))
    return path


def test_read_config_older_rope_spelling_is_read(tmp_path: Path) -> None:
    scaling = {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    path = written(tmp_path, rope_parameters=None, rope_theta=5000.0, rope_scaling=scaling)
    rope = read_config(path).rope_parameters
    assert (rope.rope_type, rope.rope_theta, rope.factor, rope.mscale_all_dim) == ("yarn", 5000.0, 40.0, 1.0)


def test_read_config_yarn_without_mscale_all_dim_leaves_the_softmax_scale_alone(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096}
    assert read_config(written(tmp_path, rope_parameters=rope)).softmax_scale == pytest.approx(24**-0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type must be one of deepseek_v32, .*; got 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'; got 'gelu'"),
        ({"scoring_func": "softmax"}, "scoring_func must be 'sigmoid'"),
        ({"topk_method": "greedy"}, "topk_method must be 'noaux_tc'"),
        ({"attention_bias": True}, "attention_bias must be False"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type must be one of default, linear, llama3, yarn"),
    ],
)
def test_read_config_unsupported_model_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(written(tmp_path, **changes))


def test_read_config_unknown_keys_are_ignored(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, use_cache=True, num_nextn_predict_layers=1)) == tiny_config()


def test_read_config_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        read_config(tmp_path / "config.json")


PUBLISHED: dict[str, dict[str, object]] = {
    "SmolLM2-135M": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 49152,
    },
    "Llama-3.2-1B": {
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "Qwen2.5-0.5B": {
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen3-30B-A3B": {
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}
"""Published files, but for keys that no code reads."""


def published(tmp_path: Path, name: str) -> ModelConfig:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PUBLISHED[name]))
    return read_config(path)


def test_read_config_of_published_models_has_the_sizes_worked_by_hand(tmp_path: Path) -> None:
    smol, llama = published(tmp_path, "SmolLM2-135M"), published(tmp_path, "Llama-3.2-1B")
    qwen2, qwen3 = published(tmp_path, "Qwen2.5-0.5B"), published(tmp_path, "Qwen3-30B-A3B")
    assert [config.head_width for config in (smol, llama, qwen2, qwen3)] == [64, 64, 64, 128]
    assert [config.key_heads for config in (smol, llama, qwen2, qwen3)] == [3, 8, 2, 4]
    assert smol.rope_parameters == RopeParameters(rope_theta=100000.0)
    assert (llama.rope_parameters.rope_type, llama.rope_parameters.factor, llama.eos_token_id) == (
        "llama3",
        32.0,
        128001,
    )
    assert (qwen3.n_routed_experts, qwen3.moe_layers, qwen3.norm_topk_prob) == (128, tuple(range(48)), True)
    assert qwen3.softmax_scale == pytest.approx(128**-0.5)


def test_read_config_yarn_as_qwen_publishes_it_carries_the_temperature_in_the_cosines(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**PUBLISHED["Qwen3-30B-A3B"], "max_position_embeddings": 32, "rope_scaling": rope}))
    config = read_config(path)
    assert config.softmax_scale == pytest.approx(128**-0.5)
    first = rope_table(config)[0]
    assert first[0].tolist() == pytest.approx([0.1 * math.log(4) + 1] * 128)
    assert not first[1].any()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"quant_method": "awq"}, "quant_method must be fp8.*; got 'awq'"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt must be e4m3.*; got 'e5m2'"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "activation_scheme must be dynamic.*; got 'static'"),
        ({"quant_method": "fp8", "scale_fmt": "ue4m3"}, "scale_fmt must be ue8m0 or float.*; got 'ue4m3'"),
        ({"quant_method": "fp8", "weight_block_size": None}, "weight_block_size must be two whole numbers.*; got None"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, r"weight_block_size must be .*; got \[128, 0\]"),
        ({"quant_method": "fp8", "group_size": 32}, "keys that are not known here: group_size"),
        ("fp8", "quantization_config must be an object; got 'fp8'"),
    ],
)
def test_read_config_other_quantisation_is_refused_by_its_key_and_file(
    tmp_path: Path, said: object, message: str
) -> None:
    with pytest.raises(
        ValueError, match=rf"config\.json: quantization_config.*{message.removeprefix('quantization_config')}"
    ):
        read_config(written(tmp_path, quantization_config=said))


def test_read_config_block_scales_of_a_published_file_are_no_part_of_the_network(tmp_path: Path) -> None:
    said = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    }
    config = read_config(written(tmp_path, quantization_config=said))
    assert config == tiny_config()
    assert "quantization_config" not in write_config(config)
    assert read_quantization({"quantization_config": said}, "") == Fp8Blocks(rows=128, columns=128)
    assert read_quantization({"quantization_config": {"quant_method": "fp8"}}, "") == Fp8Blocks(rows=128, columns=128)
    assert read_quantization({}, "") is None


def test_read_config_older_and_newer_spelling_of_the_rotary_embedding_must_agree(tmp_path: Path) -> None:
    newer = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
    both = read_config(written(tmp_path, rope_parameters=newer, rope_scaling={"type": "linear", "factor": 4.0}))
    assert both.rope_parameters == read_config(written(tmp_path, rope_parameters=newer)).rope_parameters
    for key, value in (("type", "yarn"), ("rope_type", "weird"), ("factor", 8.0)):
        with pytest.raises(
            ValueError, match=r"config\.json: rope_scaling and rope_parameters must agree; .*'?linear|4\.0"
        ):
            read_config(written(tmp_path, rope_parameters=newer, rope_scaling={key: value}))
