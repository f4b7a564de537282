"""The estimate beside a measurement: `python -m samepath.rl.validate.memory_measure RECIPE [key=value …]`, on CPU, in this process.

Runs what a learner holds at its peak: policy, reference, one pass of `learner.max_tokens_per_pass` random tokens with its backward
pass, an AdamW step, and all of it once more.
"""

import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from samepath.model.files.published_sizes import published_sizes
from samepath.model.policy import Policy
from samepath.rl.batch.pack import PackedBatch, pack
from samepath.rl.learner.model_source import build_policy, model_config
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.learner.worked_batches import supervised_sequence
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.model import CheckpointModel, NewModel
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.validate.memory_estimate import FLOAT32, learner_memory
from samepath.rollout.pool.worker import peak_memory_bytes

SEQUENCE_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMemory:
    """Bytes of one process.

    Example: MeasuredMemory(process=270e6, measured=390e6, estimated=320e6, pass_tokens=4032)
    """

    process: int
    """Interpreter and libraries, before any model."""
    measured: int
    """Largest resident size beyond that."""
    estimated: int
    """The formulas' figure for it."""
    pass_tokens: int
    """Rows of the pass."""


def measure(model: NewModel | CheckpointModel, recipe_dir: Path, max_tokens_per_pass: int, seed: int) -> MeasuredMemory:
    """Train twice on random tokens in float32, recording the peak of the resident memory."""
    torch.set_num_threads(1)
    sizes = published_sizes(model_config(model, recipe_dir))
    process = psutil.Process().memory_info().rss
    policy = build_policy(model, recipe_dir, seed)
    reference = build_policy(model, recipe_dir, seed)
    reference.requires_grad_(False)
    gc.collect()
    batch = _batch(policy, max_tokens_per_pass)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    for _ in range(2):
        with torch.no_grad():
            run_policy(reference, batch, routes_LNX=None, use_support=False)
        logprobs_M = run_policy(policy, batch, routes_LNX=None, use_support=False).logprobs_M
        (-logprobs_M.mean()).backward()  # type: ignore[no-untyped-call]
        del logprobs_M
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    estimate = learner_memory(
        sizes, FLOAT32, pass_tokens=batch.num_rows, checkpointing=False, reference=True, frozen=sizes.parts["indexer"]
    )
    return MeasuredMemory(
        process=process,
        measured=peak_memory_bytes() - process,
        estimated=estimate.per_device(1),
        pass_tokens=batch.num_rows,
    )


def _batch(policy: Policy, num_tokens: int) -> PackedBatch:
    rng = np.random.default_rng(0)
    length = min(SEQUENCE_TOKENS, num_tokens)
    sequences = []
    for _ in range(max(num_tokens // length, 1)):
        ids = rng.integers(2, policy.shape.vocab_size, length).tolist()
        sequences.append(supervised_sequence(ids[:4], ids[4:], policy.shape))
    return pack(sequences, policy.shape)


def main(arguments: Sequence[str]) -> None:
    """Print both figures."""
    path = Path(arguments[0])
    recipe = load_recipe(path, arguments[1:], Recipe)
    found = measure(recipe.model, path.parent, recipe.learner.max_tokens_per_pass, recipe.seed)
    sys.stdout.write(
        f"{path}: a pass of {found.pass_tokens} tokens: estimated {found.estimated / 1e6:.0f} MB, measured "
        f"{found.measured / 1e6:.0f} MB beyond the {found.process / 1e6:.0f} MB of the process itself\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
