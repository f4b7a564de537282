"""What a single rendering of the finished conversation trains: `python -m benchmarks.single_rendering runs/store`, a run of recipes/store.yaml.

The run's model leads held-out conversations. Each is then taken twice: as the segments that were drawn, and rendered once from its messages when
it is over, as a chat template would, with every drawn token that is still there laid as trained. Learner and engine have the same weights:
what differs is what the learner sees before each token. Axes: T tokens, M trained tokens.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from samepath.model.files.checkpoint import load_checkpoint
from samepath.model.policy import Policy
from samepath.model.text.conversation import ToolSchema
from samepath.model.text.renderer import Renderer
from samepath.model.text.tokenizer import load_tokenizer
from samepath.rl.batch.pack import TrainSequence, pack
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.measure import checkpoint_of_run
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.run_folder import recipe_of_run
from samepath.rl.tasks.requests import group_request
from samepath.rl.tasks.tasks import build_task
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.conservation import check_conservation
from samepath.rollout.environments.episode_runner import EpisodeRunner
from samepath.rollout.environments.form import renderer_of
from samepath.rollout.environments.request import EpisodeRequest
from samepath.rollout.environments.store import ADD, GET
from samepath.rollout.seeds import seed_of
from samepath.rollout.segments import SegmentError
from samepath.rollout.types import MISSING_ROUTE, CallSpan, Rollout, Segment, Support


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One message of the model with what the engine recorded of its tokens."""

    span: CallSpan
    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    versions: NDArray[np.int32]
    kept: list[NDArray[np.int32]]
    """Candidates of each token; empty where nothing was truncated."""


def drawn_messages(rollout: Rollout) -> Iterator[Drawn]:
    """The model's messages in order."""
    for segment in rollout.segments:
        candidates = _candidates(segment)
        for span in segment.calls:
            place = slice(span.first, span.end)
            before = int(segment.trained[: span.first].sum())
            yield Drawn(
                span=span,
                ids=segment.token_ids[place],
                logprobs=segment.sampler_logprobs[place],
                versions=segment.weight_version[place],
                kept=candidates[before : before + span.end - span.first],
            )


def single_rendering(rollout: Rollout, renderer: Renderer, tools: Sequence[ToolSchema]) -> Segment:
    """The finished conversation in one piece: drawn tokens that stand in it are trained, with the log-probabilities they were drawn with."""
    pieces = renderer.open(rollout.messages, tools)
    ids_T = np.array(pieces.ids, np.int32)
    total, first = len(ids_T), rollout.segments[0]
    trained = np.array([kind == "sampled" for kind in pieces.kinds])
    logprobs, versions = np.zeros(total, np.float32), np.full(total, -1, np.int32)
    kept: list[NDArray[np.int32]] = []
    spans: list[CallSpan] = []
    messages = drawn_messages(rollout)
    for start, end in _runs(trained):
        # Of a message whose reasoning was dropped the end is left; of one that was all reasoning nothing.
        drawn = next(
            one for one in messages if np.array_equal(one.ids[len(one.ids) - (end - start) :], ids_T[start:end])
        )
        left = slice(len(drawn.ids) - (end - start), None)
        logprobs[start:end], versions[start:end] = drawn.logprobs[left], drawn.versions[left]
        kept += drawn.kept[left]
        spans.append(
            CallSpan(index=drawn.span.index, first=start, end=end, finish_reason="stop", digest=drawn.span.digest)
        )
    return Segment(
        token_ids=ids_T,
        trained=trained,
        sampler_logprobs=logprobs,
        routes=np.full((total, *first.routes.shape[1:]), MISSING_ROUTE, np.int16),
        support=None
        if first.support is None
        else Support(counts=np.array([len(row) for row in kept], np.int32), ids=np.concatenate(kept)),
        selection_fingerprint=None,
        weight_version=versions,
        finish_reason="stop",
        calls=tuple(spans),
    )


def largest_gap(policy: Policy, segments: Sequence[Segment], temperature: float) -> float:
    """Largest |log-probability of the learner − of the engine| over the trained tokens, nats; the learner routes live."""
    largest = 0.0
    with torch.no_grad():
        for number, segment in enumerate(segments):
            packed = pack([TrainSequence(segment=segment, temperature=temperature, name=str(number))], policy.shape)
            scored = run_policy(policy, packed, routes_LNX=None, use_support=segment.support is not None)
            largest = max(largest, float((scored.logprobs_M - packed.sampler_logprobs_M).abs().max()))
    return largest


def refused(segments: Sequence[Segment]) -> str:
    """Why the law refuses a rollout of these segments; empty if it does not."""
    try:
        check_conservation(segments, "rollout")
    except SegmentError as error:
        return str(error)
    return ""


def compared(
    policy: Policy, rollouts: Sequence[Rollout], renderer: Renderer, tools: Sequence[ToolSchema], temperature: float
) -> list[dict[str, float | str]]:
    """One row a way: tokens trained, rollouts refused with a reason, and the largest gap. Only conversations of several segments are taken."""
    several = [rollout for rollout in rollouts if len(rollout.segments) > 1 and rollout.ended == "answer"]
    if not several:
        raise ValueError(f"none of {len(rollouts)} conversations has several segments and an end")
    ways = {
        "as drawn": [list(rollout.segments) for rollout in several],
        "one rendering": [[single_rendering(rollout, renderer, tools)] for rollout in several],
    }
    rows: list[dict[str, float | str]] = []
    for name, taken in ways.items():
        segments = list(itertools.chain(*taken))
        reasons = [reason for part in taken if (reason := refused(part))]
        rows.append(
            {
                "way": name,
                "conversations": len(taken),
                "segments": len(segments),
                "drawn_tokens": sum(rollout.num_trained for rollout in several),
                "trained_tokens": sum(segment.num_trained for segment in segments),
                "refused": len(reasons),
                "reason": reasons[0] if reasons else "",
                "largest_gap": largest_gap(policy, segments, temperature),
            }
        )
    return rows


def _candidates(segment: Segment) -> list[NDArray[np.int32]]:
    if segment.support is None:
        return []
    return np.split(segment.support.ids, segment.support.counts.cumsum()[:-1])


def _runs(trained: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(first, end) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def main() -> None:
    """Print one line of JSON for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of recipes/store.yaml")
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    recipe = recipe_of_run(asked.run, [])
    assert isinstance(recipe.task, EnvironmentTask)
    assert isinstance(recipe.engine, BuiltinSettings)
    folder, _ = checkpoint_of_run(asked.run, None)
    policy, tokenizer = load_checkpoint(folder), load_tokenizer(folder)
    runner = EpisodeRunner(BuiltinEngine(policy, tokenizer, recipe.engine), exact=True)
    task = build_task(recipe.task, asked.run)
    for index in range(asked.conversations):
        row = task.held_out[index % len(task.held_out)]
        request = group_request(row, tokenizer, recipe.sampling, f"c{index}", (seed_of("rendering", index),))
        assert isinstance(request, EpisodeRequest)
        runner.submit(request)
    rollouts: list[Rollout] = []
    while runner.busy:
        rollouts += [rollout for group in runner.step() for rollout in group.rollouts]
    runner.abort()
    renderer = renderer_of(tokenizer, recipe.task.episode.form)
    for line in compared(policy, rollouts, renderer, (GET, ADD), recipe.sampling.temperature):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
