"""Pictures of what the selection costs, as PNG: mass captured against the number of keys, layers, perplexity, positions, and the course of a run.

Axes: L layers, K numbers of keys.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from samepath.model.durable_file import replacing
from samepath.rl.pretraining.measure import SparseMeasure
from samepath.rl.pretraining.needles import NeedleMeasure, NeedleScores
from samepath.rl.report.curves import NothingToDrawError, Panel, plot_training

STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
INCHES = (5.0, 3.4)
"""Of one panel; a picture has two side by side."""
COURSE = (
    Panel(
        title="Recall",
        unit="share of attention, mean over layers",
        names=("sparse/recall", "sparse/recall_best", "sparse/recall_min"),
    ),
    Panel(title="Perplexity above all keys", unit="share", names=("sparse/excess",)),
    Panel(title="Output error", unit="relative", names=("sparse/output_error", "sparse/output_error_max")),
    Panel(title="KL of the logits", unit="nats per token", names=("sparse/logits_kl",)),
    Panel(title="The indexer's loss", unit="nats per row and layer", names=("text/indexer_kl",)),
    Panel(title="Loss of the step", unit="nats per token", names=("text/loss",)),
)
"""Over the training step."""
WANTED_EXCESS = 0.02
"""What the sparse stage is to reach."""


def draw_measure(measured: SparseMeasure, folder: Path) -> list[Path]:
    """Draw a measurement into a folder, which is made; returns the files."""
    needles = measured.needles
    retrieval = [] if needles is None else [_needles(folder / "needles.png", needles)]
    return [
        *retrieval,
        _pair(folder / "mass.png", lambda axes: _mass(axes, measured), lambda axes: _mass_by_layer(axes, measured)),
        _pair(folder / "layers.png", lambda axes: _recall(axes, measured), lambda axes: _output_error(axes, measured)),
        _pair(folder / "excess.png", lambda axes: _excess(axes, measured), lambda axes: _by_position(axes, measured)),
    ]


def draw_course(metrics_jsonl: Path, folder: Path) -> list[Path]:
    """Draw what a run's steps and measurements gave into a folder, which is made; returns the files, none if no step was done."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        plot_training(metrics_jsonl, folder / "course.png", COURSE)
    except (FileNotFoundError, NothingToDrawError):
        # A run whose metrics are kept elsewhere has none to draw.
        return []
    return [folder / "course.png"]


def _pair(path: Path, left: Callable[[Axes], None], right: Callable[[Axes], None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * INCHES[0], INCHES[1]), layout="constrained")
        FigureCanvasAgg(figure)
        left(figure.add_subplot(1, 2, 1))
        right(figure.add_subplot(1, 2, 2))
        with replacing(path) as file:
            figure.savefig(file, dpi=140, format="png")
    return path


def _needles(path: Path, needles: NeedleMeasure) -> Path:
    """Over all keys, and over the fewest that were selected."""
    fewest = min(needles.sparse)
    return _pair(
        path,
        lambda axes: _retrieval(axes, needles, needles.dense, "Needles found over all keys"),
        lambda axes: _retrieval(axes, needles, needles.sparse[fewest], f"Over {fewest} selected keys"),
    )


def _retrieval(axes: Axes, needles: NeedleMeasure, scores: NeedleScores, title: str) -> None:
    """Colour is the share that was found, the number in it the mean probability of the value."""
    shown = axes.imshow(np.array(scores.accuracies).T, aspect="auto", cmap="RdYlGn", vmin=0, vmax=1)
    for row, likely in enumerate(scores.probabilities):
        for column, one in enumerate(likely):
            axes.text(row, column, f"{one:.2f}", ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(needles.lengths)), [str(length) for length in needles.lengths])
    axes.set_yticks(range(len(needles.depths)), [f"{depth:g}" for depth in needles.depths])
    axes.set_xlabel("tokens")
    axes.set_ylabel("depth")
    axes.set_title(title)
    axes.figure.colorbar(shown, ax=axes, pad=0.02)


def _mass(axes: Axes, measured: SparseMeasure) -> None:
    curve = measured.curve
    by_layer_KL, best_KL = np.array(curve.recalls), np.array(curve.best_recalls)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 1, by_layer_KL.shape[1]))
    for layer, shares_K in enumerate(by_layer_KL.T):
        axes.plot(curve.amounts, shares_K, color=colours[layer], linewidth=0.7, alpha=0.7)
    axes.plot(curve.amounts, by_layer_KL.mean(1), color="black", linewidth=2, label="the indexer's, mean of layers")
    axes.plot(curve.amounts, best_KL.mean(1), "--", color="black", label="the best possible, mean of layers")
    _keys(axes, curve.amounts)
    axes.set_title("Attention on the best k keys (a thin line a layer, first dark)")
    axes.set_ylabel("share of attention")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=7, loc="lower right")


def _mass_by_layer(axes: Axes, measured: SparseMeasure) -> None:
    curve = measured.curve
    shares_LK = np.array(curve.recalls).T
    shown = axes.imshow(shares_LK, aspect="auto", origin="lower", cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(curve.amounts)), [str(amount) for amount in curve.amounts], rotation=60, fontsize=7)
    axes.yaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_xlabel("keys")
    axes.set_ylabel("layer")
    axes.set_title("The same by layer")
    axes.figure.colorbar(shown, ax=axes, pad=0.02)


def _recall(axes: Axes, measured: SparseMeasure) -> None:
    for amount, shares_L in measured.recalls.items():
        (line,) = axes.plot(shares_L, marker="o", markersize=3, label=f"{amount} keys")
        axes.plot(measured.best_recalls[amount], "--", color=line.get_color(), linewidth=1)
    axes.set_ylim(0, 1.02)
    _layers(axes, "Recall by layer (dashed: the best possible)", "share of attention")


def _output_error(axes: Axes, measured: SparseMeasure) -> None:
    for amount, errors_L in measured.output_errors.items():
        axes.plot(errors_L, marker="o", markersize=3, label=f"{amount} keys")
    axes.set_ylim(bottom=0)
    _layers(axes, "Error of attention's output by layer", "relative to the output over all keys")


def _excess(axes: Axes, measured: SparseMeasure) -> None:
    amounts, values = zip(*measured.excesses.items(), strict=True)
    axes.plot(amounts, values, marker="o")
    axes.axhline(WANTED_EXCESS, color="0.4", linestyle="--", linewidth=1, label=f"{WANTED_EXCESS:.0%}")
    _keys(axes, amounts)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Perplexity above that over all keys")
    axes.legend(fontsize=7)


def _by_position(axes: Axes, measured: SparseMeasure) -> None:
    losses = measured.positions
    middles = (np.array(losses.edges[:-1]) + np.array(losses.edges[1:])) / 2
    for amount, sparse in losses.sparse.items():
        axes.plot(middles, np.array(sparse) - np.array(losses.dense), marker="o", markersize=3, label=f"{amount} keys")
    axes.axhline(0, color="0.4", linewidth=1)
    axes.set_xlabel("position")
    axes.set_ylabel("nats per token")
    axes.set_title("Loss over the selected keys − loss over all")
    axes.grid(visible=True, alpha=0.3, linewidth=0.6)
    axes.legend(fontsize=7)


def _keys(axes: Axes, amounts: tuple[int, ...]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(amounts, [str(amount) for amount in amounts], rotation=60, fontsize=7)
    axes.minorticks_off()
    axes.set_xlabel("keys")
    axes.grid(visible=True, alpha=0.3, linewidth=0.6)


def _layers(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("layer")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.grid(visible=True, alpha=0.3, linewidth=0.6)
    axes.legend(fontsize=7)
