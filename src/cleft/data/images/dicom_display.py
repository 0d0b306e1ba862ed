"""Display of DICOM images: from stored values to 8-bit gray.

Every step of the standard's chain is pointwise: masking unused bits, sign, modality transformation, VOI window or LUT,
scaling, inversion. So it is computed once per value that can be stored, `P` = 256 or 65,536 of them, and the pixels are
looked up in the result.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from cleft.config import ImagesConfig
from cleft.data.images.dicom_attributes import DicomAttributeError, Grayscale, PixelLayout, Window, number_values
from cleft.data.images.preprocess import rescale_to_uint8
from cleft.data.images.source import refusal
from cleft.grammar import count, verb

_MIN_GRAY_LEVELS = 4
"""Gray levels, of 255, that an image must span if its stored values span `_MIN_STORED_LEVELS`."""
_MIN_STORED_LEVELS = 64
_SMOOTHNESS_RATIO = 1.25
"""How much larger the sum of differences between neighbours is in an image whose values wrap around."""


def apply_display(
    stored: NDArray[Any],
    layout: PixelLayout,
    declared: Grayscale,
    config: ImagesConfig,
    name: Path | str,
    *,
    little: bool,
) -> NDArray[np.uint8]:
    """Convert stored values to 8-bit gray, by `images.dicom`, `images.window` and `images.intensity`.

    Args:
        stored: Pixels as decoded, `[H, W]` uint8, int8, uint16 or int16.
        layout: How they are stored.
        declared: Transformations that the header declares for this frame.
        config: Image settings.
        name: Name of the file in messages.
        little: Whether the file is little endian, like its LUTs.

    Returns:
        `[H, W]` uint8; padding is black.

    Raises:
        DataError: With reason `constant` or `malformed`.
        DicomAttributeError: If values do not fit the layout, or a declared transformation is illegal.
    """
    patterns = align_bits(stored, layout, declared.padding_range)
    values = stored_values(stored.itemsize * 8, layout.bits_stored, signed=layout.signed)
    if config.dicom == "released":
        table = _released(values, _counts(patterns), stored.dtype, name)
        padding = np.zeros(len(values), dtype=bool)
    else:
        padding = _padding_mask(declared.padding_range, values, layout)
        table = _voi_or_percentile(values, patterns, padding, layout, declared, config, name, little=little)
    if declared.inverted:
        table = 255 - table
    table[padding] = 0
    shown = np.take(table, patterns)
    if config.dicom == "voi" and (padding.any() or int(shown.max()) - int(shown.min()) < _MIN_GRAY_LEVELS):
        _check_contrast(patterns, values, table, padding, declared, config, name)
    return shown


def align_bits(stored: NDArray[Any], layout: PixelLayout, padding: tuple[int, int] | None) -> NDArray[Any]:
    """Return the bit patterns of pixels, `[H, W]` unsigned, with the value in the lowest `layout.bits_stored` bits.

    The bits above may hold the sign, zeros or a declared overlay; they are not part of the value.

    Raises:
        DicomAttributeError: If other bits are used, so that the attribute that declares the bits is wrong.
    """
    unsigned = np.dtype(f"u{stored.itemsize}")
    patterns: NDArray[Any] = stored.view(unsigned)
    shift = layout.high_bit + 1 - layout.bits_stored
    overlays = layout.overlay_mask >> shift
    if shift:
        if int(np.bitwise_or.reduce(patterns, axis=None)) & ((1 << shift) - 1) & ~layout.overlay_mask:
            bits = verb(shift, "bit is unused, and values use it", f"{shift} bits are unused, and values use them")
            raise DicomAttributeError(
                f"HighBit is {layout.high_bit} and BitsStored is {layout.bits_stored}, so the lowest "
                f"{bits}; if values are not left-aligned, correct HighBit to {layout.bits_stored - 1}"
            )
        stored = stored >> shift
        patterns = stored.view(unsigned)
    if layout.signed_unknown and int(np.bitwise_or.reduce(patterns, axis=None)) >> (layout.bits_stored - 1):
        raise DicomAttributeError(
            "PixelRepresentation is missing, and some values are negative if it is 1 but large if it is 0; export the "
            "image again with it"
        )
    if layout.bits_stored < layout.bits_allocated:
        _check_stored(stored, patterns, layout, overlays, padding)
    return patterns


def _check_stored(
    stored: NDArray[Any], patterns: NDArray[Any], layout: PixelLayout, overlays: int, padding: tuple[int, int] | None
) -> None:
    """Reject values of more than `layout.bits_stored` bits, which would wrap around."""
    lowest = -(1 << layout.bits_stored - 1) if layout.signed else 0
    smallest, largest = int(stored.min()) if layout.signed else 0, int(stored.max())
    if lowest <= smallest and largest < lowest + (1 << layout.bits_stored):
        return
    beyond = patterns[(stored < lowest) | (stored >= lowest + (1 << layout.bits_stored))]
    if padding is not None:
        beyond = beyond[~_is_padding(beyond.view(stored.dtype), padding, signed=layout.signed)]
    above = int(np.bitwise_or.reduce(beyond)) >> layout.bits_stored << layout.bits_stored
    if not len(beyond) or (above and not above & ~overlays):
        return
    if not above and smallest >= 0 and not _is_smoother(patterns, layout):
        return  # Signed, with zeros above the sign bit of negative values.
    raise DicomAttributeError(
        f"BitsStored is {layout.bits_stored}, and values from {smallest} to {largest} need more bits; correct "
        "BitsStored and HighBit, or clear the bits above"
    )


def _is_smoother(patterns: NDArray[Any], layout: PixelLayout) -> bool:
    """Return whether an image is clearly smoother with unsigned than with signed values."""
    unsigned, signed = (
        sum(float(np.abs(np.diff(values[patterns], axis=axis)).sum(dtype=np.float64)) for axis in (0, 1))
        for values in (stored_values(layout.bits_allocated, layout.bits_stored, signed=sign) for sign in (False, True))
    )
    return _SMOOTHNESS_RATIO * unsigned < signed


def stored_values(allocated: int, stored: int, *, signed: bool) -> NDArray[np.int32]:
    """Return the value of each bit pattern, `[P]`: high bits ignored, the sign extended.

    Example:
        >>> stored_values(8, 3, signed=True)[:10].tolist()
        [0, 1, 2, 3, -4, -3, -2, -1, 0, 1]
    """
    values = np.arange(2**allocated, dtype=np.int32) & (2**stored - 1)
    return values - ((values >> (stored - 1)) << stored) if signed else values


def weighted_percentiles(values: NDArray[Any], counts: NDArray[np.int64], shares: tuple[float, float]) -> list[float]:
    """Return percentiles of values with counts, bit for bit as `np.percentile` of the repeated values.

    Example:
        >>> weighted_percentiles(np.array([3, 1]), np.array([1, 3]), (0, 75))
        [1.0, 1.5]
    """
    order = np.argsort(values, kind="stable")
    ranked, ends = values[order].astype(np.float64), np.cumsum(counts[order])
    results: list[float] = []
    for share in shares:
        rank = (int(ends[-1]) - 1) * (share / 100)
        below, above = (float(ranked[np.searchsorted(ends, int(rank) + step, side="right")]) for step in _steps(rank))
        part = rank - int(rank)
        step = above - below
        results.append(below + step * part if part < 0.5 else above - step * (1 - part))
    return results


def _steps(rank: float) -> tuple[int, int]:
    """The ranks to interpolate between, relative to the rank below."""
    return (0, 1) if rank > int(rank) else (0, 0)


def _voi_or_percentile(
    values: NDArray[np.int32],
    patterns: NDArray[Any],
    padding: NDArray[np.bool_],
    layout: PixelLayout,
    declared: Grayscale,
    config: ImagesConfig,
    name: Path | str,
    *,
    little: bool,
) -> NDArray[np.uint8]:
    rescaled = _apply_modality(values, declared, little=little)
    if config.dicom == "voi":
        if declared.voi_luts:
            table = declared.voi_luts[config.window if config.window < len(declared.voi_luts) else 0]
            shown, (black, white) = _apply_lut(np.rint(rescaled), table, "VOILUTSequence", little)
            return rescale_to_uint8(shown, black, white)
        window = declared.window(config.window)
        if window is not None:
            black, white = _output_range(layout, declared)
            # Values far outside the window are black or white.
            ends = apply_window(np.array([-np.inf, np.inf]), window, black, white).tolist()
            return rescale_to_uint8(apply_window(rescaled, window, black, white), *ends)
        if (values.min(), values.max()) == (0, 255) and np.array_equal(rescaled, values):
            return values.astype(np.uint8)  # 8-bit values stay unchanged, like those of a PNG.
    counts = _counts(patterns)
    counts[padding] = 0
    present = counts > 0
    if not present.any():
        raise refusal("constant", name, "every pixel is padding")
    if config.dicom == "percentile" or config.intensity == "percentile":
        low, high = weighted_percentiles(rescaled[present], counts[present], (0.5, 99.5))
    elif config.intensity == "min-max":
        low, high = float(rescaled[present].min()), float(rescaled[present].max())
    else:
        low, high = float(rescaled.min()), float(rescaled.max())
    if low == high:
        raise refusal("constant", name, f"99 % or more of its pixels have the same value, {low:g}")
    return rescale_to_uint8(rescaled, low, high)


def apply_window(values: NDArray[Any], window: Window, black: float, white: float) -> NDArray[np.float64]:
    """Map values so that the lower end of a window becomes `black` and its upper end `white`.

    Source:
        PS3.3, C.11.2.1.2 (LINEAR), C.11.2.1.3.1 (SIGMOID) and C.11.2.1.3.2 (LINEAR_EXACT).
    """
    values = values.astype(np.float64)
    center, width, function = window
    if function == "SIGMOID":
        with np.errstate(over="ignore", divide="ignore"):
            return (white - black) / (1 + np.exp(-4 * (values - center) / width)) + black
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    below, above = values <= center - width / 2, values > center + width / 2
    between = ~below & ~above
    values[below], values[above] = black, white
    values[between] = ((values[between] - center) / width + 0.5) * (white - black) + black
    return values


def _check_contrast(
    patterns: NDArray[Any],
    values: NDArray[np.int32],
    table: NDArray[np.uint8],
    padding: NDArray[np.bool_],
    declared: Grayscale,
    config: ImagesConfig,
    name: Path | str,
) -> None:
    """Reject an image that a declared window or LUT, not its own values, reduces to one gray value or nearly so."""
    present = (_counts(patterns) > 0) & ~padding
    if not present.any():
        raise refusal("constant", name, "every pixel is padding")
    used, window = values[present], declared.window(config.window)
    levels = table[present]
    spread, several = int(levels.max()) - int(levels.min()), int(used.max()) - int(used.min())
    if several == 0 or spread >= (_MIN_GRAY_LEVELS if several >= _MIN_STORED_LEVELS else 1):
        return
    if declared.voi_luts:
        cause = "the LUT of its VOILUTSequence"
    elif window is not None:
        cause = f"its window (WindowCenter {window.center:g}, WindowWidth {window.width:g})"
    else:
        return
    raise refusal(
        "constant",
        name,
        f"{cause} maps all its stored values, {used.min()} to {used.max()}, to {'nearly ' if spread else ''}the same "
        "gray; choose another with images.window, or set images.dicom=percentile",
    )


def _released(
    values: NDArray[np.int32], counts: NDArray[np.int64], kind: np.dtype[Any], name: Path | str
) -> NDArray[np.uint8]:
    """Reproduce the released code bit for bit: absolute values, times 255 over the maximum, saturated."""
    import cv2

    largest = int(values[counts > 0].max())
    if largest == 0:
        raise refusal("constant", name, "its largest value is 0, and images.dicom=released divides by it")
    return np.asarray(cv2.convertScaleAbs(values.astype(kind), alpha=255.0 / largest), dtype=np.uint8).ravel()


def _apply_modality(values: NDArray[np.int32], declared: Grayscale, *, little: bool) -> NDArray[Any]:
    """Apply the modality LUT, or rescale slope and intercept."""
    if declared.modality_lut is not None:
        return _apply_lut(values, declared.modality_lut, "ModalityLUTSequence", little)[0]
    if (declared.slope, declared.intercept) == (1, 0):
        return values
    low, high = _rescaled_ends(int(values.min()), int(values.max()), declared)
    # Slope or intercept may be so large or small that values overflow or coincide.
    if not math.isfinite(255 / declared.slope) or not math.isfinite(high - low):
        raise DicomAttributeError("RescaleSlope and RescaleIntercept give values that are not finite")
    if not math.ulp(max(abs(low), abs(high))) < abs(declared.slope):
        raise DicomAttributeError(
            "RescaleSlope is so small relative to RescaleIntercept that different values coincide"
        )
    return values * declared.slope + declared.intercept


def _rescaled_ends(lowest: int, highest: int, declared: Grayscale) -> tuple[float, float]:
    return lowest * declared.slope + declared.intercept, highest * declared.slope + declared.intercept


def _output_range(layout: PixelLayout, declared: Grayscale) -> tuple[float, float]:
    """The extreme values that can be stored, after the modality transformation: the output range of a window."""
    if declared.modality_lut is not None:
        return 0.0, 65535.0
    lowest = -(1 << layout.bits_stored - 1) if layout.signed else 0
    return _rescaled_ends(lowest, lowest + (1 << layout.bits_stored) - 1, declared)


def _apply_lut(
    values: NDArray[Any], item: Dataset, sequence: str, little: bool
) -> tuple[NDArray[np.int32], tuple[float, float]]:
    """Look values up in a LUT (PS3.3, C.11.1.1.1 and C.11.2.1.1).

    pydicom's functions wrap around in LUTs of more than 256 entries of 8 bits, and reject modality LUTs of 10 to 15
    bits.

    Returns:
        The entries, the first or last one for values beyond the ends; and the extremes of the LUT.

    Raises:
        DicomAttributeError: If the item is not a legal LUT.
    """
    descriptor = number_values(item, "LUTDescriptor")
    if len(descriptor) != 3 or not all(np.isfinite(descriptor)):
        raise DicomAttributeError(f"LUTDescriptor in {sequence} is not three numbers")
    size, first = (int(number) for number in descriptor[:2])
    size = size % 65536 or 65536
    if values.min() < 0 and first > 32767:  # Signed, but written as unsigned.
        first -= 65536
    entries = _lut_entries(item, size, sequence, little)
    if len(entries) < size:
        raise DicomAttributeError(
            f"LUTData in {sequence} has {count(len(entries), 'entry', 'entries')}, but LUTDescriptor declares {size}"
        )
    entries = entries[:size].astype(np.int32)
    places = np.clip(values - first, 0, size - 1).astype(np.intp)
    extremes = float(entries.min()), float(entries.max())
    if extremes[0] == extremes[1]:
        raise DicomAttributeError(f"all entries of LUTData in {sequence} are equal")
    return entries[places], extremes


def _lut_entries(item: Dataset, size: int, sequence: str, little: bool) -> NDArray[Any]:
    try:
        data: Any = item["LUTData"].value
    except Exception as error:
        raise DicomAttributeError(f"LUTData in {sequence} cannot be read") from error
    if isinstance(data, bytes):
        if len(data) < 2 * size:
            return np.frombuffer(data, np.uint8)
        return np.frombuffer(data[: 2 * size], "<u2" if little else ">u2")
    try:
        return np.atleast_1d(np.asarray(data, dtype=np.int64)) & 0xFFFF
    except (ValueError, TypeError, OverflowError) as error:
        raise DicomAttributeError(f"LUTData in {sequence} cannot be read") from error


def _padding_mask(ends: tuple[int, int] | None, values: NDArray[np.int32], layout: PixelLayout) -> NDArray[np.bool_]:
    """Which bit patterns are padding (PS3.3, C.7.5.1.1.2), `[P]`."""
    if ends is None:
        return np.zeros(len(values), dtype=bool)
    full_range = stored_values(layout.bits_allocated, layout.bits_allocated, signed=layout.signed)
    # A padding value may be outside the values that `BitsStored` allows.
    return _is_padding(values, ends, signed=layout.signed) | _is_padding(full_range, ends, signed=layout.signed)


def _is_padding(values: NDArray[Any], ends: tuple[int, int], *, signed: bool) -> NDArray[np.bool_]:
    # Both ends may be written with the VR of the other sign.
    low, high = sorted((end + 2**15) % 2**16 - 2**15 if signed else end % 2**16 for end in ends)
    return (values >= low) & (values <= high)


def _counts(patterns: NDArray[Any]) -> NDArray[np.int64]:
    """How often each bit pattern occurs, `[P]`."""
    return np.bincount(patterns.ravel(), minlength=2 ** (8 * patterns.itemsize))
