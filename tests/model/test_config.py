"""The network's sizes: what is refused, what the published file means, and that nothing is lost on the way there and back."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from samepath.model.config import ModelConfig, RopeParameters, yarn_mscale
from tests.conftest import tiny_config


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
def test_from_json_of_to_json_is_the_same_config(tmp_path: Path, rope: RopeParameters) -> None:
    config = tiny_config(rope_parameters=rope, eos_token_id=1, routed_scaling_factor=1.5)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_json()))
    assert ModelConfig.from_json(path) == config


def written(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**tiny_config().to_json(), **changes}))
    return path


def test_from_json_older_rope_spelling_is_read(tmp_path: Path) -> None:
    scaling = {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    path = written(tmp_path, rope_parameters=None, rope_theta=5000.0, rope_scaling=scaling)
    rope = ModelConfig.from_json(path).rope_parameters
    assert (rope.rope_type, rope.rope_theta, rope.factor, rope.mscale_all_dim) == ("yarn", 5000.0, 40.0, 1.0)


def test_from_json_yarn_without_mscale_all_dim_leaves_the_softmax_scale_alone(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096}
    assert ModelConfig.from_json(written(tmp_path, rope_parameters=rope)).softmax_scale == pytest.approx(24**-0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "deepseek_v3"}, "model_type must be deepseek_v32; got 'deepseek_v3'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'; got 'gelu'"),
        ({"scoring_func": "softmax"}, "scoring_func must be 'sigmoid'"),
        ({"topk_method": "greedy"}, "topk_method must be 'noaux_tc'"),
        ({"attention_bias": True}, "attention_bias must be False"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "'default' or 'yarn'"),
    ],
)
def test_from_json_unsupported_model_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_json(written(tmp_path, **changes))


def test_from_json_unknown_keys_are_ignored(tmp_path: Path) -> None:
    assert ModelConfig.from_json(written(tmp_path, use_cache=True, num_nextn_predict_layers=1)) == tiny_config()


def test_from_json_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        ModelConfig.from_json(tmp_path / "config.json")
