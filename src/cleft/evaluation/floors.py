"""What rules without a model reach on the very same images. A model that does not beat them has learned little.

`majority-class` answers the most frequent class, whatever the image. `ap-view` looks only at how the
image was taken: sick patients are X-rayed in bed (AP), so the projection alone tells much about them. On
the balanced RSNA task that rule scores 70 %.

A rule is written as scores, like a model's, so that both are measured by the same lines.

Shapes: `N` images, `C` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cleft.evaluation.metrics import Flags, Floats

ABSENCES = ("no finding", "no findings", "normal", "negative", "absent")
"""Names of a class that says nothing is there; so do all that begin with "no "."""


def majority_scores(truth: Sequence[int], classes: int) -> Floats:
    """Scores every image with the share of each class, `[N, C]`: its largest is the most frequent class."""
    shares = np.bincount(np.asarray(truth, dtype=np.intp), minlength=classes) / max(1, len(truth))
    return np.tile(shares, (len(truth), 1))


class ViewRule(NamedTuple):
    """Scores made of the view alone, or why there are none."""

    scores: Floats | None
    """`[N, C]`."""
    note: str | None
    """What a reader must know: why there are no scores, or that the rule is turned round."""


def view_rule(truth: Sequence[int], views: Sequence[str | None], classes: Sequence[str]) -> ViewRule:
    """Scores every image by its view alone.

    Where one of two classes says that nothing is there, an AP view means the other one. Otherwise each view answers
    the class most frequent in it, and its scores are the shares of the classes in that view; those shares are
    counted on these very images, so this floor is as high as the view can carry it.

    Args:
        truth: Class of each image, `[N]` int.
        views: Projection of each image, `[N]`. An image without one counts as a view of its own.
        classes: Names of the classes, `[C]`.
    """
    silent = why_no_view(views)
    if silent is not None:
        return ViewRule(None, silent)
    positive = positive_class(classes)
    if positive is not None:
        scores, note = ap_rule(np.asarray(truth) == positive, views, classes[positive])
        return ViewRule(np.stack([scores if index == positive else -scores for index in range(2)], axis=1), note)
    names, view_of = np.unique([_plain(view) for view in views], return_inverse=True)
    table = np.zeros((len(names), len(classes)))
    np.add.at(table, (view_of, np.asarray(truth, dtype=np.intp)), 1)
    return ViewRule((table / table.sum(axis=1, keepdims=True))[view_of], None)


def ap_rule(
    positive: Flags, views: Sequence[str | None], name: str, *, known: Flags | None = None
) -> tuple[Floats, str | None]:
    """Scores 1 for AP and -1 for the rest, or turned round where AP is rarer among the images that show the finding.

    A floor below chance would be no floor.

    Args:
        positive: Whether each image shows the finding, `[N]` bool.
        views: Projection of each image, `[N]`.
        name: The finding.
        known: Whether that is known of each image, `[N]` bool; by default of all.

    Returns:
        Scores, `[N]`, and a note where the rule is turned round.
    """
    frontal = np.array([1.0 if is_ap(view) else -1.0 for view in views])
    sick, well = frontal[positive], frontal[~positive if known is None else known & ~positive]
    if sick.size and well.size and sick.mean() < well.mean():
        return -frontal, f"turned round: AP is rarer among images that show {name}"
    return frontal, None


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
        >>> positive_class(["Pneumonia", "No Pneumonia"])
        0
        >>> positive_class(["Edema", "Pneumonia"]) is None
        True
    """
    absent = [index for index, name in enumerate(classes) if _denies(name.strip().lower())]
    return 1 - absent[0] if len(classes) == 2 and len(absent) == 1 else None


def _denies(name: str) -> bool:
    return name in ABSENCES or name.startswith("no ")


def _plain(view: str | None) -> str:
    return (view or "").strip().upper()
