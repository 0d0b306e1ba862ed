"""From stored values of a DICOM image to gray as it is meant to be seen.

Every step of the standard's chain is pointwise: junk bits away, sign, modality, window or table of interest, scaling,
inversion. So the chain is computed once for every value that can be stored, `P` = 256 or 65,536 of them, and the
pixels are looked up in the result.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from cleft.config import ImagesConfig
from cleft.data.images.dicom_attributes import AttributeFault, Grayscale, Layout, Window, numbers
from cleft.data.images.preprocess import stretch
from cleft.data.images.source import refusal
from cleft.grammar import count, verb

_FAINT = 4
"""Gray levels, of 255, that values must span at least if they span `_SEVERAL` as stored; the eye needs more."""
_SEVERAL = 64
_CLEARLY = 1.25
"""How much larger the sum of steps between neighbours is in a picture whose values wrap around."""


def show(
    stored: NDArray[Any], layout: Layout, declared: Grayscale, config: ImagesConfig, name: Path | str, *, little: bool
) -> NDArray[np.uint8]:
    """Brings stored values to 8 bits, by `images.dicom`, `images.window` and `images.intensity`.

    Args:
        stored: Pixels as decoded, `[H, W]` uint8, int8, uint16 or int16.
        layout: How they are stored.
        declared: What the header declares for this frame.
        config: Its policy.
        name: What to call the file in messages.
        little: Whether the file is little endian, as its tables are then.

    Returns:
        `[H, W]` uint8; padding is black, and so is what was meant to be black.

    Raises:
        DataError: With reason `constant` or `malformed`.
        AttributeFault: If values do not fit the layout, or a declared transformation is illegal.
    """
    patterns = align_bits(stored, layout, declared.padding)
    values = possible_values(stored.itemsize * 8, layout.stored, signed=layout.signed)
    if config.dicom == "released":
        table = _released(values, _counts(patterns), stored.dtype, name)
        padding = np.zeros(len(values), dtype=bool)
    else:
        padding = _padding(declared.padding, values, layout)
        table = _voi_or_percentile(values, patterns, padding, layout, declared, config, name, little=little)
    if declared.inverted:
        table = 255 - table
    table[padding] = 0
    shown = np.take(table, patterns)
    if config.dicom == "voi" and (padding.any() or int(shown.max()) - int(shown.min()) < _FAINT):
        _check_contrast(patterns, values, table, padding, declared, config, name)
    return shown


def align_bits(stored: NDArray[Any], layout: Layout, padding: tuple[int, int] | None) -> NDArray[Any]:
    """Return the bit patterns of pixels, `[H, W]` unsigned, the value in the lowest `layout.stored` bits.

    The bits above may hold the sign, zeros or a declared overlay; they are not part of the value.

    Raises:
        AttributeFault: If other bits are used, so that the attribute that says which bits are used is wrong.
    """
    unsigned = np.dtype(f"u{stored.itemsize}")
    patterns: NDArray[Any] = stored.view(unsigned)
    shift = layout.high + 1 - layout.stored
    overlays = layout.overlays >> shift
    if shift:
        if int(np.bitwise_or.reduce(patterns, axis=None)) & ((1 << shift) - 1) & ~layout.overlays:
            bits = verb(shift, "bit is unused, and values use it", f"{shift} bits are unused, and values use them")
            raise AttributeFault(
                f"HighBit is {layout.high} where BitsStored is {layout.stored}, so the lowest "
                f"{bits}; if values are not left-aligned, correct HighBit to {layout.stored - 1}"
            )
        stored = stored >> shift
        patterns = stored.view(unsigned)
    if layout.signed_unknown and int(np.bitwise_or.reduce(patterns, axis=None)) >> (layout.stored - 1):
        raise AttributeFault(
            "PixelRepresentation is missing, and some values are negative if it is 1 and large if it is 0; export the "
            "image again with it"
        )
    if layout.stored < layout.allocated:
        _check_stored(stored, patterns, layout, overlays, padding)
    return patterns


def _check_stored(
    stored: NDArray[Any], patterns: NDArray[Any], layout: Layout, overlays: int, padding: tuple[int, int] | None
) -> None:
    """Refuse values of more than `layout.stored` bits, which would wrap around."""
    lowest = -(1 << layout.stored - 1) if layout.signed else 0
    smallest, largest = int(stored.min()) if layout.signed else 0, int(stored.max())
    if lowest <= smallest and largest < lowest + (1 << layout.stored):
        return
    beyond = patterns[(stored < lowest) | (stored >= lowest + (1 << layout.stored))]
    if padding is not None:
        beyond = beyond[~_is_padding(beyond.view(stored.dtype), padding, signed=layout.signed)]
    above = int(np.bitwise_or.reduce(beyond)) >> layout.stored << layout.stored
    if not len(beyond) or (above and not above & ~overlays):
        return
    if not above and smallest >= 0 and not _is_smoother(patterns, layout):
        return  # Signed, and what is negative has zeros above its sign.
    raise AttributeFault(
        f"BitsStored is {layout.stored}, and values from {smallest} to {largest} take more bits; correct BitsStored "
        "and HighBit, or clear the bits above"
    )


def _is_smoother(patterns: NDArray[Any], layout: Layout) -> bool:
    """Return whether a picture is clearly smoother with its values taken as unsigned than as signed ones."""
    unsigned, signed = (
        sum(float(np.abs(np.diff(values[patterns], axis=axis)).sum(dtype=np.float64)) for axis in (0, 1))
        for values in (possible_values(layout.allocated, layout.stored, signed=sign) for sign in (False, True))
    )
    return _CLEARLY * unsigned < signed


def possible_values(allocated: int, stored: int, *, signed: bool) -> NDArray[np.int32]:
    """Returns what each pattern of allocated bits means, `[P]`: high bits ignored, the sign extended.

    Example:
        >>> possible_values(8, 3, signed=True)[:10].tolist()
        [0, 1, 2, 3, -4, -3, -2, -1, 0, 1]
    """
    values = np.arange(2**allocated, dtype=np.int32) & (2**stored - 1)
    return values - ((values >> (stored - 1)) << stored) if signed else values


def percentiles(values: NDArray[Any], counts: NDArray[np.int64], shares: tuple[float, float]) -> list[float]:
    """Returns percentiles of values that occur so many times, to the bit as `np.percentile` of them all.

    Example:
        >>> percentiles(np.array([3, 1]), np.array([1, 3]), (0, 75))
        [1.0, 1.5]
    """
    order = np.argsort(values, kind="stable")
    ranked, ends = values[order].astype(np.float64), np.cumsum(counts[order])
    found: list[float] = []
    for share in shares:
        place = (int(ends[-1]) - 1) * (share / 100)
        below, above = (float(ranked[np.searchsorted(ends, int(place) + step, side="right")]) for step in _steps(place))
        part = place - int(place)
        step = above - below
        found.append(below + step * part if part < 0.5 else above - step * (1 - part))
    return found


def _steps(place: float) -> tuple[int, int]:
    """The rank below a place, and the one above it if the place lies between two."""
    return (0, 1) if place > int(place) else (0, 0)


def _voi_or_percentile(
    values: NDArray[np.int32],
    patterns: NDArray[Any],
    padding: NDArray[np.bool_],
    layout: Layout,
    declared: Grayscale,
    config: ImagesConfig,
    name: Path | str,
    *,
    little: bool,
) -> NDArray[np.uint8]:
    meant = _modality(values, declared, little=little)
    if config.dicom == "voi":
        if declared.tables:
            table = declared.tables[config.window if config.window < len(declared.tables) else 0]
            shown, (black, white) = _look_up(np.rint(meant), table, "VOILUTSequence", little)
            return stretch(shown, black, white)
        window = declared.window(config.window)
        if window is not None:
            black, white = _output_range(layout, declared)
            # Values far outside a window are black or white.
            ends = apply_window(np.array([-np.inf, np.inf]), window, black, white).tolist()
            return stretch(apply_window(meant, window, black, white), *ends)
        if (values.min(), values.max()) == (0, 255) and np.array_equal(meant, values):
            return values.astype(np.uint8)  # 8 bits stay as they are, as those of a PNG do.
    counts = _counts(patterns)
    counts[padding] = 0
    present = counts > 0
    if not present.any():
        raise refusal("constant", name, "every pixel is padding")
    if config.dicom == "percentile" or config.intensity == "percentile":
        low, high = percentiles(meant[present], counts[present], (0.5, 99.5))
    elif config.intensity == "min-max":
        low, high = float(meant[present].min()), float(meant[present].max())
    else:
        low, high = float(meant.min()), float(meant.max())
    if low == high:
        raise refusal("constant", name, f"99 % or more of its pixels have the same value, {low:g}")
    return stretch(meant, low, high)


def apply_window(values: NDArray[Any], window: Window, black: float, white: float) -> NDArray[np.float64]:
    """Map values so that a window's lower end becomes `black` and its upper end `white`.

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
    """Refuse a picture that the header, and not its own values, turns into one gray value, or nearly so."""
    present = (_counts(patterns) > 0) & ~padding
    if not present.any():
        raise refusal("constant", name, "every pixel is padding")
    found, window = values[present], declared.window(config.window)
    levels = table[present]
    spread, several = int(levels.max()) - int(levels.min()), int(found.max()) - int(found.min())
    if several == 0 or spread >= (_FAINT if several >= _SEVERAL else 1):
        return
    if declared.tables:
        cause = "the table of its VOILUTSequence"
    elif window is not None:
        cause = f"its window (WindowCenter {window.center:g}, WindowWidth {window.width:g})"
    else:
        return
    raise refusal(
        "constant",
        name,
        f"{cause} shows all its values, stored as {found.min()} to {found.max()}, as "
        f"{'nearly ' if spread else ''}the same gray; choose another "
        "with images.window, or set images.dicom=percentile",
    )


