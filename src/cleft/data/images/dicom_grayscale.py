"""The grayscale transformations that a DICOM header declares for one frame: rescale or table, window or table, shape.

Enhanced objects declare them in functional groups, for all frames (shared) or for each (per frame); others at the top
level. The level closest to the frame counts. A mapping to real-world values is not for display and is not read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pydicom import Dataset

from cleft.data.images.dicom_attributes import AttributeFault, is_stated, items, number, numbers, text
from cleft.grammar import count


class Window(NamedTuple):
    """A window of interest that is legal for its function (PS3.3, C.11.2.1.2)."""

    center: float
    width: float
    function: str
    """`LINEAR`, `LINEAR_EXACT` or `SIGMOID`."""


class Grayscale(NamedTuple):
    """What the header declares for a frame."""

    slope: float
    intercept: float
    modality: Dataset | None
    """Item of a modality look-up table, in place of slope and intercept."""
    tables: tuple[Dataset, ...]
    """Items of VOI look-up tables; they count before windows."""
    windows: tuple[Window | None, ...]
    """Windows in the order declared, None in place of one that is illegal."""
    padding: tuple[int, int] | None
    """Lowest and highest padding value, as written: perhaps with the other sign than the pixels."""
    inverted: bool
    """Whether low values are white."""
    notes: tuple[str, ...]
    """Keys of `cleft.data.images.headers.ODDITIES`."""

    def window(self, index: int) -> Window | None:
        """Return the requested window if it is legal, or else the first legal one; None if none is."""
        wanted = self.windows[index] if index < len(self.windows) else None
        return wanted or next((window for window in self.windows if window is not None), None)


GRAYSCALE_TAGS = (
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PresentationLUTShape",
)
"""What `read_grayscale` reads, beside the photometric interpretation."""


def read_grayscale(dataset: Dataset, frame: int, frames: int) -> Grayscale:
    """Read what a header declares for a frame.

    Args:
        dataset: With a photometric interpretation of gray.
        frame: Place of the frame, from 0.
        frames: How many frames there are.

    Raises:
        AttributeFault: If a sequence cannot be read, slope or intercept is illegal, or the frame's item is uncertain.
    """
    notes: list[str] = []
    groups = _groups(dataset, frame, frames)
    slope, intercept, modality = _modality([*_macros(groups, _VALUES), dataset], notes)
    tables, windows = _interest([*_macros(groups, _INTEREST), dataset], notes)
    # The shape is the last step declared (PS3.4, N.2.5); the photometric interpretation only implies one.
    implied = text(dataset, "PhotometricInterpretation").upper() == "MONOCHROME1"
    inverted = {"IDENTITY": False, "INVERSE": True}.get(text(dataset, "PresentationLUTShape").upper(), implied)
    if inverted != implied:
        notes.append("shape")
    padding = _padding(dataset, notes)
    return Grayscale(slope, intercept, modality, tables, windows, padding, inverted, tuple(notes))


_VALUES, _INTEREST = "PixelValueTransformationSequence", "FrameVOILUTSequence"
"""Functional group macros that decide the display."""
_NARROWEST = {"LINEAR": 1.0, "LINEAR_EXACT": math.ulp(0), "SIGMOID": math.ulp(0)}


def _groups(dataset: Dataset, frame: int, frames: int) -> list[Dataset]:
    """Functional groups that hold for a frame, its own before the shared ones."""
    shared = items(dataset, "SharedFunctionalGroupsSequence")[:1]
    each = items(dataset, "PerFrameFunctionalGroupsSequence")
    if not each:
        return shared
    if len(each) != frames and not _are_equal([_declared(item) for item in each]):
        raise AttributeFault(
            f"PerFrameFunctionalGroupsSequence has {count(len(each), 'item')} for {count(frames, 'frame')}, and they "
            "declare different windows or rescaling"
        )
    return [each[min(frame, len(each) - 1)], *shared]


def _macros(groups: Sequence[Dataset], name: str) -> list[Dataset]:
    return [macro for group in groups for macro in items(group, name)[:1]]


def _declared(group: Dataset) -> list[list[Dataset]]:
    """What an item of the functional groups declares that decides the display, to compare items by."""
    return [items(group, name) for name in (_VALUES, _INTEREST)]


def _are_equal(declared: Sequence[list[list[Dataset]]]) -> bool:
    try:
        return all(each == declared[0] for each in declared)
    except Exception:  # noqa: BLE001 - comparing converts every value, and pydicom may raise anything.
        return False


def _modality(levels: Sequence[Dataset], notes: list[str]) -> tuple[float, float, Dataset | None]:
    """Slope, intercept and table of the first level that states any of them; half a rescale has its default."""
    for level in levels:
        if tables := items(level, "ModalityLUTSequence"):
            return 1.0, 0.0, tables[0]
        slope, intercept = number(level, "RescaleSlope"), number(level, "RescaleIntercept")
        if slope is None and intercept is None:
            continue
        if slope is None or intercept is None:
            notes.append("rescale")
        if slope == 0:
            raise AttributeFault("RescaleSlope is 0, which makes every value the same")
        return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept, None
    return 1.0, 0.0, None


def _interest(levels: Sequence[Dataset], notes: list[str]) -> tuple[tuple[Dataset, ...], tuple[Window | None, ...]]:
    """Tables and windows of the first level that states a legal one."""
    illegal = False
    found: tuple[tuple[Dataset, ...], tuple[Window | None, ...]] = (), ()
    for level in levels:
        stated = items(level, "VOILUTSequence")
        tables = tuple(item for item in stated if is_stated(item, "LUTDescriptor") and is_stated(item, "LUTData"))
        windows = _windows(level)
        illegal |= len(tables) < len(stated) or None in windows
        if tables or any(windows):
            found = tables, windows
            break
    if illegal:
        notes.append("windows" if any(found) else "window")
    return found


def _windows(level: Dataset) -> tuple[Window | None, ...]:
    centers, widths = numbers(level, "WindowCenter"), numbers(level, "WindowWidth")
    function = text(level, "VOILUTFunction").upper() or "LINEAR"
    narrowest = _NARROWEST.get(function, math.inf)
    pairs = zip(centers, widths, strict=False)
    legal = [
        Window(center, width, function) if math.isfinite(center) and narrowest <= width < math.inf else None
        for center, width in pairs
    ]
    # One that lacks its center or its width is illegal too.
    return (*legal, *[None] * (max(len(centers), len(widths)) - len(legal)))


def _padding(dataset: Dataset, notes: list[str]) -> tuple[int, int] | None:
    """Ends of the range of padding values (PS3.3, C.7.5.1.1.2)."""
    ends = [numbers(dataset, keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    whole = [[int(end) for end in found if math.isfinite(end) and end == int(end)] for found in ends]
    if any(len(found) > 1 or len(found) != len(kept) for found, kept in zip(ends, whole, strict=True)):
        notes.append("padding")
    first, limit = (found[0] if len(found) == 1 else None for found in whole)
    return None if first is None else (first, first if limit is None else limit)
