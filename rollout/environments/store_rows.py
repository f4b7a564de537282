"""Rows of the store: hidden values, some of which point to other keys, and the questions about them.

A row is held out if a digest of its text says so: whatever the other options, no training row is a held-out one.
"""

import random
import string
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from samepath.model.text.conversation import JsonValue
from samepath.rollout.environments.held_out import is_held_out
from samepath.rollout.environments.protocol import EnvironmentRow, Split

LARGEST = 99
"""Numbers of the store are 1 … 99."""
HELD_OUT_SHARE = 1 / 8
"""Of all texts."""
MAX_DRAWS = 1000
"""Draws for one row; where texts are many, all of them fail once in 10⁵⁸ rows."""

Store = Mapping[str, int | str]
"""A number for each key, or the key where to look instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """What the rows are like and how many there are. Raises ValueError for a store that cannot hold what is asked.

    Example:
        StoreOptions(num_keys=16, num_pointers=6, questions=2, harder_share=0.25)
    """

    num_keys: int = 16
    """Keys, named A, B, C …"""
    num_pointers: int = 6
    """Of these, keys that point to another."""
    depth: int = 1
    """Most pointers between a key that is asked for and its number; 0 where there are none."""
    terms: int = 2
    """Keys whose numbers a question adds up."""
    questions: int = 2
    """Questions of a conversation, on keys that none before asked for."""
    harder_share: float = 0.0
    """Share of rows, held-out ones too, that are harder in one of two ways, each as likely."""
    harder_depth: int = 2
    """Pointers between one key of one question and its number, where a chain is what is harder."""
    harder_terms: int = 3
    """Keys of one question, where these are what is harder."""
    tools: bool = True
    """False: nothing can be looked up."""
    noise: int = 0
    """Random letters behind the value in each answer of `get`, so that contexts are long and what matters in them is rare."""
    system: str = ""
    """The system's text, before the tools."""
    share_weight: float = 0.5
    """Weight in the total of the share of right answers; the rest is for all of them being right."""
    num_train: int = 100_000
    """Training rows."""
    num_held_out: int = 128
    """Held-out rows, all different."""
    seed: int = 0
    """Seed of both splits."""

    def __post_init__(self) -> None:
        letters = len(string.ascii_uppercase)
        if not (1 <= self.num_keys <= letters and 0 <= self.num_pointers < self.num_keys):
            raise ValueError(
                f"num_keys must be 1 to {letters}, and num_pointers below it so that a number is left; got {self.num_keys} and "
                f"{self.num_pointers}"
            )
        if not min(self.num_pointers, 1) <= self.depth <= self.num_pointers:
            raise ValueError(
                f"depth must be 1 to num_pointers, or 0 without pointers; got {self.depth} with {self.num_pointers} pointers"
            )
        for name in ("terms", "questions", "num_train", "num_held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0; got {self.noise}")
        for name in ("harder_share", "share_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1; got {getattr(self, name)}")
        if self.harder_share:
            self._check_harder()
        asked = self.questions * self.terms + (self.harder_terms - self.terms if self.harder_share else 0)
        if asked > self.num_keys:
            raise ValueError(
                f"num_keys must be at least {asked}, the different keys that a conversation asks for; got {self.num_keys}"
            )

    def _check_harder(self) -> None:
        if self.harder_depth <= self.depth or self.harder_terms <= self.terms:
            raise ValueError(
                f"harder_depth and harder_terms must be above depth {self.depth} and terms {self.terms}; got {self.harder_depth} and "
                f"{self.harder_terms}"
            )
        if self.harder_depth > self.num_pointers:
            raise ValueError(
                f"num_pointers must be at least {self.harder_depth}, for a chain of so many; got {self.num_pointers}"
            )
        # A chain's keys beyond `depth` are asked for in no other place.
        needed = self.questions * self.terms - 1 + self.harder_depth - self.depth
        if needed > self.num_keys:
            raise ValueError(
                f"num_keys must be at least {needed}, with chains of {self.harder_depth}; got {self.num_keys}"
            )


