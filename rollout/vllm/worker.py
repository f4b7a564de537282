"""The CPU worker of vLLM with the two records that version 0.32 makes on GPUs only: experts of every token, candidates of every sample.

The routes go through vLLM's own connector, which keeps them by the hash of a cache page, so that a prompt found in the prefix cache comes
with the routes of the run that computed it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.distributed.aux_output_connector.worker import AuxOutputWorkerConnector, get_aux_output_connector
from vllm.v1.outputs import SamplingMaskLists
from vllm.v1.worker import cpu_worker
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


class RecordingRunner(CPUModelRunner):
    """Calls the connector at the three places where the GPU runner does."""

    routes: AuxOutputWorkerConnector | None = None
    _processed_BV: Tensor | None = None

    def load_model(self, load_dummy_weights: bool = False) -> None:
        """Load, and keep hold of the log-probabilities after truncation of each step."""
        super().load_model(load_dummy_weights)
        if not self.model_config.return_sampling_mask:
            return
        sample = self.sampler.sample

        def sample_and_keep(*args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
            sampled, self._processed_BV = sample(*args, **options)
            return sampled, self._processed_BV

        self.sampler.sample = sample_and_keep

    def initialize_kv_cache(self, kv_cache_config: Any, is_profiling: bool = False, **options: Any) -> None:
        """Allocate the cache, then bind the recorder to the routers."""
        super().initialize_kv_cache(kv_cache_config, is_profiling, **options)
        if self.vllm_config.aux_output_config.enabled and not is_profiling:
            self.routes = get_aux_output_connector(self.model, self.vllm_config, kv_cache_config)

    def _update_states(self, scheduler_output: Any) -> Any:
        result = super()._update_states(scheduler_output)
        if self.routes is not None:
            self.routes.begin_step(scheduler_output.aux_output_connector_metadata)
        return result

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Draw the step's tokens; the routes of its rows and the candidates of its draws go out with them."""
        pending = self._pending_routes()
        self._processed_BV = None
        with self._seeds_of_unfinished_prompts_kept():
            output = super().sample_tokens(grammar_output)
        if pending is not None:
            counts = [len(output.sampled_token_ids[output.req_id_to_index[name]]) for name in pending.request_ids]
            sampled = np.array(counts)
            pending.enqueue_cpu_copy(sampled, np.zeros_like(sampled))
            output.aux_output_connector_output = pending.process_output()
        output.sampling_masks = self._candidates()
        return output

    def _candidates(self) -> SamplingMaskLists | None:
        return None if self._processed_BV is None else candidate_lists(self._processed_BV)

    @contextmanager
    def _seeds_of_unfinished_prompts_kept(self) -> Iterator[None]:
        """Take no draw from the generator of a request whose prompt is still being prefilled.

        The step draws for every request and drops what it drew for these. On GPUs the generator is wound back afterwards; one of
        the CPU cannot be, and the attempt ends the engine (version 0.32).
        """
        generators = self.input_batch.generators
        unfinished = self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0].tolist()
        kept = {row: generators.pop(row) for row in unfinished if row in generators}
        try:
            yield
        finally:
            generators.update(kept)

    def _pending_routes(self) -> Any:
        if self.routes is None or self.execute_model_state is None:
            return None
        names = list(self.input_batch.req_ids)
        scheduled = self.execute_model_state.scheduler_output.num_scheduled_tokens
        ends = np.cumsum([0, *(scheduled[name] for name in names)])
        starts = self.input_batch.num_computed_tokens_cpu[: len(names)].copy()
        return self.routes.prepare_output(
            SimpleNamespace(req_ids=names, query_start_loc_np=ends, num_computed_tokens_np=starts)
        )


def candidate_lists(logprobs_BV: Tensor) -> SamplingMaskLists:
    """Ids that truncation left in each row, ascending; a row that kept the whole vocabulary is empty."""
    kept_BV = logprobs_BV > -torch.inf
    kept_BV &= ~kept_BV.all(1, keepdim=True)
    offsets = np.zeros(kept_BV.shape[0] + 1, np.int64)
    np.cumsum(kept_BV.sum(1).numpy(), out=offsets[1:])
    return SamplingMaskLists(kept_BV.nonzero()[:, 1].to(torch.int32).numpy(), offsets)


class RecordingWorker(cpu_worker.CPUWorker):
    """The CPU worker with that runner."""

    def init_device(self) -> None:
        """Build the runner by the name under which the worker's own module knows it."""
        original = cpu_worker.CPUModelRunner
        cpu_worker.CPUModelRunner = RecordingRunner
        try:
            super().init_device()
        finally:
            cpu_worker.CPUModelRunner = original
