"""From vLLM's output of one request to the typed record of a sample.

Axes: T tokens of prompt and response, L mixture-of-experts layers, A all layers, X experts chosen.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.engine_errors import EngineRecordError
from samepath.rollout.record import SampledTokens, SegmentParts, sampled_rollout, support_rows
from samepath.rollout.request import GroupState
from samepath.rollout.types import MISSING_ROUTE, Rollout, Support

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
FINISH_REASONS = {"stop": "stop", "length": "length", "abort": "abort"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteBinding:
    """Which rows of vLLM's [T, A, X] record are the model's mixture-of-experts layers."""

    layers: tuple[int, ...]
    """Global layer numbers, ascending; empty for a dense model."""
    num_experts: int
    """E."""
    num_chosen: int
    """X."""
    recorded: bool
    """False if routes were not asked for: every row is then missing."""

    def routes(self, recorded_TAX: NDArray[Any] | None, num_tokens: int, where: str) -> NDArray[np.int16]:
        """[T, L, X]: the recorded rows of all tokens but the last, which is never run.

        Raises EngineRecordError on a missing record, a wrong length, or routes that no router can have made.
        """
        routes_TLX = np.full((num_tokens, len(self.layers), self.num_chosen), MISSING_ROUTE, np.int16)
        if not self.layers or not self.recorded:
            return routes_TLX
        if recorded_TAX is None:
            raise EngineRecordError(f"{where}: vLLM returned no routes, although engine.return_routes is on")
        if recorded_TAX.ndim != 3 or len(recorded_TAX) != num_tokens - 1 or recorded_TAX.shape[2] != self.num_chosen:
            raise EngineRecordError(
                f"{where}: vLLM must return routes of shape [{num_tokens - 1}, layers, {self.num_chosen}] for {num_tokens} tokens; "
                f"got {list(recorded_TAX.shape)}"
            )
        chosen_TLX = recorded_TAX[:, list(self.layers)].astype(np.int16)
        ordered_TLX = np.sort(chosen_TLX, axis=-1)
        repeated = bool((ordered_TLX[..., 1:] == ordered_TLX[..., :-1]).any())
        unset = self.num_experts > 1 and num_tokens > 2 and not chosen_TLX.any()
        if repeated or unset or int(chosen_TLX.max(initial=0)) >= self.num_experts:
            raise EngineRecordError(
                f"{where}: vLLM returned routes that no router of {self.num_experts} experts makes (an expert twice, an unknown one, or "
                "a buffer that was never filled). A fused expert kernel that does not report its choice does this."
            )
        routes_TLX[:-1] = chosen_TLX
        return routes_TLX


def bind_routes(found: Sequence[tuple[str, int, int, int]], recorded: bool) -> RouteBinding:
    """Bind by module: the layer number in a routed module's own name must be the row that its recorder writes."""
    if not found:
        return RouteBinding(layers=(), num_experts=0, num_chosen=0, recorded=recorded)
    for name, row, _, _ in found:
        number = _LAYER.search(name)
        if number is None or int(number[1]) != row:
            raise EngineRecordError(f"routes of module {name} would be recorded as those of layer {row}")
    layers = tuple(sorted(row for _, row, _, _ in found))
    sizes = {(experts, chosen) for _, _, experts, chosen in found}
    if len(sizes) != 1 or len(set(layers)) != len(layers):
        raise EngineRecordError(f"every routed layer must have one router of the same size; got {sorted(found)}")
    ((num_experts, num_chosen),) = sizes
    return RouteBinding(layers=layers, num_experts=num_experts, num_chosen=num_chosen, recorded=recorded)


def recorded_rollout(
    state: GroupState, index: int, completion: Any, binding: RouteBinding, tokenizer: Tokenizer
) -> Rollout:
    """The record of one finished (or aborted) request that sampled at least one token."""
    where = f"{state.request.group_id}/{index}"
    sampled = SampledTokens(
        token_ids=np.array(completion.token_ids, np.int32),
        logprobs=np.array(_logprobs(completion, where), np.float32),
        versions=np.array(_versions(completion, where), np.int32),
    )
    total = len(state.request.prompt.token_ids) + len(sampled.token_ids)
    parts = SegmentParts(
        routes_TLX=binding.routes(completion.routed_experts, total, where),
        fingerprints_TL=None,
        support=_support(state, completion, where),
        finish_reason=FINISH_REASONS[completion.finish_reason],
    )
    return sampled_rollout(state, index, sampled, [parts], tokenizer)


def _logprobs(completion: Any, where: str) -> list[float]:
    """Log-probability of each sampled token under the distribution it was drawn from."""
    entries = completion.logprobs
    if entries is None or len(entries) != len(completion.token_ids):
        raise EngineRecordError(
            f"{where}: vLLM must return a log-probability for each of {len(completion.token_ids)} tokens"
        )
    return [float(entry[token].logprob) for entry, token in zip(entries, completion.token_ids)]


def _versions(completion: Any, where: str) -> list[int]:
    """Weight version of each sampled token, from spans such as (version 3, tokens 0 … 7)."""
    versions: list[int] = []
    for span in completion.weight_versions or ():
        versions += [int(span.version)] * (span.end - span.start)
    if len(versions) != len(completion.token_ids):
        raise EngineRecordError(
            f"{where}: vLLM must say which weights sampled each of {len(completion.token_ids)} tokens; got {completion.weight_versions}"
        )
    return versions


def _support(state: GroupState, completion: Any, where: str) -> Support | None:
    """Candidates of each token where sampling truncates; a best-token request has no distribution to renormalise."""
    sampling = state.request.sampling
    if not sampling.truncates or sampling.temperature == 0:
        return None
    mask = completion.sampling_mask
    rows = [] if mask is None else mask.token_ids
    if len(rows) != len(completion.token_ids):
        raise EngineRecordError(
            f"{where}: vLLM must return the candidates of each of {len(completion.token_ids)} tokens; got {len(rows)}"
        )
    for row, token in zip(rows, completion.token_ids):
        if row and token not in row:
            raise EngineRecordError(f"{where}: token {token} is not among its own {len(row)} candidates")
    return support_rows([np.sort(np.array(row, np.int32)) for row in rows])
