"""The pictures show the numbers of the measurement, and a run keeps and logs them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from samepath.rl.pretraining.measure import MassCurve, PositionLosses, SparseMeasure
from samepath.rl.pretraining.needles import NeedleMeasure, NeedleScores
from samepath.rl.pretraining.pictures import draw_course, draw_measure

MEASURED = SparseMeasure(
    dense_loss=2.0,
    sparse_losses={4: 2.5, 8: 2.1},
    logits_kls={4: 0.4, 8: 0.1},
    recalls={4: (0.5, 0.6), 8: (0.7, 0.8)},
    best_recalls={4: (0.6, 0.7), 8: (0.9, 0.95)},
    output_errors={4: (0.4, 0.3), 8: (0.2, 0.1)},
    curve=MassCurve(
        amounts=(1, 2, 4, 8),
        recalls=((0.1, 0.2), (0.3, 0.4), (0.5, 0.6), (0.7, 0.8)),
        best_recalls=((0.3, 0.4), (0.5, 0.5), (0.6, 0.7), (0.9, 0.95)),
    ),
    positions=PositionLosses(edges=(0, 10, 20), dense=(2.2, 1.8), sparse={4: (2.2, 2.8), 8: (2.2, 2.0)}),
)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What is drawn, in order."""
    found: list[Figure] = []
    save = Figure.savefig

    def kept(self: Figure, file: Any, **options: Any) -> None:
        found.append(self)
        save(self, file, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    return found


def drawn(figure: Figure, panel: int) -> list[list[float]]:
    """The heights of every curve."""
    return [np.asarray(line.get_ydata(), float).tolist() for line in figure.axes[panel].lines]


def test_draw_measure_shows_mass_layers_excess_and_positions(tmp_path: Path, figures: list[Figure]) -> None:
    files = draw_measure(MEASURED, tmp_path / "pictures")
    assert [file.name for file in files] == ["mass.png", "layers.png", "excess.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    mass, layers, excess = figures
    assert [pytest.approx(line) for line in drawn(mass, 0)] == [
        [0.1, 0.3, 0.5, 0.7],
        [0.2, 0.4, 0.6, 0.8],
        [0.15, 0.35, 0.55, 0.75],
        [0.35, 0.5, 0.65, 0.925],
    ]
    assert np.asarray(mass.axes[1].images[0].get_array()).tolist() == [[0.1, 0.3, 0.5, 0.7], [0.2, 0.4, 0.6, 0.8]]
    assert drawn(layers, 0) == [[0.5, 0.6], [0.6, 0.7], [0.7, 0.8], [0.9, 0.95]]
    assert drawn(layers, 1) == [[0.4, 0.3], [0.2, 0.1]]
    assert drawn(excess, 0)[0] == pytest.approx([np.exp(0.5) - 1, np.exp(0.1) - 1])
    assert [pytest.approx(line) for line in drawn(excess, 1)[:2]] == [[0.0, 1.0], [0.0, 0.2]]


def test_draw_measure_shows_needles_over_all_and_over_the_fewest_keys(tmp_path: Path, figures: list[Figure]) -> None:
    scores = [
        NeedleScores(accuracies=((one, one + 0.25),), probabilities=((one / 2, one / 4),)) for one in (0.0, 0.25, 0.5)
    ]
    needles = NeedleMeasure(lengths=(40,), depths=(0.0, 1.0), dense=scores[0], sparse={8: scores[1], 4: scores[2]})
    files = draw_measure(replace(MEASURED, needles=needles), tmp_path)
    assert files[0].name == "needles.png"
    dense, sparse = (axes for axes in figures[0].axes if axes.get_title())
    assert np.asarray(dense.images[0].get_array()).tolist() == [[0.0], [0.25]]
    assert np.asarray(sparse.images[0].get_array()).tolist() == [[0.5], [0.75]]
    assert [text.get_text() for text in sparse.texts] == ["0.25", "0.12"]
    assert sparse.get_title() == "Over 4 selected keys"


def test_draw_course_shows_recall_over_the_steps_and_nothing_where_nothing_is_kept(
    tmp_path: Path, figures: list[Figure]
) -> None:
    assert draw_course(tmp_path / "metrics.jsonl", tmp_path / "pictures") == []
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "metrics": {"sparse/recall": 0.25, "sparse/recall_best": 0.75}}\n'
        '{"step": 3, "metrics": {"sparse/recall": 0.5, "sparse/recall_best": 0.75}}\n'
    )
    assert draw_course(tmp_path / "metrics.jsonl", tmp_path / "pictures") == [tmp_path / "pictures" / "course.png"]
    (figure,) = figures
    assert drawn(figure, 0) == [[0.25, 0.5], [0.75, 0.75]]
