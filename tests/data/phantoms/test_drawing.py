"""The sheet: a part of it draws into the whole, at the same places."""

import numpy as np

from cleft.data.phantoms.drawing import Drawing


def sheet():
    return Drawing((60, 50), np.random.default_rng(0), origin=(0, 0), step=(60, 60))


def test_drawing_on_a_part_changes_the_complete_image():
    whole, parted = sheet(), sheet()
    for target in (whole, parted.part(0.4, 0.5, 0.3)):
        target.brighten(target.blob(0.4, 0.5, 0.05, 0.04, 0.1), 0.8)
        target.stroke(np.array([[0.35, 0.45], [0.45, 0.55]]), 0.03, 0.5)
    assert whole.image.max() > 0.7
    assert np.allclose(whole.image, parted.image, atol=1e-4)


def test_a_part_at_the_border_is_cut_there():
    piece = sheet().part(0.0, 1.0, 0.2)
    assert piece.size == piece.image.shape == (12, 13)


def test_many_strokes_at_once_equal_single_strokes():
    lines = [(np.array([[0.1, 0.2], [0.7, 0.2]]), 0.02, 0.3), (np.array([[0.1, 0.6], [0.7, 0.6]]), 0.02, 0.6)]
    together, apart = sheet(), sheet()
    together.strokes(lines)
    for points, thickness, amount in lines:
        apart.stroke(points, thickness, amount)
    assert np.allclose(together.image, apart.image, atol=0.01)
