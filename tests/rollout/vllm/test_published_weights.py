"""New weights must be those of the checkpoint; what writers differ in harmlessly is let pass."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from samepath.rollout.vllm.published_weights import PublishedWeights

WEIGHTS = {
    "model.embed_tokens.weight": torch.zeros(4, 2),
    "model.layers.0.up.weight": torch.zeros(3, 2),
    "model.layers.1.up.weight": torch.zeros(3, 2),
    "lm_head.weight": torch.zeros(4, 2),
}


def folder(path: Path, tied: bool = False, **more: torch.Tensor) -> Path:
    """Two files of a two-layer model."""
    (path / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "tie_word_embeddings": tied}))
    names = sorted(WEIGHTS)
    save_file({name: WEIGHTS[name] for name in names[:2]}, path / "model-00001-of-00002.safetensors")
    rest = {name: WEIGHTS[name] for name in names[2:] if name != "lm_head.weight" or not tied}
    save_file({**rest, **more}, path / "model-00002-of-00002.safetensors")
    return path


def test_checked_gives_the_tensors_of_all_files(tmp_path: Path) -> None:
    checked = PublishedWeights(folder(tmp_path)).checked(WEIGHTS)
    assert {name: id(tensor) for name, tensor in checked.items()} == {
        name: id(tensor) for name, tensor in WEIGHTS.items()
    }


def test_checked_leaves_out_a_multi_token_prediction_layer_on_either_side(tmp_path: Path) -> None:
    extra = {"model.layers.2.up.weight": torch.zeros(3, 2)}
    published = PublishedWeights(folder(tmp_path, **extra))
    assert set(published.checked(WEIGHTS)) == set(WEIGHTS)
    assert set(published.checked({**WEIGHTS, **extra})) == set(WEIGHTS)


@pytest.mark.parametrize("stored", [False, True])
def test_checked_of_a_tied_model_takes_weights_with_and_without_the_head(tmp_path: Path, stored: bool) -> None:
    more = {"lm_head.weight": torch.zeros(4, 2)} if stored else {}
    published = PublishedWeights(folder(tmp_path, tied=True, **more))
    body = {name: tensor for name, tensor in WEIGHTS.items() if name != "lm_head.weight"}
    assert set(published.checked(body)) == set(body)
    assert set(published.checked(WEIGHTS)) == set(body)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.layers.0.up.weight": None}, r"missing \['model\.layers\.0\.up\.weight'\] \(1\), unknown \[\] \(0\)"),
        ({"model.layers.0.down.weight": torch.zeros(3, 2)}, r"unknown \['model\.layers\.0\.down\.weight'\]"),
        ({"lm_head.weight": torch.zeros(2, 4)}, r"lm_head\.weight must have shape \(4, 2\); got \(2, 4\)"),
        ({"lm_head.weight": torch.zeros(4, 2, dtype=torch.int8)}, r"floating-point tensor; got torch\.int8"),
    ],
)
def test_checked_names_what_does_not_fit(tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str) -> None:
    wrong = {name: tensor for name, tensor in {**WEIGHTS, **changes}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        PublishedWeights(folder(tmp_path)).checked(wrong)


def test_folder_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
    with pytest.raises(FileNotFoundError, match="safetensors"):
        PublishedWeights(tmp_path)
