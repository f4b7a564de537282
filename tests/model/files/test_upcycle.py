"""A checkpoint with an indexer and experts computes what it computed, and goes back to what it was."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from samepath.model.files.checkpoint import load_checkpoint, save_checkpoint
from samepath.model.files.convert import ConvertError, Output, convert, find_source
from samepath.model.files.upcycle import Change, IndexerSizes, UpcycleError, read_indexer
from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import character_tokenizer, load_tokenizer
from tests.families import family_model
from tests.tiny_runs import packed_input, random_sequences, run

ALL_KEYS = IndexerSizes(heads=2, width=16, topk=64)
LENGTHS = (50, 7, 33)
GROUPED = ["llama", "smollm", "llama3", "linear", "qwen2", "qwen3", "qwen3 yarn", "qwen3_moe", "qwen3_moe sparse step"]
LATENT = ["deepseek_v3", "deepseek_v3 yarn"]
DENSE = [name for name in GROUPED if "moe" not in name]
TOLERANCE = 3e-5
"""Of logits of order 5."""


def source(name: str, folder: Path) -> CausalLM:
    model = family_model(name, initializer_range=0.15)
    save_checkpoint(model, folder)
    character_tokenizer("0123456789+-=abc")  # V = 18 with its two marks
    character_tokenizer("0123456789+-=abc").save(folder)
    return model


def changed(folder: Path, target: Path, change: Change) -> CausalLM:
    convert(find_source(str(folder)), target, Output(), lambda _: None, change)
    return load_checkpoint(target)


def logits(model: CausalLM) -> Tensor:
    with torch.no_grad():
        hidden_ND, _ = run(model, packed_input(model.config, random_sequences(model.config, LENGTHS)))
        return hidden_ND[: sum(LENGTHS)] @ model.head_weight.T


@pytest.mark.parametrize("name", [*GROUPED, *LATENT])
def test_a_model_with_an_indexer_over_all_keys_computes_what_it_computed(name: str, tmp_path: Path) -> None:
    model = source(name, tmp_path / "from")
    sparse = changed(tmp_path / "from", tmp_path / "to", Change(indexer=ALL_KEYS))
    assert (sparse.config.index_n_heads, sparse.config.index_head_dim, sparse.config.index_topk) == (2, 16, 64)
    assert 1 < float(logits(model).abs().max()) < 30
    assert float((logits(sparse) - logits(model)).abs().max()) < TOLERANCE
    again = load_tokenizer(tmp_path / "to")
    assert again.encode("1+2=") == load_tokenizer(tmp_path / "from").encode("1+2=")


def test_fewer_keys_than_positions_are_selected_by_the_new_indexer(tmp_path: Path) -> None:
    model = source("llama", tmp_path / "from")
    few = changed(tmp_path / "from", tmp_path / "to", Change(indexer=IndexerSizes(heads=2, width=16, topk=8)))
    assert float((logits(few) - logits(model)).abs().max()) > 0.01
    one, other = (
        changed(tmp_path / "from", tmp_path / str(seed), Change(indexer=ALL_KEYS, seed=seed)) for seed in (1, 2)
    )
    assert not torch.equal(one.indexer_parameters()[0], other.indexer_parameters()[0])


@pytest.mark.parametrize("indexer", [None, ALL_KEYS], ids=["experts alone", "with an indexer"])
@pytest.mark.parametrize("name", DENSE)
def test_a_model_whose_feed_forward_became_experts_computes_what_it_computed(
    name: str, indexer: IndexerSizes | None, tmp_path: Path
) -> None:
    model = source(name, tmp_path / "from")
    experts = changed(tmp_path / "from", tmp_path / "to", Change(indexer=indexer, experts=4, chosen=3))
    config = experts.config
    assert (config.moe_layers, config.n_routed_experts, config.num_experts_per_tok) == ((0, 1, 2), 4, 3)
    assert float((logits(experts) - logits(model)).abs().max()) < TOLERANCE
    _, trace = run(experts, packed_input(config, random_sequences(config, LENGTHS)))
    assert all(len(set(map(tuple, routes.tolist()))) > 1 for routes in trace.routes), "the router tells tokens apart"


@pytest.mark.parametrize("name", [*GROUPED, *LATENT])
def test_the_way_back_gives_the_same_weights_and_a_folder_of_transformers(name: str, tmp_path: Path) -> None:
    model = source(name, tmp_path / "from")
    changed(tmp_path / "from", tmp_path / "sparse", Change(indexer=ALL_KEYS))
    back = changed(tmp_path / "sparse", tmp_path / "back", Change(dense=True))
    assert back.config.model_dump(exclude={"head_dim"}) == model.config.model_dump(exclude={"head_dim"})
    for key, tensor in back.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_qwen3_with_experts_is_a_model_of_transformers_too(tmp_path: Path) -> None:
    model = source("qwen3", tmp_path / "from")
    changed(tmp_path / "from", tmp_path / "experts", Change(experts=4))
    changed(tmp_path / "experts", tmp_path / "back", Change(dense=True))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager").eval()
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    (ids,) = random_sequences(model.config, [40])
    with torch.no_grad():
        wanted = run(model, packed_input(model.config, [ids]))[0][:40] @ model.head_weight.T
        assert float((theirs(ids[None]).logits[0] - wanted).abs().max()) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen3_moe", Change(experts=4), "has 8 experts already"),
        ("deepseek_v3", Change(experts=4), "has 8 experts already"),
        ("deepseek_v32", Change(indexer=ALL_KEYS), "has an indexer already"),
        ("glm4_moe", Change(indexer=ALL_KEYS), "glm4_moe has a sigmoid router"),
        ("deepseek_v3 direct", Change(indexer=ALL_KEYS), "q_lora_rank must be at least 16"),
        ("deepseek_v3", Change(indexer=IndexerSizes(heads=2, width=16, topk=8, rope=8)), "Leave rope= out"),
        ("deepseek_v3", Change(indexer=IndexerSizes(heads=2, width=4, topk=8)), "at least qk_rope_head_dim=8; got 4"),
        ("llama", Change(indexer=IndexerSizes(heads=2, width=16, topk=8, rope=6)), "must divide the 16 channels"),
        ("llama", Change(indexer=IndexerSizes(heads=2, width=4, topk=8, rope=8)), "at least index_rope_head_dim=8"),
        ("llama", Change(experts=2, chosen=3), r"--chosen must be in 1 … --experts=2; got 3"),
        ("llama", Change(dense=True), "attends to all keys as it is"),
        ("llama", Change(dense=True, experts=2), "goes with neither --indexer nor --experts"),
    ],
)
def test_what_cannot_be_changed_is_refused_with_its_folder_and_nothing_is_written(
    name: str, change: Change, message: str, tmp_path: Path
) -> None:
    source(name, tmp_path / "from")
    with pytest.raises(ConvertError, match=message) as error:
        changed(tmp_path / "from", tmp_path / "to", change)
    assert str(tmp_path / "from") in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["from"]


def test_experts_of_a_llama_have_no_way_to_transformers(tmp_path: Path) -> None:
    source("llama", tmp_path / "from")
    changed(tmp_path / "from", tmp_path / "experts", Change(experts=4))
    with pytest.raises(ConvertError, match="no family of transformers"):
        changed(tmp_path / "experts", tmp_path / "back", Change(dense=True))


def test_a_source_with_a_missing_tensor_is_refused_by_its_name(tmp_path: Path) -> None:
    source("qwen2", tmp_path / "from")
    config = json.loads((tmp_path / "from" / "config.json").read_text())
    (tmp_path / "from" / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(ConvertError, match=r"from: checkpoint tensors must match the config; .*k_proj.bias"):
        changed(tmp_path / "from", tmp_path / "to", Change(indexer=ALL_KEYS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heads=4,width=32", "needs topk as well"),
        ("heads=4,width=32,topk=0", "got 'topk=0'"),
        ("heads=4,heads=4", "got 'heads=4'"),
        ("heads=4,depth=3", "got 'depth=3'"),
        ("heads", "got 'heads'"),
    ],
)
def test_read_indexer_names_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UpcycleError, match=message):
        read_indexer(text)


def test_read_indexer_takes_all_sizes() -> None:
    assert read_indexer("heads=4, width=32,topk=256") == IndexerSizes(heads=4, width=32, topk=256)
    assert read_indexer("rope=8,heads=1,width=16,topk=2") == IndexerSizes(heads=1, width=16, topk=2, rope=8)
