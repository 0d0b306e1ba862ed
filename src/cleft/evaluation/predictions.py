"""A question put to embeddings: which of these classes, or is this finding there; and its answers.

Logits are float32 whatever the towers ran in: half precision makes equal logits of far pairs.

Shapes: `N` images, `C` classes, `F` findings of the table, `E` joint dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch import Tensor

from cleft.errors import ConfigError, DataError
from cleft.evaluation.metrics import Flags, Floats, confusion, finite, roc_points
from cleft.evaluation.scoring import (
    RANKINGS,
    USUAL_DRAWS,
    Bootstrap,
    Predictions,
    log_odds,
    score_classes,
    score_findings,
)
from cleft.grammar import count, share, verb
from cleft.results import Result
from cleft.types import Embeddings, LabelledImages

Blank = Literal["unknown", "absent"]


class ClassificationResults(NamedTuple):
    """What a model answered, and how well."""

    results: tuple[Result, ...]
    baselines: tuple[Result, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    roc: dict[str, list[tuple[float, float]]]
    rows: list[int]
    """Rows of the embeddings that were asked about."""
    truths: list[str]
    """What each of these images shows, in words."""
    probabilities: Floats
    """Of each class, `[rows, C]`."""
    scored: Predictions
    """What the numbers are made of, row by row."""
    notes: list[str]


def class_logits(image_embeds: Tensor, class_embeds: Tensor, logit_scale: Tensor) -> Floats:
    """Cosine times inverse temperature, `[N, C]`.

    Args:
        image_embeds: Unit-length rows, `[N, E]`.
        class_embeds: Unit-length rows, `[C, E]`.
        logit_scale: Logarithm of the inverse temperature, as the model keeps it.

    Raises:
        NumericsError: If a logit is not finite.
    """
    scale = logit_scale.detach().float().cpu().exp()
    return finite((scale * image_embeds.float().cpu() @ class_embeds.detach().float().cpu().T).numpy())


def multi_class_results(
    logits: Floats, images: Embeddings | LabelledImages, classes: Sequence[str], draws: Bootstrap = USUAL_DRAWS
) -> ClassificationResults:
    """Which one of the classes each image shows; asked of the images that show exactly one.

    One-vs-rest scores are the log-odds of the softmax: they rank images as its probabilities do, without
    their rounding to 1.

    Args:
        logits: One column per class, `[N, C]`.
        images: Labels, patients and views of the images, `[N]`.
        classes: At least two columns of the labels.
        draws: How intervals are drawn.

    Raises:
        ConfigError: If there are fewer than two classes.
        DataError: If no image shows exactly one of them.
    """
    rows, scored = multi_class_predictions(logits, images, classes)
    several = (label_columns(images, classes) == 1).sum(axis=1)
    counts, truth, asked = _counts(several), scored.truth.astype(np.intp), scored.scores
    patients, views = scored.patients, [images.views[row] for row in rows]
    odds = log_odds(asked)
    answers = asked.argmax(axis=1)
    positive = positive_class(classes)
    drawn = range(len(classes)) if positive is None else [positive]
    absent = [name for c, name in enumerate(classes) if not (truth == c).any()]
    return ClassificationResults(
        results=score_classes(odds, truth, classes, patients, draws, answers=answers),
        baselines=class_baselines(truth, views, classes, patients, draws),
        confusion=confusion(truth, answers, len(classes)),
        roc={classes[c]: roc_points(odds[:, c], truth == c) for c in drawn if (truth == c).any()},
        rows=rows,
        truths=[classes[int(c)] for c in truth],
        probabilities=softmax(asked, axis=1),
        scored=scored,
        notes=[f"Scored: {count(len(rows), 'image')} with exactly one of the classes ({counts})."]
        + [f"No image shows {name}; it could be answered all the same." for name in absent],
    )


def present_absent_results(
    present_logits: Floats,
    absent_logits: Floats,
    images: Embeddings | LabelledImages,
    findings: Sequence[str],
    draws: Bootstrap = USUAL_DRAWS,
    *,
    blank: Blank = "unknown",
) -> ClassificationResults:
    """Whether each finding is there: its prompt against the prompt of its absence.

    Args:
        present_logits: Logits of the prompts that name the findings, `[N, C]`.
        absent_logits: Logits of the prompts that deny them, `[N, C]`.
        images: Labels, patients and views of the images, `[N]`.
        findings: Columns of the labels, `[C]`.
        draws: How intervals are drawn.
        blank: Whether a finding nobody mentioned is not known, so that the image is not asked about it, or absent.

    Raises:
        DataError: If no finding is known of any image.
    """
    scored = present_absent_predictions(present_logits, absent_logits, images, findings, blank=blank)
    scores, labels = scored.scores, scored.truth
    given = label_columns(images, findings)
    blanks = int((np.isnan(given) | (given == -1)).sum())
    known = ~np.isnan(labels)
    meaning = verb(blanks, "counts", "count") + " as absent" if blank == "absent" else "not scored"
    return ClassificationResults(
        results=score_findings(scores, labels, findings, images.patients, draws),
        baselines=finding_baselines(labels, images.views, findings, images.patients, draws),
        confusion=None,
        roc={
            name: points
            for c, name in enumerate(findings)
            if (points := roc_points(scores[known[:, c], c], labels[known[:, c], c] == 1))
        },
        rows=list(range(len(labels))),
        truths=[", ".join(name for name, label in zip(findings, row, strict=True) if label == 1) for row in labels],
        probabilities=expit(scores),
        scored=scored,
        notes=[
            f"Scored: {count(len(labels), 'image')}, finding by finding; {share(blanks, labels.size, 'label')} "
            f"{verb(blanks, 'is', 'are')} blank or uncertain and {meaning}."
        ],
    )


def multi_class_predictions(
    logits: Floats, images: Embeddings | LabelledImages, classes: Sequence[str]
) -> tuple[list[int], Predictions]:
    """Picks the images that show exactly one of the classes.

    Args:
        logits: One column per class, `[N, C]`.
        images: Labels and patients of the images, `[N]`.
        classes: At least two columns of the labels.

    Returns:
        Their rows, and the answers to them.

    Raises:
        ConfigError: If there are fewer than two classes.
        DataError: If no image shows exactly one of them.
    """
    if len(classes) < 2:
        raise ConfigError(f"classes={list(classes)}: multi-class scoring needs two; or use --scoring present-absent")
    present = label_columns(images, classes) == 1
    rows = rows_with_one_class(images, classes)
    if not rows:
        counts = _counts(present.sum(axis=1))
        raise DataError(f"no image shows exactly one of {', '.join(classes)} ({counts})", reason="no-image")
    truth = present[rows].argmax(axis=1).astype(np.float64)
    return rows, Predictions(logits[rows], truth, [images.patients[row] for row in rows])


def rows_with_one_class(images: Embeddings | LabelledImages, classes: Sequence[str]) -> list[int]:
    """Rows of the images that show exactly one of the classes.

    Raises:
        ConfigError: If a class is not a finding of the table.
    """
    present = label_columns(images, classes) == 1
    return np.flatnonzero(present.sum(axis=1) == 1).tolist()


def present_absent_predictions(
    present_logits: Floats,
    absent_logits: Floats,
    images: Embeddings | LabelledImages,
    findings: Sequence[str],
    *,
    blank: Blank = "unknown",
) -> Predictions:
    """Holds the prompt of each finding against that of its absence, for all images.

    Args:
        present_logits: Logits of the prompts that name the findings, `[N, C]`.
        absent_logits: Logits of the prompts that deny them, `[N, C]`.
        images: Labels and patients of the images, `[N]`.
        findings: Columns of the labels, `[C]`.
        blank: Whether a finding nobody mentioned, or that is uncertain, is not known, or absent.

    Raises:
        DataError: If no finding is known of any image.
    """
    labels = label_columns(images, findings)
    labels[labels == -1] = np.nan
    if blank == "absent":
        labels[np.isnan(labels)] = 0
    if np.isnan(labels).all():
        raise DataError(f"no image says whether {' or '.join(findings)} is there", reason="no-image")
    return Predictions(present_logits - absent_logits, labels, images.patients)


def label_columns(images: Embeddings | LabelledImages, classes: Sequence[str]) -> Floats:
    """The labels of some findings, `[N, C]`, in their order.

    Raises:
        ConfigError: If a class is not a finding of the table.
    """
    unknown = [name for name in classes if name not in images.findings]
    if unknown:
        raise ConfigError(f"classes {unknown} are no findings of the table; it has {', '.join(images.findings)}")
    columns = torch.tensor([images.findings.index(name) for name in classes], dtype=torch.long)
    return images.labels[:, columns].double().numpy().copy()


def _counts(several: Floats) -> str:
    none, more = int((several == 0).sum()), int((several > 1).sum())
    return f"{share(none, len(several), 'image')} {verb(none, 'shows', 'show')} none of them, {more:,} several"


def class_baselines(
    truth: NDArray[np.intp],
    views: Sequence[str | None],
    classes: Sequence[str],
    patients: Sequence[str],
    draws: Bootstrap = USUAL_DRAWS,
) -> tuple[Result, ...]:
    """What the majority class and the AP-view rule reach on the images of `score_classes`."""
    counts = [int(index) for index in truth]
    majority = majority_scores(counts, len(classes))
    floors = score_classes(majority, truth, classes, patients, draws, rule="majority-class/")
    scores, note = view_rule(counts, views, classes)
    if scores is None:
        return (*floors, *_unmeasured("ap-view/", note, len(truth), patients))
    return (*floors, *score_classes(scores, truth, classes, patients, draws, rule="ap-view/", note=note))


def finding_baselines(
    labels: Floats,
    views: Sequence[str | None],
    findings: Sequence[str],
    patients: Sequence[str],
    draws: Bootstrap = USUAL_DRAWS,
) -> tuple[Result, ...]:
    """What the majority answer and the AP-view rule, finding by finding, reach on the images of `score_findings`."""
    present = (labels == 1).sum(axis=0) > (labels == 0).sum(axis=0)
    majority = np.tile(np.where(present, 1.0, -1.0), (len(labels), 1))
    floors = score_findings(majority, labels, findings, patients, draws, rule="majority-class/")
    silent = no_view_reason(views)
    if silent is not None:
        return (*floors, *_unmeasured("ap-view/", silent, len(labels), patients))
    rules = {
        name: ap_rule(labels[:, c] == 1, views, name, known=~np.isnan(labels[:, c])) for c, name in enumerate(findings)
    }
    by_view = np.stack([scores for scores, _ in rules.values()], axis=1)
    notes = {name: note for name, (_, note) in rules.items()}
    return (*floors, *score_findings(by_view, labels, findings, patients, draws, rule="ap-view/", notes=notes))


def _unmeasured(rule: str, reason: str | None, images: int, patients: Sequence[str]) -> tuple[Result, ...]:
    people = len(set(patients))
    return tuple(
        Result(metric=f"{rule}{metric}", value=None, images=images, patients=people, reason=reason)
        for metric in ("accuracy", *RANKINGS)
    )


NEGATIVE_NAMES = ("no finding", "no findings", "normal", "negative", "absent")
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
    silent = no_view_reason(views)
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


def no_view_reason(views: Sequence[str | None]) -> str | None:
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
    absent = [index for index, name in enumerate(classes) if _is_negative(name.strip().lower())]
    return 1 - absent[0] if len(classes) == 2 and len(absent) == 1 else None


def _is_negative(name: str) -> bool:
    return name in NEGATIVE_NAMES or name.startswith("no ")


def _plain(view: str | None) -> str:
    return (view or "").strip().upper()
