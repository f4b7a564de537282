"""Needles in a haystack: is a value found again whose key was named once, far back, among more keys than are selected?

The haystack is held-out text; what a needle says, and how it is asked for, is a template of the recipe, so that any tokenizer can write it.
Axes: M tokens of the answer, U their rows, V vocabulary, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.batch.pack import pack
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.learner.worked_batches import supervised_sequence
from samepath.rl.recipe.text import NeedleSettings

Grid = tuple[tuple[float, ...], ...]
"""`[length][depth]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleScores:
    """How well values are found, mean over the samples of a length and depth."""

    accuracies: Grid
    """Share of samples whose whole value is the likeliest continuation, token by token."""
    probabilities: Grid
    """Of the whole value."""

    def mean(self) -> float:
        """Accuracy over the grid."""
        return float(np.mean(self.accuracies))


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleMeasure:
    """A model on needles."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    dense: NeedleScores
    """Over all keys."""
    sparse: Mapping[int, NeedleScores]
    """Number of selected keys → over those."""

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        accuracies = {amount: scores.accuracies for amount, scores in self.sparse.items()}
        probabilities = {amount: scores.probabilities for amount, scores in self.sparse.items()}
        return {
            "lengths": self.lengths,
            "depths": self.depths,
            "accuracy": {"dense": self.dense.accuracies, "sparse": accuracies},
            "probability": {"dense": self.dense.probabilities, "sparse": probabilities},
        }

    def metrics(self, topk: int) -> dict[str, float]:
        """`sparse/needle_…` for tracking; those of the model's own `topk` without a number."""
        found = {"sparse/needle_dense_accuracy": self.dense.mean()}
        for amount, scores in self.sparse.items():
            name = "" if amount == topk else f"_top{amount}"
            found[f"sparse/needle_accuracy{name}"] = scores.mean()
            found[f"sparse/needle_probability{name}"] = float(np.mean(scores.probabilities))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedlePrompt:
    """One question, and what its answer is."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    needle: tuple[int, int]
    """First token of the needle in the prompt, and the one behind its last."""


def needle_prompt(
    settings: NeedleSettings,
    tokenizer: Tokenizer,
    hay: NDArray[np.int64],
    length: int,
    depth: float,
    rng: np.random.Generator,
) -> NeedlePrompt:
    """`length` tokens, answer included: hay with the needle at a depth (0 first, 1 right before the question) and other pairs anywhere.

    The hay begins anywhere in `hay` and starts over at its end. Raises ValueError for a length that the needles do not fit into, and for text that the
    tokenizer has no token for.
    """
    # No two keys alike: a needle has one answer.
    keys, values = (
        [f"{number:0{settings.digits}}" for number in rng.choice(10**settings.digits, settings.others + 1, replace)]
        for replace in (False, True)
    )
    pairs = [_pair(settings, tokenizer, key, value) for key, value in zip(keys, values, strict=True)]
    question, answer, _ = pairs[0]
    room = length - len(tokenizer.prefix_ids) - sum(len(part) for pair in pairs for part in pair)
    room -= len(question) + len(answer)
    if room < 0:
        raise ValueError(
            f"stage.needles.lengths must have room for the needle, {settings.others} other pairs and the question; {length} is {-room} tokens too short"
        )
    straw = np.resize(np.roll(hay, -int(rng.integers(len(hay)))), room).tolist()
    cuts = [round(depth * room), *(int(cut) for cut in rng.integers(0, room + 1, settings.others))]
    ids, first, begin = list(tokenizer.prefix_ids), 0, 0
    for cut, place in sorted(zip(cuts, range(len(pairs)), strict=True)):
        ids += straw[first:cut]
        first = cut
        if place == 0:
            begin = len(ids)
        ids += [token for part in pairs[place] for token in part]
    ids += [*straw[first:], *question]
    size = sum(map(len, pairs[0]))
    return NeedlePrompt(prompt=tuple(ids), answer=answer, needle=(begin, begin + size))


@torch.no_grad()
def measure_needles(
    model: CausalLM, tokenizer: Tokenizer, hay: NDArray[np.int64], settings: NeedleSettings, amounts: Sequence[int]
) -> NeedleMeasure:
    """Ask for every needle over all keys, and over each number of selected ones. Raises ValueError as `needle_prompt` does."""
    ways = (None, *sorted({*amounts, model.config.index_topk}))
    shape = (2, len(ways), len(settings.lengths), len(settings.depths))
    sums = np.zeros(shape)
    for row, length in enumerate(settings.lengths):
        for column, depth in enumerate(settings.depths):
            for sample in range(settings.samples):
                rng = np.random.default_rng((length, column, sample))
                asked = needle_prompt(settings, tokenizer, hay, length, depth, rng)
                for place, amount in enumerate(ways):
                    sums[:, place, row, column] += _scores(model, asked, amount)
    means = sums / settings.samples
    scores = [NeedleScores(accuracies=_grid(right), probabilities=_grid(likely)) for right, likely in zip(*means)]
    return NeedleMeasure(
        lengths=settings.lengths,
        depths=settings.depths,
        dense=scores[0],
        sparse={amount: one for amount, one in zip(ways, scores) if amount is not None},
    )


def check_needles(settings: NeedleSettings, tokenizer: Tokenizer) -> None:
    """Raise ValueError for needles that the tokenizer cannot write, or that do not fit."""
    for length in settings.lengths:
        needle_prompt(settings, tokenizer, np.zeros(1, np.int64), length, 0.5, np.random.default_rng(0))


def _pair(
    settings: NeedleSettings, tokenizer: Tokenizer, key: str, value: str
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(what the question repeats, the answer, what stands behind it); encoded apart, so that the answer has the same tokens in both places."""
    ahead, behind = settings.text.split("{value}")
    asked = ahead.rstrip(" ").replace("{key}", key)
    # A blank belongs to the word behind it, as tokenizers of words have it.
    blank = ahead[len(ahead.rstrip(" ")) :]
    before, answer, after = (tokenizer.encode_continuation(part) for part in (asked, blank + value, behind))
    return before, answer, after


def _scores(model: CausalLM, asked: NeedlePrompt, amount: int | None) -> tuple[float, float]:
    """(1 if each token of the answer is the likeliest, its probability); `amount` None looks at all keys."""
    packed = pack([supervised_sequence(asked.prompt, asked.answer, model.shape)], model.shape)
    num_selected = int(packed.positions_N.max()) + 1 if amount is None else amount
    result = run_policy(model, packed, routes_LNX=None, use_support=False, num_selected=num_selected)
    best_U = (result.hidden_UD @ model.head_weight.T).argmax(-1).cpu()
    right = bool((best_U[packed.scored_M] == packed.targets_M).all())
    return float(right), float(result.logprobs_M.double().sum().exp())


def _grid(values: NDArray[np.float64]) -> Grid:
    return tuple(map(tuple, values.tolist()))
