"""The benchmark of two cards: its results after each case, what it compares, and all of its parts on CPUs over gloo."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import two_cards
from benchmarks.process import TooSlowError
from benchmarks.two_cards import measure, table
from benchmarks.two_cards_parts import PARTS
from benchmarks.two_cards_runs import Bench, OutOfTimeError, difference, different_weights


def bench(out: Path, seconds: float = 600.0, limit_s: float = 300.0) -> Bench:
    return Bench(out=out, device="cpu", until_s=time.monotonic() + seconds, limit_s=limit_s, steps=2)


def test_measure_leaves_what_is_done_and_goes_on_behind_a_part_that_is_cut(tmp_path: Path, monkeypatch) -> None:
    def cut(made: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
        yield "first", {"seconds": 1.5}
        held = json.loads((tmp_path / "two_cards.json").read_text())
        assert held["parts"] == {"cut": {"first": {"seconds": 1.5}}}
        raise TooSlowError("took longer than 1 s")

    def whole(made: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
        yield "only", {"bytes": 2.0}

    monkeypatch.setattr(two_cards, "PARTS", {"cut": cut, "whole": whole})
    results = measure(bench(tmp_path), ["cut", "whole"])
    assert results["whole"] == {"only": {"bytes": 2.0}}
    assert "took longer" in results["cut"]["cut short"]["error"]
    assert json.loads((tmp_path / "two_cards.json").read_text())["parts"] == results
    assert "| seconds | 1.5 | – |" in (tmp_path / "two_cards.md").read_text()


def test_table_writes_an_error_into_one_cell() -> None:
    assert "| error | a / b c |" in table({"part": {"case": {"error": "a | b\nc"}}})


def test_command_is_ended_at_its_limit_and_refused_without_time(tmp_path: Path) -> None:
    with pytest.raises(TooSlowError, match="longer than 1 s"):
        bench(tmp_path, limit_s=1.0).command("-c", "import signal; signal.pause()")
    with pytest.raises(OutOfTimeError):
        bench(tmp_path, seconds=0.0).command("-c", "")


def test_command_runs_without_multicast(tmp_path: Path) -> None:
    ended = bench(tmp_path).command("-c", "import os; print(os.environ['NCCL_NVLS_ENABLE'])")
    assert (ended.code, ended.output.strip()) == (0, "0")


def test_difference_is_relative_to_the_larger() -> None:
    assert difference(1.0, 2.0) == 0.5
    assert difference(0.0, 0.0) == 0.0


def test_different_weights_counts_tensors_of_other_bits(tmp_path: Path) -> None:
    for name, number in (("one", 4.0), ("other", 5.0)):
        (tmp_path / name).mkdir()
        tensors = {"same": torch.ones(3), "changed": torch.tensor([8.0, number])}
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert different_weights(tmp_path / "one", tmp_path / "other") == {
        "tensors": 2.0,
        "tensors that differ": 1.0,
        "largest difference of weights": 0.125,
    }


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_on_cpus(part: str, tmp_path: Path) -> None:
    cases = measure(bench(tmp_path), [part])[part]
    assert bool(cases) == (part != "ranks-wide")
    assert not {case: found["error"] for case, found in cases.items() if "error" in found}
    for found in cases.values():
        assert found.get("largest difference of weights", 0.0) < 1e-5
        assert found.get("learner/grad_norm, relative difference", 0.0) < 1e-6
