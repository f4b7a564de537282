"""The cost of a token: counted by hand, timed over the keys that it says, and where the two ways cross."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.sparse_cost import main, prepared, run_pass, token_mflop, without_indexer
from benchmarks.sparse_cost_report import crossing
from samepath.model.files.checkpoint import save_checkpoint
from samepath.model.key_store import CachedKeys
from tests.conftest import tiny_model
from tests.families import family_model
from tests.tiny_runs import packed_input, run


def test_token_mflop_of_grouped_attention_is_the_one_counted_by_hand() -> None:
    """Width 64, 4 heads and 2 key heads of 16, feed-forward 96, 18 tokens; an indexer of 2 heads of 16; 3 layers."""
    model = family_model("samepath_grouped")
    config = model.config
    assert (config.head_width, config.num_key_value_heads, config.index_n_heads, config.index_head_dim) == (
        16,
        2,
        2,
        16,
    )
    experts = sum(
        parameter.numel() * (config.num_experts_per_tok / len(parameter) if parameter.ndim == 3 else 1)
        for layer in model.layers
        for parameter in layer.feed_forward.parameters()
        if parameter.ndim > 1
    )
    matrices = 3 * (64 * (4 + 2 + 2) * 16 + 64 * 64) + experts
    indexer = 3 * (2 * 16 * 64 + 16 * 64 + 2 * 64)
    dense = 2 * (matrices + 3 * 100 * 4 * 32) / 1e6
    sparse = 2 * (matrices + indexer + 3 * (8 * 4 * 32 + 100 * 2 * 17)) / 1e6
    assert token_mflop(model, 100, None, head=False) == pytest.approx(dense)
    assert token_mflop(model, 100, 8, head=False) == pytest.approx(sparse)
    assert token_mflop(model, 100, 8, head=True) == pytest.approx(sparse + 2 * 18 * 64 / 1e6)


def test_token_mflop_of_latent_attention_grows_by_its_absorbed_width() -> None:
    config = (model := tiny_model()).config
    pair = config.num_attention_heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    found = token_mflop(model, 60, None, head=False) - token_mflop(model, 50, None, head=False)
    assert found == pytest.approx(2 * 10 * config.num_hidden_layers * pair / 1e6)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
@pytest.mark.parametrize("make", [lambda: family_model("samepath_grouped"), tiny_model], ids=["grouped", "latent"])
def test_pass_without_indexer_is_over_all_keys_and_with_it_over_the_selected(make, kind) -> None:  # type: ignore[no-untyped-def]
    """The same keys in the cache: a first pass writes them, the timed one ends at the same length."""
    model, length = make(), 40
    whole, part = prepared(model, "prefill", length, length, 1), prepared(model, kind, length, 16, 1)
    count = part.num_tokens
    assert count == (16 if kind == "prefill" else 1)
    part.batch.token_ids_N[:count] = whole.batch.token_ids_N[length - count : length]
    part = replace(part, keys=CachedKeys(whole.keys.cache, part.keys.slots_N))
    last = {}
    for amount in (length, 8):
        with torch.no_grad():
            hidden, _ = run(model, packed_input(model.config, [whole.batch.token_ids_N[:length]]), amount)
        last[amount] = hidden[length - 1] @ model.head_weight.T
        run_pass(model, whole, amount)
        torch.testing.assert_close(run_pass(model, part, amount)[-1], last[amount], rtol=0, atol=1e-5)
    with without_indexer(model):
        run_pass(model, whole, 8)
        torch.testing.assert_close(run_pass(model, part, 8)[-1], last[length], rtol=0, atol=1e-5)
    assert not torch.allclose(last[length], last[8], atol=1e-3)


def test_without_indexer_attends_to_all_keys_whatever_is_asked_and_gives_it_back() -> None:
    model = family_model("samepath_grouped")
    inputs = prepared(model, "decode", 40, 16, 2)
    assert inputs.num_tokens == 2
    with without_indexer(model):
        assert torch.equal(run_pass(model, inputs, 40), run_pass(model, inputs, 8))
    assert not torch.equal(run_pass(model, inputs, 40), run_pass(model, inputs, 8))


@pytest.mark.parametrize(
    ("sparse", "wanted"),
    [([2, 4, 8], None), ([5, 5, 5], 17.5), ([0, 1, 2], 10.0), ([3, 3, 3], 12.5), ([0, 9, 3], 23.75)],
)
def test_crossing_is_where_the_selection_is_cheaper_for_good(sparse: list[float], wanted: float | None) -> None:
    assert crossing([10, 20, 30], [2, 6, 8], sparse) == (wanted if wanted is None else pytest.approx(wanted))


def test_sparse_cost_measures_a_checkpoint_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(family_model("samepath_grouped"), tmp_path / "model")
    common = [str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--repeats", "1", "--block", "16"]
    main([*common, "--lengths", "32", "64", "--topk", "4"])
    printed = capsys.readouterr().out
    assert printed.count("| prefill |") == printed.count("| decode |") == 2
    assert "prefill, by counted operations: the selection is" in printed
    found = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert found["topk"] == 4
    assert [(one["kind"], one["length"]) for one in found["costs"]] == [
        ("prefill", 32), ("decode", 32), ("prefill", 64), ("decode", 64),
    ]  # fmt: skip
    assert all(one["dense_us"] > 0 and one["sparse_us"] > 0 for one in found["costs"])
    assert (tmp_path / "out" / "cost.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="max_position_embeddings=128; got 256"):
        main([*common, "--lengths", "256"])
    main([str(tmp_path / "model" / "config.json"), *common[1:], "--lengths", "16"])
