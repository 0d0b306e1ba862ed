"""From files to gray pixels, and from gray pixels to a square of the stored size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cleft.config import ImagesConfig
from cleft.data.images.decoders import DEFAULT_IMAGES, DEFAULT_LIMITS, Gray, ReadLimits, decode_gray, refusal
from cleft.data.images.opening import open_file


def read_gray(source: Path | bytes, limits: ReadLimits = DEFAULT_LIMITS, images: ImagesConfig = DEFAULT_IMAGES) -> Gray:
    """Reads a gray radiograph, upright, at its own size and depth.

    Args:
        source: A regular file, or the bytes of one. The ending of its name is not looked at.
        limits: What is refused before work.
        images: How a DICOM file's values become gray; nothing else of it matters here.

    Returns:
        Pixels as stored, `[H, W]`: uint8, or uint16 where the file has more than 8 bits; of a DICOM file always uint8,
        as it is meant to be seen. Colour files that only
        repeat one gray value lose the repetition; transparency is laid over black.

    Raises:
        DataError: With the reasons of `read_bytes` and `decode_gray`.
    """
    if isinstance(source, bytes):
        return decode_gray(source, "the image", limits, images)
    return decode_gray(read_bytes(source, limits)[0], source, limits, images)


def read_bytes(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> tuple[bytes, os.stat_result]:
    """Returns a regular file's bytes, and its size and time from when it was opened.

    Raises:
        DataError: With reason `missing`, `not-a-file`, `unreadable` or `too-large`.
    """
    with open_file(path, limits) as (file, status):
        return file.read(), status


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
