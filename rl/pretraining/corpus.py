"""Text as tokens: tokenised once and kept, cut into sequences, of which each step draws the same whenever it is made.

Axes: T tokens of a sequence.
"""

import fcntl
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samepath.model.durable_file import replace_file, replacing
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.pretraining.documents import TextError, documents, text_files
from samepath.rl.recipe.text import TextSettings

TOKEN_TYPE = np.dtype("<u4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Sequences of one length; the last `held_out` are not trained on."""

    tokens: NDArray[np.uint32]
    """All tokens, end to end; on the disk, mapped."""
    length: int
    """T."""
    held_out: int
    """Sequences."""
    documents: int
    """Number of documents."""

    @property
    def num_trained(self) -> int:
        """Sequences that are trained on."""
        return len(self.tokens) // self.length - self.held_out

    def batch(self, seed: int, step: int, count: int) -> list[NDArray[np.int64]]:
        """The sequences of one step: each once in an epoch, in an order that follows from seed and epoch."""
        first, places = step * count, []
        for number in range(first, first + count):
            epoch, place = divmod(number, self.num_trained)
            places.append(int(_order(seed, epoch, self.num_trained)[place]))
        return [self._sequence(place) for place in places]

    def held_out_sequences(self) -> list[NDArray[np.int64]]:
        """Those at the end."""
        return [self._sequence(self.num_trained + place) for place in range(self.held_out)]

    def _sequence(self, place: int) -> NDArray[np.int64]:
        return self.tokens[place * self.length : (place + 1) * self.length].astype(np.int64)


@functools.lru_cache(2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(count)


def load_corpus(
    settings: TextSettings, tokenizer: Tokenizer, recipe_dir: Path, folder: Path, say: Callable[[str], None]
) -> Corpus:
    """The text as tokens, from `folder` if the same text was tokenised before by the same tokenizer; `say` is told if it is done now.

    Raises TextError for text that cannot be read, that has no document, or that is too short for one sequence beside those held out.
    """
    path = folder / f"{_fingerprint(settings, tokenizer, recipe_dir)}.tokens"
    about = path.with_suffix(".json")
    with _one_at_a_time(path.with_suffix(".lock")):
        if not about.is_file():
            say(f"tokenising {settings.path or ', '.join(settings.paths)}")
            count = _tokenise(settings, tokenizer, recipe_dir, path)
            replace_file(about, json.dumps({"documents": count}) + "\n")
    tokens = np.memmap(path, TOKEN_TYPE, "r")
    corpus = Corpus(
        tokens=tokens,
        length=settings.length,
        held_out=settings.held_out,
        documents=json.loads(about.read_text())["documents"],
    )
    if corpus.num_trained < 1:
        raise TextError(
            f"text must have more than text.held_out={settings.held_out} sequences of text.length={settings.length} tokens; it has {len(tokens)} "
            "tokens. Give more text, or lower one of the two."
        )
    return corpus


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which the runs that share a folder of tokens wait for; a process that dies lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tokenise(settings: TextSettings, tokenizer: Tokenizer, recipe_dir: Path, path: Path) -> int:
    """Write all documents, each with the tokenizer's own beginning and an end token; returns their number. The file is there whole or not at all."""
    count = 0
    with replacing(path) as file:
        for text in documents(settings, recipe_dir):
            file.write(np.array((*tokenizer.encode(text), tokenizer.end_id), TOKEN_TYPE).tobytes())
            count += 1
        if not count:
            source = settings.path or ", ".join(settings.paths)
            raise TextError(f"text has no document: every text in {source} is blank, or there is none")
    return count


def _fingerprint(settings: TextSettings, tokenizer: Tokenizer, recipe_dir: Path) -> str:
    """Of what decides the tokens: where the text is, the files' sizes and times, and the tokenizer."""
    parts = {
        "text": settings.model_dump(exclude={"length", "held_out"}),
        "where": str(recipe_dir.resolve()),
        "files": [],
        "tokenizer": hashlib.sha256(tokenizer.fast.to_str().encode()).hexdigest(),
        "ends": [tokenizer.end_id, *tokenizer.encode("")],
    }
    if settings.kind == "files":
        stats = [(str(path), path.stat()) for path in text_files(settings, recipe_dir)]
        parts["files"] = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
