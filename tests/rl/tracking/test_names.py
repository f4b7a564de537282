"""Names and texts that every tracking store takes."""

import json
import posixpath
import re

from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.tracking.names import MAX_NAME_CHARS, NameBook, clean_file_name, clean_name, clean_text

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
"""Half surrogate pairs and control characters too."""


def test_clean_name_known_names() -> None:
    assert clean_name("reward/mean") == "reward/mean"
    assert clean_name("eval//acc@8 [%]") == "eval/acc_8 ___"
    assert clean_name("/a/../b/") == "a/__/b"
    assert clean_name("größe") == "gr__e"
    assert clean_name("//") == "unnamed"


@given(ANY_TEXT)
def test_clean_name_any_text_is_taken_by_mlflow_and_stays(text: str) -> None:
    cleaned = clean_name(text)
    # MLflow's rules: these characters only, at most 250, and a path that normalising leaves as it is.
    assert re.fullmatch(r"[A-Za-z0-9_\-.: /]{1,250}", cleaned)
    assert posixpath.normpath(cleaned) == cleaned
    assert not cleaned.startswith(("/", ".."))
    assert clean_name(cleaned) == cleaned


def test_clean_file_name_has_no_path_and_no_sign_that_a_server_refuses() -> None:
    assert clean_file_name("curves #1: a%2F/b.html") == "curves _1_ a_2F_b.html"


@given(st.lists(st.text(alphabet="a@#/._4", max_size=4), unique=True, max_size=20))
def test_name_book_gives_each_text_a_name_of_its_own_and_keeps_the_texts(texts: list[str]) -> None:
    book = NameBook()
    names = [book.clean(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert [book.clean(text) for text in reversed(texts)] == names[::-1]
    original = book.changed()
    assert [original.get(name, name) for name in names] == texts


def test_name_book_keeps_names_apart_that_are_cut_to_one_length() -> None:
    book = NameBook()
    names = {book.clean("x" * 300 + end) for end in "abc"}
    assert len(names) == 3
    assert max(map(len, names)) == MAX_NAME_CHARS


@given(st.recursive(ANY_TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3)))
def test_clean_text_can_be_stored(value: object) -> None:
    text = json.dumps(clean_text(value), ensure_ascii=False)
    text.encode("utf-8")
    assert "\\u0000" not in text


def test_clean_text_leaves_other_values_alone() -> None:
    assert clean_text({"ü\0": [1, None, 0.5, True, "b\ud800"]}) == {"ü\ufffd": [1, None, 0.5, True, "b?"]}
