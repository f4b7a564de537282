"""Text to ids and back, refusals, and that transformers loads what was saved."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from samepath.model.text.tokenizer import Tokenizer, character_tokenizer, load_tokenizer
from tests.conftest import ALPHABET


def test_encode_hand_worked_ids_start_with_the_start_token(tokenizer: Tokenizer) -> None:
    """Ids 0 and 1 are start and end; the alphabet's characters follow in order."""
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.vocab_size) == (0, 1, len(ALPHABET) + 2)
    assert tokenizer.encode("10+") == (0, 3, 2, 12)


def test_encode_continuation_has_no_start_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_continuation("10+") == (3, 2, 12)


@settings(deadline=None, derandomize=True)
@given(text=st.text(alphabet=ALPHABET))
def test_decode_of_encode_is_the_text(text: str) -> None:
    tokenizer = character_tokenizer(ALPHABET)
    assert tokenizer.decode(tokenizer.encode_continuation(text)) == text


def test_decode_leaves_out_one_end_token_at_the_end_and_shows_other_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([3, 2, 1]) == "10"
    assert tokenizer.decode([0, 3, 1, 0, 2, 1, 1]) == "<bos>1<eos><bos>0<eos>"
    assert tokenizer.decode([3, 0]) == "1<bos>"
    assert tokenizer.text([3, 1]) == "1<eos>"
    assert tokenizer.decode([]) == ""
    assert tokenizer.token_texts([0, 3, 1]) == ["<bos>", "1", "<eos>"]
    both = Tokenizer(tokenizer.fast, "<eos>", "<bos>", other_end_ids=[2])
    assert (both.decode([3, 2]), both.decode([3, 1]), both.decode([3, 2, 1])) == ("1", "1", "10")


@pytest.mark.parametrize(("text", "unknown"), [("1a", r"\['a'\]"), ("x+y", r"\['x', 'y'\]"), ("é", "é")])
def test_encode_unknown_character_is_refused_and_named(tokenizer: Tokenizer, text: str, unknown: str) -> None:
    with pytest.raises(ValueError, match=unknown):
        tokenizer.encode(text)


@pytest.mark.parametrize("alphabet", ["", "abca"])
def test_character_tokenizer_empty_or_repeating_alphabet_is_refused(alphabet: str) -> None:
    with pytest.raises(ValueError, match="each character once"):
        character_tokenizer(alphabet)


def test_load_tokenizer_of_a_saved_one_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.encode("12-3= ;#") == tokenizer.encode("12-3= ;#")
    assert (again.end_id, again.start_id, again.vocab_size) == (1, 0, tokenizer.vocab_size)


def test_save_folder_loads_in_transformers_with_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, PreTrainedTokenizerFast)
    ids = theirs("12-3= ;#", add_special_tokens=False).input_ids
    assert tuple(ids) == tokenizer.encode_continuation("12-3= ;#")
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (0, 1, tokenizer.vocab_size)
    assert theirs.decode([*ids, 1], skip_special_tokens=True) == "12-3= ;#"


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json"])
def test_load_tokenizer_missing_file_is_named(tokenizer: Tokenizer, tmp_path: Path, missing: str) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        load_tokenizer(tmp_path)


def byte_level_folder(folder: Path, template: bool = False) -> FastTokenizer:
    """A byte-level BPE tokenizer like those of Llama 3, Qwen and SmolLM, with chat tokens."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|begin|>", "<|end|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(["What is 12 + 34? 46.", "the quick brown fox"] * 3, trainer)
    if template:
        fast.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    fast.save(str(folder / "tokenizer.json"))
    return fast


TEXT = "What is 98 + 7?\n  Ünïcode\t<|im_end|> fox"


@pytest.mark.parametrize(
    ("config", "template", "starts"),
    [
        ({"eos_token": "<|end|>"}, False, False),
        ({"eos_token": "<|im_end|>", "bos_token": "<|begin|>"}, False, False),
        ({"eos_token": "<|end|>", "bos_token": "<|begin|>"}, True, True),
        ({"eos_token": "<|end|>", "bos_token": "<|begin|>", "add_bos_token": True}, False, True),
    ],
)
def test_load_tokenizer_published_byte_level_folder_gives_the_ids_of_transformers(
    tmp_path: Path, config: dict[str, object], template: bool, starts: bool
) -> None:
    byte_level_folder(tmp_path, template)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config})
    )
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tuple(theirs(TEXT, add_special_tokens=False, split_special_tokens=True).input_ids)
    assert ours.encode_continuation(TEXT) == ids
    read = tuple(theirs(TEXT, add_special_tokens=False).input_ids)
    assert ours.encode_continuation(TEXT, [(0, len(TEXT))]) == read != ids
    assert ours.encode(TEXT) == ((0, *ids) if starts else ids)
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False) == TEXT
    assert ours.end_id == theirs.eos_token_id
    ours.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").encode(TEXT) == ours.encode(TEXT)


@pytest.mark.parametrize(
    ("tokenizer_config", "generation", "model", "end_id", "end_ids"),
    [
        ({"eos_token": "<|end|>"}, {"eos_token_id": [2, 1]}, {}, 1, {1, 2}),
        ({"eos_token": "<|im_end|>"}, {"eos_token_id": 1}, {"eos_token_id": 1}, 2, {1, 2}),
        ({}, {}, {"eos_token_id": 2}, 2, {2}),
        ({}, {"eos_token_id": [1, 2]}, {"eos_token_id": 2}, 1, {1, 2}),
    ],
)
def test_load_tokenizer_takes_every_end_id_of_the_model(
    tmp_path: Path,
    tokenizer_config: dict[str, object],
    generation: dict[str, object],
    model: dict[str, object],
    end_id: int,
    end_ids: set[int],
) -> None:
    byte_level_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(model))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.end_id, tokenizer.end_ids) == (end_id, end_ids)
    tokenizer.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").end_ids == end_ids


@pytest.mark.parametrize(
    ("config", "message"), [({}, "eos_token"), ({"eos_token": "<end>"}, "must know its special token '<end>'")]
)
def test_load_tokenizer_without_a_usable_end_token_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, config: dict[str, str], message: str
) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_load_tokenizer_special_tokens_as_objects_and_no_start_token_are_read(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    config = {"eos_token": {"content": "<eos>"}, "bos_token": {"content": "<bos>"}, "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    again = load_tokenizer(tmp_path)
    assert again.end_id == 1
    assert again.encode("1") == (3,)
