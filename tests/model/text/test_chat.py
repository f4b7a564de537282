"""Chat prompts: equal to transformers' own rendering, refusals, DeepSeek-V3.2's form, and that a saved template comes back."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from samepath.model.text.chat import ChatForm
from samepath.model.text.conversation import Message
from samepath.model.text.tokenizer import Tokenizer, load_tokenizer
from samepath.rl.tasks.row import TaskRow

TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message.role + '\\n' + message.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
QUESTION = "What is 17 + 25?"


def write_folder(folder: Path, special: list[str], config: dict[str, object], template: str = "") -> Path:
    """A byte-level tokenizer folder with special tokens."""
    folder.mkdir(exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(special)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, **config})
    )
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "chat", ["<|start|>", "<|end|>"], {"eos_token": "<|end|>"}, TEMPLATE)


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
@pytest.mark.parametrize("system", ["", "Answer with a number."])
def test_encode_chat_gives_the_ids_of_transformers(folder: Path, system: str, options: dict[str, bool]) -> None:
    messages = [{"role": "system", "content": system}] if system else []
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [*messages, {"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False, **options
    )
    assert load_tokenizer(folder).encode_chat(QUESTION, ChatForm(system=system, options=options)) == tuple(theirs)


def test_encode_chat_thinking_switch_changes_the_prompt(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    closed = tokenizer.encode_chat(QUESTION, ChatForm(options={"enable_thinking": False}))
    text = tokenizer.fast.decode(list(closed), skip_special_tokens=False)
    assert text == f"<|start|>user\n{QUESTION}<|end|>\n<|start|>assistant\n<think>\n\n</think>\n\n"
    assert closed != tokenizer.encode_chat(QUESTION, ChatForm())


def test_encode_chat_template_in_the_config_and_named_templates_are_read(folder: Path) -> None:
    whole = load_tokenizer(folder).encode_chat(QUESTION, ChatForm())
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    for form in (TEMPLATE, named):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": form}))
        assert load_tokenizer(folder).encode_chat(QUESTION, ChatForm()) == whole


def test_encode_chat_without_a_template_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"needs the checkpoint's template.*task\.chat\.enabled"):
        tokenizer.encode_chat("1+1", ChatForm())


def test_encode_chat_option_that_the_template_does_not_know_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"chat\.options\.enable_thinkin must be a variable"):
        load_tokenizer(folder).encode_chat(QUESTION, ChatForm(options={"enable_thinkin": False}))


def test_encode_chat_control_token_in_a_text_is_text_unless_the_template_of_the_recipe_wrote_it(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    start, end = (tokenizer.fast.token_to_id(token) for token in ("<|start|>", "<|end|>"))
    for question, system in ((f"<|end|>{QUESTION}<|end|>", ""), (QUESTION, "<|start|>"), ("<|<|start|>start|>", "")):
        ids = tokenizer.encode_chat(question, ChatForm(system=system))
        turns = 2 if system else 1
        assert [id_ for id_ in ids if id_ in (start, end)] == [start, end] * turns + [start]
        assert tokenizer.text(ids) == (f"<|start|>system\n{system}<|end|>\n" if system else "") + (
            f"<|start|>user\n{question}<|end|>\n<|start|>assistant\n"
        )
    question = "<|end|>1<|end|>"
    ids = tokenizer.encode_chat(question, ChatForm(), written=[(0, 7)])
    assert tokenizer.text(ids) == f"<|start|>user\n{question}<|end|>\n<|start|>assistant\n"
    assert [id_ for id_ in ids if id_ in (start, end)] == [start, end, end, start]
    assert ids[6] == end


def test_encode_chat_earlier_messages_are_those_of_transformers(folder: Path) -> None:
    earlier = [Message(role="system", content="Be brief."), Message(role="user", content="1+1?")]
    earlier.append(Message(role="assistant", content="2"))
    told = [{"role": one.role, "content": one.content} for one in earlier]
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [*told, {"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    assert load_tokenizer(folder).encode_chat(QUESTION, ChatForm(), earlier=earlier) == tuple(theirs)


def test_encode_chat_template_that_looks_for_control_tokens_in_a_message_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|start|>{{ m.content.split('<|end|>')[-1] }}{% endfor %}"
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.text(tokenizer.encode_chat("1", ChatForm())) == "<|start|>1"
    with pytest.raises(ValueError, match="looks for control tokens inside a message"):
        tokenizer.encode_chat("1<|end|>2", ChatForm())


def test_encode_chat_template_that_refuses_says_why(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system message here') }}{% endif %}x"
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.text(tokenizer.encode_chat(QUESTION, ChatForm())) == "x"
    with pytest.raises(ValueError, match="cannot render the conversation: no system message here"):
        tokenizer.encode_chat(QUESTION, ChatForm(system="s"))


def test_save_keeps_the_template_and_its_special_tokens(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    config = {"eos_token": {"content": "<|end|>"}, "bos_token": "<|start|>"}
    before = load_tokenizer(write_folder(tmp_path / "a", ["<|start|>", "<|end|>"], config, template))
    before.save(tmp_path / "b")
    after = load_tokenizer(tmp_path / "b")
    ids = before.encode_chat(QUESTION, ChatForm())
    assert after.encode_chat(QUESTION, ChatForm()) == ids
    assert after.encode("12") == before.encode("12")
    messages = [{"role": "user", "content": QUESTION}]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "b").apply_chat_template(messages, return_dict=False)
    assert tuple(theirs) == ids


DEEPSEEK = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]


@pytest.fixture
def deepseek(tmp_path: Path) -> Path:
    """DeepSeek-V3.2's tokenizer as far as chat goes: special tokens and no template."""
    folder = write_folder(tmp_path / "v32", DEEPSEEK, {"bos_token": DEEPSEEK[0], "eos_token": DEEPSEEK[1]})
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v32"}))
    return folder


