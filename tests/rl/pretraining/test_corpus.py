"""Text becomes tokens once, and each step's sequences follow from seed and step; what is wrong with it is named by file and row."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from samepath.rl.pretraining import corpus as module
from samepath.rl.pretraining import documents as documents_module
from samepath.rl.pretraining.corpus import Corpus, load_corpus
from samepath.rl.pretraining.documents import TextError, documents
from samepath.rl.recipe.text import TextSettings
from tests.rl.pretraining.texts import tokenizer, write_text


def settings(**changes: object) -> TextSettings:
    return TextSettings.model_validate({"paths": ["*"], "length": 16, "held_out": 1, **changes})


def loaded(folder: Path, **changes: object) -> Corpus:
    return load_corpus(settings(**changes), tokenizer(), folder, folder / ".tokens", lambda _: None)


def test_documents_of_every_kind_of_file_stand_in_order_and_blank_ones_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "1"}\n\n{"text": " "}\n{"text": "2", "more": 3}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["3", "4"], "n": [1, 2]}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_text("\ufeff5\n6", encoding="utf-8")
    assert list(documents(settings(), tmp_path)) == ["1", "2", "3", "4", "5\n6"]
    assert list(documents(settings(paths=["c*", "a*"]), tmp_path)) == ["5\n6", "1", "2"]


def test_documents_of_the_hub_are_asked_for_by_name_revision_and_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("one", "two"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    (tmp_path / "one.jsonl").write_text('{"text": "1"}\n')
    (tmp_path / "two.jsonl").write_text('{"text": "2"}\n')
    asked = []

    def found(name: str, kind: str, patterns: object, revision: str) -> Path:
        asked.append((name, kind, revision))
        return tmp_path

    monkeypatch.setattr(documents_module, "hub_folder", found)
    hub = TextSettings.model_validate({"kind": "hub", "path": "some/set", "config": "two", "revision": "v3"})
    assert list(documents(hub, tmp_path)) == ["2"]
    assert asked == [("some/set", "dataset", "v3")]


def test_documents_of_a_data_set_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"story": "1+1"}\n{"story": "2+2"}\n')
    hub = TextSettings.model_validate({"kind": "hub", "path": "set", "column": "story"})
    assert list(documents(hub, tmp_path)) == ["1+1", "2+2"]
    with pytest.raises(TextError, match=r"text.split='test'"):
        list(documents(hub.model_copy(update={"split": "test"}), tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"text": "1"}\n{"txt": "2"}\n',
            r"a.jsonl:2: text.column=text .*did you mean txt.*there are: txt",
        ),
        ("a.jsonl", b'{"text": 7}\n', r"a.jsonl:1: text.column=text must hold text; got 7"),
        ("a.jsonl", b'{"text": \n', r"a.jsonl:1: not valid JSON"),
        ("a.jsonl", b"[1]\n", r"a.jsonl:1: each line must be a JSON object"),
        ("a.jsonl", b'{"text": "1"}\n\xff\n', r"a.jsonl:2: must be UTF-8"),
        ("a.txt", b"\xff", r"a.txt: must be UTF-8"),
        ("a.parquet", b"no", r"a.parquet cannot be read as Parquet"),
    ],
)
def test_documents_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message):
        list(documents(settings(), tmp_path))


def test_documents_without_a_file_or_a_column_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"no file is named .*/\*\.md"):
        list(documents(settings(paths=["*.md"]), tmp_path))
    pyarrow.parquet.write_table(pyarrow.table({"body": ["3"]}), tmp_path / "b.parquet")
    with pytest.raises(TextError, match=r"text.column=text must be one of its columns; there are: body"):
        list(documents(settings(), tmp_path))


def test_load_corpus_lays_documents_end_to_end_with_their_marks_and_holds_out_the_last(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"{n % 10}+="}) + "\n" for n in range(20)))
    found, coder = loaded(tmp_path, held_out=2), tokenizer()
    wanted = [one for n in range(20) for one in (*coder.encode(f"{n % 10}+="), coder.end_id)]
    assert found.tokens.tolist() == wanted
    assert (found.documents, found.num_trained) == (20, len(wanted) // 16 - 2)
    first = found.num_trained * 16
    assert [ids.tolist() for ids in found.held_out_sequences()] == [
        wanted[first : first + 16],
        wanted[first + 16 : first + 32],
    ]


def test_load_corpus_tokenises_once_until_text_or_tokenizer_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path)
    loaded(tmp_path)
    original, made = module._tokenise, []
    monkeypatch.setattr(module, "_tokenise", lambda *arguments: (made.append(1), original(*arguments))[1])
    loaded(tmp_path, length=20, held_out=2)
    assert made == []
    loaded(tmp_path, column="text", paths=["a*"])
    write_text(tmp_path, documents=41)
    assert loaded(tmp_path).documents == 41
    assert made == [1, 1]


def test_load_corpus_cut_short_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path)
    whole = loaded(tmp_path).tokens.tolist()

    def cut(*_: object) -> object:
        yield "1+1"
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "documents", cut)
    with pytest.raises(KeyboardInterrupt):
        load_corpus(settings(), tokenizer(), tmp_path, tmp_path / ".other", lambda _: None)
    assert [path.suffix for path in (tmp_path / ".other").iterdir()] == [".lock"]
    monkeypatch.undo()
    again = load_corpus(settings(), tokenizer(), tmp_path, tmp_path / ".other", lambda _: None)
    assert again.tokens.tolist() == whole


def test_load_corpus_of_two_runs_at_once_tokenises_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path)
    original, begun, made = module._tokenise, threading.Event(), []

    def slow(*arguments: object) -> int:
        made.append(1)
        begun.set()
        time.sleep(0.2)
        return original(*arguments)

    monkeypatch.setattr(module, "_tokenise", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(loaded, tmp_path)
        assert begun.wait(10)
        second = pool.submit(loaded, tmp_path)
        assert first.result(10).tokens.tolist() == second.result(10).tokens.tolist()
    assert made == [1]


def test_corpus_batch_takes_each_sequence_once_an_epoch_in_the_seeds_order(tmp_path: Path) -> None:
    write_text(tmp_path)
    found = loaded(tmp_path)
    steps = -(-found.num_trained // 4)
    epoch = [ids.tobytes() for step in range(steps) for ids in found.batch(0, step, 4)][: found.num_trained]
    every = [found.tokens[16 * one : 16 * one + 16].astype(np.int64).tobytes() for one in range(found.num_trained)]
    assert sorted(epoch) == sorted(every)
    assert epoch != every
    assert [ids.tobytes() for ids in found.batch(1, 0, 4)] != epoch[:4]
    assert [ids.tobytes() for ids in found.batch(0, 1, 4)] == epoch[4:8]


def test_load_corpus_without_documents_or_with_too_few_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(TextError, match=r"text has no document: every text in \* is blank"):
        loaded(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "123"}\n')
    with pytest.raises(
        TextError, match=r"more than text.held_out=1 sequences of text.length=16 tokens; it has 5 tokens"
    ):
        loaded(tmp_path)
