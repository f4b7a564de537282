"""Published checkpoints: there and back without loss, sharded or not, in transformers too, and every misfit named.

Against transformers' `DeepseekV32ForCausalLM` the logits differ by rounding alone: 2e-5 absolute in float32 with logits of order 5
(attention is absorbed here and expanded there, so sums have another order). The comparison needs many indexer heads (16): with few, all
ReLUs of a key can be closed at once, several keys of a row then tie at exactly 0, and transformers' `topk` breaks ties arbitrarily.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV32ForCausalLM

from samepath.model.files.checkpoint import load_checkpoint, load_published, published_tensors, save_checkpoint
from samepath.model.files.weight_files import INDEX_FILE, WEIGHTS_FILE
from samepath.model.network import attention, indexer, rope
from samepath.model.network.network import CausalLM
from samepath.model.rope_parameters import RopeParameters
from tests.conftest import tiny_model
from tests.tiny_runs import packed_input, random_sequences, run

TOP_K = 12
LENGTHS = (50, 7, 33, 90)
TOLERANCE = 2e-5
YARN = RopeParameters(
    rope_type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=8.0, mscale=1.0, mscale_all_dim=0.7
)


class TopK(NamedTuple):
    """What `Tensor.topk` returns."""

    values: Tensor
    indices: Tensor


def comparable_model(rope: RopeParameters | None = None, heads: int = 16) -> CausalLM:
    """A model whose index logits do not tie with sixteen heads; its selection bias is set, so that a lost bias shows."""
    changes = {} if rope is None else {"rope_parameters": rope}
    model = tiny_model(3, index_n_heads=heads, index_head_dim=32, index_topk=TOP_K, initializer_range=0.15, **changes)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("selection_bias", "key_norm_bias")):
                tensor.normal_(0, 0.1, generator=generator)
            elif name.endswith(("norm", "norm_weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.fixture(scope="module", params=[None, YARN], ids=["plain rope", "yarn"])
def both(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalLM, Any]:
    """(our model, transformers' model read from our checkpoint)."""
    model = comparable_model(request.param)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(model, folder)
    theirs, report = DeepseekV32ForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model, theirs.eval()


def logits_of_ours(model: CausalLM, sequences: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        hidden_ND, _ = run(model, packed_input(model.config, sequences))
        return list((hidden_ND[: sum(LENGTHS)] @ model.head.T).split(LENGTHS))


def logits_of_theirs(theirs: Any, sequences: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [theirs(ids[None]).logits[0] for ids in sequences]


def test_transformers_logits_agree_within_rounding(both: tuple[CausalLM, Any]) -> None:
    model, theirs = both
    sequences = random_sequences(model.config, LENGTHS)
    for ours, wanted in zip(logits_of_ours(model, sequences), logits_of_theirs(theirs, sequences), strict=True):
        assert 2 < float(wanted.abs().max()) < 20
        torch.testing.assert_close(ours, wanted, rtol=0, atol=TOLERANCE)


def test_transformers_catches_a_wrong_indexer_layout_only_past_the_top_k(
    both: tuple[CausalLM, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to top-k tokens every key is attended to and the indexer does not matter: short tests cannot see this mistake."""
    model, theirs = both
    sequences = random_sequences(model.config, LENGTHS)
    wanted = logits_of_theirs(theirs, sequences)
    right = logits_of_ours(model, sequences)
    monkeypatch.setattr(indexer, "rotate_halves", rope.rotate_interleaved)
    for ours, before, truth in zip(logits_of_ours(model, sequences), right, wanted, strict=True):
        assert torch.equal(ours[:TOP_K], before[:TOP_K])
        if len(truth) > 2 * TOP_K:
            assert float((ours[TOP_K:] - truth[TOP_K:]).abs().max()) > 1000 * TOLERANCE


def test_transformers_catches_a_wrong_attention_layout_at_once(
    both: tuple[CausalLM, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, theirs = both
    sequences = random_sequences(model.config, LENGTHS)
    wanted = logits_of_theirs(theirs, sequences)
    monkeypatch.setattr(attention, "rotate_interleaved", rope.rotate_halves)
    ours = logits_of_ours(model, sequences)
    assert float((ours[1] - wanted[1]).abs().max()) > 1000 * TOLERANCE


def test_transformers_logits_differ_where_ties_decide_and_there_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two indexer heads leave exact zeros. With ties to the lower index, as here, transformers gives these logits too."""
    model = comparable_model(heads=2)
    save_checkpoint(model, tmp_path)
    theirs = DeepseekV32ForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    sequences = random_sequences(model.config, LENGTHS)
    ours, wanted = torch.cat(logits_of_ours(model, sequences)), torch.cat(logits_of_theirs(theirs, sequences))
    apart_N = (ours - wanted).abs().amax(1)
    before_tie_N = torch.cat([torch.arange(length) for length in LENGTHS]) < TOP_K
    assert float(apart_N[before_tie_N].max()) < TOLERANCE
    assert float(apart_N.max()) > 1000 * TOLERANCE

    def lower_index_first(self: Tensor, k: int, dim: int = -1, **_: object) -> Any:
        values, places = torch.sort(self, dim=dim, descending=True, stable=True)
        return TopK(values.narrow(dim, 0, k), places.narrow(dim, 0, k))

    monkeypatch.setattr(Tensor, "topk", lower_index_first)
    ruled = torch.cat(logits_of_theirs(theirs, sequences))
    torch.testing.assert_close(ours, ruled, rtol=0, atol=TOLERANCE)


def test_transformers_saves_what_we_load(both: tuple[CausalLM, Any], tmp_path: Path) -> None:
    model, theirs = both
    theirs.save_pretrained(tmp_path)
    again = load_checkpoint(tmp_path)
    assert_same_weights(again, model)
    sequences = random_sequences(model.config, LENGTHS)
    for got, wanted in zip(logits_of_ours(again, sequences), logits_of_ours(model, sequences), strict=True):
        assert torch.equal(got, wanted)


def assert_same_weights(left: CausalLM, right: CausalLM) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"n_shared_experts": 0}, {"first_k_dense_replace": 3}]
)
def test_load_checkpoint_of_a_saved_one_is_the_same_model(tmp_path: Path, changes: dict[str, object]) -> None:
    model = tiny_model(1, **changes)
    save_checkpoint(model, tmp_path)
    again = load_checkpoint(tmp_path)
    assert again.config == model.config
    assert_same_weights(again, model)
    assert (again.head is again.embedding) == bool(changes.get("tie_word_embeddings"))


def test_load_checkpoint_in_float64_keeps_the_values(tmp_path: Path) -> None:
    model = tiny_model(1)
    save_checkpoint(model, tmp_path)
    again = load_checkpoint(tmp_path, dtype=torch.float64)
    assert again.norm.dtype == torch.float64
    assert torch.equal(again.head, model.head.double())


def test_save_checkpoint_large_model_is_sharded_with_an_index(tmp_path: Path) -> None:
    model = tiny_model(1)
    save_checkpoint(model, tmp_path, max_bytes=100_000)
    weight_map = json.loads((tmp_path / INDEX_FILE).read_text())["weight_map"]
    assert weight_map.keys() == published_tensors(model).keys()
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files == sorted(set(weight_map.values()))
    assert_same_weights(load_checkpoint(tmp_path), model)


def test_published_tensors_split_gate_and_up_and_number_the_experts() -> None:
    model = tiny_model(1)
    published = published_tensors(model)
    own = model.state_dict()
    assert torch.equal(published["model.layers.0.mlp.up_proj.weight"], own["layers.0.feed_forward.gate_up"][96:])
    assert torch.equal(
        published["model.layers.2.mlp.experts.5.gate_proj.weight"], own["layers.2.feed_forward.gate_up"][5, :32]
    )
    assert torch.equal(
        published["model.layers.1.self_attn.indexer.wq_b.weight"], own["layers.1.attention.indexer.query"]
    )


def broken(model: CausalLM, kind: str) -> dict[str, Tensor]:
    tensors = {name: tensor.clone() for name, tensor in published_tensors(model).items()}
    if kind == "missing":
        del tensors["model.norm.weight"]
    elif kind == "unknown":
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(1)
    else:
        tensors["lm_head.weight"] = torch.zeros(3, 64)
    return tensors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"missing \['model.norm.weight'\] \(1\)"),
        ("unknown", r"unknown \['model.layers.0.self_attn.q_proj.weight'\]"),
        ("misshapen", r"lm_head.weight must have shape \(18, 64\); the checkpoint has \(3, 64\)"),
    ],
)
def test_load_published_misfit_is_refused_before_anything_is_written(kind: str, message: str) -> None:
    model, other = tiny_model(1), tiny_model(2)
    with pytest.raises(ValueError, match=message):
        load_published(model, broken(other, kind))
    assert_same_weights(model, tiny_model(1))


def test_load_published_multi_token_prediction_layer_is_left_out() -> None:
    model, other = tiny_model(1), tiny_model(2)
    load_published(model, {**published_tensors(other), "model.layers.3.eh_proj.weight": torch.zeros(2, 2)})
    assert_same_weights(model, other)


def test_load_checkpoint_folder_without_weights_is_named(tmp_path: Path) -> None:
    save_checkpoint(tiny_model(1), tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_checkpoint(tmp_path)
