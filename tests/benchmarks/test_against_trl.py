"""The benchmark's inputs (equal on both sides, exact) and its report; nothing here measures a speed."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from benchmarks import against_trl as bench
from benchmarks.case import (
    ALPHABET,
    Case,
    PeerResult,
    pareto_length,
    prompt_texts,
    resident_bytes,
    response_lengths,
)
from benchmarks.process import BenchError
from benchmarks.report import markdown_table, median_result, report, table_row
from benchmarks.reward import digit_share
from benchmarks.samepath import MODEL, BenchLoop, active_parameters, bench_recipe
from benchmarks.search import Failure, Ledger, Trial
from benchmarks.setting import PeerSetting
from samepath.model.config import ModelConfig
from samepath.model.text.tokenizer import START, character_tokenizer

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="requirements-bench.txt not installed")


def result(peer: str, step_s: float, threads: int = 1, peak_mib: int = 400, name: str = "constant") -> PeerResult:
    """Two steps of 128 samples; the first is 1 s slower."""
    return PeerResult(
        peer=peer,
        versions={peer: "1.0"},
        case=Case(name=name, setting=PeerSetting(threads=threads), measured_steps=3),
        step_s=(step_s + 1, step_s, step_s),
        sampling_s=(1.0, 0.5, 0.5),
        learning_s=(0.5, 0.25, 0.25),
        sampled_tokens=(4096, 4096, 4096),
        learned_tokens=(5248, 5248, 5248),
        idle_bytes=100 << 20,
        peak_bytes=peak_mib << 20,
        gap_nats=0.0,
        parameters=10,
        active_parameters=5,
    )


def test_response_lengths_constant_are_all_the_constant() -> None:
    assert response_lengths(Case(name="constant"), 3) == (32,) * 16


def test_pareto_length_hand_worked_shares_give_their_lengths() -> None:
    # 9 / (1 − u·(1 − 9/256)): u = 0 gives 9; u = ½ gives 9 / 0.517578125 = 17.39; u → 1 gives 256.
    assert [pareto_length(share, 9, 256) for share in (0.0, 0.5, 1 - 1e-12)] == [9, 18, 256]


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 50), st.integers(0, 500))
def test_pareto_length_any_share_stays_within_the_bounds(share: float, shortest: int, more: int) -> None:
    assert shortest <= pareto_length(share, shortest, shortest + more) <= shortest + more


def test_response_lengths_heavy_tailed_have_the_stated_distribution() -> None:
    case = Case(name="heavy-tailed")
    lengths = np.array([response_lengths(case, step) for step in range(400)])
    # E[x] = 9·ln(256/9) / (1 − 9/256) = 31.2 tokens, and rounding up adds half a token.
    assert lengths.mean() == pytest.approx(31.7, abs=0.5)
    assert np.median(lengths) == pytest.approx(18, abs=1)
    assert lengths.min() == 10
    assert lengths.max() > 240
    # One draw from each sixteenth: every step has one long response, from the sixteenth that begins at 9/(1 − 15/16·0.9648) = 94.2.
    assert ((lengths >= 95).sum(1) == 1).all()


def test_response_lengths_same_seed_repeat_and_other_seed_differs() -> None:
    first, again, other = (Case(name="heavy-tailed", seed=seed) for seed in (0, 0, 1))
    assert [response_lengths(first, step) for step in range(3)] == [response_lengths(again, step) for step in range(3)]
    assert response_lengths(first, 0) != response_lengths(first, 1)
    assert response_lengths(first, 0) != response_lengths(other, 0)


def test_prompt_texts_are_sums_of_eight_characters() -> None:
    texts = prompt_texts(Case(name="constant"), 0)
    assert len(texts) == 16
    assert len(set(texts)) > 12
    for text in texts:
        assert len(text) == 8
        assert text[::2].isdigit()
        assert text[7] == "="
        assert set(text[1:7:2]) <= {"+", "-"}


def test_digit_share_counts_digits_over_characters() -> None:
    assert digit_share("12+#") == 0.5
    assert digit_share("") == 0.0


def test_case_bad_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="group_size"):
        Case(name="constant", group_size=1)
    with pytest.raises(ValidationError, match="name"):
        Case.model_validate({"name": "uniform"})


def test_resident_bytes_are_those_of_the_status_file(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    # A path from /proc to the folder. How much a real process holds depends on the kernel: it counts pages for each processor in batches.
    assert resident_bytes(f"..{tmp_path}") == 2 << 20
    assert resident_bytes(f"..{tmp_path}", peak=False) == 1 << 20
    assert resident_bytes() > 1 << 20


def test_resident_bytes_missing_process_says_what_it_read() -> None:
    with pytest.raises(RuntimeError, match="VmHWM"):
        resident_bytes("no-such-process")


def test_bench_loop_requests_carry_prompts_and_forced_lengths(tmp_path: Path) -> None:
    case = Case(name="heavy-tailed", group_size=4)
    tokenizer = character_tokenizer(ALPHABET)
    names = ("task", "sets", "saving", "learner", "pool", "scorer", "tracker", "alerts", "display")
    loop = BenchLoop(case=case, recipe=bench_recipe(case, tmp_path), tokenizer=tokenizer, **dict.fromkeys(names))  # type: ignore[arg-type]
    requests = loop.requests(2)
    assert tuple(request.sampling.max_new_tokens for request in requests) == response_lengths(case, 2)
    assert all(request.sampling.ignore_stop and not request.sampling.truncates for request in requests)
    assert [request.prompt.text for request in requests] == list(prompt_texts(case, 2))
    assert all(len(request.prompt.token_ids) == 9 and len(set(request.seeds)) == 4 for request in requests)


def test_active_parameters_count_the_chosen_share_of_the_experts() -> None:
    total, active = active_parameters(
        ModelConfig.model_validate({**MODEL, "vocab_size": len(ALPHABET) + 2, "eos_token_id": 1})
    )
    # Three layers of eight experts with gate, up and down of 128 × 64; two of the eight are used.
    routed = 3 * 8 * 3 * 128 * 64
    assert total - active == routed * 6 // 8


@needs_trl
def test_trl_side_has_equal_active_size_prompts_and_vocabulary(tmp_path: Path) -> None:
    from benchmarks import trl as bench_trl

    setting = PeerSetting(experts="eager")
    case = Case(name="constant", setting=setting, prompts_per_step=2, group_size=2, warmup_steps=0, measured_steps=1)
    trainer = bench_trl.build_trainer(case, tmp_path)
    for model in (trainer.model, trainer.ref_model):
        assert model.get_experts_implementation()[""] == "eager"
    own = active_parameters(ModelConfig.model_validate({**MODEL, "vocab_size": len(ALPHABET) + 2, "eos_token_id": 1}))
    peer = bench_trl.active_parameters(trainer.model)
    assert peer[1] == pytest.approx(own[1], rel=0.1)
    tokenizer = character_tokenizer(ALPHABET)
    assert trainer.model.config.vocab_size == tokenizer.vocab_size
    texts = [row["prompt"] for row in trainer.train_dataset][:2]
    assert texts == [START + text for text in prompt_texts(case, 0)]
    assert [tuple(ids) for ids in trainer.processing_class(texts)["input_ids"]] == [
        tokenizer.encode(text) for text in prompt_texts(case, 0)
    ]


@needs_trl
def test_forced_end_bans_the_end_before_and_forces_it_at_each_length() -> None:
    from benchmarks.trl import ForcedEnd

    force = ForcedEnd(torch.tensor([2, 3]), prompt_tokens=4, end_id=1)
    logits = torch.tensor([[0.5, 9.0, 0.1], [0.5, 9.0, 0.1]])
    after_one = force(torch.zeros(2, 5, dtype=torch.int64), logits)
    assert after_one.argmax(1).tolist() == [1, 0]
    assert after_one[0].tolist() == [-torch.inf, 0.0, -torch.inf]
    assert after_one[1, 1] == -torch.inf
    assert logits[0, 1] == 9.0
    assert force(torch.zeros(2, 6, dtype=torch.int64), logits).argmax(1).tolist() == [0, 1]


def test_peer_result_rates_are_of_the_median_step_and_of_all_tokens() -> None:
    one = result("samepath", 2.0)
    assert one.samples_per_s == 64.0
    assert one.engine_tokens_per_s == 3 * 4096 / 2.0
    assert one.learner_tokens_per_s == 3 * 5248 / 1.0


def test_median_result_takes_the_middle_run() -> None:
    runs = [result("trl", seconds) for seconds in (4.0, 1.0, 2.0)]
    assert median_result(runs).step_s[1] == 2.0
    with pytest.raises(ValueError, match="at least one"):
        median_result([])


def test_table_row_shows_rates_shares_and_memory() -> None:
    # Steps take 3 + 2 + 2 s, of which 2 s are sampling and 1 s is learning.
    assert table_row(result("samepath", 2.0)) == (
        "samepath",
        "1 thread",
        "64.0",
        "6,144",
        "15,744",
        "29% / 14% / 57%",
        "400",
        "300",
        "0",
    )


def test_markdown_table_lines_up() -> None:
    assert markdown_table(("a", "long"), [("wide", "1"), ("b", "22")]) == (
        "| a    | long |\n|------|------|\n| wide | 1    |\n| b    | 22   |"
    )


def test_report_gives_ratio_of_medians_memory_and_command() -> None:
    results = [
        result("samepath", 1.0),
        result("trl", 2.0, peak_mib=800),
        result("samepath", 1.0, name="heavy-tailed"),
        result("trl", 4.0, name="heavy-tailed"),
    ]
    page = report(results, Ledger(), "python -m benchmarks.against_trl")
    assert "2.00× the samples/s (target 1.5×), 0.50× the peak memory" in page
    assert "4.00× the samples/s (target 3×), 1.00× the peak memory" in page
    assert "Command: `python -m benchmarks.against_trl`" in page
    assert "samepath 5 active of 10" in page


def test_measure_failing_peer_raises_with_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.PEERS, "broken", "samepath.rl.no_such_module")
    with pytest.raises(BenchError, match="No module named"):
        bench.measure("broken", Case(name="constant"))


def stand_in(seconds: dict[tuple[str, int], float], seen: list[Case] | None = None) -> Callable[..., PeerResult]:
    """In place of `measure`: the step time of a peer at a number of threads; what is not listed crashes."""

    def measure(peer: str, case: Case, limit_s: float = 0.0) -> PeerResult:
        if seen is not None:
            seen.append(case)
        if (peer, case.setting.threads) not in seconds:
            raise BenchError(f"{peer} on {case.name} ended by signal 11:\nlast words of {peer}")
        return result(peer, seconds[peer, case.setting.threads], case.setting.threads, name=case.name)

    return measure


def test_choose_settings_takes_each_peers_own_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {("samepath", 1): 2.0, ("samepath", 2): 1.0, ("trl", 1): 3.0, ("trl", 2): 4.0}
    seen: list[Case] = []
    monkeypatch.setattr(bench, "measure", stand_in(times, seen))
    ledger, settings = Ledger(), [PeerSetting(threads=1), PeerSetting(threads=2)]
    case = Case(name="constant", measured_steps=6)
    chosen = bench.choose_settings([case], {"samepath": settings, "trl": settings}, {"measured_steps": 1}, ledger)
    assert chosen == {("constant", "samepath"): settings[1], ("constant", "trl"): settings[0]}
    assert [trial.speed for trial in ledger.trials] == [64.0, 128.0, 128 / 3, 32.0]
    assert {tried.measured_steps for tried in seen} == {1}


def test_measurements_use_the_chosen_settings_and_turn_the_order_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure", stand_in({("samepath", 2): 1.0, ("trl", 1): 2.0}))
    chosen = {("constant", "samepath"): PeerSetting(threads=2), ("constant", "trl"): PeerSetting(threads=1)}
    results = bench.measurements([Case(name="constant")], chosen, 2, Ledger())  # type: ignore[arg-type]
    assert [(one.peer, one.case.setting.threads) for one in results] == [
        ("samepath", 2),
        ("trl", 1),
        ("trl", 1),
        ("samepath", 2),
    ]


def test_crashing_peer_leaves_a_report_of_the_other_and_exit_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measure", stand_in({("samepath", 1): 1.0}))
    monkeypatch.setattr(bench, "find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)
    app = bench.typer.Typer()
    app.command()(bench.run)
    done = CliRunner().invoke(app, ["--threads", "1", "--repeats", "2", "--write"])
    assert done.exit_code == 1, done.output
    page = (tmp_path / "docs/results/bench-trl.md").read_text()
    assert "All runs, samples/s: samepath 128.0 128.0." in page
    assert "## What failed" in page
    assert "trl, constant, 1 thread, eager:" in page
    assert "last words of trl" in page
    raw = json.loads((tmp_path / "docs/results/bench-trl.json").read_text())
    assert len(raw["results"]) == 4
    # Three expert implementations of two cases; a peer without a setting is not measured again.
    assert len(raw["failures"]) == 6


def test_report_without_results_names_the_failures() -> None:
    setting = PeerSetting(threads=2, wait_policy="passive", experts="eager")
    ledger = Ledger(
        trials=[Trial(what="trl, constant", setting=setting, speed=None, note="failed")],
        failures=[Failure(what="trl, constant", setting=setting, message="ended with 1:\nout of memory")],
    )
    page = report([], ledger, "the command")
    assert "| trl, constant | 2 threads, passive, eager | failed    |" in page
    assert "trl, constant, 2 threads, passive, eager:\n\n```text\nended with 1:\nout of memory\n```" in page


def test_report_lists_tried_settings_fastest_first() -> None:
    trials = [
        Trial(what="trl, constant", setting=PeerSetting(threads=count, wait_policy=policy), speed=speed)
        for count, policy, speed in ((1, "unset", 10.0), (2, "unset", 30.0), (2, "passive", 20.0))
    ]
    page = report([result("trl", 1.0)], Ledger(trials=trials), "the command")
    table = page[page.index("## Settings tried") :]
    places = [table.index(speed) for speed in ("30.0", "20.0", "10.0")]
    assert places == sorted(places)


def test_bench_case_does_not_load_torch_of_its_own() -> None:
    """What both peers import must not add to either's memory."""
    for name in ("benchmarks.case", "benchmarks.setting"):
        source = Path(sys.modules[name].__file__ or "").read_text()
        assert "import torch" not in source
        assert "from samepath" not in source
