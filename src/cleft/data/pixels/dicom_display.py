"""From stored values of a DICOM image to gray as it is meant to be seen.

Every step of the standard's chain is pointwise: junk bits away, sign, modality, window or table of interest, scaling,
inversion. So the chain is computed once for every value that can be stored, `P` = 256 or 65,536 of them, and the
pixels are looked up in the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from cleft.config import ImagesConfig
from cleft.data.pixels.decoders import refusal
from cleft.data.pixels.dicom_files import choose_window
from cleft.data.pixels.images import stretch


def show(
    stored: NDArray[Any], dataset: Dataset, config: ImagesConfig, name: Path | str, *, little: bool
) -> NDArray[np.uint8]:
    """Brings stored values to 8 bits, by `images.dicom`, `images.window` and `images.intensity`.

    Args:
        stored: Pixels as decoded, `[H, W]` uint8, int8, uint16 or int16; whatever stands above `BitsStored` is ignored.
        dataset: With `BitsStored`, `PixelRepresentation` and `PhotometricInterpretation`, gray.
        config: Its policy.
        name: What to call the file in messages.
        little: Whether the file is little endian, as its tables are then.

    Returns:
        `[H, W]` uint8; padding is black, and so is what was meant to be black.

    Raises:
        DataError: With reason `constant` or `malformed`.
    """
    patterns = stored.view(np.dtype(f"u{stored.itemsize}"))
    values = possible_values(stored.itemsize * 8, int(dataset.BitsStored), signed=dataset.PixelRepresentation == 1)
    if config.dicom == "released":
        table = _released(values, _counts(patterns), stored.dtype, name)
        padding = np.zeros(len(values), dtype=bool)
    else:
        padding = _padding(dataset, values)
        table = _voi_or_percentile(values, patterns, padding, dataset, config, name, little=little)
    # Last, and once: the presentation LUT shape INVERSE that such files carry says the same again (PS3.3, C.11.6).
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        table = 255 - table
    table[padding] = 0
    return np.take(table, patterns)


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
    dataset: Dataset,
    config: ImagesConfig,
    name: Path | str,
    *,
    little: bool,
) -> NDArray[np.uint8]:
    meant = _modality(values, dataset, name, little=little)
    if config.dicom == "voi":
        tables = [item for item in dataset.get("VOILUTSequence") or () if "LUTDescriptor" in item and "LUTData" in item]
        if tables:
            table = tables[config.window if config.window < len(tables) else 0]
            shown, (black, white) = _look_up(np.rint(meant), table, name, little)
            return stretch(shown, black, white)
        window = choose_window(dataset, config.window)
        if window is not None:
            with np.errstate(over="ignore"):
                shown = apply_windowing(meant, dataset, window)
                # What lies far outside a window is black or white: so pydicom says what these are.
                black, white = apply_windowing(np.array([-np.inf, np.inf]), dataset, window).tolist()
            if black == white:
                raise refusal("malformed", name, "its rescale slope of 0 makes every value the same")
            return stretch(shown, black, white)
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


def _released(
    values: NDArray[np.int32], counts: NDArray[np.int64], kind: np.dtype[Any], name: Path | str
) -> NDArray[np.uint8]:
    """Repeats the authors' scaling to the bit: absolute values, times 255 over the maximum, saturated."""
    import cv2

    largest = int(values[counts > 0].max())
    if largest == 0:
        raise refusal("constant", name, "its largest value is 0, by which images.dicom=released divides")
    return np.asarray(cv2.convertScaleAbs(values.astype(kind), alpha=255.0 / largest), dtype=np.uint8).ravel()


def _modality(values: NDArray[np.int32], dataset: Dataset, name: Path | str, *, little: bool) -> NDArray[Any]:
    """What the machine measured: by the modality table, or slope and intercept; or the values themselves."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(values, dataset.ModalityLUTSequence[0], name, little)[0]
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if keyword in dataset and dataset[keyword].is_empty:
            del dataset[keyword]
    meant = apply_modality_lut(values, dataset)
    if not np.isfinite(meant).all():
        raise refusal("malformed", name, "its rescale slope or intercept is not finite")
    return meant


def _look_up(
    values: NDArray[Any], item: Dataset, name: Path | str, little: bool
) -> tuple[NDArray[np.int32], tuple[float, float]]:
    """Looks values up in a table of the standard's form (PS3.3, C.11.1.1.1 and C.11.2.1.1).

    pydicom's own functions would do, but wrap around in tables of more than 256 entries of 8 bits, and refuse modality
    tables of 10 to 15 bits.

    Returns:
        The entries, values beyond the table's ends taking its first or last one; and the table's extremes.
    """
    size, first = (int(number) for number in item.LUTDescriptor[:2])
    size = size % 65536 or 65536
    if values.min() < 0 and first > 32767:  # Signed, but written as unsigned.
        first -= 65536
    data: Any = item["LUTData"].value
    if isinstance(data, bytes):
        deep = len(data) >= 2 * size
        entries = np.frombuffer(data, np.dtype("<u2" if little else ">u2") if deep else np.uint8)
    else:
        entries = np.atleast_1d(np.asarray(data)) & 0xFFFF
    if len(entries) < size:
        raise refusal("malformed", name, f"a look-up table of {size} entries holds only {len(entries)}")
    entries = entries[:size].astype(np.int32)
    places = np.clip(values - first, 0, size - 1).astype(np.intp)
    extremes = float(entries.min()), float(entries.max())
    if extremes[0] == extremes[1]:
        raise refusal("malformed", name, "all entries of a look-up table are the same")
    return entries[places], extremes


def _padding(dataset: Dataset, values: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which patterns stand for no picture at all (PS3.3, C.7.5.1.1.2), `[P]`."""
    first: Any = dataset.get("PixelPaddingValue")
    if first is None or first == "":
        return np.zeros(len(values), dtype=bool)
    limit: Any = dataset.get("PixelPaddingRangeLimit")
    ends = [int(end) for end in (first, first if limit is None or limit == "" else limit)]
    signed = dataset.PixelRepresentation == 1
    # Both may be written with the other sign's type.
    low, high = sorted((end + 2**15) % 2**16 - 2**15 if signed else end % 2**16 for end in ends)
    return (values >= low) & (values <= high)


def _counts(patterns: NDArray[Any]) -> NDArray[np.int64]:
    """How often each pattern occurs, `[P]`."""
    return np.bincount(patterns.ravel(), minlength=2 ** (8 * patterns.itemsize))
