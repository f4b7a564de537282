"""A tiny model with an indexer, and text that it can learn."""

import json
from pathlib import Path
from typing import Any

from samepath.model.files.checkpoint import save_checkpoint
from samepath.model.text.tokenizer import Tokenizer, character_tokenizer
from samepath.rl.recipe.text import TextRecipe
from tests.families import family_model

ALPHABET = "0123456789+-=abc"
"""Sixteen letters; with both marks 18 ids, as the tiny models have."""


def tokenizer() -> Tokenizer:
    return character_tokenizer(ALPHABET)


def write_model(folder: Path, name: str = "samepath_grouped", **changes: object) -> None:
    save_checkpoint(family_model(name, num_hidden_layers=2, **changes), folder)
    tokenizer().save(folder)


def write_text(folder: Path, documents: int = 40) -> None:
    """JSONL of counting documents."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"text": "".join(f"{(number + place) % 10}+" for place in range(25))}) for number in range(documents)
    ]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")


def text_recipe(folder: Path, kind: str = "warmup", **stage: Any) -> TextRecipe:
    """Of a model and a text that stand in `folder`."""
    return TextRecipe.model_validate(
        {
            "name": kind,
            "runs_dir": str(folder / "runs"),
            "model": str(folder / "model"),
            "text": {"paths": ["text/*.jsonl"], "length": 40, "held_out": 3},
            "stage": {"kind": kind, "steps": 3, "sequences_per_step": 4, "optimizer": {"lr": 0.01}, **stage},
            "tracking": {"kind": "jsonl"},
            "checkpoint": {"every": 2},
        }
    )
