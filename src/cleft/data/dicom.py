"""From DICOM bytes to gray pixels as they are meant to be seen."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pydicom import Dataset


class Window(NamedTuple):
    """A window of interest, as the standard writes it (PS3.3, C.11.2.1.2)."""

    centre: float
    width: float
    function: str
    """`LINEAR`, `LINEAR_EXACT` or `SIGMOID`."""


def choose_window(dataset: Dataset, index: int) -> Window | None:
    """Returns the window of that position if it has a meaning, or else the first that has; None if none has.

    A window has a meaning if it is finite, wide enough for its function, and of a known function.
    """
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    least = {"LINEAR": 1.0, "LINEAR_EXACT": math.ulp(0), "SIGMOID": math.ulp(0)}.get(function, math.inf)
    pairs = zip(_floats(dataset, "WindowCenter"), _floats(dataset, "WindowWidth"), strict=False)
    windows = [Window(c, w, function) if math.isfinite(c) and least <= w < math.inf else None for c, w in pairs]
    return next((window for window in [*windows[index : index + 1], *windows] if window is not None), None)


def _floats(dataset: Dataset, keyword: str) -> list[float]:
    """The numbers of an attribute; NaN for one that is none."""
    try:
        value: Any = dataset.get(keyword)
    except (ValueError, TypeError, LookupError, NotImplementedError, AttributeError):
        return []
    values = [] if value is None else [value] if isinstance(value, (int, float, str)) else list(value)
    return [float(item) if item not in (None, "") else math.nan for item in values]
