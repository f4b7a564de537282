"""What is kept of every rollout of a step, for people: text, reward, and what the objective did with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from samepath.model.text.openai_form import plain_message
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.tracking.token_columns import role_letters, routes, short, support_sizes, weight_versions
from samepath.rl.tracking.tracked_rollout import KIND_LETTERS, TrackedCall, TrackedRollout, TrackedSegment, TrackedTool
from samepath.rollout.types import CallSpan, Group, Rollout, ToolRecord


def tracked_rollouts(
    step: int,
    groups: Sequence[Group],
    by_group: Mapping[str, np.ndarray],
    batch: TrainBatch | None,
    report: UpdateReport | None,
    tokenizer: Tokenizer,
) -> list[TrackedRollout]:
    """The step's rollouts, group by group; fields of the update are NaN where the rollout was not trained on."""
    places = {} if batch is None else {name: index for index, name in enumerate(batch.names)}
    tracked = []
    for group in groups:
        for place, rollout in enumerate(group.rollouts):
            index = places.get(f"{rollout.group_id}/{rollout.sample_index}")
            score = rollout.score
            drawn = [segment.token_ids[segment.trained] for segment in rollout.segments]
            logprobs = [segment.sampler_logprobs[segment.trained] for segment in rollout.segments]
            one = TrackedRollout(
                step=step,
                group_id=group.group_id,
                sample_index=rollout.sample_index,
                prompt_text=group.prompt.text,
                response_text=rollout.text,
                dataset=group.prompt.dataset,
                gold=str(group.prompt.answer.get("answer", "")),
                reward=float("nan") if score is None else score.total,
                reward_parts={} if score is None else dict(score.parts),
                reward_status=rollout.failure or ("unscored" if score is None else score.status),
                reward_detail=rollout.failure_detail if score is None else score.detail,
                advantage=float(by_group[group.group_id][place]),
                num_tokens=rollout.num_trained,
                finish_reason=rollout.segments[-1].finish_reason if rollout.segments else "",
                ended=rollout.ended,
                messages=_messages(rollout),
                tool_calls=tuple(map(_tool, rollout.tool_calls)),
                problems=rollout.problems,
                segments=tuple(_segments(rollout, tokenizer)),
                generate_s=rollout.generate_s,
                tokens=tuple(text for ids in drawn for text in tokenizer.token_texts(ids.tolist())),
                sampler_logprobs=tuple(value for values in logprobs for value in values.tolist()),
                segment_tokens=tuple(map(len, drawn)),
                support_sizes=support_sizes(rollout),
                weight_versions=weight_versions(rollout),
            )
            tracked.append(one if index is None or report is None else _with_update(one, rollout, report, index))
    return tracked


def _messages(rollout: Rollout) -> tuple[dict[str, Any], ...]:
    """The messages as plain data; the model's own, which have their drawn ids, name the calls that drew them."""
    calls = iter(
        span.index
        for segment in rollout.segments
        for span in segment.calls
        if span.kind == "act" and span.end > span.first and not span.goes_on
    )
    drawn = [next(calls, None) if message.sampled else None for message in rollout.messages]
    return tuple(
        plain_message(message) | ({} if call is None else {"call": call})
        for message, call in zip(rollout.messages, drawn, strict=True)
    )


def _segments(rollout: Rollout, tokenizer: Tokenizer) -> Iterator[TrackedSegment]:
    """The segments whose tokens have kinds: those of conversations."""
    for segment in rollout.segments:
        if segment.kinds is not None:
            yield TrackedSegment(
                epoch=segment.epoch,
                tokens=tuple(tokenizer.token_texts(segment.token_ids.tolist())),
                kinds="".join(KIND_LETTERS[kind] for kind in segment.kinds),
                calls=tuple(map(_call, segment.calls)),
            )


def _call(span: CallSpan) -> TrackedCall:
    return TrackedCall(
        index=span.index,
        first=span.first,
        end=span.end,
        kind=span.kind,
        finish_reason=span.finish_reason,
        seconds=span.seconds,
    )


def _tool(record: ToolRecord) -> TrackedTool:
    return TrackedTool(
        turn=record.turn,
        name=record.name,
        arguments=dict(record.arguments),
        text=record.text,
        error=record.error,
        seconds=record.seconds,
    )


def _with_update(tracked: TrackedRollout, rollout: Rollout, report: UpdateReport, index: int) -> TrackedRollout:
    seen = report.tokens[index] if report.tokens else None
    columns: dict[str, Any] = {}
    if seen is not None:
        columns = {
            # Outside the loss there is none, and a column of it alone says nothing.
            "log_ratios": short(seen.log_ratio_T) if np.isfinite(seen.log_ratio_T).any() else (),
            "entropies": short(seen.entropy_T),
            "roles": role_letters(seen.role_T),
            "routes": routes(rollout, report.moe_layers, seen.flips),
        }
    return replace(
        tracked,
        **columns,
        kl=float(report.kl_B[index]),
        off_policy=float(report.off_policy_B[index]),
        masked=bool(report.masked_B[index]),
        route_flips=float(report.route_flips_B[index]),
        weight_lag=int(report.weight_lag_B[index]),
        kl_tokens=tuple(report.kl_tokens[index].tolist()),
    )
