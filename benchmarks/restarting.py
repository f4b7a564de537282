"""What becomes of answers' lengths when new weights interrupt them: they go on, or they are thrown away and asked again.

    samepath run recipes/quickstart.yaml
    python -m benchmarks.restarting runs/quickstart

The model that the run's RL began with (another one with `--step`) answers the run's prompts, two batches in flight (a weight lag of 1).
Whenever the oldest batch is complete it is taken for training, and new weights interrupt the other one. The weights are equal each time, so what an
answer's length should be does not change: `continue` keeps the tokens of unfinished answers, `restart` draws these answers anew with other seeds,
as trainers do that discard stale work. Finished answers stay in both. `alone` answers each prompt to its end, which nothing can bias. This
project has no such mode; the benchmark stops and asks again by itself.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from samepath.model.files.checkpoint import load_checkpoint
from samepath.model.text.tokenizer import load_tokenizer
from samepath.rl.feed import Feed
from samepath.rl.measure import checkpoint_of_run
from samepath.rl.run_folder import recipe_of_run
from samepath.rl.tasks.tasks import build_task
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.request import GroupRequest
from samepath.rollout.seeds import seed_of

WAYS = ("alone", "continue", "restart")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a way took for training."""

    lengths: NDArray[np.int64]
    """Tokens of each answer, batch after batch."""
    thrown_away: int
    """Tokens that were drawn and are in no answer."""
    engine_steps: int
    """Forward passes."""

    def line(self, way: str) -> dict[str, float | str]:
        """The numbers as printed."""
        lengths = self.lengths
        return {
            "way": way,
            "answers": len(lengths),
            "mean": float(lengths.mean()),
            "standard_error": float(lengths.std(ddof=1) / len(lengths) ** 0.5),
            "median": float(np.median(lengths)),
            "quantile_90": float(np.quantile(lengths, 0.9)),
            "thrown_away_share": self.thrown_away / (self.thrown_away + int(lengths.sum())),
            "engine_steps": self.engine_steps,
        }


@dataclass(slots=True)
class _Answer:
    """One answer of a batch."""

    request: GroupRequest
    length: int = 0
    """Tokens; 0 until it has ended."""
    attempt: int = 0


def trained(engine: BuiltinEngine, asked: list[GroupRequest], per_batch: int, way: str) -> Trained:
    """Take the requests' answers batch after batch, each request being of one sample.

    Raises ValueError for another way than those of `WAYS`.
    """
    if way not in WAYS:
        raise ValueError(f"way must be one of {', '.join(WAYS)}; got {way!r}")
    batches = [[_Answer(request) for request in asked[at : at + per_batch]] for at in range(0, len(asked), per_batch)]
    lengths: list[int] = []
    thrown_away = 0
    for number, batch in enumerate(batches):
        ahead = [] if way == "alone" else [one for later in batches[number + 1 : number + 2] for one in later]
        if number == 0 or way == "alone":
            _ask(engine, batch)
        _ask(engine, ahead)
        waiting = {one.request.group_id: one for one in (*batch, *ahead) if not one.length}
        while not all(one.length for one in batch):
            for group in engine.step():
                waiting.pop(group.group_id).length = group.rollouts[0].num_trained
        lengths += [one.length for one in batch]
        if way == "restart":
            thrown_away += sum(rollout.num_trained for group in engine.abort() for rollout in group.rollouts)
            for one in waiting.values():
                one.attempt += 1
                seed = seed_of("again", one.request.group_id, one.attempt)
                engine.submit(_seeded(one.request, seed))
        else:
            engine.load_weights({name: held.clone() for name, held in engine.held_weights().items()}, number + 1)
    return Trained(lengths=np.array(lengths), thrown_away=thrown_away, engine_steps=engine.counters.steps)


def _ask(engine: BuiltinEngine, answers: list[_Answer]) -> None:
    for one in answers:
        engine.submit(one.request)


def _seeded(request: GroupRequest, seed: int) -> GroupRequest:
    return GroupRequest(group_id=request.group_id, prompt=request.prompt, sampling=request.sampling, seeds=(seed,))


def requests(feed: Feed, batches: int) -> Iterator[GroupRequest]:
    """Every sample of the feed's first batches as a request of its own."""
    for number in range(batches * feed.recipe.rl.prompts_per_step):
        request = feed.request(number)
        assert isinstance(request, GroupRequest)
        for index, seed in enumerate(request.seeds):
            yield GroupRequest(
                group_id=f"{number}-{index}", prompt=request.prompt, sampling=request.sampling, seeds=(seed,)
            )


def main() -> None:
    """Print one line of JSON for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of recipes/quickstart.yaml")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--step", type=int, default=0, help="whose weights; 0 are those that RL began with")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recipe = recipe_of_run(asked.run, [])
    folder, _ = checkpoint_of_run(asked.run, asked.step)
    tokenizer = load_tokenizer(folder)
    feed = Feed(recipe=recipe, task=build_task(recipe.task, asked.run), tokenizer=tokenizer)
    per_batch = recipe.rl.prompts_per_step * recipe.rl.group_size
    wanted = list(requests(feed, asked.batches))
    assert isinstance(recipe.engine, BuiltinSettings)
    for way in WAYS:
        settings = recipe.engine.model_copy(update={"max_sequences": 2 * per_batch})
        engine = BuiltinEngine(load_checkpoint(folder), tokenizer, settings)
        print(json.dumps(trained(engine, wanted, per_batch, way).line(way)), flush=True)


if __name__ == "__main__":
    main()
