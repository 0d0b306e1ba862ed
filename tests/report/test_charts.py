"""SVG charts: positions of values, escaped text."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleft.report.charts import COLOURS, line_chart, roc_chart, series_style, ticks, whisker


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 2000, [0, 500, 1000, 1500, 2000]),
        (0.31, 0.36, [0.3, 0.32, 0.34, 0.36]),
        (0, 4e-5, [0, 1e-5, 2e-5, 3e-5, 4e-5]),
        (3, 3, [2.5, 2.75, 3, 3.25, 3.5]),
        (-1.5, 7, [-2.5, 0, 2.5, 5, 7.5]),
    ],
)
def test_ticks_are_round_and_enclose_the_range(low, high, expected):
    assert ticks(low, high, most=5) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(3, 6))
def test_number_of_ticks_is_bounded(low, width, most):
    values = ticks(low, low + width, most=most)
    slack = 1e-6 * width  # a pixel is a hundredth of the width
    assert values[0] <= low + slack
    assert values[-1] >= low + width - slack
    assert 2 <= len(values) <= most + 2


def test_whisker_maps_the_range_linearly():
    chart = whisker(0.5, (0.25, 0.75), (0.0, 1.0), kind="model", colour="#000000", level=0.5)
    assert 'cx="70.0"' in chart
    assert 'd="M37.5 6H102.5"' in chart


def test_every_figure_is_well_formed_and_says_what_it_is():
    title = '<b>"loss" & more'
    for figure in (
        line_chart(title, {"training": [(0, 1.0), (10, 0.5)]}, mark=(10, 0.5)),
        roc_chart(title, [(0, [(0, 0), (0.2, 0.8), (1, 1)])]),
    ):
        root = ElementTree.fromstring(figure)
        assert root.attrib["aria-label"] == title
        assert root.attrib["role"] == "img"


def test_line_chart_accepts_one_point_and_constant_values():
    assert "<svg" in line_chart("loss", {"training": [(5, 1.0)]})
    assert "nan" not in line_chart("loss", {"training": [(5, 1.0), (6, 1.0)]})


def test_series_differ_by_more_than_colour():
    styles = [series_style(index) for index in range(12)]
    assert len(set(styles)) == 12
    assert len({dash for _, dash in styles[: len(COLOURS)]}) == len(COLOURS)


def test_markers_distinguish_model_baseline_and_paper():
    kinds = {
        kind: re.findall(r"<(\w+)", whisker(0.5, None, (0, 1), kind=kind, colour="#000", level=2))[-1]
        for kind in ("model", "baseline", "paper")
    }
    assert kinds == {"model": "circle", "baseline": "rect", "paper": "path"}
