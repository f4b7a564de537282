"""Which rows of a batch latent attention runs in expanded form, with a key and a value for each head, where rows may depend on their batch.

Absorbed attention multiplies 576 + 512 channels a pair at the published widths and expanded attention 192 + 128, but it must expand its
keys first, and it multiplies every key before a query's end, selected or not. Up to `index_topk` keys every key is selected; above,
the keys that are not are masked, which pays until they are several times as many. Axes: N rows of the batch, M rows in absorbed form,
B sequences of a window, T query rows of a sequence.
"""

from dataclasses import replace

import torch

from samepath.kernels.window import AttentionPlan, Division, Window

EXPANDED_QUERIES = 128
"""Fewest queries of a sequence for which its keys are expanded: what expanding a key costs (2·512·256 per head) is earned by about 90
queries that multiply it with 768 channels less each."""

EXPANDED_KEYS = 2
"""Longest window in expanded form, in multiples of `index_topk`. Measured on an H200 at the published widths (`python -m benchmarks.kernels.each_kernel
--only short`), forward and backward of a whole context, absorbed against expanded: 2048 tokens 6.9 and 2.5 ms, 4096 tokens 17.0 and 9.5 ms,
8192 tokens 38.6 and 32.9 ms. Between the last two, 1024 more queries cost 5.4 ms in absorbed form and 5.8 ms in expanded form."""


def divide(plan: AttentionPlan, num_selected: int) -> AttentionPlan:
    """The plan with its division between the two forms, itself if no window is worth expanding; `num_selected` 0 attends to every key."""
    windows = plan.windows
    chosen = [_worth_expanding(window, num_selected) for window in windows]
    if not any(chosen):
        return plan
    sizes = [window.rows_BT.numel() for window in windows]
    places = torch.split(torch.arange(sum(sizes)), sizes)
    expanded = [place for place, choice in zip(places, chosen) if choice]
    # Where the batch's rows stood in the whole plan, and whether that is an absorbed window: padding stands behind all.
    is_absorbed_P = torch.zeros(sum(sizes) + 1, dtype=torch.bool)
    for place, choice in zip(places, chosen):
        is_absorbed_P[place] = not choice
    source_N = plan.source_N.cpu()
    rows_M = is_absorbed_P[source_N].nonzero()[:, 0]
    rank_N = torch.zeros_like(source_N)
    rank_N[rows_M] = torch.arange(len(rows_M))
    target_P = torch.full((sum(sizes) + 1,), len(rows_M) + sum(map(len, expanded)))
    target_P[torch.cat(expanded)] = torch.arange(len(rows_M), int(target_P[-1]))
    absorbed = [place for place, choice in zip(places, chosen) if not choice]
    order_P = torch.zeros_like(target_P)
    order_P[torch.cat([*absorbed, target_P.new_empty(0)])] = torch.arange(sum(map(len, absorbed)))
    division = Division(
        absorbed=AttentionPlan(
            windows=tuple(
                replace(window, rows_BT=rank_N[window.rows_BT.cpu()])
                for window, choice in zip(windows, chosen)
                if not choice
            ),
            source_N=order_P[source_N[rows_M]],
        ),
        rows_M=rows_M,
        expanded=tuple(window for window, choice in zip(windows, chosen) if choice),
        source_N=torch.where(is_absorbed_P[source_N], rank_N, target_P[source_N]),
    )
    return replace(plan, division=division.to(plan.source_N.device))


def _worth_expanding(window: Window, num_selected: int) -> bool:
    if window.rows_BT.shape[1] < EXPANDED_QUERIES:
        return False
    return not num_selected or window.longest <= EXPANDED_KEYS * num_selected
