"""A question put to embeddings: which of these classes, or is this finding there; and its answers.

Logits are float32 whatever the towers ran in: half precision makes equal logits of far pairs.

Shapes: `N` images, `C` classes, `F` findings of the table, `E` joint dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.special import expit, softmax
from torch import Tensor

from cleft.errors import ConfigError, DataError
from cleft.evaluation.floors import positive_class
from cleft.evaluation.metrics import Floats, confusion, finite, roc_points
from cleft.evaluation.scoring import (
    USUAL_DRAWS,
    Draws,
    Scored,
    class_floors,
    finding_floors,
    log_odds,
    score_classes,
    score_findings,
)
from cleft.grammar import count, share, verb
from cleft.results import Result
from cleft.types import Embeddings, LabelledImages

Blank = Literal["unknown", "absent"]


class Answers(NamedTuple):
    """What a model answered, and how well."""

    results: tuple[Result, ...]
    floors: tuple[Result, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    roc: dict[str, list[tuple[float, float]]]
    rows: list[int]
    """Rows of the embeddings that were asked about."""
    truths: list[str]
    """What each of these images shows, in words."""
    probabilities: Floats
    """Of each class, `[rows, C]`."""
    scored: Scored
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


def answer_multi_class(
    logits: Floats, images: Embeddings | LabelledImages, classes: Sequence[str], draws: Draws = USUAL_DRAWS
) -> Answers:
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
    rows, scored = score_one_class(logits, images, classes)
    several = (label_columns(images, classes) == 1).sum(axis=1)
    counts, truth, asked = _counts(several), scored.truth.astype(np.intp), scored.scores
    patients, views = scored.patients, [images.views[row] for row in rows]
    odds = log_odds(asked)
    answers = asked.argmax(axis=1)
    positive = positive_class(classes)
    drawn = range(len(classes)) if positive is None else [positive]
    absent = [name for c, name in enumerate(classes) if not (truth == c).any()]
    return Answers(
        results=score_classes(odds, truth, classes, patients, draws, answers=answers),
        floors=class_floors(truth, views, classes, patients, draws),
        confusion=confusion(truth, answers, len(classes)),
        roc={classes[c]: roc_points(odds[:, c], truth == c) for c in drawn if (truth == c).any()},
        rows=rows,
        truths=[classes[int(c)] for c in truth],
        probabilities=softmax(asked, axis=1),
        scored=scored,
        notes=[f"Scored: {count(len(rows), 'image')} with exactly one of the classes ({counts})."]
        + [f"No image shows {name}; it could be answered all the same." for name in absent],
    )


def answer_present_absent(
    present_logits: Floats,
    absent_logits: Floats,
    images: Embeddings | LabelledImages,
    findings: Sequence[str],
    draws: Draws = USUAL_DRAWS,
    *,
    blank: Blank = "unknown",
) -> Answers:
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
    scored = score_presence(present_logits, absent_logits, images, findings, blank=blank)
    scores, labels = scored.scores, scored.truth
    given = label_columns(images, findings)
    blanks = int((np.isnan(given) | (given == -1)).sum())
    known = ~np.isnan(labels)
    meaning = verb(blanks, "counts", "count") + " as absent" if blank == "absent" else "not scored"
    return Answers(
        results=score_findings(scores, labels, findings, images.patients, draws),
        floors=finding_floors(labels, images.views, findings, images.patients, draws),
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


def score_one_class(
    logits: Floats, images: Embeddings | LabelledImages, classes: Sequence[str]
) -> tuple[list[int], Scored]:
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
    rows = find_one_class(images, classes)
    if not rows:
        counts = _counts(present.sum(axis=1))
        raise DataError(f"no image shows exactly one of {', '.join(classes)} ({counts})", reason="no-image")
    truth = present[rows].argmax(axis=1).astype(np.float64)
    return rows, Scored(logits[rows], truth, [images.patients[row] for row in rows])


def find_one_class(images: Embeddings | LabelledImages, classes: Sequence[str]) -> list[int]:
    """Rows of the images that show exactly one of the classes.

    Raises:
        ConfigError: If a class is not a finding of the table.
    """
    present = label_columns(images, classes) == 1
    return np.flatnonzero(present.sum(axis=1) == 1).tolist()


def score_presence(
    present_logits: Floats,
    absent_logits: Floats,
    images: Embeddings | LabelledImages,
    findings: Sequence[str],
    *,
    blank: Blank = "unknown",
) -> Scored:
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
    return Scored(present_logits - absent_logits, labels, images.patients)


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
