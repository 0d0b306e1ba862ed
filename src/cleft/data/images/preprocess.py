"""From files to gray pixels, and from gray pixels to a square of the stored size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cleft.config import AugmentConfig, ImagesConfig
from cleft.data.images.source import refusal
from cleft.data.sampling import Stream, philox_generator

Gray: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""Pixels as a file stores them, `[H, W]`: uint16 where it has more than 8 bits."""


def prepare_image(pixels: Gray, config: ImagesConfig) -> NDArray[np.uint8]:
    """Brings gray pixels to 8 bits and to a square, by `images.intensity` and `images.recipe`.

    Args:
        pixels: `[H, W]`, not all equal.
        config: Its recipe, intensity and stored size; nothing else of it matters here.

    Returns:
        `[S, S]` uint8, `S` being `images.stored_size`.

    Raises:
        DataError: With reason `constant`, if between the two percentiles there is but one value.

    Source:
        Recipe `released` repeats `resize_img`, `OtsuCut` and `Resize` of the released code bit for bit. Recipe
        `pad` stops after the first of them, because the other two undo it (docs/decisions/0020).
    """
    small = to_8_bits(pixels, config.intensity)
    side = config.stored_size
    if config.recipe == "pad":
        return _pad(_resize(small, side, exact=False), side)
    framed = _otsu_crop(_pad(_resize(small, side, exact=True), side))
    return np.asarray(Image.fromarray(framed).resize((side, side), Image.Resampling.BILINEAR))


def to_8_bits(pixels: Gray, intensity: Literal["full-range", "min-max", "percentile"]) -> NDArray[np.uint8]:
    """Maps more than 8 bits linearly onto 0 to 255, rounded; 8 bits stay as they are.

    Example:
        >>> to_8_bits(np.array([[1000, 2000, 3000]], dtype=np.uint16), "min-max").tolist()
        [[0, 128, 255]]
    """
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    if intensity == "full-range":
        low, high = 0.0, 65535.0
    elif intensity == "min-max":
        low, high = float(pixels.min()), float(pixels.max())
    else:
        low, high = np.percentile(pixels, (0.5, 99.5)).tolist()
    if low == high:
        raise refusal("constant", "the image", f"99 % of its pixels are {low:g}; set images.intensity=min-max")
    return stretch(np.arange(65536), low, high)[pixels]