def draw_row(options: StoreOptions, split: Split, index: int, taken: Container[str] = ()) -> EnvironmentRow:
    """Row `index` of a split: the first draw whose text belongs there and is not among the `taken` ones.

    Raises ValueError if there is none: the options allow too few texts.
    """
    for draw in range(MAX_DRAWS):
        row = _drawn(options, random.Random(f"{options.seed}/{split}/{index}/{draw}"), f"{split}-{index}")
        if is_held_out(row.text, HELD_OUT_SHARE) == (split == "held_out") and row.text not in taken:
            return row
    raise ValueError(f"{MAX_DRAWS} draws gave no {split} row {index}: these options allow too few different rows")


def links(store: Store, key: str) -> int:
    """Pointers between the key and its number."""
    value = store[key]
    return 0 if isinstance(value, int) else 1 + links(store, value)


def number(store: Store, key: str) -> int:
    """What the key stands for, at the end of its pointers."""
    value = store[key]
    return value if isinstance(value, int) else number(store, value)


def noise_of(row_id: str, key: str, length: int) -> str:
    """`length` letters, the same ones whenever the key of that row is looked up."""
    return "".join(random.Random(f"{row_id}/{key}").choices(string.ascii_lowercase, k=length))


def question_text(keys: Sequence[str]) -> str:
    """What the user says."""
    return f"{' plus '.join(keys)}?"


def draw_questions(
    rng: random.Random,
    store: Store,
    *,
    depth: int,
    terms: Sequence[int],
    deep: Mapping[int, int] = MappingProxyType({}),
) -> list[list[str]]:
    """Questions on different keys, question `q` on `terms[q]` of them, each at most `depth` pointers from its number.

    But for one key of each question in `deep`, which is exactly `deep[q]` pointers, more than `depth`, from its number. Raises ValueError if the
    store has too few such keys.
    """
    asked: list[list[str]] = [[] for _ in terms]
    for place, far in deep.items():
        asked[place] += rng.sample([key for key in store if links(store, key) == far], 1)
    places = [
        place for turn in range(max(terms)) for place, count in enumerate(terms) if turn + len(asked[place]) < count
    ]
    near = [key for key in store if links(store, key) <= depth]
    for place, key in zip(places, rng.sample(near, len(places))):
        asked[place].append(key)
    return [rng.sample(keys, len(keys)) for keys in asked]


def _drawn(options: StoreOptions, rng: random.Random, row_id: str) -> EnvironmentRow:
    harder = rng.choice(("chain", "terms")) if rng.random() < options.harder_share else ""
    terms, deep = [options.terms] * options.questions, {}
    if harder:
        place = rng.randrange(options.questions)
        if harder == "chain":
            deep[place] = options.harder_depth
        else:
            terms[place] = options.harder_terms
    store = _draw_store(rng, options, chain=max(deep.values(), default=0))
    questions = draw_questions(rng, store, depth=options.depth, terms=terms, deep=deep)
    data: dict[str, JsonValue] = {
        "store": {**store},
        "questions": [[*keys] for keys in questions],
        "answers": [sum(number(store, key) for key in keys) for keys in questions],
        "harder": harder,
        "depth": options.depth,
        "terms": options.terms,
        "tools": options.tools,
        "noise": options.noise,
        "system": options.system,
        "share_weight": options.share_weight,
    }
    asked = " then ".join(question_text(keys) for keys in questions)
    return EnvironmentRow(
        row_id=row_id,
        text=f"{asked} {' '.join(f'{key}={value}' for key, value in store.items())}",
        data=data,
        dataset=harder,
    )


def _draw_store(rng: random.Random, options: StoreOptions, chain: int) -> Store:
    """A store whose chains have at most `options.depth` pointers, but for one of `chain` if that is more."""
    keys = string.ascii_uppercase[: options.num_keys]
    order = rng.sample(keys, len(keys))
    num_numbers = options.num_keys - options.num_pointers
    store: dict[str, int | str] = {key: rng.randint(1, LARGEST) for key in order[:num_numbers]}
    for place, key in enumerate(order[num_numbers:]):
        # The first pointers make the chain.
        wanted = range(place, place + 1) if place < chain else range(options.depth)
        store[key] = rng.choice([other for other in store if links(store, other) in wanted])
    return {key: store[key] for key in keys}
