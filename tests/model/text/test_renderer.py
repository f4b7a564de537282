"""Parts of a conversation become ids: content never a control token, merges as in the whole text, kinds as they were said."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers

from samepath.model.text.encodings.dsml_text import ASSISTANT, DSML, END, MARKS, START, THINK, USER
from samepath.model.text.renderer import Part, encode_parts, said, scaffold
from samepath.model.text.tokenizer import Tokenizer
from tests.marked_conversations import marked_tokenizer

TOKENIZER = marked_tokenizer()
PIECES = [*MARKS, DSML, "<", "result>", "\n", "\n\n", " ", "17", "ü", "😀", "<｜", "User｜>"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=4).map("".join)
PARTS = st.lists(st.tuples(st.sampled_from(["scaffold", "content"]), TEXTS), max_size=6)


def marks_in(text: str) -> int:
    """Control tokens that a plain reading finds."""
    return sum(id_ in TOKENIZER.control_ids for id_ in TOKENIZER.fast.encode(text, add_special_tokens=False).ids)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(told=PARTS, follows=st.booleans())
@example(told=[("scaffold", USER), ("content", ASSISTANT), ("scaffold", "\n<result>")], follows=True)
@example(told=[("scaffold", "<｜"), ("content", "User｜>")], follows=False)
@example(told=[("scaffold", "<｜"), ("scaffold", "User｜>"), ("content", END)], follows=False)
def test_encode_parts_has_the_control_tokens_of_the_scaffold_and_no_others(
    told: list[tuple[str, str]], follows: bool
) -> None:
    parts = [scaffold(text) if kind == "scaffold" else said(text) for kind, text in told]
    pieces = encode_parts(TOKENIZER, parts, follows=follows)
    text = "".join(part.text for part in parts)
    assert TOKENIZER.text(pieces.ids) == text
    # Stretches of scaffold that touch are one text, in which a control token may stand over their seam.
    runs: list[str] = [""]
    for part in parts:
        if part.kind == "scaffold":
            runs[-1] += part.text
        elif part.text:
            runs.append("")
    controls = [id_ for id_ in pieces.ids if id_ in TOKENIZER.control_ids]
    assert len(controls) == sum(map(marks_in, runs))
    assert all(
        kind == "scaffold" for id_, kind in zip(pieces.ids, pieces.kinds, strict=True) if id_ in TOKENIZER.control_ids
    )
    if marks_in(text) == len(controls):
        assert list(pieces.ids) == TOKENIZER.fast.encode(text, add_special_tokens=False).ids


def test_encode_parts_text_between_marks_has_the_ids_of_the_file_without_added_tokens() -> None:
    """Also inside the names of control tokens, whose letters merge as in any other word."""
    state = json.loads(TOKENIZER.fast.to_str())
    emptied = FastTokenizer.from_str(json.dumps({**state, "added_tokens": []}))
    text = f"</think>{ASSISTANT}17</result>{DSML}{END}"
    assert "</" in emptied.encode(text).tokens
    pieces = encode_parts(TOKENIZER, [scaffold(f"{USER}<result>"), said(text), scaffold(END)], follows=True)
    assert list(pieces.ids[1:-1]) == emptied.encode(f"<result>{text}", add_special_tokens=False).ids


def test_encode_parts_an_id_over_a_seam_counts_as_content() -> None:
    pieces = encode_parts(
        TOKENIZER, [scaffold(f"{USER}<result>"), said("17"), scaffold(f"</result>{END}")], follows=False
    )
    texts = TOKENIZER.token_texts(pieces.ids)
    assert (texts[0], texts[-1]) == (USER, END)
    shown = [(text, kind) for text, kind in zip(texts, pieces.kinds, strict=True) if kind == "content"]
    assert "17" in "".join(text for text, _ in shown) != "17"


def test_encode_parts_drawn_ids_are_used_as_they_are() -> None:
    """No encoding gives single letters where a merge stands ready; drawn ids may hold anything."""
    letters = tuple(TOKENIZER.fast.token_to_id(letter) for letter in "<result>")
    parts = [scaffold(USER), Part(kind="sampled", ids=letters), scaffold("<result>")]
    pieces = encode_parts(TOKENIZER, parts, follows=False)
    assert pieces.ids[1 : 1 + len(letters)] == letters
    assert pieces.ids[1 + len(letters) :] == TOKENIZER.encode_continuation("<result>") != letters
    assert pieces.kinds == (
        "scaffold",
        *["sampled"] * len(letters),
        *["scaffold"] * (len(pieces.ids) - 1 - len(letters)),
    )


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_encode_parts_text_behind_a_control_token_does_not_begin_there(scheme: str) -> None:
    """Some tokenizers put a blank before a text: as in the whole, whether or not content holds a control token's name."""
    letters = sorted({*"ab <|x>▁", *START, *END, *USER})
    # The vocabulary can build the name `<x>` from its letters.
    words = [*letters, "x>", "<x>"]
    fast = FastTokenizer(
        models.BPE(vocab={one: index for index, one in enumerate(words)}, merges=[("x", ">"), ("<", "x>")])
    )
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    fast.decoder = decoders.Metaspace(prepend_scheme=scheme)
    fast.add_special_tokens([START, END, USER, "<x>"])
    tokenizer = Tokenizer(fast, END, START)
    parts = [scaffold(START), said("a b"), scaffold(f"{USER}a"), said("b")]
    whole = encode_parts(tokenizer, parts, follows=False).ids
    assert list(whole) == fast.encode(f"{START}a b{USER}ab", add_special_tokens=False).ids
    mixed = encode_parts(tokenizer, [*parts, scaffold(END), said(f"a{USER}")], follows=False).ids
    assert mixed[: len(whole)] == whole
    assert mixed[len(whole) + 1 :] == encode_parts(tokenizer, [said(f"a{USER}")], follows=True).ids
    assert sum(id_ in tokenizer.control_ids for id_ in mixed) == 3
    # The halves of a name that must be cut read as one text, and drawn ids count as text before.
    cut = encode_parts(tokenizer, [scaffold(END), said("a<x>b")], follows=True).ids
    assert tokenizer.text(cut).endswith("a<x>b")
    drawn = encode_parts(tokenizer, [Part(kind="sampled", ids=whole), scaffold("a")], follows=False).ids
    assert drawn == (*whole, *encode_parts(tokenizer, [scaffold("a")], follows=True).ids)


def test_encode_parts_a_character_without_a_token_is_refused() -> None:
    fast = FastTokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    fast.add_special_tokens([START, END, THINK])
    with pytest.raises(ValueError, match=r"must be in the tokenizer's alphabet; \['c', 'd'\] of 'a cbd' are not"):
        encode_parts(Tokenizer(fast, END, START), [said("a cbd")], follows=False)
