"""Stop strings found from the end of a response alone: the same answer as a search in the whole text, at a cost that does not grow."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from samepath.rollout.stop_strings import completes_stop

STOPS = ("</answer>", "é😀", " b", "\n\n", "😀", "ab.")
SPECIAL = ["<pad>", "<end>"]


def byte_level() -> FastTokenizer:
    """One token a byte, and a few of several, which may begin or end in the middle of a character."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(letters)}
    merges = []
    for text in ("</", "an", "😀"):
        pieces = [piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)]
        left, right = "".join(pieces)[0], "".join(pieces)[1]
        merges.append((left, right))
        vocab[left + right] = len(vocab)
    fast = FastTokenizer(models.BPE(vocab=vocab, merges=merges))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return fast


def byte_fallback() -> FastTokenizer:
    """Whole words with a mark for their blank, and bytes for what has no token: as the first Llama had them."""
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁b", "a", "b", ".", "<", "/", "</", "answer", ">", "é"]
    fast = FastTokenizer(
        models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], byte_fallback=True)
    )
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast


def word_pieces() -> FastTokenizer:
    """Pieces that hang together by a mark, with blanks taken away before a full stop."""
    pieces = ["a", "##a", "b", "##b", ".", "</", "##answer", "##>", "é", "##😀", "😀", "[UNK]", "do", "not"]
    fast = FastTokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    fast.decoder = decoders.WordPiece(cleanup=True)
    return fast


def stream(fast: FastTokenizer, rng: random.Random, length: int) -> list[int]:
    """Tokens of texts that nearly hold a stop string, broken by others, by special ones, and by bytes that are no text."""
    texts = ["</answe", "</answer", "é", "😁", "a.", "ab", "b", "xx", "\n", "  ", *STOPS]
    tokens: list[int] = []
    while len(tokens) < length:
        kind = rng.random()
        if kind < 0.5:
            tokens += fast.encode(rng.choice(texts[: 9 if rng.random() < 0.9 else None])).ids[: rng.randint(1, 12)]
        elif kind < 0.9:
            tokens.append(rng.randrange(fast.get_vocab_size()))
        else:
            tokens += [fast.token_to_id(rng.choice(SPECIAL))] * rng.choice([1, 2, 40])
    return tokens


@pytest.mark.parametrize("make", [byte_level, byte_fallback, word_pieces])
def test_completes_stop_says_what_a_search_in_the_whole_text_says(make: object) -> None:
    """After every token of a response, up to its end; half of the responses are far longer than the part that is looked at."""
    fast = make()  # type: ignore[operator]
    fast.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    rng = random.Random(7)
    ends = 0

    def decode(ids: Sequence[int]) -> str:
        return str(fast.decode(list(ids), skip_special_tokens=True))

    for turn in range(80):
        stops = rng.sample(STOPS, rng.randint(1, 2))
        tokens = stream(fast, rng, 200 if turn % 2 else 30)
        for count in range(1, len(tokens) + 1):
            wanted = any(stop in decode(tokens[:count]) for stop in stops)
            assert completes_stop(decode, np.array(tokens[:count], np.int32), stops) == wanted, (stops, tokens[:count])
            if wanted:
                ends += count > 60
                break
    assert ends >= 3


def test_completes_stop_of_single_bytes_is_found_in_a_run_that_was_cut_in_a_character() -> None:
    """Thirty 😁 in bytes, then é and 😀 in bytes: a run of bytes that begins in the middle of a character decodes to nothing at all."""
    fast = byte_fallback()
    for lead in range(4):
        tokens = [fast.token_to_id("a")] * lead + list("😁".encode() * 30) + list("é😀".encode())
        texts = [fast.decode(tokens[: len(tokens) - cut]) for cut in range(3)]
        assert [text.endswith("é😀") for text in texts] == [True, False, False]
        assert completes_stop(fast.decode, np.array(tokens, np.int32), ["é😀"])
        assert not completes_stop(fast.decode, np.array(tokens[:-1], np.int32), ["é😀"])


def test_completes_stop_decodes_a_bounded_number_of_tokens() -> None:
    """Counted, not timed: as many after 20,000 tokens as after 200."""
    fast, seen = byte_level(), []

    def decode(ids: Sequence[int]) -> str:
        seen.append(len(ids))
        return str(fast.decode(list(ids)))

    totals = []
    for length in (200, 20_000):
        seen.clear()
        assert not completes_stop(decode, np.full(length, fast.token_to_id("x"), np.int32), ["</answer>"])
        totals.append(sum(seen))
    assert totals[0] == totals[1] < 60


def test_completes_stop_looks_past_tokens_without_text() -> None:
    """Special tokens stand within the stop string, and show nothing."""
    fast = byte_level()
    fast.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    for count in range(60):
        hidden = [fast.token_to_id(SPECIAL[0])] * count
        tokens = fast.encode("xxxxxxxxxxxxxxxxxxxxxx</answer").ids + hidden + fast.encode(">").ids
        assert completes_stop(fast.decode, np.array(tokens, np.int32), ["</answer>"])
        assert not completes_stop(fast.decode, np.array(tokens[:-1], np.int32), ["</answer>"])
