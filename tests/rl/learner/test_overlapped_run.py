"""Runs that sample while they learn: exact at every lag, nothing thrown away, and a killed worker costs nothing but time."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ray = pytest.importorskip("ray")

from samepath.model.files.checkpoint import load_checkpoint  # noqa: E402
from samepath.rl import step_batch  # noqa: E402
from samepath.rl.batch.pack import TrainSequence, pack  # noqa: E402
from samepath.rl.batch.score_groups import training_batch  # noqa: E402
from samepath.rl.group_journal import GroupJournal  # noqa: E402
from samepath.rl.learner.policy_pass import run_policy  # noqa: E402
from samepath.rl.overlapped_loop import OverlappedLoop  # noqa: E402
from samepath.rl.run import resume_run, start_run  # noqa: E402
from samepath.rl.step_batch import StepBatch  # noqa: E402
from samepath.rl.tracking.jsonl import read_metrics  # noqa: E402
from samepath.rollout.begun import Progress, going_on, sampled_tokens  # noqa: E402
from samepath.rollout.pool import ray_pool  # noqa: E402
from samepath.rollout.request import GroupRequest  # noqa: E402
from samepath.rollout.types import Group  # noqa: E402
from tests.engine_runs import assert_same_samples  # noqa: E402
from tests.rl.killed_ahead import without_ray  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SLOW_ANSWERS = (
    # Long answers of many lengths, so that several updates pass while one is drawn.
    "runtime=ray",
    "rl.steps=6",
    "rl.prompts_per_step=2",
    "rl.group_size=3",
    "sampling={top_p: 0.95, max_new_tokens: 56}",
    "reward={short: {function: 'samepath.rewards.length:brevity', options: {max_tokens: 56}}}",
    "cold_start={steps: 1, batch_size: 4}",
    "evaluation.every=0",
    "rollout.num_workers=1",
    "engine.max_sequences=6",
)

ATTEMPTS = 4
"""Runs until one got weights in the middle of a sample: a busy machine may finish every sample before."""


class Seen:
    """What a run trained on, step by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[list[Group]] = []

        def watched(groups: list[Group], settings: Any) -> Any:
            self.groups.append(groups)
            return training_batch(groups, settings)

        monkeypatch.setattr(step_batch, "training_batch", watched)

    def check(self, lag: int, prompts: int) -> None:
        """Every group once, in order, none of its tokens older than may be."""
        for step, groups in enumerate(self.groups):
            assert [group.group_id for group in groups] == [f"s{step + 1}-g{index}" for index in range(prompts)]
            for group in groups:
                for rollout in group.rollouts:
                    versions = np.concatenate([one.weight_version[one.trained] for one in rollout.segments])
                    assert (np.diff(versions) >= 0).all()
                    assert step - lag <= versions.min()
                    assert versions.max() <= step

    def gap(self, run_dir: Path) -> tuple[float, int]:
        """Largest difference of a token's record to what a learner of its version scores it with; and segments beyond one a rollout."""
        worst, more = 0.0, 0
        rollouts = [rollout for groups in self.groups for group in groups for rollout in group.rollouts]
        models = {}
        for rollout in rollouts:
            more += len(rollout.segments) - 1
            for segment in rollout.segments:
                version = int(segment.weight_version.max())
                folder = run_dir / "checkpoints" / f"step-{version:06d}" if version else run_dir / "reference"
                if version not in models:
                    models[version] = load_checkpoint(folder, "torch")
                model = models[version]
                batch = pack([TrainSequence(segment=segment, temperature=1.0, name="here")], model.config)
                with torch.no_grad():
                    seen = run_policy(model, batch, routes_LNX=batch.routes_LNX, use_support=True)
                own_M = batch.version_M == version
                worst = max(worst, float((seen.logprobs_M - batch.sampler_logprobs_M)[own_M].abs().max()))
        return worst, more


@pytest.mark.parametrize(
    ("lag", "mode", "changes"),
    [
        (1, "recompute", ("learner.indexer=trained",)),
        pytest.param(1, "finish", (), marks=pytest.mark.slow),
        pytest.param(4, "recompute", (), marks=pytest.mark.slow),
        pytest.param(2, "recompute", ("learner.indexer=trained",), marks=pytest.mark.slow),
        pytest.param(2, "continue", ("rl.max_gap_at_lag_0=9",), marks=pytest.mark.slow),
    ],
)
def test_overlapped_run_trains_every_group_once_and_each_token_has_a_gap_of_zero_to_its_own_version(
    cluster: None, tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lag: int, mode: str, changes: tuple
) -> None:
    ahead = (f"rl.max_weight_lag={lag}", f"rl.on_new_weights={mode}")
    for attempt in range(ATTEMPTS):
        seen = Seen(monkeypatch)
        recipe = tiny_recipe(*SLOW_ANSWERS, *ahead, *changes, f"name=attempt-{attempt}")
        summary = start_run(recipe, tmp_path)
        assert len(seen.groups) == 6
        seen.check(lag, 2)
        gap, more = seen.gap(recipe.run_dir)
        if mode != "continue":
            assert summary["gap_at_lag_0"] == gap == 0.0
        if mode != "recompute":
            assert more == 0
            break
        if more:
            break
    else:
        pytest.fail(f"in {ATTEMPTS} runs no weights came while samples were under way")
    steps = read_metrics(recipe.run_dir / "metrics.jsonl")
    lags = [steps[step]["rollout/weight_lag_max"] for step in range(1, 7)]
    assert 0 < max(lags) <= lag
    assert all(
        steps[step]["rollout/groups_waiting"] + steps[step]["rollout/groups_under_way"] <= 2 * (lag + 1)
        for step in range(1, 7)
    )
    assert {"learner/idle_s", "learner/idle_share", "rollout/idle_s", "rollout/idle_share", "time/waiting_s"} <= set(
        steps[3]
    )
    assert "routing/flip_rate_at_lag_0" in steps[1]


