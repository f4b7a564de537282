"""The network's sizes: what is refused, what the published file means, and that nothing is lost on the way there and back."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from samepath.model.config import RopeParameters, yarn_mscale
from samepath.model.config_file import read_config, write_config
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