def _released(
    values: NDArray[np.int32], counts: NDArray[np.int64], kind: np.dtype[Any], name: Path | str
) -> NDArray[np.uint8]:
    """Repeats the authors' scaling to the bit: absolute values, times 255 over the maximum, saturated."""
    import cv2

    largest = int(values[counts > 0].max())
    if largest == 0:
        raise refusal("constant", name, "its largest value is 0, by which images.dicom=released divides")
    return np.asarray(cv2.convertScaleAbs(values.astype(kind), alpha=255.0 / largest), dtype=np.uint8).ravel()


def _modality(values: NDArray[np.int32], declared: Grayscale, *, little: bool) -> NDArray[Any]:
    """What the machine measured: by the modality table, or slope and intercept; or the values themselves."""
    if declared.modality is not None:
        return _look_up(values, declared.modality, "ModalityLUTSequence", little)[0]
    if (declared.slope, declared.intercept) == (1, 0):
        return values
    low, high = _rescaled_ends(int(values.min()), int(values.max()), declared)
    # Numbers may be so large or so small that different values become the same one, or none.
    if not math.isfinite(255 / declared.slope) or not math.isfinite(high - low):
        raise AttributeFault("RescaleSlope and RescaleIntercept lead to no finite values")
    if not math.ulp(max(abs(low), abs(high))) < abs(declared.slope):
        raise AttributeFault("RescaleSlope is so small beside RescaleIntercept that different values become the same")
    return values * declared.slope + declared.intercept


