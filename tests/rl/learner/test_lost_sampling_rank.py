"""A rank that is lost, or has other weights, while its engine samples; and a whole run whose ranks sample."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from samepath.rl.learner import rank_children
from samepath.rl.learner.handle import InlineLearner
from samepath.rl.learner.lost import LearnerLostError
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run
from samepath.rl.tracking.jsonl import read_metrics
from tests.rl.conftest import TINY
from tests.rl.learner.rank_pools import TWO, Pools, asked


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Pools]:
    """Of a rank that a test takes away."""
    made = Pools(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_rank_that_is_lost_while_it_samples_ends_the_call_with_its_name(
    lost: Pools, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_children, "END_WAIT_S", 1.0)
    assert lost.learner._others is not None
    lost.learner._others._timeout_s = 1.5
    child = lost.rank_1()
    child.process.send_signal(number)
    said = {
        signal.SIGKILL: rf"learner rank 1 \(process {child.process.pid}\) ended with signal SIGKILL.*samepath resume",
        signal.SIGSTOP: rf"learner rank 1 \(process {child.process.pid}\) gave no answer to sampler\.work for",
    }
    with pytest.raises(LearnerLostError, match=said[signal.Signals(number)]):
        lost.both.sample(asked(8, tokens=200), lambda group: None)


@pytest.mark.slow
def test_engine_of_another_version_is_refused(lost: Pools) -> None:
    lost.learner.version = 7
    with pytest.raises(LearnerLostError, match=r"must hold weights of version 7; it has 0"):
        lost.both.load_weights(lost.learner.weights(), 7)


@pytest.mark.slow
def test_run_whose_ranks_sample_is_that_of_one_engine_to_the_bit(
    blank_pictures: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for name in ("both", "alone"):
        recipe = Recipe.model_validate({**TINY, **TWO, "runs_dir": str(tmp_path), "name": name})
        start_run(recipe, tmp_path)
        steps = read_metrics(recipe.run_dir / "metrics.jsonl").values()
        kept = ("policy/", "reward/", "rollout/length")
        runs.append([{key: value for key, value in of.items() if key.startswith(kept)} for of in steps])
        monkeypatch.setattr(InlineLearner, "sampling_ranks", None)
    assert runs[0] == runs[1]
    assert any(runs[0])
