"""Charts of studies: positions of values, escaped text."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleft.report.study_charts import (
    Bubble,
    Curve,
    CurvePoint,
    bubble_chart,
    curve_chart,
    format_parameters,
    radius,
    series_marker,
    spread_labels,
    text_colour,
    text_key,
)


def bubble(name="CLEFT", trainable=1e6, frozen=0.0, value=50.0, reach=None, *, paper=False, text=0.0, number=0):
    return Bubble(name, trainable, frozen, value, reach, paper, text, number)


def circles(figure):
    found = re.findall(r'<circle class="bubble" cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', figure)
    return sorted(tuple(float(number) for number in each) for each in found)


def test_parameter_axis_is_logarithmic():
    found = circles(bubble_chart("t", [bubble(trainable=1e6), bubble(trainable=1e7), bubble(trainable=1e8)], unit="%"))
    assert [x for x, _, _ in found] == [46, 46 + 245, 46 + 490]


def test_value_axis_is_linear():
    found = circles(bubble_chart("t", [bubble(value=40.0), bubble(value=50.0), bubble(value=60.0)], unit="%"))
    assert sorted(y for _, y, _ in found) == [26, 26 + 135, 26 + 270]


def test_bubble_diameter_is_proportional_to_trainable_parameters():
    big, small = bubble(trainable=4e8), bubble(trainable=1e8, frozen=9e9)
    assert radius(big, 4e8) == pytest.approx(4 * radius(small, 4e8))


def test_bubble_colour_shows_trainable_text_parameters():
    bubbles = [bubble(trainable=1e8, text=text) for text in (0.0, 1e4, 1e6, 1e8)]
    colours = [text_colour(bubble.text, bubbles) for bubble in bubbles]
    assert colours == ["#56606b", "#9ecae1", "#537da6", "#08306b"]
    figure = bubble_chart("t", bubbles, unit="%")
    assert sorted(re.findall(r'class="bubble"[^>]* fill="(#\w+)"', figure)) == sorted(colours)
    assert [name for _, name in text_key(bubbles)] == [
        f"{count} trainable text parameters" for count in ("0", "10 k", "1 M", "100 M")
    ]
    assert len(text_key([bubble(text=10.0**place) for place in range(9)])) == 5


def test_paper_bubble_is_hollow_dashed_and_labelled():
    figure = bubble_chart("t", [bubble(), bubble("CLIP", trainable=2e8, value=20.16, paper=True)], unit="%")
    drawn = re.findall(r"<circle class=\"bubble\".*?</circle>", figure)
    assert ['fill="none" stroke-dasharray="3 2"' in each for each in drawn] == [True, False]
    assert (
        "CLIP, reported in the paper: 20.2 with 200 M trainable of 200 M parameters, 0 of them in the text encoder"
        in figure
    )
    assert 'class="name paper"' in figure


def test_bubble_numbers_do_not_overlap():
    many = [bubble(trainable=1.1e6, number=place, value=50.0 + place % 2) for place in range(1, 9)]
    figure = bubble_chart("t", [*many, bubble(trainable=1.2e6, value=90.0, number=9)], unit="%")
    spots = re.findall(r'class="number" x="([\d.]+)" y="([\d.]+)"[^>]*>(\d+)<', figure)
    assert [int(number) for _, _, number in spots] == list(range(1, 10))
    places = [(float(x), float(y)) for x, y, _ in spots]
    assert all(46 <= x <= 536 and 26 <= y <= 300 for x, y in places)
    pairs = [(one, other) for place, one in enumerate(places) for other in places[:place]]
    assert all(abs(one[0] - other[0]) >= 14 or abs(one[1] - other[1]) >= 10.9 for one, other in pairs)
    assert 'class="name"' not in figure


def test_bubble_interval_is_drawn():
    figure = bubble_chart("t", [bubble(value=50.0, reach=(40.0, 60.0))], unit="%")
    assert re.search(r'class="whisk".*V26\.0"', figure)
    assert re.search(r'class="whisk" stroke="#56606b" d="M46\.0 296\.0V', figure)


@given(st.lists(st.floats(0, 300), max_size=12))
def test_labels_do_not_overlap_and_keep_their_order(heights):
    placed = spread_labels(heights, 13)
    ordered = [place for _, place in sorted(zip(heights, placed, strict=True))]
    assert all(after - before >= 13 - 1e-6 for before, after in zip(sorted(placed), sorted(placed)[1:], strict=False))
    assert ordered == sorted(ordered) or len(set(heights)) < len(heights)


def track(*stops, name="CLEFT"):
    return Curve(name, 0, [CurvePoint(x, value, None, [value]) for x, value in stops])


def centres(figure):
    return [(float(x), float(y)) for x, y in re.findall(r'class="dot" cx="([\d.]+)" cy="([\d.]+)"', figure)]


def test_share_axis_is_logarithmic():
    figure = curve_chart("t", [track((0.01, 40), (0.1, 50), (1, 60))], unit="%", axis="share", fractions=True)
    (one, _), (ten, _), (hundred, _) = centres(figure)
    assert hundred - ten == pytest.approx(ten - one, abs=0.11)
    assert [text for text in ("1 %", "10 %", "100 %") if f">{text}</text>" in figure] == ["1 %", "10 %", "100 %"]


def test_length_axis_is_linear():
    (five, low), (ten, middle), (thirty, high) = centres(
        curve_chart("t", [track((5, 40), (10, 50), (30, 60))], unit="%", axis="vectors")
    )
    assert thirty - ten == pytest.approx(4 * (ten - five), abs=0.3)
    assert (low, middle, high) == (276, 151, 26)


def test_several_seeds_have_a_circle_each():
    several = Curve("CLEFT", 0, [CurvePoint(5, 50, (40, 60), [48, 52]), CurvePoint(10, 50, (40, 60), [48, 52])])
    assert curve_chart("t", [several], unit="%", axis="a").count('class="seed"') == 4
    assert 'class="seed"' not in curve_chart("t", [track((5, 40), (10, 50))], unit="%", axis="a")


def test_curves_are_shifted_apart():
    figure = curve_chart("t", [track((5, 40), (10, 50)), track((5, 40), (10, 50))], unit="%", axis="a")
    assert len(set(centres(figure))) == 4


def test_baselines_are_labelled_lines():
    figure = curve_chart("t", [track((5, 40), (10, 50))], unit="%", axis="a", baselines=[("Majority class", 20.0)])
    assert re.search(r'class="chance" d="M46\.0 276\.0h490\.0"', figure)
    assert ">Majority class</text>" in figure


def test_curve_chart_accepts_one_point():
    assert "nan" not in curve_chart("t", [track((5, 40))], unit="%", axis="a")


def test_markers_differ_by_shape_and_fill():
    plain = [re.sub(r'(fill|stroke)="#(?!fff)\w+"', "", series_marker(series, 10, 10)) for series in range(8)]
    assert len(set(plain)) == 8


def test_every_figure_is_well_formed_and_says_what_it_is():
    title = '<b>"accuracy" & more'
    figures = (
        bubble_chart(title, [bubble(title), bubble(title, paper=True)], unit=title),
        curve_chart(title, [track((1, 2), (3, 4), name=title)], unit=title, axis=title, baselines=[(title, 3.0)]),
    )
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert (root.attrib["aria-label"], root.attrib["role"]) == (title, "img")


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1e6, "1 M"), (1e3, "1 k"), (2_621_440, "2.62 M"), (150_990_000, "151 M"), (2.7e9, "2.70 B")],
)
def test_parameters_have_three_digits(count, expected):
    assert format_parameters(count) == expected
