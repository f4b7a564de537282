"""How well the learner walked the sampler's discrete choices: replayed experts, expert load, selected keys.

Axes: L layers (those named by `layers`, global layer numbers), E experts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def routing_metrics(
    layers: Sequence[int],
    flips_L: NDArray[np.int64],
    missing_L: NDArray[np.int64],
    rows: int,
    expert_counts_LE: NDArray[np.int64],
) -> dict[str, float]:
    """`routing/…` numbers of the replayed mixture-of-experts layers, by layer and overall (shares from 0 to 1).

    `layers`: global numbers of the L layers. `flips_L`: rows whose live choice differs from the replayed one. `missing_L`: rows
    without a recorded route, which fell back to the live router. `rows`: rows that the learner ran. `expert_counts_LE`: rows
    that each expert served. Load is max/mean (1 = even) and entropy over log E (1 = even). Raises ValueError for counts that do not fit.
    """
    _check("flips_L", layers, flips_L, rows)
    _check("missing_L", layers, missing_L, rows)
    if expert_counts_LE.ndim != 2 or expert_counts_LE.shape[0] != len(layers):
        raise ValueError(
            f"expert_counts_LE must be [L, E] with L = {len(layers)} layers; got {expert_counts_LE.shape}."
        )
    # A missing row was not replayed, so it can neither flip nor agree.
    replayed_L = rows - missing_L
    metrics = {
        "routing/flip_rate": _share(int(flips_L.sum()), int(replayed_L.sum())),
        "routing/missing": _share(int(missing_L.sum()), rows * len(layers)),
    }
    loads, entropies = [], []
    for index, layer in enumerate(layers):
        metrics[f"routing/flip_rate.layer_{layer:02d}"] = _share(int(flips_L[index]), int(replayed_L[index]))
        metrics[f"routing/missing.layer_{layer:02d}"] = _share(int(missing_L[index]), rows)
        if expert_counts_LE[index].sum() > 0:
            load, entropy = expert_load(expert_counts_LE[index])
            metrics[f"routing/load_max_over_mean.layer_{layer:02d}"] = load
            metrics[f"routing/load_entropy.layer_{layer:02d}"] = entropy
            loads.append(load)
            entropies.append(entropy)
    if loads:
        metrics["routing/load_max_over_mean"] = float(np.mean(loads))
        metrics["routing/load_entropy"] = float(np.mean(entropies))
    return metrics


def selection_metrics(layers: Sequence[int], mismatch_L: NDArray[np.int64], rows: int) -> dict[str, float]:
    """Share of rows whose selected key set differs between sampler and learner, by layer (global numbers) and overall."""
    _check("mismatch_L", layers, mismatch_L, rows)
    metrics = {"routing/selection_mismatch": _share(int(mismatch_L.sum()), rows * len(layers))}
    for index, layer in enumerate(layers):
        metrics[f"routing/selection_mismatch.layer_{layer:02d}"] = _share(int(mismatch_L[index]), rows)
    return metrics


def expert_load(counts_E: NDArray[np.int64]) -> tuple[float, float]:
    """(max/mean, entropy/log E) of one layer's rows per expert; both 1 for an even load, entropy 0 for a single expert's."""
    share_E = counts_E / counts_E.sum()
    used = share_E[share_E > 0]
    entropy = float(-(used * np.log(used)).sum()) / float(np.log(len(counts_E))) if len(counts_E) > 1 else 1.0
    return float(share_E.max() * len(counts_E)), entropy


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _check(name: str, layers: Sequence[int], counts_L: NDArray[np.int64], rows: int) -> None:
    if counts_L.shape != (len(layers),) or (len(layers) and not 0 <= counts_L.min() <= counts_L.max() <= rows):
        raise ValueError(
            f"{name} must hold a count from 0 to {rows} for each of the {len(layers)} layers; got {counts_L.tolist()}. "
            "Count rows once a layer, also under activation recomputation."
        )
