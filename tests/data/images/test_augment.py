from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cleft.config import AugmentConfig
from cleft.data.images.augment import augment, blur, centre_crop, jitter, warp

STILL = AugmentConfig(jitter=0, blur=0, degrees=0, scale=(1, 1), translate=0)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(1, 256, (256, 256), dtype=np.uint8)


def test_a_view_depends_on_seed_epoch_and_sample_alone(pixels):
    config = AugmentConfig(horizontal_flip=0.5)
    seen = {at: augment(pixels, config, 224, seed=at).tobytes() for at in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(set(seen.values())) == 4
    for at, view in reversed(seen.items()):
        assert augment(pixels, config, 224, seed=at).tobytes() == view


def test_without_any_step_a_view_is_a_crop_of_the_image(pixels):
    view = augment(pixels, STILL, 224, seed=(0, 0, 0))
    crops = [pixels[y : y + 224, x : x + 224] for y in range(33) for x in range(33)]
    assert sum(np.array_equal(view, crop) for crop in crops) == 1


def test_every_crop_position_is_reached():
    ramp = np.tile(np.arange(12, dtype=np.uint8), (12, 1))
    assert {int(augment(ramp, STILL, 8, seed=(0, 0, i))[0, 0]) for i in range(200)} == {0, 1, 2, 3, 4}


def test_turning_one_step_off_leaves_the_others_as_they_were(pixels):
    config = AugmentConfig(jitter=1, blur=1)
    moved = augment(np.full_like(pixels, 200), config, 224, seed=(0, 0, 1)) > 0
    still = augment(np.full_like(pixels, 200), replace(config, jitter=0, blur=0), 224, seed=(0, 0, 1)) > 0
    assert np.array_equal(moved, still)
    assert not moved.all()


def test_nothing_from_outside_the_crop_enters_the_view(pixels):
    config = AugmentConfig(jitter=1, blur=1, scale=(0.8, 0.8))
    crop = augment(pixels, STILL, 224, seed=(0, 0, 3))
    top, left = next(
        (y, x) for y in range(33) for x in range(33) if np.array_equal(pixels[y : y + 224, x : x + 224], crop)
    )
    other = np.full_like(pixels, 255)
    other[top : top + 224, left : left + 224] = crop
    assert np.array_equal(augment(pixels, config, 224, seed=(0, 0, 3)), augment(other, config, 224, seed=(0, 0, 3)))


def test_the_prepared_image_is_not_touched(pixels):
    pixels.setflags(write=False)
    before = pixels.copy()
    view = augment(pixels, AugmentConfig(), 256, seed=(0, 0, 0))
    assert np.array_equal(pixels, before)
    assert view.shape == (256, 256)
    assert view.dtype == np.uint8


def test_a_shift_moves_right_and_down_and_leaves_black():
    dot = np.zeros((5, 5), np.uint8)
    dot[2, 2] = 9
    assert np.argwhere(warp(dot, degrees=0, scale=1, shift=(2, 1)) == 9).tolist() == [[3, 4]]
    assert warp(np.full((5, 5), 9, np.uint8), degrees=0, scale=1, shift=(2, 0))[:, :2].sum() == 0


def test_a_quarter_turn_is_about_the_centre():
    image = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert np.array_equal(warp(image, degrees=90, scale=1, shift=(0, 0)), np.rot90(image, -1))


def test_shrinking_keeps_the_centre_and_blackens_the_edge():
    view = warp(np.full((101, 101), 200, np.uint8), degrees=0, scale=0.8, shift=(0, 0))
    assert view[50, 50] == 200
    assert (view > 0).sum() == pytest.approx((0.8 * 101) ** 2, rel=0.04)


@pytest.mark.parametrize("contrast_first", [True, False])
def test_jitter_equals_pillow_to_the_bit(pixels, contrast_first):
    def brighter(image):
        return ImageEnhance.Brightness(image).enhance(1.17)

    def flatter(image):
        return ImageEnhance.Contrast(image).enhance(0.83)

    steps = [flatter, brighter] if contrast_first else [brighter, flatter]
    image = steps[1](steps[0](Image.fromarray(pixels)))
    assert np.array_equal(jitter(pixels, 1.17, 0.83, contrast_first=contrast_first), np.asarray(image))


def test_blur_keeps_a_flat_image_and_spreads_a_dot():
    flat = np.full((9, 9), 77, np.uint8)
    assert np.array_equal(blur(flat, 2.0), flat)
    dot = np.zeros((9, 9), np.uint8)
    dot[4, 4] = 255
    assert (blur(dot, 2.0) > 0).sum() == 49


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.3, 2.0])
def test_blur_is_the_weighted_mean_of_the_window_rounded_once(sigma: float):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    weights = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(pixels.astype(float), 3, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7))
    assert np.abs(blur(pixels, sigma) - (windows * weights).sum((2, 3))).max() < 0.51


def test_flipping_mirrors_the_finished_view(pixels):
    config = AugmentConfig(jitter=1, blur=1)
    plain = augment(pixels, config, 224, seed=(0, 0, 0))
    mirrored = augment(pixels, replace(config, horizontal_flip=1.0), 224, seed=(0, 0, 0))
    assert np.array_equal(mirrored, plain[:, ::-1])


def test_odd_margins_of_a_centre_crop_round_up_and_left():
    assert centre_crop(np.arange(25, dtype=np.uint8).reshape(5, 5), 2).tolist() == [[6, 7], [11, 12]]


def test_threads_of_opencv_change_no_view(pixels):
    threads = cv2.getNumThreads()
    views = []
    for count in (1, 4):
        cv2.setNumThreads(count)
        views.append(augment(pixels, AugmentConfig(jitter=1, blur=1), 224, seed=(0, 0, 0)).tobytes())
    cv2.setNumThreads(threads)
    assert views[0] == views[1]
