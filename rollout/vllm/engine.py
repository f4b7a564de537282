"""The vLLM engine: one request a sample, stepped in this process, everything recorded that the learner must replay.

The process belongs to it: vLLM makes `torch.set_num_threads` and other functions of torch do nothing, so no learner may run beside it.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import FinishReason

from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.begun import Progress
from samepath.rollout.counters import EngineCounters
from samepath.rollout.engine_errors import EngineRecordError, EngineUnavailableError
from samepath.rollout.record import failed_rollouts, groups_at_abort, groups_at_end
from samepath.rollout.request import GroupRequest, GroupState
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.stepped_engine import SteppedEngine
from samepath.rollout.types import Group, Prompt
from samepath.rollout.vllm.published_weights import PublishedWeights
from samepath.rollout.vllm.record import bind_routes, recorded_rollout
from samepath.rollout.vllm.settings import VllmSettings
from samepath.rollout.vllm.start import start_vllm

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0
"""vLLM samples at the first where less is asked, and refuses more than the second."""


class VllmEngine(SteppedEngine):
    """Turns group requests into finished groups. Not thread-safe: one caller steps it."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, settings: VllmSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.weight_version = 0
        self.counters = EngineCounters()
        self._weights = PublishedWeights(folder)
        self._llm = start_vllm(folder, settings)
        self._llm.set_weight_version("0")
        self.binding = bind_routes(self._llm.collective_rpc("samepath_moe_layers")[0], settings.return_routes)
        self._running: dict[str, tuple[GroupState, int, str]] = {}
        """Request id: (its group, its sample, vLLM's own id)."""
        self._failed, self._fruitless = False, 0
        # Far more steps than the longest response takes, cut short and begun again many times.
        self._patience = 1000 + 20 * self._llm.model_config.max_model_len
        self._prove(folder)

    @property
    def longest_sequence(self) -> int:
        """See `Engine.longest_sequence`."""
        return int(self._llm.model_config.max_model_len)

    @property
    def busy(self) -> bool:
        """True while any submitted group is unfinished."""
        return bool(self._running)

    def submit(self, request: GroupRequest) -> Group | None:
        """Queue a group. A request that can never run comes back at once as a group of failed rollouts.

        Pages of prompts and responses stay findable in vLLM's prefix cache, with their routes, whether `keep_keys` asks for it or not; without
        that cache it is a ValueError.
        """
        if request.keep_keys and not self.settings.prefix_cache:
            raise ValueError(
                f"{request.group_id}: keep_keys leaves keys for later prompts to find, which engine.prefix_cache=false never looks for. "
                "Set engine.prefix_cache=true, or ask without keep_keys."
            )
        if request.begun:
            raise ValueError(
                f"{request.group_id}: vLLM cannot go on behind tokens that were drawn elsewhere; ask without begun."
            )
        model = self._llm.model_config
        prompt_ids, sampling = request.prompt.token_ids, request.sampling
        vocab_size = model.get_vocab_size()
        failure = ""
        if not prompt_ids:
            failure = "no_tokens"
        elif len(prompt_ids) + sampling.max_new_tokens > model.max_model_len:
            failure = "prompt_too_long"
        elif not all(0 <= token < vocab_size for token in prompt_ids):
            failure = "token_out_of_range"
        elif sampling.truncates and sampling.temperature > 0 and not self.settings.return_sampling_mask:
            failure = "candidates_not_recorded"
        elif sampling.temperature > 0 and not LOWEST_TEMPERATURE <= sampling.temperature <= HIGHEST_TEMPERATURE:
            failure = "temperature_out_of_range"
        if failure:
            return failed_rollouts(request, failure)
        state = GroupState(request=request, submitted_s=time.monotonic())
        for index, seed in enumerate(request.seeds):
            name = f"{request.group_id}/{index}"
            params = self._params(sampling, seed, vocab_size)
            self._running[name] = (
                state,
                index,
                self._llm.add_request(name, {"prompt_token_ids": list(prompt_ids)}, params),
            )
        return None

    def step(self) -> list[Group]:
        """One forward pass; returns the groups it finished, of samples that come apart each by itself. Does nothing when idle."""
        if not self._running:
            return []
        if self._failed:
            raise EngineRecordError(
                "vLLM failed in an earlier step, and what it holds since is unknown; start a new engine"
            )
        started = time.perf_counter()
        self._failed = True
        outputs = self._llm.step()
        self._failed = False
        self._fruitless = 0 if outputs else self._fruitless + 1
        if self._fruitless > self._patience:
            raise EngineRecordError(f"vLLM finished none of {len(self._running)} requests in {self._patience} steps")
        finished = [group for output in outputs for group in self._finish(output)]
        self.counters.steps += 1
        self.counters.seconds += time.perf_counter() - started
        return finished

    def progress(self) -> list[Progress]:
        """Nothing: vLLM's record of a sample comes at its end."""
        return []

    def abort(self) -> list[Group]:
        """Drop all unfinished work; groups come back with what was sampled so far, finish reason `abort`.

        Of samples that come apart those that had not come back yet, each by itself.
        """
        states = {id(state): state for state, _, _ in self._running.values()}
        groups: list[Group] = []
        requests = self._llm.output_processor.request_states
        for _, _, vllm_id in list(self._running.values()):
            # vLLM hands an aborted request's output to a queue, which a stepped engine has not; it is made here the same way.
            output = requests[vllm_id].make_request_output([], None, FinishReason.ABORT, None)
            self._llm.abort_request([vllm_id], internal=True)
            groups += self._finish(output)
        return groups + [group for state in states.values() if not state.complete for group in groups_at_abort(state)]

    def load_weights(self, tensors: Mapping[str, Tensor], version: int, *, recompute: bool = False) -> None:
        """Take new weights (published names) in place and drop every cached page of the old ones.

        Samples in flight go on under the new version, stamped token by token; their keys are computed anew with the new weights. Raises
        ValueError for `recompute`, because its records hold one set of routes for all weights that an answer was drawn with.
        """
        if recompute:
            raise ValueError(
                "engine.kind vllm records one set of routes for all weights that an answer was drawn with; set rl.on_new_weights=finish"
            )
        self._llm.collective_rpc("samepath_load", args=(self._weights.checked(tensors),))
        self._llm.reset_prefix_cache(reset_running_requests=True)
        self._llm.set_weight_version(str(version))
        self.weight_version = version

    def _prove(self, folder: Path) -> None:
        """Answer one token, so that what vLLM finds out in its first step only is an error of the start."""
        prompt = Prompt(prompt_id="proof", text="", token_ids=(self.tokenizer.end_id, self.tokenizer.end_id))
        sampling = SamplingSettings(max_new_tokens=1)
        try:
            self.run([GroupRequest(group_id="proof", prompt=prompt, sampling=sampling, seeds=(0,))])
        except RuntimeError as error:
            raise EngineUnavailableError(f"vLLM loads {folder} but cannot run it: {error}") from error
        self.counters = EngineCounters()

    def _params(self, sampling: SamplingSettings, seed: int, vocab_size: int) -> SamplingParams:
        temperature, top_k = sampling.temperature, sampling.top_k
        if self.settings.return_sampling_mask:
            # An engine that records candidates takes neither temperature 0 nor an unbounded top-k.
            temperature, top_k = (temperature, top_k or vocab_size) if temperature > 0 else (1.0, 1)
        stop_ids = () if sampling.ignore_stop else (*self.tokenizer.end_ids, *sampling.stop_token_ids)
        stop_strings = () if sampling.ignore_stop else sampling.stop_strings
        greedy = sampling.temperature == 0
        return SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=1.0 if greedy else sampling.top_p,
            min_p=0.0 if greedy else sampling.min_p,
            seed=seed,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=list(stop_ids),
            stop=list(stop_strings),
            # The tokenizer's end ids are among the stop ids; what else vLLM takes for one must not count.
            ignore_eos=True,
            logprobs=0,
            detokenize=bool(stop_strings),
            # A stop string may name a special token.
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _finish(self, output: Any) -> list[Group]:
        """Record a finished request; returns what goes back now."""
        if not output.finished:
            return []
        state, index, _ = self._running.pop(output.request_id)
        completion = output.outputs[0]
        reused = output.num_cached_tokens or 0
        self.counters.reused_tokens += reused
        self.counters.prefill_tokens += len(state.request.prompt.token_ids) - reused
        self.counters.sampled_tokens += len(completion.token_ids)
        if not completion.token_ids:
            return []
        state.rollouts[index] = recorded_rollout(state, index, completion, self.binding, self.tokenizer)
        return groups_at_end(state, index)
