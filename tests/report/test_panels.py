"""Small figures of one result by hand."""

import dataclasses
import re
from xml.etree import ElementTree

import pytest
from tests.fakes.fake_runs import FIVE
from tests.fakes.fake_studies import audit, calibration, space

from cleft.report.panels import norms_chart, place_names, reliability_chart, space_chart
from cleft.types import ReliabilityBin, SpaceMap


def bins(*pairs, patients=50):
    return tuple(ReliabilityBin(predicted=p, observed=o, images=60, patients=patients) for p, o in pairs)


def test_a_bin_lies_at_what_was_given_and_what_came_true():
    told = dataclasses.replace(calibration(), bins=bins((0.5, 0.25)), bins_after=())
    assert 'cx="110.0" cy="128.0"' in reliability_chart("t", told, 0, synthetic=True)


def test_after_the_temperature_is_hollow_and_dashed():
    told = dataclasses.replace(calibration(), bins=(), bins_after=bins((0.5, 0.5)))
    figure = reliability_chart("t", told, 0, synthetic=True)
    assert 'cx="110.0" cy="88.0" r="2.8" fill="#fff"' in figure
    assert 'stroke-dasharray="2 3"' in figure


def test_bins_of_few_patients_are_drawn_for_phantoms_alone():
    told = dataclasses.replace(calibration(), bins=bins((0.5, 0.25), patients=4), bins_after=())
    assert 'class="dot"' not in reliability_chart("t", told, 0, synthetic=False)
    assert 'class="dot"' in reliability_chart("t", told, 0, synthetic=True)


def test_the_map_has_one_scale_for_both_directions():
    found = SpaceMap(images=((0, 1.0, 0.0), (1, 0.0, 1.0)), prompts=((-1.0, 0), (0, -1.0)), shares=(1, 0), gap=0)
    figure = space_chart("t", found, ("A", "B"))
    reach = 174 / 1.06
    assert f'class="dot" cx="{180 + reach:.1f}" cy="180.0"' in figure  # the image of class A, to the right
    assert f'class="prompt" cx="{180 - reach:.1f}" cy="180.0"' in figure
    assert f'class="prompt" cx="180.0" cy="{180 + reach:.1f}"' in figure  # up is up


def test_hidden_classes_are_not_on_the_map():
    assert space_chart("t", space(), FIVE).count('class="dot"') == 200 + 5
    assert space_chart("t", space(), FIVE, hidden=["Edema"]).count('class="dot"') == 160 + 5


def test_names_stand_right_and_step_aside_for_each_other_and_the_frame():
    assert place_names([(100.0, 100.0)], ["Edema"]) == [(110.0, 104.0, "start")]
    assert place_names([(345.0, 100.0)], ["Edema"]) == [(335.0, 104.0, "end")]
    places = place_names([(100.0, 100.0), (125.0, 100.0)], ["Edema", "Edema"])
    assert places == [(90.0, 104.0, "end"), (135.0, 104.0, "start")]


def test_a_context_vector_stands_as_high_as_its_norm_and_a_word_is_a_line():
    told = audit().audit
    vector = dataclasses.replace(told.context[0], place=1, norm=1.0, moved=0.5)
    figure = norms_chart("t", [vector], 2.0)
    assert re.search(r'd="M291\.0 192\.0V107\.0"', figure)
    assert 'cx="291.0" cy="149.5" r="3" fill="#fff"' in figure
    assert 'class="chance" d="M46.0 22.0h490.0"' in figure


def test_a_vector_whose_start_is_unknown_has_no_ring():
    told = dataclasses.replace(audit().audit.context[0], moved=None)
    assert 'class="dot"' not in norms_chart("t", [told], None)


@pytest.mark.parametrize("length", [1, 12, 13, 30, 77, 500])
def test_places_of_a_context_are_named_a_dozen_times_at_most(length):
    told = [dataclasses.replace(audit().audit.context[0], place=place + 1) for place in range(length)]
    assert 1 <= norms_chart("t", told, None).count('class="tick"') <= 13


def test_every_figure_is_well_formed_and_says_what_it_is():
    title = '<b>"space" & more'
    figures = (
        reliability_chart(title, calibration(), 3, synthetic=True),
        space_chart(title, space((title,) * 5), (title,) * 5),
        norms_chart(title, audit().audit.context, 1.0),
    )
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert (root.attrib["aria-label"], root.attrib["role"]) == (title, "img")