@pytest.mark.parametrize(("options", "end"), [({}, "</think>"), ({"thinking": True}, "<think>")])
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_encode_chat_deepseek_v32_form(deepseek: Path, system: str, options: dict[str, bool], end: str) -> None:
    tokenizer = load_tokenizer(deepseek)
    ids = tokenizer.encode_chat(QUESTION, ChatForm(system=system, options=options))
    shown = tokenizer.fast.decode(list(ids), skip_special_tokens=False)
    assert shown == f"{DEEPSEEK[0]}{system}<｜User｜>{QUESTION}<｜Assistant｜>{end}"
    assert ids.count(tokenizer.fast.token_to_id(DEEPSEEK[0])) == 1


def test_encode_chat_deepseek_v32_equals_the_encoder_that_vllm_has(deepseek: Path) -> None:
    encoding = pytest.importorskip("vllm.tokenizers.deepseek_v32_encoding")
    tokenizer = load_tokenizer(deepseek)
    for system in ("", "Be brief."):
        for thinking in (False, True):
            messages = [{"role": "system", "content": system}] if system else []
            theirs = encoding.encode_messages(
                [*messages, {"role": "user", "content": QUESTION}], thinking_mode="thinking" if thinking else "chat"
            )
            ours = tokenizer.encode_chat(QUESTION, ChatForm(system=system, options={"thinking": thinking}))
            assert tokenizer.fast.decode(list(ours), skip_special_tokens=False) == theirs


def test_deepseek_form_is_not_given_to_other_tokenizers(deepseek: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A model of this architecture with a character tokenizer has none of the marks."""
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v32"}))
    assert load_tokenizer(tmp_path).chat is None
    (deepseek / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"}))
    assert load_tokenizer(deepseek).chat is None


@pytest.mark.parametrize("flagged", [True, False])
def test_deepseek_control_tokens_in_prompts_questions_and_rows_are_text_whatever_the_file_flags(
    deepseek: Path, flagged: bool
) -> None:
    """Published files of this family flag the marks of roles and reasoning `special: false`."""
    file = deepseek / "tokenizer.json"
    state = json.loads(file.read_text())
    for token in state["added_tokens"]:
        token["special"] = flagged or token["content"] in DEEPSEEK[:2]
    file.write_text(json.dumps(state))
    tokenizer = load_tokenizer(deepseek)
    said = "".join(DEEPSEEK[1:])
    marks = [tokenizer.fast.token_to_id(name) for name in DEEPSEEK]
    assert not set(tokenizer.encode(said)) & set(marks)
    form = ChatForm(system=said, options={"thinking": True})
    chat = tokenizer.encode_chat(said, form, earlier=[])
    row = TaskRow(row_id="r", question=said, text=said, chat=form, dataset="d", row=0).encode(tokenizer)
    assert row == chat
    assert [id_ for id_ in chat if id_ in marks] == [marks[0], marks[2], marks[3], marks[4]]
    assert tokenizer.text(chat) == f"{DEEPSEEK[0]}{said}<｜User｜>{said}<｜Assistant｜><think>"
