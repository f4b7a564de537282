"""A saved tokenizer folder in another program: the same ids before and in a text, and the model's generation settings kept whole."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer, GenerationConfig

from samepath.model.text.chat import ChatForm
from samepath.model.text.tokenizer import Tokenizer, character_tokenizer, load_tokenizer

BOS, END, TURN, OTHER = "<|bos|>", "<|end|>", "<|turn|>", "<sop>"
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}"
Change = Callable[[FastTokenizer], None]


def processor(single: str) -> Change:
    """A post-processor that puts tokens around a text."""

    def change(fast: FastTokenizer) -> None:
        names = [name for name in single.split() if name != "$A"]
        fast.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(name, fast.token_to_id(name)) for name in names]
        )

    return change


def offsets_only(fast: FastTokenizer) -> None:
    fast.post_processor = processors.ByteLevel(trim_offsets=False)


def as_it_is(fast: FastTokenizer) -> None:
    pass


def write(folder: Path, change: Change, config: dict[str, Any], files: dict[str, Any] | None = None) -> Path:
    """A folder of merged bytes, as published models have it."""
    folder.mkdir(exist_ok=True)
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[BOS, END, TURN, OTHER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(["What is 12 + 34? 46.", "the quick brown fox"] * 3, trainer)
    fast.add_tokens([AddedToken("   ", normalized=False)])
    change(fast)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, **config})
    )
    for name, contents in (files or {}).items():
        (folder / f"{name}.json").write_text(json.dumps(contents))
    return folder


def texts(count: int) -> list[str]:
    """Seeded texts of words, blanks and letters of several scripts."""
    rng = random.Random(5)
    parts = ["What", " is", " 12", "fox", " ", "   ", "\n", "\t", "é", "😀", "字", "<", "|", "1", "quick", "|>"]
    return ["", " ", "a ", *("".join(rng.choices(parts, k=rng.randint(1, 9))) for _ in range(count))]


@pytest.mark.parametrize(
    ("change", "config", "prefix"),
    [
        (as_it_is, {}, ()),
        (offsets_only, {"bos_token": BOS}, ()),
        (processor(f"{BOS} $A"), {"bos_token": BOS}, (0,)),
        (processor(f"{BOS} $A"), {"bos_token": BOS, "add_bos_token": True}, (0,)),
        (processor(f"{BOS} $A"), {"bos_token": BOS, "add_bos_token": False}, ()),
        (as_it_is, {"bos_token": {"content": BOS}, "add_bos_token": True}, (0,)),
        (processor(f"{TURN} {OTHER} $A"), {}, (2, 3)),
        (processor(f"{BOS} {OTHER} $A"), {"bos_token": BOS}, (0, 3)),
        (as_it_is, {"bos_token": BOS, "add_bos_token": True, "chat_template": TEMPLATE}, (0,)),
        (as_it_is, {"bos_token": BOS, "chat_template": TEMPLATE, "pad_token": END, "model_max_length": 77}, ()),
    ],
)
def test_save_folder_gives_transformers_the_same_ids(
    tmp_path: Path, change: Change, config: dict[str, Any], prefix: tuple[int, ...]
) -> None:
    folder = write(tmp_path / "published", change, config)
    ours = load_tokenizer(folder)
    ours.save(tmp_path / "saved")
    load_tokenizer(tmp_path / "saved").save(tmp_path / "again")
    found = [ours, load_tokenizer(tmp_path / "saved"), load_tokenizer(tmp_path / "again")]
    # Of some classes it does not believe the config of a published folder; every folder that is saved says the same in both places.
    names = ("saved", "again") if "add_bos_token" in config else ("published", "saved", "again")
    theirs = [AutoTokenizer.from_pretrained(tmp_path / name) for name in names]
    assert [one.prefix_ids for one in found] == [prefix] * 3
    for text in texts(25):
        wanted = ours.encode(text)
        assert wanted[: len(prefix)] == prefix
        assert [one.encode(text) for one in found] == [wanted] * 3
        assert [tuple(one(text).input_ids) for one in theirs] == [wanted] * len(names)
    for one in theirs:
        assert (one.eos_token, one.pad_token) == (END, config.get("pad_token"))
        assert one.model_max_length == config.get("model_max_length", one.model_max_length)


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (processor(f"{BOS} $A"), {}),
        (processor(f"{BOS} $A {END}"), {}),
        (as_it_is, {"add_bos_token": True}),
        (processor(f"{BOS} $A"), {"add_bos_token": False}),
    ],
)
@pytest.mark.parametrize(
    ("template", "count"),
    [(TEMPLATE, 1), (TEMPLATE.replace("{{ bos_token }}", BOS), 1), (TEMPLATE.replace("{{ bos_token }}", ""), 0)],
)
def test_encode_chat_has_the_start_tokens_of_the_template_alone(
    tmp_path: Path, change: Change, config: dict[str, Any], template: str, count: int
) -> None:
    """Whatever the file puts before a plain text, published or saved: as many as transformers' own conversation has."""
    folder = write(tmp_path / "published", change, {"bos_token": BOS, "chat_template": template, **config})
    load_tokenizer(folder).save(tmp_path / "saved")
    for place in (folder, tmp_path / "saved"):
        conversation = [{"role": "system", "content": BOS.upper()}, {"role": "user", "content": "12 + 34?"}]
        theirs = AutoTokenizer.from_pretrained(place).apply_chat_template(conversation, return_dict=False)
        ours = load_tokenizer(place)
        assert ours.encode_chat("12 + 34?", ChatForm(system=BOS.upper())) == tuple(theirs)
        assert theirs.count(0) == count
        # In a question its name is text.
        assert ours.encode_chat(f"{BOS}12 + 34?", ChatForm()).count(0) == count


