"""Each sign changes the picture where its box says, and the way a reader is taught to look for."""

import numpy as np
import pytest

from cleft.data.phantoms.breast import Exposure, draw_mammogram
from cleft.data.phantoms.film import Breast
from cleft.data.phantoms.lesions import SIGNS, Sign

SIZE = (256, 213)


def draw(signs, density=2, view="CC", seed=3):
    breast = Breast(density=density, pattern=seed, depth=0.6)
    return draw_mammogram(SIZE, breast, Exposure(view=view, noise=0.0), signs, np.random.default_rng(seed))


def change(sign, **how):
    """What a sign adds to the picture, and its box."""
    with_sign = draw([sign], **how)
    return with_sign.image - draw([], **how).image, with_sign.boxes


def crop(image, box):
    top, left, bottom, right = box
    return image[top:bottom, left:right]


@pytest.mark.parametrize("density", [1, 4])
@pytest.mark.parametrize("kind", SIGNS)
def test_every_sign_is_seen_inside_its_box_in_thin_and_in_dense_tissue(kind, density):
    for view in ("CC", "MLO"):
        added, [box] = change(Sign(kind=kind), density=density, view=view)
        assert crop(np.abs(added), box).max() > 0.15
        assert crop(np.abs(added), box).mean() > 4 * np.abs(added).mean()


def test_an_asymmetry_is_plain_in_one_view_and_hardly_seen_in_the_other():
    sign = Sign(kind="asymmetry", faint_in="MLO")
    plain, boxes = change(sign, view="CC")
    hidden, none = change(sign, view="MLO")
    assert boxes
    assert not none
    assert 0 < np.abs(hidden).sum() < 0.6 * np.abs(plain).sum()


def test_a_sign_keeps_its_depth_in_both_views_and_moves_only_up_or_down():
    sign = Sign(kind="round", deep=0.5, across=-0.8, high=0.6)
    [over], [side] = draw([sign], view="CC").boxes, draw([sign], view="MLO").boxes
    assert abs(over[1] - side[1]) < 12
    assert side[0] > over[0] + 30


def test_calcifications_and_clips_are_the_brightest_things():
    for kind in ("popcorn", "rim", "clipped"):
        drawn = draw([Sign(kind=kind)], density=4)
        assert crop(drawn.image, drawn.boxes[0]).max() > 0.93
    assert draw([Sign(kind="round")], density=1).image[20:].max() < 0.85


def test_a_cluster_has_many_grains():
    added, [box] = change(Sign(kind="cluster"), density=1)
    bright = (crop(added, box) > 0.25).astype(np.int8)
    starts = (np.diff(bright, axis=1) == 1).sum()
    assert starts > 15


def test_a_spiculated_mass_reaches_far_beyond_its_body():
    def spread(kind):
        added, [box] = change(Sign(kind=kind, size=0.5), density=1)
        rows, columns = np.nonzero(added > 0.06)
        return np.hypot(rows - (box[0] + box[2]) / 2, columns - (box[1] + box[3]) / 2).max()

    assert spread("spiculated") > 2 * spread("irregular")
    assert spread("spiculated") > 2.5 * spread("round")


def test_a_sign_at_the_skin_is_moved_inside():
    for across in (-1.0, 1.0):
        added, [box] = change(Sign(kind="irregular", deep=1.0, across=across))
        assert crop(added, box).max() > 0.2
        assert crop(draw([]).image, box)[4:-4, 4:-4].min() > 0.03
