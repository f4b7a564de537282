"""vLLM workers under Ray and in a child process: equal samples, new weights, a killed worker, starts that fail."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from safetensors.torch import load_file

pytest.importorskip("ray")

from samepath.rl.learner.ray_cluster import running_cluster
from samepath.rl.machine import child_environment
from samepath.rl.recipe.cluster import RaySettings
from samepath.rollout.engine_errors import RolloutPoolError
from samepath.rollout.pool.pool import RolloutPool, worker_environment
from samepath.rollout.pool.process_pool import ProcessPool
from samepath.rollout.pool.ray_pool import RayPool
from samepath.rollout.pool.settings import RolloutSettings
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
from samepath.rollout.vllm.settings import VllmSettings
from tests.tiny_runs import request
from tests.vllm.conftest import EXACT
from tests.vllm_checkpoints import VOCAB_SIZE

SETTINGS = RolloutSettings(num_workers=1, max_replacements=1, stall_timeout_s=60.0)
ENVIRONMENT = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}


@pytest.fixture(scope="module", params=["ray", "process"])
def pool(request: pytest.FixtureRequest, checkpoint: Callable) -> Iterator[RolloutPool]:
    """One worker of each kind."""
    folder = checkpoint("qwen3_moe")
    if request.param == "process":
        variables = worker_environment(EXACT, SETTINGS, ENVIRONMENT)
        made: RolloutPool = ProcessPool(folder, EXACT, SETTINGS, child_environment(variables))
        yield made
        made.close()
        return
    with running_cluster(RaySettings(object_store_bytes=100 << 20)):
        made = RayPool(folder, EXACT, SETTINGS, ENVIRONMENT)
        yield made
        made.close()


def asked(count: int = 6, length: int = 40):
    """Groups of two samples on random prompts."""
    rng = np.random.default_rng(2)
    sampling = SamplingSettings(max_new_tokens=length, top_p=0.9, ignore_stop=True)
    return [
        request(
            f"g{index}", tuple(int(token) for token in rng.integers(2, VOCAB_SIZE, 9)), sampling, (index, index + 50)
        )
        for index in range(count)
    ]


def tokens(groups: Sequence[Group]) -> list[list[int]]:
    """What was sampled."""
    return [rollout.segments[0].token_ids.tolist() for group in groups for rollout in group.rollouts]


def test_sample_with_a_killed_worker_goes_on_with_the_current_weights(
    pool: RolloutPool, engine: Callable, checkpoint: Callable
) -> None:
    weights = {
        name: tensor.numpy() for name, tensor in load_file(checkpoint("qwen3_moe", 7) / "model.safetensors").items()
    }
    pool.load_weights(weights, 5)
    wanted = tokens(engine("qwen3_moe", 7).run(asked()))
    assert tokens(pool.sample(asked(), lambda group: None)) == wanted
    before, finished = pool.process_ids()[0], []

    def on_group(group: Group) -> None:
        finished.append(group.group_id)
        if len(finished) == 1:
            os.kill(before, signal.SIGKILL)

    # More groups than the engine has rows, so that some are unfinished when the first is there.
    many = asked(40)
    groups = pool.sample(many, on_group)
    assert sorted(finished) == sorted(entry.group_id for entry in many), "no finished group may be asked for twice"
    assert pool.process_ids()[0] != before
    assert pool.statistics()["replaced_workers"] == 1
    versions = {
        int(v) for group in groups for rollout in group.rollouts for v in rollout.segments[0].weight_version[-40:]
    }
    assert versions == {5}
    os.kill(pool.process_ids()[0], signal.SIGKILL)
    with pytest.raises(RolloutPoolError, match="max_replacements=1"):
        pool.sample(asked(), lambda group: None)


def test_process_pool_whose_engine_cannot_start_says_why(checkpoint: Callable) -> None:
    """A cache too small for one sequence of the model's length."""
    tiny = VllmSettings(dtype="float32", cache_bytes=1 << 16, max_sequences=8)
    folder = checkpoint("llama")
    variables = child_environment(worker_environment(tiny, SETTINGS, ENVIRONMENT))
    with pytest.raises(RolloutPoolError, match=r"EngineUnavailableError: vLLM cannot serve .*engine\.cache_bytes"):
        ProcessPool(folder, tiny, SETTINGS, variables)


def test_ray_pool_whose_engine_cannot_start_says_why(checkpoint: Callable) -> None:
    """A worker with another build of vLLM than the recipe asks for."""
    with (
        running_cluster(RaySettings(object_store_bytes=100 << 20)),
        pytest.raises(RolloutPoolError, match=r"engine\.device=cuda, but the installed vLLM is the cpu build"),
    ):
        RayPool(checkpoint("llama"), VllmSettings(device="cuda"), SETTINGS, ENVIRONMENT)