def test_save_end_token_that_the_file_puts_behind_a_text_is_not_put_there(tmp_path: Path) -> None:
    """A prompt that ends with the end token has been answered."""
    config = {"bos_token": BOS, "add_eos_token": True}
    ours = load_tokenizer(write(tmp_path / "published", processor(f"{BOS} $A {END}"), config))
    assert ours.encode("<") == (0, *ours.encode_continuation("<"))
    ours.save(tmp_path / "saved")
    assert tuple(AutoTokenizer.from_pretrained(tmp_path / "saved")("<").input_ids) == ours.encode("<")


def test_save_character_tokenizer_gives_transformers_the_start_token(tmp_path: Path) -> None:
    tokenizer = character_tokenizer("0123456789+= ")
    state = tokenizer.fast.to_str()
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("1+2=", "", " 7 "):
        assert tuple(theirs(text).input_ids) == tokenizer.encode(text) == load_tokenizer(tmp_path).encode(text)
    assert theirs("1", "2").input_ids == [0, 3, 4]
    # Programs that read the file alone, as older versions of transformers do, find the rule there too.
    alone = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tuple(alone.encode("1+2=").ids) == tokenizer.encode("1+2=")
    assert tokenizer.fast.to_str() == state


GENERATION = {"bos_token_id": 0, "pad_token_id": 2, "do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}


@pytest.mark.parametrize(
    ("said", "model", "saved"),
    [
        ({**GENERATION, "eos_token_id": [1, 2]}, {}, {**GENERATION, "eos_token_id": [1, 2]}),
        ({**GENERATION, "eos_token_id": [2, 1]}, {}, {**GENERATION, "eos_token_id": [2, 1]}),
        ({**GENERATION, "eos_token_id": 1}, {}, {**GENERATION, "eos_token_id": 1}),
        ({**GENERATION, "eos_token_id": 1}, {"eos_token_id": 2}, {**GENERATION, "eos_token_id": [1, 2]}),
        (GENERATION, {}, GENERATION),
        (None, {"eos_token_id": [1, 2]}, {"eos_token_id": [1, 2]}),
        (None, {"eos_token_id": 1}, None),
    ],
)
def test_save_keeps_the_generation_settings_and_every_end_id(
    tmp_path: Path, said: dict[str, Any] | None, model: dict[str, Any], saved: dict[str, Any] | None
) -> None:
    files = {"config": model} if said is None else {"config": model, "generation_config": said}
    folder = write(tmp_path / "published", as_it_is, {}, files)
    before = load_tokenizer(folder)
    before.save(tmp_path / "saved")
    path = tmp_path / "saved" / "generation_config.json"
    assert (json.loads(path.read_text()) if path.is_file() else None) == saved
    if saved is not None:
        theirs = GenerationConfig.from_pretrained(tmp_path / "saved")
        assert {key: getattr(theirs, key) for key in saved} == saved
        assert load_tokenizer(tmp_path / "saved").end_ids == before.end_ids


def test_save_config_names_the_class_that_reads_the_file_and_keeps_the_rest(tmp_path: Path) -> None:
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "auto_map": {"AutoTokenizer": ["x.Y", None]},
        "unk_token": {"content": END},
        "padding_side": "left",
    }
    load_tokenizer(write(tmp_path / "published", as_it_is, config)).save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "unk_token": END,
        "padding_side": "left",
        "add_bos_token": False,
    }


def test_tokenizer_made_without_a_folder_saves_no_generation_settings(tmp_path: Path) -> None:
    tokenizer = character_tokenizer("01")
    Tokenizer(tokenizer.fast, tokenizer.end_token, "").save(tmp_path)
    assert not (tmp_path / "generation_config.json").exists()
    assert load_tokenizer(tmp_path).encode("1") == (3,)
