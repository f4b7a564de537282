"""A byte-level tokenizer for new models that speak conversations: DeepSeek-V3.2's control tokens, every byte, and pieces learned from texts.

Pieces are learned as byte-pair encoding learns merges, over whole stretches of text: what stands in every conversation, such as the text of its
tools, becomes one token from the first digit to the next. The steps between are not kept: a vocabulary of a few hundred ids is enough.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from samepath.model.text.encodings.dsml_text import END, MARKS, START
from samepath.model.text.tokenizer import Tokenizer

LEAST_IDS = 256 + len(MARKS)
"""Ids without any piece: bytes and control tokens."""
APART = re.compile("|".join(["[0-9]", *map(re.escape, MARKS)]))
"""What no piece holds: digits, and the names of control tokens, which are letters where this finds them."""


def byte_tokenizer(pieces: Sequence[str] = ()) -> Tokenizer:
    """Bytes, pieces and control tokens, with ids in this order. Text is cut at the longest piece that begins at a place; the rest is bytes."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(_spelt(byte_level, piece) for piece in pieces)]
    # No merges: a piece that stands alone is looked up whole.
    fast = FastTokenizer(models.BPE(vocab={word: id_ for id_, word in enumerate(words)}, merges=[], ignore_merges=True))
    found = "|".join(
        re.sub(r"([\\.^$|?*+()\[\]{}])", r"\\\1", piece) for piece in sorted(pieces, key=len, reverse=True)
    )
    cut = [pre_tokenizers.Split(Regex(found), "isolated")] if found else []
    fast.pre_tokenizer = pre_tokenizers.Sequence([*cut, byte_level])
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([START, END])
    fast.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS[2:]])
    return Tokenizer(fast, END, START)


def _spelt(byte_level: pre_tokenizers.ByteLevel, piece: str) -> str:
    return "".join(part for part, _ in byte_level.pre_tokenize_str(piece))


def learned_pieces(texts: Iterable[str], *, least: int, most: int) -> list[str]:
    """Pieces of the texts, those that save most tokens first; deterministic.

    Neighbours that stand together most often are joined, down to `least` times; none holds a digit. Of what is left in the end, pieces that
    stand `least` times or more are returned, at most `most` of them.
    """
    stretches = Counter(stretch for text in texts for stretch in APART.split(text) if stretch)
    told = sorted(stretches)
    words = [list(stretch) for stretch in told]
    weights = [stretches[stretch] for stretch in told]
    _join(words, weights, least)
    uses = Counter[str]()
    for word, weight in zip(words, weights, strict=True):
        for piece in word:
            uses[piece] += weight
    saved = {piece: count * (len(piece.encode()) - 1) for piece, count in uses.items() if count >= least}
    ranked = sorted((piece for piece in saved if saved[piece]), key=lambda piece: (-saved[piece], piece))
    return ranked[:most]


def _join(words: list[list[str]], weights: Sequence[int], least: int) -> None:
    """Join, in place, the two neighbours that stand together most often, of equals the first by spelling, until none does `least` times."""
    counts = Counter[tuple[str, str]]()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for place, word in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += weights[place]
            places[pair].add(place)
    queue = [(-count, pair) for pair, count in counts.items() if count >= least]
    heapify(queue)
    while queue:
        count, pair = heappop(queue)
        if -count != counts[pair]:
            # It has changed since; its present count stands in the queue too.
            continue
        touched = set[tuple[str, str]]()
        for place in sorted(places.pop(pair)):
            joined = _joined(words[place], pair)
            changes = Counter(pairwise(joined))
            changes.subtract(pairwise(words[place]))
            words[place] = joined
            for one, change in changes.items():
                if change:
                    counts[one] += change * weights[place]
                    places[one].add(place)
                    touched.add(one)
        del counts[pair]
        for one in touched - {pair}:
            if counts[one] >= least:
                heappush(queue, (-counts[one], one))


def _joined(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """The word with each of the pair's neighbours made one, from the left."""
    left, right = pair
    joined: list[str] = []
    before = ""
    for piece in word:
        if piece == right and before == left:
            joined[-1] = before = left + right
        else:
            joined.append(piece)
            before = piece
    return joined
