"""Drawn breasts: what a reader would look for is in the pixels."""

import numpy as np
import pytest

from cleft.data.phantoms.draw_breast import LESIONS, Breast, Exposure, Lesion, draw_mammogram

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
    left, right = draw(signs=[Lesion(kind="round")]), draw(signs=[Lesion(kind="round")], side="R")
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


def test_a_breast_is_similar_across_exams_and_differs_from_others():
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


def test_a_spot_view_is_enlarged_around_its_lesion():
    plain, spot = draw(signs=[Lesion(kind="round")]), draw(signs=[Lesion(kind="round")], spot=True)

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


SIGN_SIZE = (256, 213)


def draw_signs(signs, density=2, view="CC", seed=3):
    breast = Breast(density=density, pattern=seed, depth=0.6)
    return draw_mammogram(SIGN_SIZE, breast, Exposure(view=view, noise=0.0), signs, np.random.default_rng(seed))


def change(sign, **how):
    """What a sign adds to the picture, and its box."""
    with_sign = draw_signs([sign], **how)
    return with_sign.image - draw_signs([], **how).image, with_sign.boxes


def crop(image, box):
    top, left, bottom, right = box
    return image[top:bottom, left:right]


@pytest.mark.parametrize("density", [1, 4])
@pytest.mark.parametrize("kind", LESIONS)
def test_every_lesion_is_visible_in_its_box_at_any_density(kind, density):
    for view in ("CC", "MLO"):
        added, [box] = change(Lesion(kind=kind), density=density, view=view)
        assert crop(np.abs(added), box).max() > 0.15
        assert crop(np.abs(added), box).mean() > 4 * np.abs(added).mean()


def test_an_asymmetry_is_plain_in_one_view_and_hardly_seen_in_the_other():
    sign = Lesion(kind="asymmetry", faint_in="MLO")
    plain, boxes = change(sign, view="CC")
    hidden, none = change(sign, view="MLO")
    assert boxes
    assert not none
    assert 0 < np.abs(hidden).sum() < 0.6 * np.abs(plain).sum()


def test_a_lesion_keeps_its_depth_in_both_views():
    sign = Lesion(kind="round", deep=0.5, across=-0.8, high=0.6)
    [over], [side] = draw_signs([sign], view="CC").boxes, draw_signs([sign], view="MLO").boxes
    assert abs(over[1] - side[1]) < 12
    assert side[0] > over[0] + 30


def test_calcifications_and_clips_are_the_brightest_things():
    for kind in ("popcorn", "rim", "clipped"):
        drawn = draw_signs([Lesion(kind=kind)], density=4)
        assert crop(drawn.image, drawn.boxes[0]).max() > 0.93
    assert draw_signs([Lesion(kind="round")], density=1).image[20:].max() < 0.85


def test_a_cluster_has_many_grains():
    added, [box] = change(Lesion(kind="cluster"), density=1)
    bright = (crop(added, box) > 0.25).astype(np.int8)
    starts = (np.diff(bright, axis=1) == 1).sum()
    assert starts > 15


def test_a_spiculated_mass_reaches_far_beyond_its_body():
    def spread(kind):
        added, [box] = change(Lesion(kind=kind, size=0.5), density=1)
        rows, columns = np.nonzero(added > 0.06)
        return np.hypot(rows - (box[0] + box[2]) / 2, columns - (box[1] + box[3]) / 2).max()

    assert spread("spiculated") > 2 * spread("irregular")
    assert spread("spiculated") > 2.5 * spread("round")


def test_a_lesion_at_the_skin_is_moved_inside():
    for across in (-1.0, 1.0):
        added, [box] = change(Lesion(kind="irregular", deep=1.0, across=across))
        assert crop(added, box).max() > 0.2
        assert crop(draw_signs([]).image, box)[4:-4, 4:-4].min() > 0.03
