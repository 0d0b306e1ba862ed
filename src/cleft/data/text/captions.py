"""From labels to the sentence of an image.

Wording, cleaning and order are those of the authors' code, so that weights trained there read what they know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cleft.config import DataConfig
from cleft.errors import DataError
from cleft.grammar import count
from cleft.text_rules import clean_words, text_fault
from cleft.types import Reading, Record

CHEST_TEMPLATE = "this is a chest x ray of a patient with"
"""What every caption and class prompt of a chest radiograph begins with."""

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
"""Findings of CheXpert in the order of the authors' captions: `No Finding` comes last."""

_PLACE = {name.casefold(): place for place, name in enumerate(CAPTION_ORDER)}


def write_caption(
    labels: Mapping[str, float],
    *,
    opening: str = CHEST_TEMPLATE,
    negatives: bool = False,
    uncertain: Sequence[str] = (),
    no_finding: bool = False,
) -> str:
    """Names every finding that is present; uncertain and unmentioned ones are left out.

    CheXpert's findings come in the authors' order, others behind them in the table's, and "no finding" last.

    Args:
        labels: Finding to 1, 0 or -1.
        opening: What the sentence begins with.
        negatives: Whether findings that were denied (0) are named too.
        uncertain: Findings whose 0 was made of a -1: nobody denied them.
        no_finding: Whether an image without any present finding says so. By default it keeps the bare opening:
            that nothing was reported does not mean that nothing is there.

    Example:
        >>> write_caption({"No Finding": 1, "Edema": -1, "Support Devices": 1})
        'this is a chest x ray of a patient with support devices no finding'
        >>> write_caption({"Edema": 1, "Fracture": 0, "No Finding": 0}, negatives=True)
        'this is a chest x ray of a patient with edema but this image has no fracture'
        >>> write_caption({"Edema": 0})
        'this is a chest x ray of a patient with'

    Source:
        The authors' code; the paper gives no wording.
    """
    ordered = sorted(labels, key=_place)
    parts = [opening, *(clean_text(name) for name in ordered if labels[name] == 1)]
    if no_finding and len(parts) == 1:
        parts.append(NO_FINDING)
    denied = [name for name in ordered if labels[name] == 0 and name not in uncertain and not _is_no_finding(name)]
    if negatives and denied:
        parts += ["but this image has no", *(clean_text(name) for name in denied)]
    return " ".join(parts)


def clean_text(text: str) -> str:
    r"""Lower-cases, and keeps words and numbers without punctuation and without the numbers of a list.

    Example:
        >>> clean_text("1. Right-sided effusion, 3.5 cm;\n2. No pneumothorax.")
        'right sided effusion 3 5 cm no pneumothorax'

    Raises:
        DataError: If it is too long, or holds an invisible character.
    """
    _refuse_unreadable(text, "a text")
    return clean_words(text)


def refuse_unreadable(text: str, record: str) -> None:
    """Refuses the caption or report of an image that is too long, or holds an invisible character.

    Args:
        text: The caption or report.
        record: Id of the image.

    Raises:
        DataError: If it does.
    """
    _refuse_unreadable(text, f"the caption or report of {record}")


def _refuse_unreadable(text: str, name: str) -> None:
    fault = text_fault(text)
    if fault is not None:
        reason, what = fault
        raise DataError(f"{name} {what}", reason=reason)


def add_captions(reading: Reading, config: DataConfig, opening: str = CHEST_TEMPLATE) -> Reading:
    """Gives every record its sentence.

    A sentence from the table is cleaned and kept. Where there is none it is written from the labels, and where nobody
    labelled the image, it is its report; what happens to an image without any present finding, `config.empty_caption`
    says.

    Returns:
        A new reading. Images left out for an empty caption are counted under `empty-caption`.

    Raises:
        DataError: If no record is left.
    """
    # Records with equal labels share one mapping, so each distinct mapping is put into words once.
    written: dict[tuple[int, tuple[str, ...]], str] = {}
    cleaned: dict[str | None, str] = {None: ""}
    records: list[Record] = []
    empty: list[str] = []
    for record in reading.records:
        written_by_hand = record.caption or (None if record.labels else record.report)
        if written_by_hand not in cleaned:
            refuse_unreadable(written_by_hand or "", record.id)
            cleaned[written_by_hand] = clean_text(written_by_hand or "")
        caption = cleaned[written_by_hand]
        if not caption:
            if config.empty_caption == "drop" and 1 not in record.labels.values():
                empty.append(record.id)
                continue
            key = (id(record.labels), record.uncertain)
            if key not in written:
                written[key] = write_caption(
                    record.labels,
                    opening=opening,
                    negatives=config.mention_absent,
                    uncertain=record.uncertain,
                    no_finding=config.empty_caption == "no-finding",
                )
            caption = written[key]
        records.append(record if record.caption == caption else replace(record, caption=caption))
    if not records:
        raise DataError(
            f"none of {count(len(empty), 'image')} has a finding that is present; set data.empty_caption to keep them",
            reason="empty-caption",
        )
    rejected = {**reading.rejected, "empty-caption": empty} if empty else reading.rejected
    return replace(reading, records=records, rejected=rejected)


def _place(finding: str) -> int:
    """Sorts CheXpert's findings as the authors do, others behind them, and "no finding" last."""
    if _is_no_finding(finding):
        return len(_PLACE) + 1
    return _PLACE.get(finding.casefold(), len(_PLACE))


def _is_no_finding(finding: str) -> bool:
    return clean_text(finding) == NO_FINDING
