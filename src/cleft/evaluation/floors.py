"""What rules without a model reach on the very same images. A model that does not beat them has learned little.

`majority-class` answers the most frequent class, whatever the image. `ap-view` looks only at how the
image was taken: sick patients are X-rayed in bed (AP), so the projection alone tells much about them. On
the balanced RSNA task that rule scores 70 %.

A rule is written as scores, like a model's, so that both are measured by the same lines.

Shapes: `N` images, `C` classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cleft.evaluation.metrics import Floats

ABSENCES = ("no finding", "no findings", "normal", "negative", "absent")
"""Names of a class that says nothing is there."""


def majority_scores(truth: Sequence[int], classes: int) -> Floats:
    """Scores every image with the share of each class, `[N, C]`: its largest is the most frequent class."""
    shares = np.bincount(np.asarray(truth, dtype=np.intp), minlength=classes) / max(1, len(truth))
    return np.tile(shares, (len(truth), 1))


def view_scores(truth: Sequence[int], views: Sequence[str | None], classes: Sequence[str]) -> Floats | str:
    """Scores every image by its view alone.

    Where one of two classes says that nothing is there, an AP view means the other one. Otherwise each view answers
    the class most frequent in it, and its scores are the shares of the classes in that view; those shares are
    counted on these very images, so this floor is as high as the view can carry it.

    Args:
        truth: Class of each image, `[N]` int.
        views: Projection of each image, `[N]`. An image without one counts as a view of its own.
        classes: Names of the classes, `[C]`.

    Returns:
        Scores, `[N, C]`, or a sentence saying why the views tell nothing apart.
    """
    silent = why_no_view(views)
    if silent is not None:
        return silent
    positive = positive_class(classes)
    if positive is not None:
        frontal = np.array([is_ap(view) for view in views], dtype=np.float64)
        return np.stack([frontal if index == positive else 1 - frontal for index in range(2)], axis=1)
    names, view_of = np.unique([_plain(view) for view in views], return_inverse=True)
    table = np.zeros((len(names), len(classes)))
    np.add.at(table, (view_of, np.asarray(truth, dtype=np.intp)), 1)
    return (table / table.sum(axis=1, keepdims=True))[view_of]


def why_no_view(views: Sequence[str | None]) -> str | None:
    """Why a rule by view is not measured here; None where it is."""
    known = {_plain(view) for view in views}
    if known == {""}:
        return "the table names no view"
    if len(known) < 2:
        return f"every image is {known.pop()}" if known else "no image"
    return None


def is_ap(view: str | None) -> bool:
    """Whether the image was taken from front to back, as in bed."""
    return _plain(view) == "AP"


def positive_class(classes: Sequence[str]) -> int | None:
    """Which of two classes is the finding, where the other says that nothing is there.

    Example:
        >>> positive_class(["No Finding", "Pneumonia"])
        1
        >>> positive_class(["Edema", "Pneumonia"]) is None
        True
    """
    absent = [index for index, name in enumerate(classes) if name.strip().lower() in ABSENCES]
    return 1 - absent[0] if len(classes) == 2 and len(absent) == 1 else None


def _plain(view: str | None) -> str:
    return (view or "").strip().upper()
