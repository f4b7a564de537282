"""Runs of `samepath` for benchmarks.two_cards: each in a process of its own with a limit, and what its folder says afterwards."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from benchmarks.decode_models import MODELS
from benchmarks.process import CHECKOUT, MOST_OUTPUT, TooSlowError
from samepath.rl.machine import child_environment, read_variable

RECIPES = CHECKOUT / "recipes"
TINY = (
    "model.config.hidden_size=32",
    "model.config.intermediate_size=32",
    "model.config.moe_intermediate_size=16",
    "model.config.num_hidden_layers=2",
    "sampling.max_new_tokens=8",
    "task.num_train=64",
)
"""On CPUs: the quickstart's model, made as small as a start of the processes."""
LEAVE_S = 30.0
"""How long a run that was told to stop at its limit may take to end its children, seconds."""


class OutOfTimeError(RuntimeError):
    """Nothing of the benchmark's time is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    """Exit status, below 0 for a signal."""
    seconds: float
    output: str
    """The end of what it printed."""


@dataclass(slots=True)
class Bench:
    """Where the benchmark works, on what, and until when."""

    out: Path
    """Folder of everything."""
    device: str
    """`cuda` or `cpu`."""
    until_s: float
    """`time.monotonic()` at which all must have ended."""
    limit_s: float
    """Longest single process, seconds."""
    steps: int = 3
    """RL steps of a run; the first warms up."""
    commands: list[str] = field(default_factory=list)
    """Every command that was run, as a shell takes it."""

    def __post_init__(self) -> None:
        self.out = self.out.resolve()

    def samepath(self, *arguments: str, card: str = "") -> Ended:
        """Run `samepath ARGUMENTS…`, on a card alone if one is named. Raises TooSlowError at its limit, OutOfTimeError if no time is left."""
        return self.command("-c", "from samepath.rl.cli import main; main()", *arguments, card=card)

    def command(self, *arguments: str, card: str = "") -> Ended:
        """Run `python ARGUMENTS…`. Raises as `samepath` does."""
        limit_s = min(self.limit_s, self.until_s - time.monotonic())
        if limit_s < 1:
            raise OutOfTimeError("no time is left (--minutes)")
        self.commands.append(" ".join(["python", *arguments]))
        path = ":".join(entry for entry in (str(CHECKOUT), read_variable("PYTHONPATH")) if entry)
        # Links between cards of one host may be had without the right to multicast over them.
        variables = {"NCCL_NVLS_ENABLE": "0", "PYTHONPATH": path, "COLUMNS": "200"}
        if card and self.device == "cuda":
            variables |= {"CUDA_VISIBLE_DEVICES": card}
        begun_s = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=child_environment(variables),
            cwd=self.out,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            printed, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            # Its children end with it, whatever ends it.
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            raise TooSlowError(f"{' '.join(arguments)} took longer than {limit_s:.0f} s") from error
        text = printed.decode(errors="replace")[-MOST_OUTPUT:]
        return Ended(code=process.returncode, seconds=time.monotonic() - begun_s, output=text)

    def recipe(self, model: str) -> Path:
        """The recipe file whose network is `model`, a name of benchmarks.decode_models; on CPUs always the quickstart's."""
        source = RECIPES / ("h200_small.yaml" if self.device == "cuda" else "quickstart.yaml")
        values: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
        if self.device == "cuda" and model != "small":
            values["model"]["config"] = MODELS[model]
        # Rewards that have spread from untrained weights, so that there is a gradient.
        values["reward"] = {"digits": {"function": "benchmarks.reward:share_of_digits"}}
        values["cold_start"] = {"steps": 0}
        path = self.out / f"{model}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    def settings(self, model: str, name: str) -> list[str]:
        """Overrides of every run."""
        settings = [f"name={name}", "runs_dir=runs", "runtime=inline", "tracking.kind=jsonl", f"rl.steps={self.steps}"]
        settings += ["evaluation.every=0", "task.num_held_out=16", "checkpoint.every=1", "checkpoint.keep=10"]
        if self.device == "cpu":
            return [*settings, *TINY, "rl.prompts_per_step=2", "rl.group_size=4"]
        settings += ["sampling.ignore_stop=true", "learner.min_passes=2"]
        if model != "small":
            long = ["sampling.max_new_tokens=512", "engine.cache_tokens=131072", "learner.max_tokens_per_pass=16384"]
            settings += ["rl.prompts_per_step=16", "rl.group_size=8", *long, "task.num_held_out=8"]
        return settings

    def run(self, model: str, name: str, *settings: str, card: str = "") -> dict[str, Any]:
        """A run from its beginning; returns what it measured, with `error` where it did not end well."""
        ended = self.samepath("run", str(self.recipe(model)), *self.settings(model, name), *settings, card=card)
        if ended.code:
            return {"error": ended.output, "exit_code": ended.code}
        return {"seconds": ended.seconds, **self.measured(name)}

    def folder(self, name: str) -> Path:
        """Of a run."""
        return self.out / "runs" / name

    def steps_of(self, name: str) -> dict[int, dict[str, float]]:
        """Metrics of each RL step of a run."""
        found: dict[int, dict[str, float]] = {}
        for line in (self.folder(name) / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if "time/step_s" in entry["metrics"]:
                found[entry["step"]] = entry["metrics"]
        return found

    def measured(self, name: str) -> dict[str, float]:
        """Times, speeds and memory of a run's last step, its largest gap, and its accuracies."""
        steps = self.steps_of(name)
        summary = json.loads((self.folder(name) / "summary.json").read_text(encoding="utf-8"))
        kinds = ("time/", "weights/", "memory/", "learner/collectives", "rollout/idle_s", "learner/idle_s")
        kinds = (*kinds, "learner/tokens_per_s", "rollout/tokens_per_s", "learner/mfu", "learner/gpu_peak_gib")
        last = steps[max(steps)]
        found = {key: value for key, value in last.items() if key.startswith(kinds)}
        for key in ("gap_at_lag_0", "accuracy_before", "accuracy_after", "peak_gpu_memory_gib", "peak_memory_gib"):
            if isinstance(summary.get(key), float):
                found[key] = summary[key]
        return found

    def compared(self, one: str, other: str, step: int = 1) -> dict[str, float]:
        """What differs between two runs after a step: loss, gradient norm and entropy, and the weights, tensor by tensor."""
        first, second = self.steps_of(one)[step], self.steps_of(other)[step]
        found = {"learner/grad_norm of the first": first["learner/grad_norm"]}
        for key in ("learner/grad_norm", "policy/entropy"):
            found[f"{key}, relative difference"] = difference(first[key], second[key])
        # Advantages are centred: a step's first loss is nothing but rounding beside the sizes that it is a sum of.
        found["learner/loss, difference"] = abs(first["learner/loss"] - second["learner/loss"])
        found |= different_weights(self.exported(one, step), self.exported(other, step))
        return found

    def parted(self, one: str, other: str) -> dict[str, Any]:
        """The first step of the cold start at which a number of two runs differs, times aside; "never" if none does."""
        lines = [
            (self.folder(name) / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for name in (one, other)
        ]
        held = [[entry for entry in map(json.loads, own) if "cold_start/loss" in entry["metrics"]] for own in lines]
        for first, second in zip(*held, strict=True):
            names = {*first["metrics"], *second["metrics"]}
            timed = ("cold_start/collectives",)
            different = sorted(
                key
                for key in names
                if not key.startswith(timed) and first["metrics"].get(key) != second["metrics"].get(key)
            )
            if different:
                return {"parts at cold-start step": first["step"], "by": ", ".join(different)}
        return {"parts at cold-start step": "never", "cold-start steps": len(held[0])}

    def exported(self, name: str, step: int) -> Path:
        """Safetensors of a run's checkpoint. Raises RuntimeError if they cannot be had."""
        source, out = self.folder(name) / "checkpoints" / f"step-{step:06d}", self.out / "exported" / f"{name}-{step}"
        if not out.is_dir():
            ended = self.samepath("export", str(source), str(out))
            if ended.code:
                raise RuntimeError(ended.output)
        return out


def difference(one: float, other: float) -> float:
    """Relative difference of two numbers, 0 where both are 0."""
    return abs(one - other) / max(abs(one), abs(other), 1e-30) if one != other else 0.0


def different_weights(one: Path, other: Path) -> dict[str, float]:
    """How many tensors of two folders have other bits, and the largest difference of a tensor over its largest number."""
    held: list[dict[str, Any]] = []
    for folder in (one, other):
        tensors: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dict)
        held.append(tensors)
    first, second = held
    if first.keys() != second.keys():
        raise RuntimeError(f"{one} and {other} hold tensors of other names")
    shares = [
        float(
            (first[name].float() - second[name].float()).abs().max() / first[name].float().abs().max().clamp(min=1e-30)
        )
        for name in first
    ]
    return {
        "tensors": float(len(shares)),
        "tensors that differ": float(sum(share > 0 for share in shares)),
        "largest difference of weights": max(shares),
    }
