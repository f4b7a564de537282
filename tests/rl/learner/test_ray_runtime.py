"""The same run under Ray: equal results, a killed worker, and nobody beyond this machine who can reach it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

ray = pytest.importorskip("ray")

from samepath.model.files.checkpoint import load_checkpoint, published_tensors  # noqa: E402
from samepath.model.manifest import require_whole  # noqa: E402
from samepath.model.text.tokenizer import Tokenizer  # noqa: E402
from samepath.rl.learner.model_source import save_model  # noqa: E402
from samepath.rl.learner.ray_cluster import running_cluster  # noqa: E402
from samepath.rl.learner.ray_learner import RayLearner  # noqa: E402
from samepath.rl.loop import Loop  # noqa: E402
from samepath.rl.machine import import_path  # noqa: E402
from samepath.rl.recipe.cluster import RaySettings  # noqa: E402
from samepath.rl.run import start_run  # noqa: E402
from samepath.rl.tracking.jsonl import read_metrics  # noqa: E402
from samepath.rollout.builtin.settings import BuiltinSettings  # noqa: E402
from samepath.rollout.engine_errors import RolloutPoolError  # noqa: E402
from samepath.rollout.pool import ray_pool  # noqa: E402
from samepath.rollout.pool.pool import InlinePool  # noqa: E402
from samepath.rollout.pool.ray_pool import RayPool  # noqa: E402
from samepath.rollout.pool.settings import RolloutSettings  # noqa: E402
from samepath.rollout.request import GroupRequest  # noqa: E402
from samepath.rollout.sampling_settings import SamplingSettings  # noqa: E402
from samepath.rollout.types import Group, Prompt  # noqa: E402
from samepath.rollout.weights.changes import LastVersion  # noqa: E402
from samepath.rollout.weights.mark import require_equal  # noqa: E402
from samepath.rollout.weights.outgoing import Outgoing  # noqa: E402
from samepath.rollout.weights.publication import Publication  # noqa: E402
from tests.conftest import tiny_model  # noqa: E402
from tests.engine_runs import assert_same_samples  # noqa: E402
from tests.random_conversations import episodes, talking_tokenizer  # noqa: E402
from tests.rl.hungry_worker import FULL, HungryWorker  # noqa: E402
from tests.rl.test_run import comparable  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A checkpoint for the workers."""
    save_model(tiny_model(), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def requests(tokenizer: Tokenizer, count: int) -> list[GroupRequest]:
    """`count` groups of three long samples."""
    return [
        GroupRequest(
            group_id=f"g{index}",
            prompt=Prompt(prompt_id=str(index), text=f"{index}+1=", token_ids=tokenizer.encode(f"{index}+1=")),
            sampling=SamplingSettings(max_new_tokens=60, ignore_stop=True),
            seeds=(index, index + 100, index + 200),
        )
        for index in range(count)
    ]


def texts(groups: list[Group]) -> list[list[str]]:
    """What was sampled."""
    return [[rollout.text for rollout in group.rollouts] for group in groups]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose model speaks in messages, too."""
    folder = tmp_path_factory.mktemp("pool") / "model"
    save_model(tiny_model(), talking_tokenizer(), folder)
    return folder


ENGINE = BuiltinSettings(max_sequences=6, page_size=4)


@pytest.fixture(scope="module")
def pool(cluster: None, model_folder: Path) -> Iterator[RayPool]:
    """Two workers for the tests that kill one of them: each test loads its weights, and leaves two workers."""
    settings = RolloutSettings(num_workers=2, max_replacements=3)
    made = RayPool(model_folder, ENGINE, settings, import_path(Path.cwd()))
    yield made
    made.close()


@pytest.fixture
def inline(model_folder: Path) -> Iterator[InlinePool]:
    """The same in this process."""
    made = InlinePool(model_folder, ENGINE, RolloutSettings())
    yield made
    made.close()


def replaced(pool: RayPool) -> float:
    """How many workers were replaced so far."""
    return pool.statistics()["replaced_workers"]


def test_sample_with_a_killed_worker_keeps_finished_groups_and_the_current_weights(
    pool: RayPool, inline: InlinePool, tokenizer: Tokenizer
) -> None:
    other = tiny_model(seed=5)
    weights = {name: tensor.detach().numpy().copy() for name, tensor in published_tensors(other).items()}
    pool.load_weights(weights, 7)
    before, already = pool.process_ids(), replaced(pool)
    finished: list[str] = []

    def on_group(group: Group) -> None:
        finished.append(group.group_id)
        if len(finished) == 1:
            os.kill(before[0], signal.SIGKILL)

    asked = requests(tokenizer, 12)
    groups = pool.sample(asked, on_group)
    assert sorted(finished) == sorted(request.group_id for request in asked), "no finished group may be asked for twice"
    assert replaced(pool) == already + 1
    after = pool.process_ids()
    assert before[0] not in after
    assert before[1] in after
    versions = {
        int(v) for group in groups for rollout in group.rollouts for v in rollout.segments[0].weight_version[-5:]
    }
    assert versions == {7}, "the replacement must serve the current weights"
    inline.load_weights(weights, 7)
    assert texts(groups) == texts(inline.sample(asked, lambda group: None))


def test_worker_that_comes_late_takes_the_last_whole_version_and_what_changed_since(
    pool: RayPool, inline: InlinePool, tokenizer: Tokenizer
) -> None:
    model, last, already = tiny_model(seed=5), LastVersion(), replaced(pool)
    for version in (1, 2, 3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.view(-1)[version] += 0.25
        outgoing = Outgoing(published_tensors(model).items(), 8192, last)
        buckets = tuple(ray.put(bucket) for bucket in outgoing)
        head = outgoing.header(version)
        assert bool(head.base) == (version > 1)
        pool.load_weights(Publication(version=version, header=ray.put(head), base=head.base, buckets=buckets), version)
    asked = requests(tokenizer, 3)
    inline.load_weights(dict(published_tensors(model)), 3)
    wanted = texts(inline.sample(asked, lambda group: None))
    assert texts(pool.sample(asked, lambda group: None)) == wanted
    os.kill(pool.process_ids()[0], signal.SIGKILL)
    assert texts(pool.sample(asked, lambda group: None)) == wanted
    assert replaced(pool) == already + 1


def test_conversations_of_a_killed_actor_begin_again_and_are_those_of_any_worker(
    pool: RayPool, inline: InlinePool, tmp_path: Path
) -> None:
    weights, already = dict(published_tensors(tiny_model())), replaced(pool)
    pool.load_weights(weights, 0)
    inline.load_weights(weights, 0)
    wanted = inline.sample(episodes(), lambda group: None)
    finished: list[str] = []
    asked = episodes(killed=str(tmp_path / "killed"))
    groups = pool.sample(asked, lambda group: finished.append(group.group_id))
    assert replaced(pool) == already + 1
    assert sorted(finished) == [request.group_id for request in asked]
    for one, other in zip(wanted, groups, strict=True):
        assert_same_samples(one, other)
        assert [left.messages for left in one.rollouts] == [right.messages for right in other.rollouts]


SHARDED = ("learner.ranks=2", "learner.shard=full")
IN_PLACE = (*SHARDED, "learner.expert_parallel=true")


@pytest.mark.parametrize("ranks", [(), *(pytest.param(one, marks=pytest.mark.slow) for one in (SHARDED, IN_PLACE))])
def test_weights_of_a_learner_under_ray_cross_in_buckets_that_the_driver_does_not_read(
    pool: RayPool, tiny_recipe, tmp_path: Path, ranks: tuple[str, ...]
) -> None:
    recipe = tiny_recipe("learner.weight_bucket_bytes=8192", *ranks)
    learner = RayLearner(recipe, tmp_path, recipe.run_dir, None)
    try:
        learner.start_rl()
        published = learner.weights()
        assert (published.tensors, published.policy) == (None, None)
        assert len(published.buckets) > 3
        pool.load_weights(published, 0)
        assert pool.handover().load_s > 0
        buckets, head = ray.get(list(published.buckets), timeout=60), ray.get(published.header, timeout=60)
        assert all(len(one) == 1 or sum(piece.values.nbytes for piece in one) <= 8192 for one in buckets)
        assert sum(piece.values.nbytes for one in buckets for piece in one) == published.sent_bytes == head.size_bytes
        written = dict(published_tensors(load_checkpoint(recipe.run_dir / "reference")))
        require_equal(head, written, "this test")
        folder = learner.save(1)
        assert learner.saved(1, wait=True)
        require_whole(folder)
    finally:
        learner.close()


def test_sample_with_workers_killed_too_often_says_so(pool: RayPool, tokenizer: Tokenizer) -> None:
    """The last of the tests that share the pool."""
    asked = requests(tokenizer, 6)
    for _ in range(3 - int(replaced(pool))):
        os.kill(pool.process_ids()[0], signal.SIGKILL)
        pool.sample(asked, lambda group: None)
    os.kill(pool.process_ids()[0], signal.SIGKILL)
    with pytest.raises(RolloutPoolError, match="max_replacements=3"):
        pool.sample(asked, lambda group: None)


@pytest.mark.slow
def test_sample_with_a_worker_that_is_stopped_and_one_without_memory_gives_equal_samples(
    cluster: None, folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked = BuiltinSettings(max_sequences=6), requests(tokenizer, 8)
    wanted = texts(InlinePool(folder, engine, RolloutSettings()).sample(asked, lambda group: None))
    monkeypatch.setattr(ray_pool, "RolloutWorker", HungryWorker)
    settings = RolloutSettings(num_workers=2, max_replacements=2, stall_timeout_s=30)
    pool = RayPool(folder, engine, settings, import_path(Path.cwd()))
    assert texts(pool.sample(asked, lambda group: None)) == wanted
    assert (folder / FULL).exists()
    assert pool.statistics()["replaced_workers"] == 1
    os.kill(pool.process_ids()[0], signal.SIGSTOP)
    assert texts(pool.sample(asked, lambda group: None)) == wanted
    assert pool.statistics()["replaced_workers"] == 2
    pool.close()


def test_pool_with_an_unloadable_model_names_the_folder(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(RolloutPoolError, match="must load"):
        RayPool(tmp_path / "nothing", BuiltinSettings(), RolloutSettings(num_workers=1), import_path(tmp_path))


def listening(process: psutil.Process) -> set[str]:
    """Addresses at which this process and all below it wait for connections, IPv4 ones without the IPv6 form that Ray gives them."""
    found = set()
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            found |= {
                connection.laddr.ip.removeprefix("::ffff:")
                for connection in each.net_connections(kind="inet")
                if connection.status == psutil.CONN_LISTEN
            }
    return found


TOLD_WHOLE = pytest.param((), {0.0}, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("told", "as_changes"), [(("learner.weight_deltas=true", "rollout.num_workers=1"), {0.0, 1.0}), TOLD_WHOLE]
)
def test_start_run_under_ray_equals_inline_and_listens_on_loopback_alone(
    cluster: None,
    tiny_recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: tuple[str, ...],
    as_changes: set[float],
) -> None:
    """Weights told as changes, too: of a frozen indexer nothing changes, so that every other version is told so."""
    start_run(tiny_recipe("name=inline"), tmp_path)
    original, listened = Loop.one_step, []

    def looking(self: Loop, step: int) -> dict[str, float]:
        listened.append(listening(psutil.Process()))
        return original(self, step)

    monkeypatch.setattr(Loop, "one_step", looking)
    start_run(tiny_recipe("name=ray", "runtime=ray", *told), tmp_path)
    assert comparable(tmp_path / "runs" / "inline") == comparable(tmp_path / "runs" / "ray")
    assert listened == [{"127.0.0.1"}] * 3
    steps = read_metrics(tmp_path / "runs" / "ray" / "metrics.jsonl")
    seen = {metrics["weights/told_as_changes"] for metrics in steps.values() if "weights/load_s" in metrics}
    assert seen == as_changes


def test_running_cluster_joins_one_on_loopback_by_its_address_and_leaves_it_running(cluster: None) -> None:
    address = ray.get_runtime_context().gcs_address
    assert address.startswith("127.0.0.1:")
    with running_cluster(RaySettings()):
        pass
    assert ray.is_initialized(), "a cluster that was there before must stay"
    script = (
        "import sys, ray\n"
        "from samepath.rl.learner.ray_cluster import running_cluster\n"
        "from samepath.rl.recipe.cluster import RaySettings\n"
        "with running_cluster(RaySettings(address=sys.argv[1])):\n"
        "    print(ray.get_runtime_context().gcs_address)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, address], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == address, done.stderr
    assert ray.get(ray.put(7), timeout=20) == 7
