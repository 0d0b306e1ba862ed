"""Captions: the sentence that is written from the labels of an image, and cleaning of captions from tables.

Text, cleaning and order are those of the authors' code, so that weights trained there see the text they were trained
with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cleft.config import DataConfig
from cleft.errors import DataError
from cleft.grammar import count
from cleft.text_rules import clean_words, text_fault
from cleft.types import Reading, Record

CHEST_PREFIX = "this is a chest x ray of a patient with"
"""Beginning of every caption and class prompt of a chest radiograph."""

NO_FINDING = "no finding"

CAPTION_ORDER = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
"""Findings of CheXpert in the order of the authors' captions; `No Finding` is last."""

_ORDER = {name.casefold(): place for place, name in enumerate(CAPTION_ORDER)}


def write_caption(
    labels: Mapping[str, float],
    *,
    prefix: str = CHEST_PREFIX,
    negatives: bool = False,
    uncertain: Sequence[str] = (),
    no_finding: bool = False,
) -> str:
    """Write a caption that names every finding that is present; uncertain and unmentioned ones are left out.

    CheXpert's findings come in the authors' order, others after them in the order of the table, "no finding" last.

    Args:
        labels: Finding to 1, 0 or -1.
        prefix: Beginning of the caption.
        negatives: Whether findings that are absent (0) are named too.
        uncertain: Findings whose 0 replaced a -1: they are not named as absent.
        no_finding: Whether the caption of an image without any present finding says so. By default it is the prefix
            alone: that nothing was reported does not mean that nothing is there.

    Example:
        >>> write_caption({"No Finding": 1, "Edema": -1, "Support Devices": 1})
        'this is a chest x ray of a patient with support devices no finding'
        >>> write_caption({"Edema": 1, "Fracture": 0, "No Finding": 0}, negatives=True)
        'this is a chest x ray of a patient with edema but this image has no fracture'
        >>> write_caption({"Edema": 0})
        'this is a chest x ray of a patient with'

    Source:
        The authors' code; the paper does not give the text.
    """
    ordered = sorted(labels, key=_order)
    parts = [prefix, *(clean_text(name) for name in ordered if labels[name] == 1)]
    if no_finding and len(parts) == 1:
        parts.append(NO_FINDING)
    absent = [name for name in ordered if labels[name] == 0 and name not in uncertain and not _is_no_finding(name)]
    if negatives and absent:
        parts += ["but this image has no", *(clean_text(name) for name in absent)]
    return " ".join(parts)


def clean_text(text: str) -> str:
    r"""Lower-case a text; keep words and numbers, without punctuation and without list numbers.

    Example:
        >>> clean_text("1. Right-sided effusion, 3.5 cm;\n2. No pneumothorax.")
        'right sided effusion 3 5 cm no pneumothorax'

    Raises:
        DataError: If it is too long, or contains an invisible character.
    """
    _check_text(text, "a text")
    return clean_words(text)


def check_readable(text: str, record: str) -> None:
    """Reject the caption or report of an image if it is too long or contains an invisible character.

    Args:
        text: The caption or report.
        record: Id of the image.

    Raises:
        DataError: If it is rejected.
    """
    _check_text(text, f"the caption or report of {record}")


def _check_text(text: str, name: str) -> None:
    fault = text_fault(text)
    if fault is not None:
        reason, what = fault
        raise DataError(f"{name} {what}", reason=reason)


def add_captions(reading: Reading, config: DataConfig, prefix: str = CHEST_PREFIX) -> Reading:
    """Add a caption to every record.

    A caption from the table is cleaned and kept. Otherwise it is written from the labels, or, without labels, the
    report is used. `config.empty_caption` decides about images without any present finding.

    Returns:
        A new reading. Images left out for an empty caption are counted under `empty-caption`.

    Raises:
        DataError: If no record is left.
    """
    # Records with equal labels share one mapping, so each distinct mapping is written once.
    written: dict[tuple[int, tuple[str, ...]], str] = {}
    cleaned: dict[str | None, str] = {None: ""}
    records: list[Record] = []
    empty: list[str] = []
    for record in reading.records:
        given = record.caption or (None if record.labels else record.report)
        if given not in cleaned:
            check_readable(given or "", record.id)
            cleaned[given] = clean_text(given or "")
        caption = cleaned[given]
        if not caption:
            if config.empty_caption == "drop" and 1 not in record.labels.values():
                empty.append(record.id)
                continue
            key = (id(record.labels), record.uncertain)
            if key not in written:
                written[key] = write_caption(
                    record.labels,
                    prefix=prefix,
                    negatives=config.mention_absent,
                    uncertain=record.uncertain,
                    no_finding=config.empty_caption == "no-finding",
                )
            caption = written[key]
        records.append(record if record.caption == caption else replace(record, caption=caption))
    if not records:
        raise DataError(
            f"none of {count(len(empty), 'image')} has a present finding; set data.empty_caption to keep them",
            reason="empty-caption",
        )
    rejected = {**reading.rejected, "empty-caption": empty} if empty else reading.rejected
    return replace(reading, records=records, rejected=rejected)


def _order(finding: str) -> int:
    """Sort key: CheXpert's findings in the authors' order, others after them, "no finding" last."""
    if _is_no_finding(finding):
        return len(_ORDER) + 1
    return _ORDER.get(finding.casefold(), len(_ORDER))


def _is_no_finding(finding: str) -> bool:
    return clean_text(finding) == NO_FINDING
