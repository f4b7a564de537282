"""Bytes, control tokens and learned pieces: no character is lost, the longest piece counts, digits stand alone, and all of it is repeatable."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from samepath.model.text.conversation import Message
from samepath.model.text.encodings.deepseek_v32 import DeepSeekV32Renderer
from samepath.model.text.encodings.dsml_text import ASSISTANT, END, MARKS, START, THINK
from samepath.model.text.encodings.learned_tokenizer import LEAST_IDS, byte_tokenizer, learned_pieces
from samepath.model.text.tokenizer import load_tokenizer
from samepath.rl.recipe.model import LEAST_IDS as LEAST_OF_RECIPE
from tests.marked_conversations import ADD, GET, STORE

PIECES = ["see ", "see", "(a|b)*\n[^c]{2}", "ü", "\n\n", " plus ", "｜DSML｜", "lus "]
TOKENIZER = byte_tokenizer(PIECES)
TEXTS = st.lists(
    st.sampled_from([*PIECES, *MARKS, "C", "1", "23", "(a|b)", "se", "e ", "pl", "😀", "\x00", "\ufeff"])
).map("".join) | st.text(max_size=8)
QUICK = settings(deadline=None, derandomize=True, max_examples=80)


def cut(text: str) -> list[str]:
    """The text at the longest piece that begins at each place, else a character."""
    parts = []
    while text:
        part = max((piece for piece in PIECES if text.startswith(piece)), key=len, default=text[0])
        parts.append(part)
        text = text[len(part) :]
    return parts


@QUICK
@given(text=TEXTS)
@example(text=f"{THINK}")
@example(text="see see plus lus üü17")
def test_byte_tokenizer_keeps_every_character_and_takes_the_longest_piece(text: str) -> None:
    ids = TOKENIZER.encode_continuation(text)
    assert TOKENIZER.text(ids) == text
    # What somebody said never becomes a control token.
    assert not TOKENIZER.control_ids.intersection(ids)
    assert len(ids) == sum(1 if part in PIECES else len(part.encode()) for part in cut(text))


def test_byte_tokenizer_has_every_byte_once_and_then_pieces_and_control_tokens() -> None:
    assert (byte_tokenizer().vocab_size, TOKENIZER.vocab_size) == (LEAST_IDS, LEAST_IDS + len(PIECES))
    assert LEAST_IDS == LEAST_OF_RECIPE
    spread = [*range(0x800), *range(0x800, 0xD800, 64), *range(0xE000, 0x10000, 64), *range(0x10000, 0x110000, 4096)]
    found = set(byte_tokenizer().encode_continuation("".join(map(chr, spread))))
    # Of the byte values, C0, C1 and those from F5 on stand in no Unicode text.
    assert len(found) == 256 - 13
    assert max(found) < 256
    assert [TOKENIZER.text([256 + index]) for index in range(len(PIECES) + len(MARKS))] == [*PIECES, *MARKS]
    assert TOKENIZER.encode("1203") == (TOKENIZER.start_id, *map(TOKENIZER.fast.token_to_id, "1203"))
    assert (TOKENIZER.start_token, TOKENIZER.end_token) == (START, END)


def test_saved_folder_makes_the_same_ids_here_and_in_transformers(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    here, there = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("see C plus K?\n\n12", f"a{ASSISTANT}{THINK}ü see", "(a|b)*\n[^c]{2}"):
        wanted = TOKENIZER.encode(text, [(0, len(text))])
        assert here.encode(text, [(0, len(text))]) == wanted == tuple(there(text)["input_ids"])
        assert there.decode(wanted[1:]) == text


def test_learned_pieces_run_over_whole_stretches_and_hold_no_digit_and_no_control_token() -> None:
    form = "the text of 2 tools, the same everywhere, with <think> in it"
    texts = [f"{form} see {key} then {number}" for number, key in enumerate("ABCDEFGHIJKLMNOP")]
    pieces = learned_pieces(texts, least=16, most=100)
    assert pieces == [" tools, the same everywhere, with ", "the text of ", " in it see ", " then "]
    assert learned_pieces(texts, least=16, most=2) == pieces[:2]
    # What half of the texts have is learned where half of them are enough.
    halves = ["shared"] * 8 + ["others"] * 8
    assert learned_pieces(halves, least=9, most=100) == []
    assert learned_pieces(halves, least=8, most=100) == ["others", "shared"]
    # Pieces of pieces that stand alone too seldom are not kept.
    assert learned_pieces(["abcd"] * 8 + ["ab"] * 2, least=8, most=100) == ["abcd"]
    assert learned_pieces(["abcd"] * 8 + ["ab"] * 9, least=8, most=100) == ["abcd", "ab"]
    assert learned_pieces(["ü"] * 3, least=3, most=9) == ["ü"]


@QUICK
@given(texts=st.lists(st.text("ab1ü", max_size=12), max_size=12), least=st.integers(1, 4))
def test_learned_pieces_are_those_of_a_plain_reading(texts: list[str], least: int) -> None:
    """Against counting all neighbours anew for each join."""
    words = [list(part) for text in texts for part in text.split("1")]
    while True:
        counts: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < least:
            break
        for word in words:
            place = 0
            while place + 1 < len(word):
                if (word[place], word[place + 1]) == best:
                    word[place : place + 2] = ["".join(best)]
                place += 1
    uses = [piece for word in words for piece in word]
    wanted = {piece for piece in uses if uses.count(piece) >= least and len(piece.encode()) > 1}
    assert set(learned_pieces(texts, least=least, most=100)) == wanted


def test_learned_tokenizer_speaks_deepseek_v32() -> None:
    """With the tools' text in a few tokens."""
    plain = DeepSeekV32Renderer(byte_tokenizer())
    text = byte_tokenizer().text(plain.open(STORE, (GET, ADD)).ids)
    pieces = learned_pieces([part for mark in [text] * 4 for part in mark.split(THINK)], least=4, most=1000)
    renderer = DeepSeekV32Renderer(byte_tokenizer(pieces))
    ids = renderer.open(STORE, (GET, ADD)).ids
    assert renderer.tokenizer.text(ids) == text
    assert len(ids) < 100 < 2000 < len(plain.open(STORE, (GET, ADD)).ids)
    answer = Message(role="assistant", reasoning="ü1", content="17", calls=STORE[2].calls)
    completion = renderer.parse(renderer.answer(answer).ids)
    assert (completion.reasoning, completion.content, completion.calls) == ("ü1", "17", answer.calls)


PROGRAM = """
import sys
from itertools import pairwise
from pathlib import Path
from samepath.model.text.encodings.learned_tokenizer import byte_tokenizer, learned_pieces
texts = [f"{a}{b} see {b}{a} plus{a}" for a in "abcdefgh" for b in "xyzu"]
byte_tokenizer(learned_pieces(texts, least=2, most=40)).save(Path(sys.argv[1]))
"""


def test_saved_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    files = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / seed)], check=True, env=environment, cwd=Path.cwd()
        )
        files.append((tmp_path / seed / "tokenizer.json").read_bytes())
    assert files[0] == files[1]
    assert len(files[0]) > 5000
