"""Random views for training: the authors' recipe and order, on one-channel uint8 pixels.

Crop, brightness and contrast, blur, one affine warp, flip. What the crop left out is gone: the warp fills
with black, it never reaches back into the stored image. Shapes: `S` stored side, `size` side of the view.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.config import AugmentConfig
from cleft.data.sampling import Stream, philox_generator

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
