"""Every family against its transformers class, on checkpoints that either side wrote: logits differ by rounding alone.

Sequences run past the original context of every rotary extension, and the logits are of order 5, so that 3e-5 is rounding.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from samepath.model.files.checkpoint import load_checkpoint, published_tensors, save_checkpoint
from samepath.model.files.config_file import CONFIG_FILE
from samepath.model.files.weight_files import WEIGHTS_FILE
from samepath.model.key_store import PackedKeys
from samepath.model.network import rope
from samepath.model.network.network import CausalLM
from samepath.model.trace import ForwardTrace
from tests.families import FAMILIES, family_model
from tests.tiny_runs import packed_input, random_sequences, run

LENGTHS = (50, 7, 33, 110)
TOLERANCE = 3e-5
AGAINST_TRANSFORMERS = [name for name in FAMILIES if name != "deepseek_v32" and not name.startswith("samepath")]
"""DeepSeek-V3.2 has tests of its own, whose model keeps index logits from tying; `samepath_grouped` has no class there."""


def logits_of_ours(model: CausalLM, sequences: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        hidden_ND, _ = run(model, packed_input(model.config, sequences))
        return list((hidden_ND[: sum(LENGTHS)] @ model.head_weight.T).split(LENGTHS))


def largest_difference(model: CausalLM, theirs: Any) -> float:
    sequences = random_sequences(model.config, LENGTHS)
    differences = []
    for ours, ids in zip(logits_of_ours(model, sequences), sequences, strict=True):
        with torch.no_grad():
            wanted = theirs(ids[None]).logits[0]
        assert 0.5 < float(wanted.abs().max()) < 30
        differences.append(float((ours - wanted).abs().max()))
    return max(differences)


@pytest.mark.parametrize("name", AGAINST_TRANSFORMERS)
def test_logits_equal_those_of_transformers_on_checkpoints_of_either_side(name: str, tmp_path: Path) -> None:
    model = family_model(name, initializer_range=0.15)
    save_checkpoint(model, tmp_path / "ours")
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert largest_difference(model, theirs.eval()) < TOLERANCE
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_checkpoint(tmp_path / "theirs")
    assert again.config.moe_layers == model.config.moe_layers
    ours = model.state_dict()
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, ours[key]), key
    assert largest_difference(again, theirs) < TOLERANCE


@pytest.mark.parametrize("name", ["llama3", "qwen3 yarn", "linear", "deepseek_v3 yarn", "glm4_moe normed"])
def test_a_lost_rotary_extension_would_be_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(family_model(name, initializer_range=0.15), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    plain = rope.RopeParameters(rope_theta=500.0 if name == "llama3" else 10000.0)
    right = rope.inverse_frequencies
    monkeypatch.setattr(rope, "inverse_frequencies", lambda width, _: right(width, plain))
    assert largest_difference(load_checkpoint(tmp_path), theirs) > 100 * TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_load_checkpoint_of_a_saved_one_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = family_model(name)
    save_checkpoint(model, tmp_path)
    again = load_checkpoint(tmp_path)
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
    assert again.config.moe_layers == model.config.moe_layers
    assert again.rope.equal(model.rope)


def test_load_checkpoint_bfloat16_file_becomes_float32(tmp_path: Path) -> None:
    model = family_model("qwen3_moe")
    save_checkpoint(model, tmp_path)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / WEIGHTS_FILE).items()}
    save_file(tensors, tmp_path / WEIGHTS_FILE, metadata={"format": "pt"})
    again = load_checkpoint(tmp_path)
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key].bfloat16().float()), key


def test_load_checkpoint_stacked_experts_are_split(tmp_path: Path) -> None:
    model = family_model("qwen3_moe")
    save_checkpoint(model, tmp_path)
    tensors = {name: tensor for name, tensor in load_file(tmp_path / WEIGHTS_FILE).items() if ".experts." not in name}
    for layer in model.config.moe_layers:
        experts = model.layers[layer].feed_forward
        tensors[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = experts.gate_up.detach().clone()
        tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = experts.down.detach().clone()
    save_file(tensors, tmp_path / WEIGHTS_FILE, metadata={"format": "pt"})
    again = load_checkpoint(tmp_path)
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key


def test_load_checkpoint_expert_that_stands_stacked_and_alone_is_named(tmp_path: Path) -> None:
    model = family_model("qwen3_moe")
    save_checkpoint(model, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    stacked = model.layers[0].feed_forward.down.detach().clone()
    save_file({**tensors, "model.layers.0.mlp.experts.down_proj": stacked}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(
        ValueError,
        match=r"experts\.0\.down_proj\.weight must stand in a checkpoint once; it is in .*experts\.down_proj",
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("qwen2", "model.layers.1.self_attn.k_proj.bias"),
        ("qwen3", "model.layers.0.self_attn.q_norm.weight"),
        ("qwen3_moe", "model.layers.2.mlp.experts.7.down_proj.weight"),
        ("deepseek_v3 direct", "model.layers.2.self_attn.q_proj.weight"),
    ],
)
def test_load_checkpoint_missing_tensor_is_named(name: str, missing: str, tmp_path: Path) -> None:
    model = family_model(name)
    assert missing in published_tensors(model)
    save_checkpoint(model, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    del tensors[missing]
    save_file(tensors, tmp_path / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing .*{missing}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window must be False"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "'full_attention'; got 'sliding_attention'",
        ),
        ("llama", {"mlp_bias": True}, "mlp_bias must be False"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type must be one of"),
        ("qwen2", {"rope_scaling": {"mrope_section": [2, 3, 3]}}, "unknown: mrope_section"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 8}}, "unknown: beta_fast"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "missing: factor"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "missing: low_freq_factor, high_freq"),
        ("qwen3", {"rope_parameters": {"type": "yarn", "factor": 4.0, "mscal": 1.0}}, "unknown: mscal,"),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4, "attention_factor": 0}},
            "must be above 0; got 0",
        ),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor .* must be 1.0 for model_type=llama; got 0.5"),
        ("glm4_moe", {"rope_parameters": {"partial_rotary_factor": 0.2}}, "even number of the head's 16 .* 2; got 3"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ("llama", {"model_type": "mistral"}, "model_type must be one of deepseek_v32"),
        ("llama", {"quantization_config": {"bits": 4}}, "quant_method must be fp8.*; got None"),
    ],
)
def test_load_checkpoint_unsupported_variant_is_refused(
    name: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    save_checkpoint(family_model(name), tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("replay", [False, True])
def test_activation_checkpointing_gives_equal_gradients_and_reports_each_layer_once(name: str, replay: bool) -> None:
    """The second run of a layer must take the same routes and report nothing. Replayed routes differ from the live ones."""
    config = family_model(name).config
    sequences = random_sequences(config, (40, 13))
    routes_LNX = torch.arange(config.num_experts_per_tok).expand(len(config.moe_layers), 64, -1).clone()
    for place, routes_NX in enumerate(routes_LNX):
        routes_NX += place
    results = []
    for checkpointing in (False, True):
        model = family_model(name)
        model.activation_checkpointing = checkpointing
        trace = ForwardTrace(record_fingerprints=True, train_indexer=True)
        hidden_ND = model(packed_input(config, sequences, routes_LNX if replay else None), PackedKeys(), trace)
        loss = (hidden_ND[:53] @ model.head_weight.T).log_softmax(-1)[:, 4].sum()
        loss = loss + sum(loss_N[:53].sum() for loss_N in trace.indexer_losses)
        loss.backward()
        results.append((trace, {key: value.grad for key, value in model.named_parameters()}))
    (plain, wanted), (trace, gradients) = results
    assert len(trace.routes) == len(trace.live_routes) == len(config.moe_layers)
    assert len(trace.fingerprints) == len(trace.indexer_losses) == len(config.sparse_layers)
    for kind in ("routes", "live_routes", "fingerprints", "indexer_losses"):
        for one, other in zip(getattr(plain, kind), getattr(trace, kind), strict=True):
            assert torch.equal(one, other)
    if replay and config.moe_layers:
        assert torch.equal(torch.stack(trace.routes), routes_LNX)
    for key, gradient in gradients.items():
        assert (gradient is None) == (wanted[key] is None), key
        assert gradient is None or torch.equal(gradient, wanted[key]), key
