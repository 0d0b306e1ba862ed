"""Drawn breasts: what a reader would look for is in the pixels."""

import numpy as np
import pytest

from cleft.data.phantoms.breast import Exposure, draw_mammogram
from cleft.data.phantoms.film import Breast
from cleft.data.phantoms.lesions import Sign

SIZE = (128, 107)


def draw(density=2, seed=0, signs=(), breast=None, **exposure):
    breast = breast or Breast(density=density, pattern=seed)
    return draw_mammogram(SIZE, breast, Exposure(**exposure), signs, np.random.default_rng(seed))


def brightness(image):
    """Mean inside the breast, without the letters of the free corner."""
    inside = image[8:][image[8:] > 0.04]
    return inside.mean()


@pytest.mark.parametrize("view", ["CC", "MLO"])
def test_the_denser_the_breast_the_brighter_and_no_two_densities_overlap_much(view):
    means = {d: [brightness(draw(d, seed, view=view).image) for seed in range(8)] for d in (1, 2, 3, 4)}
    for thin, dense in ((1, 2), (2, 3), (3, 4)):
        assert np.mean(means[dense]) > np.mean(means[thin]) + 0.025
        assert np.mean(means[dense]) > np.max(means[thin]) - 0.02
    assert max(means[1]) < min(means[3])
    assert max(means[2]) < min(means[4])


def test_a_right_breast_is_a_left_one_in_the_mirror():
    left, right = draw(signs=[Sign(kind="round")]), draw(signs=[Sign(kind="round")], side="R")
    assert np.allclose(left.image[16:], right.image[16:, ::-1])
    assert [(top, SIZE[1] - r, bottom, SIZE[1] - le) for top, le, bottom, r in right.boxes] == left.boxes


def test_air_is_black_and_the_breast_touches_the_chest_wall():
    image = draw().image
    assert image[20:, -10:].max() == 0
    assert image[SIZE[0] // 2, :5].min() > 0.08


def test_only_oblique_views_show_the_muscle():
    corner = np.s_[:24, :14]
    assert draw(view="MLO").image[corner].mean() > 0.35
    assert draw(view="ML").image[corner].mean() > draw(view="CC").image[corner].mean() + 0.1
    assert draw(view="CC").image[corner].mean() < 0.1


def test_a_breast_looks_alike_in_another_exam_and_unlike_another_breast():
    breast = Breast(density=3, pattern=5)
    first = draw(breast=breast, seed=1).image
    again = draw(breast=breast, seed=2).image
    other = draw(breast=Breast(density=3, pattern=6), seed=1).image
    assert np.abs(first - again).mean() < 0.3 * np.abs(first - other).mean()


def test_an_implant_is_smooth_and_bright():
    sack = draw(breast=Breast(implant=True)).image[50:78, 5:25]
    assert sack.min() > 0.7
    assert sack.std() < 0.05


def test_a_man_has_hardly_any_tissue():
    assert brightness(draw(breast=Breast(male=True)).image) < brightness(draw(1).image)


def test_a_spot_view_is_enlarged_around_its_sign():
    plain, spot = draw(signs=[Sign(kind="round")]), draw(signs=[Sign(kind="round")], spot=True)

    def area(box):
        return (box[2] - box[0]) * (box[3] - box[1])

    assert area(spot.boxes[0]) > 2.5 * area(plain.boxes[0])
    top, left, bottom, right = spot.boxes[0]
    assert spot.image[(top + bottom) // 2, (left + right) // 2] > 0.6


def test_a_synthetic_view_has_less_grain():
    def grain(image):
        return np.abs(image[40:90, 10:50] - (image[41:91, 10:50] + image[39:89, 10:50]) / 2).mean()

    flat = Breast(male=True, depth=0.6, half=0.4)
    assert grain(draw(breast=flat, synthetic=True, noise=0.05).image) < grain(draw(breast=flat, noise=0.05).image)
