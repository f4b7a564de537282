"""Pictures as SVG: what is in them, and how many points of a long run."""

import re
import xml.etree.ElementTree as ET

import pytest

from samepath.rl.report.drawing import MOST_POINTS, Line, heat_svg, line_svg, stacked_svg, thinned


def words(svg: bytes) -> set[str]:
    """All texts of a picture, which is well formed."""
    return {
        " ".join("".join(node.itertext()).split()) for node in ET.fromstring(svg).iter() if node.tag.endswith("text")
    }


def test_lines_have_a_name_each_their_limits_too_and_asks_for_nothing_from_outside() -> None:
    lines = [Line(label="one", points=[(1, 0.5), (2, 0.25)]), Line(label="two", points=[(2, 1.0)])]
    svg = line_svg(lines, unit="share", limits=[("δ = 0.3", 0.3)])
    assert {"one", "two", "δ = 0.3", "share", "training step"} <= words(svg)
    assert not re.search(rb'(href|src)="(?!#)', svg)
    assert svg == line_svg(lines, unit="share", limits=[("δ = 0.3", 0.3)]), "equal data, equal bytes"


def test_a_lone_line_needs_no_legend() -> None:
    assert "one" not in words(line_svg([Line(label="one", points=[(1, 0.5)])], unit="share"))


def test_a_band_is_drawn_around_its_line() -> None:
    points = [(1, 1.0), (2, 2.0)]
    plain = line_svg([Line(label="a", points=points)], unit="x")
    banded = line_svg([Line(label="a", points=points, band=[(1, 0.0, 2.0), (2, 1.0, 3.0)])], unit="x")
    assert b"FillBetween" in banded
    assert b"FillBetween" not in plain


def test_logarithmic_axis_shows_zero_and_small_values() -> None:
    shown = words(line_svg([Line(label="a", points=[(1, 0.0), (2, 1e-6), (3, 1e-2)])], unit="x", logarithmic=True))
    assert any(word.startswith("1 0 −") for word in shown)
    line_svg([Line(label="a", points=[(1, 0.0)])], unit="x", logarithmic=True)


def test_heat_map_has_a_row_for_each_layer_also_where_a_step_is_missing() -> None:
    rows = [Line(label=str(layer), points=[(step, 0.1 * layer) for step in (1, 2, 3 + layer)]) for layer in (1, 2)]
    assert {"1", "2", "share, by layer"} <= words(heat_svg(rows, unit="share"))


def test_heat_map_of_many_layers_names_some() -> None:
    rows = [Line(label=str(layer), points=[(1, 0.1)]) for layer in range(3, 64)]
    shown = words(heat_svg(rows, unit="share"))
    assert {"3", "63"} & shown or len(shown) > 4
    assert len(shown & {str(layer) for layer in range(3, 64)}) < 40


def test_stacked_parts_stand_in_the_legend() -> None:
    parts = [Line(label=name, points=[(1, 1.0), (2, 2.0)]) for name in ("sampling", "learning")]
    assert {"sampling", "learning", "seconds"} <= words(stacked_svg(parts, unit="seconds"))


def test_thinned_means_of_neighbours_keep_sum_and_order() -> None:
    points = [(step, float(step % 7)) for step in range(1, 1001)]
    thin = thinned(points)
    assert len(thin) <= MOST_POINTS
    assert thin[0] == (2.5, pytest.approx((1 + 2 + 3 + 4) / 4))
    assert sum(value for _, value in thin) * 4 == pytest.approx(sum(value for _, value in points))
    assert thinned(points[:5]) == points[:5]