def stretch(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Maps values linearly so that `low` becomes 0 and `high` 255, rounded; what lies beyond becomes 0 or 255."""
    return np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)


def _resize(pixels: NDArray[np.uint8], side: int, *, exact: bool) -> NDArray[np.uint8]:
    """Brings the long side to `side`; `exact` repeats the authors' arithmetic, which truncates the other."""
    height, width = pixels.shape
    long = max(height, width)
    # In this order: a square may come out one pixel short of square, as theirs does.
    other = min(height, width) * (side / long)
    short = max(1, int(other) if exact else round(other))
    size = (short, side) if height >= width else (side, short)
    shrinks = exact or long >= side
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def _pad(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Centres an image on a black square; an odd pixel goes to the right or bottom."""
    height, width = pixels.shape
    square = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _otsu_crop(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cuts to the box around everything above Otsu's threshold."""
    mask = np.asarray(cv2.threshold(pixels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1])
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return pixels
    return np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def flatten_colours(colours: NDArray[Any], name: Path | str) -> NDArray[np.uint8]:
    """Reduces `[H, W, 3]` uint8 that only repeat one gray value to their luminance, `[H, W]`.

    Raises:
        DataError: With reason `colour`, if a pixel's channels differ by more than JPEG's rounding may move them.
    """
    spread = int((colours.max(axis=2) - colours.min(axis=2)).max())
    if spread > _COLOUR_TOLERANCE:
        raise refusal("colour", name, f"its channels differ by up to {spread} of 255; store it as gray")
    return np.asarray(Image.fromarray(colours).convert("L"))


_COLOUR_TOLERANCE = 8
"""JPEG's colour conversion may move the channels of a gray image apart by a few levels."""


_LEVELS = np.arange(256, dtype=np.float32)
_BLUR_WINDOW = 7


def augment(
    pixels: NDArray[np.uint8], config: AugmentConfig, size: int, *, seed: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Returns a random view of an image: a pure function of its arguments.

    Every view takes the same draws in the same order, also those its coin flips leave unused. So turning one
    step off changes no other step.

    Args:
        pixels: Prepared image, `[S, S]` uint8. Never written to.
        config: Probabilities and ranges.
        size: Side of the view, at most `S`.
        seed: Seed of the run, epoch, and row of the sample.

    Returns:
        A new array, `[size, size]` uint8.

    Source:
        `Moco2Transform` of the released code. Ours interpolates the warp linearly, theirs takes the nearest
        pixel (docs/decisions/0020).
    """
    run_seed, epoch, sample = seed
    draws = philox_generator(run_seed, Stream.AUGMENT, epoch, sample).random(13).tolist()
    view = _crop(pixels, size, draws[0], draws[1])
    if draws[2] < config.jitter:
        brightness = _between(draws[3], 1 - config.brightness, 1 + config.brightness)
        contrast = _between(draws[4], 1 - config.contrast, 1 + config.contrast)
        view = jitter(view, brightness, contrast, contrast_first=draws[5] < 0.5)
    if draws[6] < config.blur:
        view = blur(view, _between(draws[7], *config.blur_sigma))
    reach = config.translate * size
    view = warp(
        view,
        degrees=_between(draws[8], -config.degrees, config.degrees),
        scale=_between(draws[9], *config.scale),
        shift=(round(_between(draws[10], -reach, reach)), round(_between(draws[11], -reach, reach))),
    )
    return _uint8(cv2.flip(view, 1)) if draws[12] < config.horizontal_flip else view


def centre_crop(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Returns the middle of an image, `[size, size]`, as a view of it.

    Example:
        >>> centre_crop(np.arange(16, dtype=np.uint8).reshape(4, 4), 2).tolist()
        [[5, 6], [9, 10]]
    """
    top, left = ((side - size) // 2 for side in pixels.shape)
    return pixels[top : top + size, left : left + size]


def jitter(
    pixels: NDArray[np.uint8], brightness: float, contrast: float, *, contrast_first: bool = False
) -> NDArray[np.uint8]:
    """Scales intensities towards black by `brightness` and towards their rounded mean by `contrast`.

    Values are cut off at 0 and 255 and rounded down after each of the two steps, as Pillow does.
    """
    for is_contrast in (contrast_first, not contrast_first):
        centre = int(cv2.mean(pixels)[0] + 0.5) if is_contrast else 0
        factor = contrast if is_contrast else brightness
        table = np.clip(centre + np.float32(factor) * (_LEVELS - centre), 0, 255).astype(np.uint8)
        pixels = _uint8(cv2.LUT(pixels, table))
    return pixels


def blur(pixels: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    """Gaussian blur in a window of 7 x 7 pixels, mirrored at the edge, rounded to the nearest level."""
    kernel = cv2.getGaussianKernel(_BLUR_WINDOW, sigma)
    return _uint8(cv2.sepFilter2D(pixels, -1, kernel, kernel))


def warp(pixels: NDArray[np.uint8], *, degrees: float, scale: float, shift: tuple[int, int]) -> NDArray[np.uint8]:
    """Turns and scales an image about its centre, then moves it by `shift` (right, down) pixels; fills with black."""
    height, width = pixels.shape
    x, y = (width - 1) / 2, (height - 1) / 2
    cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    forward = np.array(
        [
            [cos, -sin, x + shift[0] - cos * x + sin * y],
            [sin, cos, y + shift[1] - sin * x - cos * y],
        ]
    )
    return _uint8(cv2.warpAffine(pixels, forward, (width, height), flags=cv2.INTER_LINEAR, borderValue=0))


def _crop(pixels: NDArray[np.uint8], size: int, down: float, right: float) -> NDArray[np.uint8]:
    height, width = pixels.shape
    top, left = int(down * (height - size + 1)), int(right * (width - size + 1))
    return pixels[top : top + size, left : left + size]


def _uint8(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    # OpenCV's types do not know that uint8 in is uint8 out; nothing is copied.
    return np.asarray(pixels, dtype=np.uint8)


def _between(draw: float, low: float, high: float) -> float:
    return low + draw * (high - low)
