import os
from dataclasses import replace
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from tests.fakes.dicom import write_dicom

from cleft.config import AugmentConfig, ImagesConfig
from cleft.data.images.decode import read_gray
from cleft.data.images.preprocess import augment, blur, centre_crop, jitter, prepare_image, to_8_bits, warp
from cleft.data.images.source import ReadLimits, read_bytes
from cleft.errors import DataError

PAD = ImagesConfig(recipe="pad")
RELEASED = ImagesConfig(recipe="released")


@pytest.fixture
def noise():
    rng = np.random.default_rng(0)
    return lambda height, width: rng.integers(0, 256, (height, width), dtype=np.uint8)


def save(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def reason(path, **limits):
    with pytest.raises(DataError) as caught:
        read_gray(path, ReadLimits(**limits))
    assert str(path) in str(caught.value)
    return caught.value.reason


def test_the_format_is_detected_by_content_not_extension(tmp_path, noise):
    pixels = noise(40, 50)
    path = save(tmp_path / "a.png", pixels).rename(tmp_path / "a.jpg")
    assert np.array_equal(read_gray(path), pixels)


@pytest.mark.parametrize("name", ["scan", "scan.dicom", "scan.png", "scan.jpg", "scan.DCM"])
def test_a_dicom_file_is_detected_by_content_too(tmp_path, noise, name):
    pixels = noise(40, 50)
    assert np.array_equal(read_gray(write_dicom(tmp_path / name, pixels)), pixels)


def test_bytes_are_read_like_a_file(tmp_path, noise):
    path = save(tmp_path / "a.png", noise(40, 50))
    assert np.array_equal(read_gray(path.read_bytes()), read_gray(path))


def test_c2_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    assert reason(tmp_path / "absent.png") == "missing"
    assert reason(tmp_path / "empty" / "below.png") == "missing"
    assert reason(tmp_path) == "not-a-file"
    assert reason(tmp_path / "pipe") == "not-a-file"
    assert reason(tmp_path / "empty") == "empty"


def test_c2_a_file_without_read_permission_is_unreadable(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert reason(tmp_path / "a.png") == "unreadable"


def test_no_file_handle_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        reason(tmp_path)
        reason(tmp_path / "absent")
    assert len(os.listdir("/proc/self/fd")) == before


def test_c5_a_file_over_the_limit_is_not_read(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(10**9)
    assert reason(tmp_path / "huge.png") == "too-large"


def test_bytes_are_returned_with_their_size_and_time(tmp_path, noise):
    path = save(tmp_path / "a.png", noise(40, 50))
    data, status = read_bytes(path)
    assert (len(data), status.st_mtime_ns) == (status.st_size, path.stat().st_mtime_ns)


def test_eight_bits_are_unchanged_for_every_intensity(noise):
    pixels = noise(40, 50) // 2
    for intensity in ("full-range", "min-max", "percentile"):
        assert np.array_equal(to_8_bits(pixels, intensity), pixels)


def test_c3_twelve_bits_use_the_full_range_by_default():
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    assert np.array_equal(to_8_bits(ramp, "min-max").ravel(), np.rint(np.arange(4096) * 255 / 4095))


def test_full_range_is_the_files_depth_and_percentiles_ignore_a_bright_marker():
    ramp = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    ramp[0, :20] = 65535
    assert to_8_bits(ramp, "full-range").max() == 255
    assert to_8_bits(ramp, "full-range")[50, 0] == round(5000 / 257)
    assert to_8_bits(ramp, "percentile")[50, 0] == pytest.approx(128, abs=2)


def test_percentiles_without_a_range_are_refused():
    flat = np.full((100, 100), 7, np.uint16)
    flat[0, 0] = 9000
    with pytest.raises(DataError, match=r"images\.intensity=min-max"):
        to_8_bits(flat, "percentile")


@pytest.mark.parametrize(("shape", "box"), [((512, 256), (256, 128)), ((100, 200), (128, 256)), ((60, 60), (256, 256))])
def test_pad_keeps_the_shape_and_centres_it(shape, box):
    prepared = prepare_image(np.full(shape, 90, np.uint8), PAD)
    rows, columns = np.flatnonzero(prepared.any(axis=1)), np.flatnonzero(prepared.any(axis=0))
    assert prepared.shape == (256, 256)
    assert (len(rows), len(columns)) == box
    assert rows[0] == (256 - box[0]) // 2
    assert columns[0] == (256 - box[1]) // 2


def test_pad_halves_by_averaging():
    pixels = np.tile(np.array([[0, 100], [100, 200]], np.uint8), (256, 256))
    assert np.array_equal(prepare_image(pixels, PAD), np.full((256, 256), 100))


def test_released_changes_the_aspect_that_pad_keeps():
    strip = np.full((390, 320), 10, np.uint8)
    strip[10:-10, 10:-10] = 200
    assert (prepare_image(strip, PAD) > 100).any(axis=0).sum() < 205
    assert (prepare_image(strip, RELEASED) > 100).all()


def chain_on_colour(gray, side=256):
    """The released chain in words of our own, on three channels as they run it."""
    tall, wide = gray.shape
    if tall >= wide:  # A square takes this way too, and may come out one pixel narrow.
        height, width = side, int(float(wide) * (side / float(tall)))
    else:
        height, width = int(float(tall) * (side / float(wide))), side
    small = cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA)
    down, right = side - height, side - width
    square = np.pad(small, [(down // 2, down - down // 2), (right // 2, right - right // 2)])
    colour = np.asarray(Image.fromarray(square).convert("RGB"))
    gray = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)
    mask = cv2.threshold(gray, float(np.median(gray)), 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1]
    if mask.any():
        top, bottom = np.where((mask == 255).any(axis=1))[0][[0, -1]]
        left, right = np.where((mask == 255).any(axis=0))[0][[0, -1]]
        colour = colour[top : bottom + 1, left : right + 1]
    return np.asarray(Image.fromarray(colour).resize((side, side), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("shape", [(390, 320), (320, 389), (512, 512), (1024, 777), (161, 161), (60, 200), (700, 40)])
def test_released_equals_the_chain_on_three_channels_to_the_bit(shape, noise):
    pixels = cv2.GaussianBlur(noise(*shape), (0, 0), 9)
    pixels[: shape[0] // 9] = 0
    colour = chain_on_colour(pixels)
    assert all(np.array_equal(prepare_image(pixels, RELEASED), colour[..., channel]) for channel in range(3))


def test_released_rejects_no_real_radiograph(shared):
    paths = sorted((shared / "data/chexpert-mini").rglob("*.jpg"))[::40]
    for path in paths:
        theirs = chain_on_colour(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))[..., 0]
        assert np.array_equal(prepare_image(read_gray(path), RELEASED), theirs)
    assert len(paths) == 19


def test_sixteen_bits_and_eight_bits_of_one_scene_agree(noise):
    scene = noise(300, 200)
    scene[0, :2] = 0, 255
    buffer = BytesIO()
    Image.fromarray(scene.astype(np.uint16) * 16).save(buffer, "PNG")
    assert np.array_equal(prepare_image(read_gray(buffer.getvalue()), PAD), prepare_image(scene, PAD))


STILL = AugmentConfig(jitter=0, blur=0, degrees=0, scale=(1, 1), translate=0)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(1, 256, (256, 256), dtype=np.uint8)


def test_a_view_depends_on_seed_epoch_and_sample_only(pixels):
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


def test_turning_one_step_off_does_not_change_the_others(pixels):
    config = AugmentConfig(jitter=1, blur=1)
    moved = augment(np.full_like(pixels, 200), config, 224, seed=(0, 0, 1)) > 0
    still = augment(np.full_like(pixels, 200), replace(config, jitter=0, blur=0), 224, seed=(0, 0, 1)) > 0
    assert np.array_equal(moved, still)
    assert not moved.all()


def test_no_pixel_outside_the_crop_enters_the_view(pixels):
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
