"""How far real vLLM is from the learner at equal weights, by family: `python -m benchmarks.mismatch --write`.

Tiny random checkpoints; vLLM samples in float32 and in bfloat16, the learner computes in float32 with routing replay on, off, and
shifted by a layer.
"""

import datetime
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer

from benchmarks.mismatch_cases import ALPHABET, FAMILIES, OWN, write_case
from benchmarks.mismatch_measure import Mismatch, measure
from benchmarks.mismatch_report import report
from samepath.model.files.policy_files import load_policy
from samepath.rl.batch.pack import TrainSequence
from samepath.rl.machine import child_environment, import_path
from samepath.rollout.pool.pool import worker_environment
from samepath.rollout.pool.process_pool import ProcessPool
from samepath.rollout.pool.settings import RolloutSettings
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Prompt
from samepath.rollout.vllm.settings import VllmSettings

PROMPT_TOKENS = 24
RESULT = Path("docs/results/mismatch.md")
CASES = (*FAMILIES, OWN)
Dtype = Literal["float32", "bfloat16"]


def sample(folder: Path, engine: VllmSettings, prompts: int, tokens: int) -> list[TrainSequence]:
    """Draw one response of `tokens` tokens to each of `prompts` random prompts with vLLM, in a process of its own."""
    rng = np.random.default_rng(0)
    sampling = SamplingSettings(max_new_tokens=tokens, ignore_stop=True)
    requests = [
        GroupRequest(
            group_id=str(index),
            prompt=Prompt(
                prompt_id=str(index),
                text="",
                token_ids=tuple(int(token) for token in rng.integers(2, len(ALPHABET) + 2, PROMPT_TOKENS)),
            ),
            sampling=sampling,
            seeds=(index,),
        )
        for index in range(prompts)
    ]
    settings = RolloutSettings()
    variables = child_environment(worker_environment(engine, settings, import_path(Path.cwd())))
    pool = ProcessPool(folder, engine, settings, variables)
    try:
        groups = pool.sample(requests, lambda group: None)
    finally:
        pool.close()
    return [
        TrainSequence(segment=rollout.segments[0], temperature=1.0, name=group.group_id)
        for group in groups
        for rollout in group.rollouts
    ]


def compare(family: str, dtype: Dtype, prompts: int, tokens: int, seed: int) -> Mismatch:
    """Measure one family: vLLM in `dtype` against the float32 learner, both with the weights of one checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        write_case(family, Path(folder), seed)
        engine = VllmSettings(
            dtype=dtype, network="own" if family == OWN else "vllm", max_sequences=64, cache_bytes=64 << 20
        )
        sequences = sample(Path(folder), engine, prompts, tokens)
        return measure(load_policy(Path(folder), "own" if family == OWN else "transformers", "torch"), sequences)


def run(
    prompts: Annotated[int, typer.Option(min=1, help="random prompts, one response each")] = 32,
    tokens: Annotated[int, typer.Option(min=1, max=200, help="tokens of a response")] = 96,
    seed: Annotated[int, typer.Option(help="of the random weights")] = 0,
    family: Annotated[str, typer.Option(help="families with commas")] = ",".join(CASES),
    write: Annotated[bool, typer.Option(help=f"write {RESULT}")] = False,
) -> None:
    """Compare vLLM and the learner on tiny random checkpoints and print the tables."""
    names: Sequence[str] = family.split(",")
    if unknown := set(names) - set(CASES):
        raise typer.BadParameter(f"families must be among {', '.join(CASES)}; got {', '.join(sorted(unknown))}")
    results: dict[Dtype, dict[str, Mismatch]] = {"float32": {}, "bfloat16": {}}
    for name in names:
        # The own network runs in float32 alone.
        for dtype, found in list(results.items())[: 1 if name == OWN else 2]:
            found[name] = compare(name, dtype, prompts, tokens, seed)
            typer.echo(f"{name} {dtype}: {found[name]}")
    command = " ".join(["python -m benchmarks.mismatch", *sys.argv[1:]])
    page = report(results["float32"], results["bfloat16"], command, datetime.date.today())
    typer.echo("\n" + page)
    if write:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(page)


if __name__ == "__main__":
    typer.run(run)
