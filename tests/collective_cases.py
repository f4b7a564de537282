"""What tests of the time in collectives let several ranks do (see `tests/ranks.py`)."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from samepath.model import collectives
from samepath.model.collectives import measured
from samepath.model.key_store import PackedKeys
from samepath.model.network.expert_exchange import ExpertExchange
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.optimizer import Optimizer
from samepath.rl.learner.ranks import Ranks
from samepath.rl.learner.sharded_runner import blank_input
from samepath.rl.learner.sharding import named_weights, shard
from samepath.rl.learner.update import PolicyUpdater
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rl.recipe.optimizer import OptimizerSettings
from tests.conftest import tiny_model
from tests.update_runs import GROUPS, SAMPLES

LATE_S = 100
"""How long rank 0 waits, by a clock that only says so."""


def waits(ranks: Ranks) -> Mapping[str, Callable[[], object]]:
    """Calls in which a rank waits for the other, by what they exchange."""
    model = tiny_model()
    shard(model, ranks)
    exchange = ExpertExchange(group=dist.group.WORLD, dtype=torch.float32)  # type: ignore[arg-type]
    tokens_ND, gates_NX, ids_NX = torch.ones(2, 4), torch.ones(2, 1), torch.tensor([[0], [1]])
    up, down = torch.ones(1, 8, 4), torch.ones(1, 4, 4)
    optimizer = Optimizer(model, OptimizerSettings(), total_updates=1)
    optimizer.add([torch.ones_like(one) for one in optimizer.parameters])
    return {
        "what they found": lambda: ranks.together(lambda: 0),
        "gradients": lambda: ranks.exchange(torch.ones(2), [1, 1], [1, 1]),
        "sums": lambda: ranks.gathered(torch.ones(2)),
        "a layer": lambda: model(blank_input(model.shape), PackedKeys(), ForwardTrace()),
        "experts": lambda: exchange.product(tokens_ND, gates_NX, ids_NX, up, down, "torch"),
        "the norm": optimizer.step,
    }


def late(ranks: Ranks, folder: str) -> dict[str, tuple[float, float]]:
    """(seconds in collectives, seconds in all) of each kind of call, where rank 1 comes LATE_S after rank 0.

    Rank 0's clock moves only when rank 1 says so, which it does once rank 0 is inside.
    """
    store, found = dist.FileStore(f"{folder}/late", 2), {}
    store.set_timeout(timedelta(seconds=30))
    for kind, call in waits(ranks).items():
        ranks.wait()
        readings = 0

        def clock(kind: str = kind) -> float:
            nonlocal readings
            readings += 1
            now_s = store.add(f"{kind} now", 0)
            # The first is the block's, the second that of its first collective.
            if readings == 2:
                store.set(f"{kind} inside", "yes")
            return float(now_s)

        with torch.no_grad():
            if ranks.rank == 0:
                with mock.patch.object(collectives, "time", SimpleNamespace(perf_counter=clock)), measured() as seen:
                    call()
                found[kind] = (seen.collective_s, seen.total_s)
            else:
                store.wait([f"{kind} inside"])
                store.add(f"{kind} now", LATE_S)
                call()
    return found


class _Seen(TorchDispatchMode):
    """Sorts every collective of a block by whether it is timed."""

    def __init__(self, is_timed: Callable[[], bool]) -> None:
        super().__init__()
        self.timed: list[str] = []
        self.untimed: list[str] = []
        self._is_timed = is_timed

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(one, DTensor) for one in types):
            # What it is made of comes here after it.
            return NotImplemented
        name = str(function)
        if "c10d" in name and "wait" not in name and "wrap" not in name:
            (self.timed if self._is_timed() else self.untimed).append(name)
        return function(*args, **(kwargs or {}))


def of_an_update(
    ranks: Ranks, batch: TrainBatch, rl: dict[str, Any], learner: dict[str, Any]
) -> tuple[Sequence[str], Sequence[str], int]:
    """The collectives of an update and of handing out its weights that are timed, those that are not, and how many intervals were noted."""
    model, reference = tiny_model(), tiny_model().requires_grad_(False)
    settings = LearnerSettings.model_validate(learner)
    if settings.shard == "full":
        shard(model, ranks, expert_parallel=settings.expert_parallel)
        shard(reference, ranks, expert_parallel=settings.expert_parallel)
    optimizer = Optimizer(model, OptimizerSettings(), total_updates=10)
    algorithm = AlgorithmSettings.model_validate({"prompts_per_step": GROUPS, "group_size": SAMPLES, **rl})
    updater, readings = PolicyUpdater(model, reference, algorithm, settings, ranks), 0

    def clock() -> float:
        nonlocal readings
        readings += 1
        return float(readings)

    # Of the readings the first is the block's; then each collective has two, with nothing but itself between them.
    seen = _Seen(lambda: readings % 2 == 0)
    with mock.patch.object(collectives, "time", SimpleNamespace(perf_counter=clock)), measured() as found, seen:
        updater.run(batch, 0, optimizer)
        ranks.require_equal("buffers", list(model.buffers()))
        if settings.shard == "full":
            for _ in named_weights(model):
                pass
    return seen.timed, seen.untimed, len(found._host)
