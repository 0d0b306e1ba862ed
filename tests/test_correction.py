"""Holm's correction against examples worked out by hand."""

import pytest

from cleft.correction import holm, resamples_for


def test_an_example_worked_out_by_hand():
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, and none below one before it
    found = holm([0.01, 0.04, 0.03, 0.005])
    assert found.p_values == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert found.family == 4


def test_what_was_not_tested_does_not_count():
    found = holm([None, 0.02, None, 0.03])
    assert found.p_values == [None, pytest.approx(0.04), None, pytest.approx(0.04)]
    assert found.family == 2
    assert holm([]).p_values == []
    assert holm([None]) == ([None], 0)


def test_no_p_value_exceeds_one_and_equal_ones_stay_equal():
    assert holm([0.6, 0.6, 0.9]).p_values == [1.0, 1.0, 1.0]
    assert holm([0.01, 0.01, 0.01]).p_values == pytest.approx([0.03, 0.03, 0.03])


def test_the_smallest_of_twelve_is_multiplied_by_twelve():
    found = holm([0.028, 0.949, 0.398, 0.338, 0.767, 0.388, 0.306, 0.234, 0.653, 0.501, 0.194, 0.296])
    assert found.p_values[0] == pytest.approx(0.336)
    assert min(p for p in found.p_values if p is not None) > 0.05


@pytest.mark.parametrize("family", [1, 12, 25, 26, 168, 1000])
def test_enough_resamples_are_drawn_that_a_difference_can_survive(family):
    resamples = resamples_for(family)
    assert 2 / (resamples + 1) * family <= 0.05
    assert resamples >= 1000
