"""Image preprocessing: gray pixels to a square of the stored size, and to augmented views for training.

`to_8_bits` and `prepare_image` run once per image, before the cache; `augment` and `centre_crop` run each time an image
is read. Shapes: `H`, `W` source size, `S` stored side, `size` side of the view.
"""

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
"""Gray pixels as a file stores them, `[H, W]`: uint16 if it has more than 8 bits."""


def prepare_image(pixels: Gray, config: ImagesConfig) -> NDArray[np.uint8]:
    """Convert gray pixels to an 8-bit square, by `images.intensity` and `images.recipe`.

    Args:
        pixels: `[H, W]`, not all equal.
        config: Only recipe, intensity and stored size are used.

    Returns:
        `[S, S]` uint8 with `S` = `images.stored_size`.

    Raises:
        DataError: With reason `constant`, if both percentiles are equal.

    Source:
        Recipe `released` reproduces `resize_img`, `OtsuCut` and `Resize` of the released code bit for bit. Recipe
        `pad` stops after the first of them, because the other two undo it (docs/decisions/0020).
    """
    small = to_8_bits(pixels, config.intensity)
    side = config.stored_size
    if config.recipe == "pad":
        return _pad(_resize(small, side, exact=False), side)
    framed = _otsu_crop(_pad(_resize(small, side, exact=True), side))
    return np.asarray(Image.fromarray(framed).resize((side, side), Image.Resampling.BILINEAR))


def to_8_bits(pixels: Gray, intensity: Literal["full-range", "min-max", "percentile"]) -> NDArray[np.uint8]:
    """Map more than 8 bits linearly to 0–255, rounded; return 8-bit pixels unchanged.

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
    return rescale_to_uint8(np.arange(65536), low, high)[pixels]


def rescale_to_uint8(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map values linearly so that `low` becomes 0 and `high` 255, rounded and clipped."""
    return np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)


def _resize(pixels: NDArray[np.uint8], side: int, *, exact: bool) -> NDArray[np.uint8]:
    """Scale the longer side to `side`; `exact` reproduces the authors' arithmetic, which truncates the shorter one."""
    height, width = pixels.shape
    long = max(height, width)
    # In this order of operations a square may become one pixel narrower, as in the released code.
    other = min(height, width) * (side / long)
    short = max(1, int(other) if exact else round(other))
    size = (short, side) if height >= width else (side, short)
    shrinks = exact or long >= side
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def _pad(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Centre an image on a black square; an odd pixel goes to the right or bottom."""
    height, width = pixels.shape
    square = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _otsu_crop(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Crop to the bounding box of all pixels above Otsu's threshold."""
    mask = np.asarray(cv2.threshold(pixels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1])
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return pixels
    return np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def to_luminance(colours: NDArray[Any], name: Path | str) -> NDArray[np.uint8]:
    """Reduce `[H, W, 3]` uint8 whose channels repeat one gray value to luminance, `[H, W]`.

    Raises:
        DataError: With reason `colour`, if the channels of a pixel differ by more than rounding in JPEG explains.
    """
    spread = int((colours.max(axis=2) - colours.min(axis=2)).max())
    if spread > _COLOUR_TOLERANCE:
        raise refusal("colour", name, f"its colour channels differ by up to {spread} of 255; convert it to grayscale")
    return np.asarray(Image.fromarray(colours).convert("L"))


_COLOUR_TOLERANCE = 8
"""JPEG's colour conversion may change the channels of a gray image by a few levels."""


_LEVELS = np.arange(256, dtype=np.float32)
_BLUR_WINDOW = 7


def augment(
    pixels: NDArray[np.uint8], config: AugmentConfig, size: int, *, seed: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Return a random view of an image, a pure function of its arguments.

    Crop, brightness and contrast, blur, one affine warp, flip: the authors' recipe and order. The warp fills with
    black and never uses pixels outside the crop. Every view consumes the same random numbers in the same order,
    whether a step is applied or not, so turning one step off does not change the others.

    Args:
        pixels: Prepared image, `[S, S]` uint8; not modified.
        config: Probabilities and ranges.
        size: Side of the view, at most `S`.
        seed: Seed of the run, epoch, and row of the sample.

    Returns:
        A new array, `[size, size]` uint8.

    Source:
        `Moco2Transform` of the released code. We interpolate the warp linearly, the released code takes the nearest
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
    """Return the centre of an image, `[size, size]`, as a NumPy view.

    Example:
        >>> centre_crop(np.arange(16, dtype=np.uint8).reshape(4, 4), 2).tolist()
        [[5, 6], [9, 10]]
    """
    top, left = ((side - size) // 2 for side in pixels.shape)
    return pixels[top : top + size, left : left + size]


def jitter(
    pixels: NDArray[np.uint8], brightness: float, contrast: float, *, contrast_first: bool = False
) -> NDArray[np.uint8]:
    """Scale intensities towards black by `brightness` and towards their rounded mean by `contrast`.

    Values are clipped to 0–255 and rounded down after each of the two steps, as in Pillow.
    """
    for is_contrast in (contrast_first, not contrast_first):
        centre = int(cv2.mean(pixels)[0] + 0.5) if is_contrast else 0
        factor = contrast if is_contrast else brightness
        table = np.clip(centre + np.float32(factor) * (_LEVELS - centre), 0, 255).astype(np.uint8)
        pixels = _uint8(cv2.LUT(pixels, table))
    return pixels


def blur(pixels: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    """Apply a Gaussian blur with a 7 x 7 kernel, reflecting at the border, rounded to the nearest level."""
    kernel = cv2.getGaussianKernel(_BLUR_WINDOW, sigma)
    return _uint8(cv2.sepFilter2D(pixels, -1, kernel, kernel))


def warp(pixels: NDArray[np.uint8], *, degrees: float, scale: float, shift: tuple[int, int]) -> NDArray[np.uint8]:
    """Rotate and scale an image about its centre, then shift it by `shift` (right, down) pixels; fill with black."""
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
    # OpenCV's type stubs do not say that uint8 in gives uint8 out; nothing is copied.
    return np.asarray(pixels, dtype=np.uint8)


def _between(draw: float, low: float, high: float) -> float:
    return low + draw * (high - low)
