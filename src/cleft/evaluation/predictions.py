"""Predictions of a model, and of baselines without a model, scored on the same images.

Multi-class evaluation predicts which one of the classes an image shows; it uses only images that show exactly one.
Present-absent evaluation predicts for each finding whether it is present, on images where that is known.

Two baselines need no model: `majority-class` predicts the most frequent class, and `ap-view` predicts from the
projection alone. Severely ill patients are X-rayed in bed (AP), so the projection is informative: on the balanced RSNA
task the view rule reaches an accuracy of 0.70.

Logits are float32 in any precision of the model: half precision would make close logits equal.

Shapes: `N` images, `C` classes or findings, `E` joint dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch import Tensor

from cleft.errors import ConfigError, DataError
from cleft.evaluation import Blank, Bootstrap, Scoring
from cleft.evaluation.metrics import RANKING_METRICS, Flags, Floats, confusion, finite, roc_points
from cleft.evaluation.scoring import Predictions, log_odds, score_classes, score_findings
from cleft.grammar import count, share, verb
from cleft.results import Result
from cleft.types import Embeddings, LabelledImages

NEGATIVE_NAMES = ("no finding", "no findings", "normal", "negative", "absent")
"""Class names that mean the absence of findings, besides those that begin with "no "."""


class ClassificationResults(NamedTuple):
    """Results of a classification, and the predictions behind them."""

    results: tuple[Result, ...]
    baselines: tuple[Result, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    roc: dict[str, list[tuple[float, float]]]
    rows: list[int]
    """Rows of the images that were scored."""
    truths: list[str]
    """Class or findings of each of these images."""
    probabilities: Floats
    """Probability of each class, `[rows, C]`."""
    predictions: Predictions
    """Scores and labels, row by row."""
    notes: list[str]


def class_logits(image_embeds: Tensor, class_embeds: Tensor, logit_scale: Tensor) -> Floats:
    """Cosine similarity times inverse temperature, `[N, C]`.

    Args:
        image_embeds: Unit-length rows, `[N, E]`.
        class_embeds: Unit-length rows, `[C, E]`.
        logit_scale: Logarithm of the inverse temperature, as the model stores it.

    Raises:
        NumericsError: If a logit is not finite.
    """
    scale = logit_scale.detach().float().cpu().exp()
    return finite((scale * image_embeds.float().cpu() @ class_embeds.detach().float().cpu().T).numpy())


def classification_results(
    logits: Floats,
    images: Embeddings | LabelledImages,
    classes: Sequence[str],
    scoring: Scoring,
    *,
    blank: Blank = "unknown",
    bootstrap: Bootstrap = Bootstrap(),
) -> ClassificationResults:
    """Results of multi-class or present-absent classification, with baselines.

    Args:
        logits: Multi-class: one column per class, `[N, C]`. Present-absent: logits of the prompts for presence, then of
            those for absence, `[N, 2 C]`.
        images: Labels, patients and views of the images, `[N]`.
        classes: Columns of the labels, `[C]`.
        scoring: How images are classified.
        blank: Present-absent: whether blank and uncertain labels count as unknown or as absent.
        bootstrap: How intervals are estimated.

    Raises:
        ConfigError: If a class is not a finding of the table, or multi-class scoring has fewer than two classes.
        DataError: If no image has the labels it needs.
    """
    if scoring == "multi-class":
        return multi_class_results(logits, images, classes, bootstrap)
    return present_absent_results(logits, images, classes, bootstrap, blank=blank)


def classification_predictions(
    logits: Floats,
    images: Embeddings | LabelledImages,
    classes: Sequence[str],
    scoring: Scoring,
    *,
    blank: Blank = "unknown",
) -> tuple[list[int], Predictions]:
    """Rows of the images that can be scored, and their predictions; as `classification_results` without the metrics."""
    if scoring == "multi-class":
        return multi_class_predictions(logits, images, classes)
    predictions = present_absent_predictions(logits, images, classes, blank=blank)
    return list(range(len(predictions.truth))), predictions


def multi_class_results(
    logits: Floats, images: Embeddings | LabelledImages, classes: Sequence[str], bootstrap: Bootstrap = Bootstrap()
) -> ClassificationResults:
    """Results of multi-class classification, on the images that show exactly one of the classes.

    One-vs-rest scores are log-odds of the softmax: they rank images like its probabilities, which round to 1.

    Args:
        logits: One column per class, `[N, C]`.
        images: Labels, patients and views of the images, `[N]`.
        classes: At least two columns of the labels.
        bootstrap: How intervals are estimated.

    Raises:
        ConfigError: If there are fewer than two classes.
        DataError: If no image shows exactly one of them.
    """
    rows, predictions = multi_class_predictions(logits, images, classes)
    shown = (label_columns(images, classes) == 1).sum(axis=1)
    truth, scored = predictions.truth.astype(np.intp), predictions.scores
    patients, views = predictions.patients, [images.views[row] for row in rows]
    odds = log_odds(scored)
    predicted = scored.argmax(axis=1)
    positive = positive_class(classes)
    curves = range(len(classes)) if positive is None else [positive]
    absent = [name for c, name in enumerate(classes) if not (truth == c).any()]
    return ClassificationResults(
        results=score_classes(odds, truth, classes, patients, bootstrap, predicted=predicted),
        baselines=class_baselines(truth, views, classes, patients, bootstrap),
        confusion=confusion(truth, predicted, len(classes)),
        roc={classes[c]: roc_points(odds[:, c], truth == c) for c in curves if (truth == c).any()},
        rows=rows,
        truths=[classes[int(c)] for c in truth],
        probabilities=softmax(scored, axis=1),
        predictions=predictions,
        notes=[f"Scored: {count(len(rows), 'image')} with exactly one of the classes ({_label_counts(shown)})."]
        + [f"No image shows {name}, but it can be predicted." for name in absent],
    )


def present_absent_results(
    logits: Floats,
    images: Embeddings | LabelledImages,
    findings: Sequence[str],
    bootstrap: Bootstrap = Bootstrap(),
    *,
    blank: Blank = "unknown",
) -> ClassificationResults:
    """Results of classifying each finding as present or absent.

    Args:
        logits: Logits of the prompts for presence, then of those for absence, `[N, 2 C]`.
        images: Labels, patients and views of the images, `[N]`.
        findings: Columns of the labels, `[C]`.
        bootstrap: How intervals are estimated.
        blank: Whether blank and uncertain labels count as unknown, so that the image is not scored, or as absent.

    Raises:
        DataError: If no finding is labelled in any image.
    """
    predictions = present_absent_predictions(logits, images, findings, blank=blank)
    scores, labels = predictions.scores, predictions.truth
    given = label_columns(images, findings)
    blanks = int((np.isnan(given) | (given == -1)).sum())
    known = ~np.isnan(labels)
    meaning = verb(blanks, "counts", "count") + " as absent" if blank == "absent" else "not scored"
    return ClassificationResults(
        results=score_findings(scores, labels, findings, images.patients, bootstrap),
        baselines=finding_baselines(labels, images.views, findings, images.patients, bootstrap),
        confusion=None,
        roc={
            name: points
            for c, name in enumerate(findings)
            if (points := roc_points(scores[known[:, c], c], labels[known[:, c], c] == 1))
        },
        rows=list(range(len(labels))),
        truths=[", ".join(name for name, label in zip(findings, row, strict=True) if label == 1) for row in labels],
        probabilities=expit(scores),
        predictions=predictions,
        notes=[
            f"Scored: {count(len(labels), 'image')}, finding by finding; {share(blanks, labels.size, 'label')} "
            f"{verb(blanks, 'is', 'are')} blank or uncertain and {meaning}."
        ],
    )


def multi_class_predictions(
    logits: Floats, images: Embeddings | LabelledImages, classes: Sequence[str]
) -> tuple[list[int], Predictions]:
    """Rows of the images that show exactly one of the classes, and their predictions.

    Args:
        logits: One column per class, `[N, C]`.
        images: Labels and patients of the images, `[N]`.
        classes: At least two columns of the labels.

    Raises:
        ConfigError: If there are fewer than two classes.
        DataError: If no image shows exactly one of them.
    """
    if len(classes) < 2:
        raise ConfigError(f"classes={list(classes)}: multi-class scoring needs two; or use --scoring present-absent")
    present = label_columns(images, classes) == 1
    rows = rows_with_one_class(images, classes)
    if not rows:
        counts = _label_counts(present.sum(axis=1))
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
    logits: Floats, images: Embeddings | LabelledImages, findings: Sequence[str], *, blank: Blank = "unknown"
) -> Predictions:
    """Predictions for each finding: logit of the prompt for presence minus that for absence, for all images.

    Args:
        logits: Logits of the prompts for presence, then of those for absence, `[N, 2 C]`.
        images: Labels and patients of the images, `[N]`.
        findings: Columns of the labels, `[C]`.
        blank: Whether blank and uncertain labels count as unknown or as absent.

    Raises:
        DataError: If no finding is labelled in any image.
    """
    labels = label_columns(images, findings)
    labels[labels == -1] = np.nan
    if blank == "absent":
        labels[np.isnan(labels)] = 0
    if np.isnan(labels).all():
        raise DataError(f"no image is labelled for {' or '.join(findings)}", reason="no-image")
    present, absent = logits[:, : len(findings)], logits[:, len(findings) :]
    return Predictions(present - absent, labels, images.patients)


def label_columns(images: Embeddings | LabelledImages, classes: Sequence[str]) -> Floats:
    """Labels of some findings in their order, `[N, C]`.

    Raises:
        ConfigError: If a class is not a finding of the table.
    """
    unknown = [name for name in classes if name not in images.findings]
    if unknown:
        raise ConfigError(f"classes {unknown} are no findings of the table; it has {', '.join(images.findings)}")
    columns = torch.tensor([images.findings.index(name) for name in classes], dtype=torch.long)
    return images.labels[:, columns].double().numpy().copy()


def _label_counts(shown: Floats) -> str:
    none, more = int((shown == 0).sum()), int((shown > 1).sum())
    return f"{share(none, len(shown), 'image')} {verb(none, 'shows', 'show')} none of them, {more:,} several"


def class_baselines(
    truth: NDArray[np.intp],
    views: Sequence[str | None],
    classes: Sequence[str],
    patients: Sequence[str],
    bootstrap: Bootstrap = Bootstrap(),
) -> tuple[Result, ...]:
    """Results of the majority class and of the view rule on the images of `score_classes`."""
    majority = majority_scores([int(index) for index in truth], len(classes))
    results = score_classes(majority, truth, classes, patients, bootstrap, rule="majority-class/")
    scores, note = view_rule([int(index) for index in truth], views, classes)
    if scores is None:
        return (*results, *_unmeasured("ap-view/", note, len(truth), patients))
    return (*results, *score_classes(scores, truth, classes, patients, bootstrap, rule="ap-view/", note=note))


def finding_baselines(
    labels: Floats,
    views: Sequence[str | None],
    findings: Sequence[str],
    patients: Sequence[str],
    bootstrap: Bootstrap = Bootstrap(),
) -> tuple[Result, ...]:
    """Results of the majority label and of the view rule for each finding, on the images of `score_findings`."""
    present = (labels == 1).sum(axis=0) > (labels == 0).sum(axis=0)
    majority = np.tile(np.where(present, 1.0, -1.0), (len(labels), 1))
    results = score_findings(majority, labels, findings, patients, bootstrap, rule="majority-class/")
    missing = no_view_reason(views)
    if missing is not None:
        return (*results, *_unmeasured("ap-view/", missing, len(labels), patients))
    rules = {
        name: ap_rule(labels[:, c] == 1, views, name, known=~np.isnan(labels[:, c])) for c, name in enumerate(findings)
    }
    by_view = np.stack([scores for scores, _ in rules.values()], axis=1)
    notes = {name: note for name, (_, note) in rules.items()}
    return (*results, *score_findings(by_view, labels, findings, patients, bootstrap, rule="ap-view/", notes=notes))


def _unmeasured(rule: str, reason: str | None, images: int, patients: Sequence[str]) -> tuple[Result, ...]:
    number = len(set(patients))
    return tuple(
        Result(metric=f"{rule}{metric}", value=None, images=images, patients=number, reason=reason)
        for metric in ("accuracy", *RANKING_METRICS)
    )


def majority_scores(truth: Sequence[int], classes: int) -> Floats:
    """Scores of the majority class: the share of each class for every image, `[N, C]`."""
    shares = np.bincount(np.asarray(truth, dtype=np.intp), minlength=classes) / max(1, len(truth))
    return np.tile(shares, (len(truth), 1))


class ViewRule(NamedTuple):
    """Scores from the view alone, or the reason why there are none."""

    scores: Floats | None
    """`[N, C]`."""
    note: str | None
    """Why there are no scores, or that the rule is reversed."""


def view_rule(truth: Sequence[int], views: Sequence[str | None], classes: Sequence[str]) -> ViewRule:
    """Scores of each image from its view alone.

    If one of two classes means the absence of findings, AP predicts the other one. Otherwise each view predicts its
    most frequent class, with the shares of the classes in that view as scores; these are counted on the evaluated
    images, so the baseline is as high as the view allows.

    Args:
        truth: Class of each image, `[N]` int.
        views: Projection of each image, `[N]`. Images without one count as a view.
        classes: Names of the classes, `[C]`.
    """
    missing = no_view_reason(views)
    if missing is not None:
        return ViewRule(None, missing)
    positive = positive_class(classes)
    if positive is not None:
        scores, note = ap_rule(np.asarray(truth) == positive, views, classes[positive])
        return ViewRule(np.stack([scores if index == positive else -scores for index in range(2)], axis=1), note)
    names, view_of = np.unique([_normalise(view) for view in views], return_inverse=True)
    table = np.zeros((len(names), len(classes)))
    np.add.at(table, (view_of, np.asarray(truth, dtype=np.intp)), 1)
    return ViewRule((table / table.sum(axis=1, keepdims=True))[view_of], None)


def ap_rule(
    positive: Flags, views: Sequence[str | None], name: str, *, known: Flags | None = None
) -> tuple[Floats, str | None]:
    """Scores 1 for AP and -1 for other views; reversed if AP is rarer among the images that show the finding.

    Without the reversal the baseline could be below chance.

    Args:
        positive: Whether each image shows the finding, `[N]` bool.
        views: Projection of each image, `[N]`.
        name: Name of the finding.
        known: Whether each image is labelled for it, `[N]` bool; by default all are.

    Returns:
        Scores, `[N]`, and a note if the rule is reversed.
    """
    is_ap_sign = np.array([1.0 if is_ap(view) else -1.0 for view in views])
    shown, absent = is_ap_sign[positive], is_ap_sign[~positive if known is None else known & ~positive]
    if shown.size and absent.size and shown.mean() < absent.mean():
        return -is_ap_sign, f"reversed: AP is rarer among images that show {name}"
    return is_ap_sign, None


def no_view_reason(views: Sequence[str | None]) -> str | None:
    """Returns why the view rule cannot be used, or None."""
    distinct = {_normalise(view) for view in views}
    if distinct == {""}:
        return "the table has no views"
    if len(distinct) < 2:
        return f"every image is {distinct.pop()}" if distinct else "no image"
    return None


def is_ap(view: str | None) -> bool:
    """Whether the projection is anterior-posterior, as for patients in bed."""
    return _normalise(view) == "AP"


def positive_class(classes: Sequence[str]) -> int | None:
    """Index of the finding if there are two classes and the other one means the absence of findings.

    Example:
        >>> positive_class(["No Finding", "Pneumonia"])
        1
        >>> positive_class(["Pneumonia", "No Pneumonia"])
        0
        >>> positive_class(["Edema", "Pneumonia"]) is None
        True
    """
    negative = [index for index, name in enumerate(classes) if _is_negative(name.strip().lower())]
    return 1 - negative[0] if len(classes) == 2 and len(negative) == 1 else None


def _is_negative(name: str) -> bool:
    return name in NEGATIVE_NAMES or name.startswith("no ")


def _normalise(view: str | None) -> str:
    return (view or "").strip().upper()
