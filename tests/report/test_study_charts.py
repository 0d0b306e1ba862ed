"""Figures of studies by hand: where values lie, and that nothing given leaves its element."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleft.report.study_charts import (
    Bubble,
    Stop,
    Track,
    bubble_chart,
    format_parameters,
    radius,
    series_marker,
    spread_labels,
    text_colour,
    text_key,
    track_chart,
)


def ours(name="CLEFT", moving=1e6, frozen=0.0, value=50.0, reach=None, *, paper=False, text=0.0, number=0):
    return Bubble(name, moving, frozen, value, reach, paper, text, number)


def circles(figure):
    found = re.findall(r'<circle class="bubble" cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', figure)
    return sorted(tuple(float(number) for number in each) for each in found)


def test_ten_times_the_weights_lie_one_decade_further_right():
    found = circles(bubble_chart("t", [ours(moving=1e6), ours(moving=1e7), ours(moving=1e8)], unit="%"))
    assert [x for x, _, _ in found] == [46, 46 + 245, 46 + 490]


def test_the_middle_of_the_axis_lies_in_the_middle():
    found = circles(bubble_chart("t", [ours(value=40.0), ours(value=50.0), ours(value=60.0)], unit="%"))
    assert sorted(y for _, y, _ in found) == [26, 26 + 135, 26 + 270]


def test_the_diameter_of_a_bubble_is_the_number_of_its_trainable_parameters():
    big, small = ours(moving=4e8), ours(moving=1e8, frozen=9e9)
    assert radius(big, 4e8) == pytest.approx(4 * radius(small, 4e8))


def test_the_colour_of_a_bubble_is_the_number_of_its_trainable_text_parameters():
    bubbles = [ours(moving=1e8, text=text) for text in (0.0, 1e4, 1e6, 1e8)]
    colours = [text_colour(bubble.text, bubbles) for bubble in bubbles]
    assert colours == ["#56606b", "#9ecae1", "#537da6", "#08306b"]
    figure = bubble_chart("t", bubbles, unit="%")
    assert sorted(re.findall(r'class="bubble"[^>]* fill="(#\w+)"', figure)) == sorted(colours)
    assert [name for _, name in text_key(bubbles)] == [
        f"{count} trainable text parameters" for count in ("0", "10 k", "1 M", "100 M")
    ]
    assert len(text_key([ours(text=10.0**place) for place in range(9)])) == 5


def test_a_bubble_of_the_paper_is_hollow_dashed_and_called_so():
    figure = bubble_chart("t", [ours(), ours("CLIP", moving=2e8, value=20.16, paper=True)], unit="%")
    drawn = re.findall(r"<circle class=\"bubble\".*?</circle>", figure)
    assert ['fill="none" stroke-dasharray="3 2"' in each for each in drawn] == [True, False]
    assert "CLIP, the paper’s: 20.2 with 200 M trainable of 200 M parameters, 0 of them in the text tower" in figure
    assert 'class="name paper"' in figure


def test_numbers_lie_apart_and_inside_also_where_bubbles_coincide():
    many = [ours(moving=1.1e6, number=place, value=50.0 + place % 2) for place in range(1, 9)]
    figure = bubble_chart("t", [*many, ours(moving=1.2e6, value=90.0, number=9)], unit="%")
    spots = re.findall(r'class="number" x="([\d.]+)" y="([\d.]+)"[^>]*>(\d+)<', figure)
    assert [int(number) for _, _, number in spots] == list(range(1, 10))
    places = [(float(x), float(y)) for x, y, _ in spots]
    assert all(46 <= x <= 536 and 26 <= y <= 300 for x, y in places)
    pairs = [(one, other) for place, one in enumerate(places) for other in places[:place]]
    assert all(abs(one[0] - other[0]) >= 14 or abs(one[1] - other[1]) >= 10.9 for one, other in pairs)
    assert 'class="name"' not in figure


def test_an_interval_of_a_bubble_reaches_from_end_to_end():
    figure = bubble_chart("t", [ours(value=50.0, reach=(40.0, 60.0))], unit="%")
    assert re.search(r'class="whisk".*V26\.0"', figure)
    assert re.search(r'class="whisk" stroke="#56606b" d="M46\.0 296\.0V', figure)


@given(st.lists(st.floats(0, 300), max_size=12))
def test_labels_never_stand_on_each_other_and_keep_their_order(heights):
    placed = spread_labels(heights, 13)
    ordered = [place for _, place in sorted(zip(heights, placed, strict=True))]
    assert all(after - before >= 13 - 1e-6 for before, after in zip(sorted(placed), sorted(placed)[1:], strict=False))
    assert ordered == sorted(ordered) or len(set(heights)) < len(heights)


def track(*stops, name="CLEFT"):
    return Track(name, 0, [Stop(x, value, None, [value]) for x, value in stops])


def centres(figure):
    return [(float(x), float(y)) for x, y in re.findall(r'class="dot" cx="([\d.]+)" cy="([\d.]+)"', figure)]


def test_shares_lie_as_far_apart_as_their_logarithms():
    figure = track_chart("t", [track((0.01, 40), (0.1, 50), (1, 60))], unit="%", axis="share", fractions=True)
    (one, _), (ten, _), (hundred, _) = centres(figure)
    assert hundred - ten == pytest.approx(ten - one, abs=0.11)
    assert [text for text in ("1 %", "10 %", "100 %") if f">{text}</text>" in figure] == ["1 %", "10 %", "100 %"]


def test_lengths_lie_as_far_apart_as_they_are():
    (five, low), (ten, middle), (thirty, high) = centres(
        track_chart("t", [track((5, 40), (10, 50), (30, 60))], unit="%", axis="vectors")
    )
    assert thirty - ten == pytest.approx(4 * (ten - five), abs=0.3)
    assert (low, middle, high) == (276, 151, 26)


def test_every_seed_has_a_ring_and_a_single_one_has_none():
    several = Track("CLEFT", 0, [Stop(5, 50, (40, 60), [48, 52]), Stop(10, 50, (40, 60), [48, 52])])
    assert track_chart("t", [several], unit="%", axis="a").count('class="seed"') == 4
    assert 'class="seed"' not in track_chart("t", [track((5, 40), (10, 50))], unit="%", axis="a")


def test_rows_side_by_side_do_not_hide_each_other():
    figure = track_chart("t", [track((5, 40), (10, 50)), track((5, 40), (10, 50))], unit="%", axis="a")
    assert len(set(centres(figure))) == 4


def test_floors_are_lines_with_their_names():
    figure = track_chart("t", [track((5, 40), (10, 50))], unit="%", axis="a", floors=[("Majority class", 20.0)])
    assert re.search(r'class="chance" d="M46\.0 276\.0h490\.0"', figure)
    assert ">Majority class</text>" in figure


def test_one_stop_can_be_drawn():
    assert "nan" not in track_chart("t", [track((5, 40))], unit="%", axis="a")


def test_marks_differ_by_shape_and_filling_and_not_by_colour_alone():
    plain = [re.sub(r'(fill|stroke)="#(?!fff)\w+"', "", series_marker(series, 10, 10)) for series in range(8)]
    assert len(set(plain)) == 8


def test_every_figure_is_well_formed_and_says_what_it_is():
    title = '<b>"accuracy" & more'
    figures = (
        bubble_chart(title, [ours(title), ours(title, paper=True)], unit=title),
        track_chart(title, [track((1, 2), (3, 4), name=title)], unit=title, axis=title, floors=[(title, 3.0)]),
    )
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert (root.attrib["aria-label"], root.attrib["role"]) == (title, "img")


@pytest.mark.parametrize(
    ("count", "said"), [(1e6, "1 M"), (1e3, "1 k"), (2_621_440, "2.62 M"), (150_990_000, "151 M"), (2.7e9, "2.70 B")]
)
def test_weights_are_said_in_three_digits(count, said):
    assert format_parameters(count) == said