def _rescaled_ends(lowest: int, highest: int, declared: Grayscale) -> tuple[float, float]:
    return lowest * declared.slope + declared.intercept, highest * declared.slope + declared.intercept


def _output_range(layout: Layout, declared: Grayscale) -> tuple[float, float]:
    """What the smallest and the largest value that can be stored become, as the range of a window's output."""
    if declared.modality is not None:
        return 0.0, 65535.0
    lowest = -(1 << layout.stored - 1) if layout.signed else 0
    return _rescaled_ends(lowest, lowest + (1 << layout.stored) - 1, declared)


def _look_up(
    values: NDArray[Any], item: Dataset, sequence: str, little: bool
) -> tuple[NDArray[np.int32], tuple[float, float]]:
    """Looks values up in a table of the standard's form (PS3.3, C.11.1.1.1 and C.11.2.1.1).

    pydicom's own functions would do, but wrap around in tables of more than 256 entries of 8 bits, and refuse modality
    tables of 10 to 15 bits.

    Returns:
        The entries, values beyond the table's ends taking its first or last one; and the table's extremes.

    Raises:
        AttributeFault: If the item is no such table.
    """
    descriptor = numbers(item, "LUTDescriptor")
    if len(descriptor) != 3 or not all(np.isfinite(descriptor)):
        raise AttributeFault(f"LUTDescriptor in {sequence} is not three numbers")
    size, first = (int(number) for number in descriptor[:2])
    size = size % 65536 or 65536
    if values.min() < 0 and first > 32767:  # Signed, but written as unsigned.
        first -= 65536
    entries = _entries(item, size, sequence, little)
    if len(entries) < size:
        raise AttributeFault(
            f"LUTData in {sequence} holds {count(len(entries), 'entry', 'entries')} where LUTDescriptor says {size}"
        )
    entries = entries[:size].astype(np.int32)
    places = np.clip(values - first, 0, size - 1).astype(np.intp)
    extremes = float(entries.min()), float(entries.max())
    if extremes[0] == extremes[1]:
        raise AttributeFault(f"all entries of LUTData in {sequence} are the same")
    return entries[places], extremes


def _entries(item: Dataset, size: int, sequence: str, little: bool) -> NDArray[Any]:
    try:
        data: Any = item["LUTData"].value
    except Exception as error:
        raise AttributeFault(f"LUTData in {sequence} cannot be read") from error
    if isinstance(data, bytes):
        if len(data) < 2 * size:
            return np.frombuffer(data, np.uint8)
        return np.frombuffer(data[: 2 * size], "<u2" if little else ">u2")
    try:
        return np.atleast_1d(np.asarray(data, dtype=np.int64)) & 0xFFFF
    except (ValueError, TypeError, OverflowError) as error:
        raise AttributeFault(f"LUTData in {sequence} cannot be read") from error


def _padding(ends: tuple[int, int] | None, values: NDArray[np.int32], layout: Layout) -> NDArray[np.bool_]:
    """Which patterns stand for no picture at all (PS3.3, C.7.5.1.1.2), `[P]`."""
    if ends is None:
        return np.zeros(len(values), dtype=bool)
    whole = possible_values(layout.allocated, layout.allocated, signed=layout.signed)
    # A padding value may be outside the values that `BitsStored` allows.
    return _is_padding(values, ends, signed=layout.signed) | _is_padding(whole, ends, signed=layout.signed)


def _is_padding(values: NDArray[Any], ends: tuple[int, int], *, signed: bool) -> NDArray[np.bool_]:
    # Both ends may be written with the other sign's type.
    low, high = sorted((end + 2**15) % 2**16 - 2**15 if signed else end % 2**16 for end in ends)
    return (values >= low) & (values <= high)


def _counts(patterns: NDArray[Any]) -> NDArray[np.int64]:
    """How often each pattern occurs, `[P]`."""
    return np.bincount(patterns.ravel(), minlength=2 ** (8 * patterns.itemsize))