@pytest.mark.slow
def test_overlapped_run_goes_on_when_its_worker_is_killed(
    cluster: None, tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    original, killed, begun = OverlappedLoop._ready, [], []

    def watched(request: GroupRequest, progress: list[Progress]) -> GroupRequest:
        begun.append(going_on(request, progress))
        return begun[-1]

    monkeypatch.setattr(ray_pool, "going_on", watched)

    def killing(self: OverlappedLoop, step: int) -> StepBatch:
        if step == 2:
            killed.append(self.pool.process_ids()[0])
            os.kill(killed[0], signal.SIGKILL)
        return original(self, step)

    monkeypatch.setattr(OverlappedLoop, "_ready", killing)
    recipe = tiny_recipe(*SLOW_ANSWERS, "rl.max_weight_lag=2", "rl.on_new_weights=recompute")
    summary = start_run(recipe, tmp_path)
    assert killed
    assert summary["failures"] == {"rollout/replaced_workers": 1.0}
    assert len(seen.groups) == 6
    seen.check(2, 2)
    assert seen.gap(recipe.run_dir)[0] == 0.0
    # What the worker had told went on in the other one: trained answers begin with it, drawn by the weights that drew it.
    told = [(request.group_id, one) for request in begun for one in request.begun]
    assert told
    trained = {
        (one.group_id, one.sample_index): one for groups in seen.groups for group in groups for one in group.rollouts
    }
    for group_id, before in told:
        one, drawn = sampled_tokens(before), sampled_tokens(trained[group_id, before.sample_index])
        for name in ("token_ids", "logprobs", "versions"):
            assert np.array_equal(getattr(drawn, name)[: len(one.token_ids)], getattr(one, name))


class Cut(BaseException):
    """In place of SIGKILL: nothing that a run does at its end comes after it but what its processes leave anyway."""


def test_run_that_is_cut_trains_the_groups_that_were_sampled_ahead_when_it_goes_on(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process: what goes on stands on the disk, whoever sampled it."""
    without_ray(monkeypatch.setattr)
    recipe = tiny_recipe(*SLOW_ANSWERS, "rl.max_weight_lag=2", "rl.on_new_weights=recompute", "rl.steps=5")
    original = OverlappedLoop._ready

    def cutting(self: OverlappedLoop, step: int) -> StepBatch:
        if step == 3:
            while self.stream.under_way:
                self.stream.pump(0.05)
            raise Cut
        return original(self, step)

    monkeypatch.setattr(OverlappedLoop, "_ready", cutting)
    with pytest.raises(Cut):
        start_run(recipe, tmp_path)
    monkeypatch.setattr(OverlappedLoop, "_ready", original)
    kept = {
        entry.group.group_id: entry.group for step in (3, 4) for entry in GroupJournal(recipe.run_dir).entries(step)
    }
    assert len(kept) == 4, "both steps were sampled ahead"
    seen = Seen(monkeypatch)
    resume_run(recipe, recipe.run_dir)
    assert len(seen.groups) == 2
    for groups in seen.groups:
        for group in groups:
            assert_same_samples(group, kept[group.group_id])
            # Times tell a group that was kept from one that equal seeds drew again.
            times = [[rollout.generate_s for rollout in one.rollouts] for one in (group, kept[group.group_id])]
            assert times[0] == times[1]
    left = sorted(path.name for path in (recipe.run_dir / "sampled").iterdir())
    assert left == [f"step-{step:06d}.groups" for step in range(5)], (
        "every checkpoint is kept, and what it goes on with"
    )


def test_overlapped_loop_at_lag_0_is_the_synchronous_one_to_the_bit(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process: the stream hands out a step at a time, and everything else is shared."""
    from samepath.rl import training
    from samepath.rl.loop import Loop
    from tests.rl.test_run import comparable

    short = ("rl.steps=2", "cold_start.steps=1", "evaluation.every=0")
    start_run(tiny_recipe("name=one", *short), tmp_path)
    used = []

    class Counted(OverlappedLoop):
        def one_step(self, step: int) -> dict[str, float]:
            used.append(step)
            return OverlappedLoop.one_step(self, step)

    assert training.Loop is Loop
    monkeypatch.setattr(training, "Loop", Counted)
    start_run(tiny_recipe("name=other", *short), tmp_path)
    assert used == [0, 1]
    one, other = (comparable(tmp_path / "runs" / name) for name in ("one", "other"))
    new = (
        "rollout/groups_waiting",
        "rollout/groups_under_way",
        "rollout/idle_",
        "rollout/tokens_lost",
        "learner/idle_",
    )
    for step, metrics in other.items():
        assert {name: value for name, value in metrics.items() if not name.startswith(new)} == one[step]
    for step in (1, 2):
        files = [
            tmp_path / "runs" / name / "checkpoints" / f"step-{step:06d}" / "model.safetensors"
            for name in ("one", "other")
        ]
        assert files[0].read_bytes() == files[1].read_bytes()
