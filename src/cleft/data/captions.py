"""From labels to the sentence of an image, and from the name of a class to its prompt.

Wording, cleaning and order are those of the authors' code, so that weights trained there read what they know.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cleft.config import DataConfig
from cleft.data.chexpert import CAPTION_ORDER
from cleft.data.faults import nearest
from cleft.errors import ConfigError, DataError
from cleft.types import Reading, Record

OPENING = "this is a chest x ray of a patient with"
"""What every caption and class prompt begins with."""

NO_FINDING = "no finding"

CLASS_SETS: dict[str, tuple[str, ...]] = {
    "chexpert-5": ("Atelectasis", "Edema", "Cardiomegaly", "Pleural Effusion", "Consolidation"),
    "chexpert-14": CAPTION_ORDER,
    "pneumonia-2": ("No Finding", "Pneumonia"),
}
"""Classes by the name of their set, in the order of the authors' code."""

_LIST_NUMBER = re.compile(r"(?:^|(?<=\.))\s*[0-9]+\.(?=\s|$)", re.MULTILINE)
_PLACE = {name.casefold(): place for place, name in enumerate(CAPTION_ORDER)}


def write_caption(
    labels: Mapping[str, float], *, negatives: bool = False, uncertain: Sequence[str] = (), no_finding: bool = False
) -> str:
    """Names every finding that is present; uncertain and unmentioned ones are left out.

    CheXpert's findings come in the authors' order, others behind them in the table's, and "no finding" last.

    Args:
        labels: Finding to 1, 0 or -1.
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
    parts = [OPENING, *(clean_text(name) for name in ordered if labels[name] == 1)]
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

    Source:
        The authors' cleaning, but for two losses: it drops letters outside ASCII, and the whole part of a
        decimal number as if it were the number of a list (docs/decisions/0013).
    """
    text = _LIST_NUMBER.sub(" ", unicodedata.normalize("NFC", text))
    return " ".join(re.findall(r"\w+", text.lower()))


def add_captions(reading: Reading, config: DataConfig) -> Reading:
    """Gives every record its sentence.

    A sentence from the table is cleaned and kept. Where there is none it is written from the labels; what
    happens to an image without any present finding, `config.empty_caption` says.

    Returns:
        A new reading. Images left out for an empty caption are counted under `empty-caption`.

    Raises:
        DataError: If no record is left.
    """
    # Records with equal labels share one mapping, so each distinct mapping is put into words once.
    written: dict[tuple[int, tuple[str, ...]], str] = {}
    records: list[Record] = []
    empty: list[str] = []
    for record in reading.records:
        caption = clean_text(record.caption) if record.caption else ""
        if not caption:
            if config.empty_caption == "drop" and 1 not in record.labels.values():
                empty.append(record.id)
                continue
            key = (id(record.labels), record.uncertain)
            if key not in written:
                written[key] = write_caption(
                    record.labels,
                    negatives=config.negatives,
                    uncertain=record.uncertain,
                    no_finding=config.empty_caption == "no-finding",
                )
            caption = written[key]
        records.append(replace(record, caption=caption))
    if not records:
        raise DataError(
            f"none of {len(empty):,} images has a finding that is present; set data.empty_caption to keep them",
            reason="empty-caption",
        )
    rejected = {**reading.rejected, "empty-caption": empty} if empty else reading.rejected
    return replace(reading, records=records, rejected=rejected)


def class_prompt(name: str) -> str:
    """Returns the sentence for a class that is present.

    Example:
        >>> class_prompt("Pleural Effusion")
        'this is a chest x ray of a patient with pleural effusion'
    """
    return f"{OPENING} {clean_text(name)}"


def absent_prompt(name: str) -> str:
    """Returns the sentence for a class that is absent, to be compared with `class_prompt`.

    Example:
        >>> absent_prompt("Pneumonia")
        'this is a chest x ray of a patient with no pneumonia'
    """
    return f"{OPENING} {absent_name(name)}"


def absent_name(name: str) -> str:
    """Returns what stands for an absent class behind the opening or a learned context.

    Example:
        >>> absent_name("Pleural Effusion"), absent_name("No Finding")
        ('no pleural effusion', 'finding')
    """
    cleaned = clean_text(name)
    return cleaned.removeprefix("no ") if cleaned.startswith("no ") else f"no {cleaned}"


def resolve_classes(names: Sequence[str], findings: Iterable[str]) -> tuple[str, ...]:
    """Turns names of sets and of findings into the classes that are told apart.

    Args:
        names: Keys of `CLASS_SETS` or findings, in any mixture; case does not matter.
        findings: Findings the table has.

    Returns:
        Findings as the table spells them, in the order given.

    Raises:
        ConfigError: If a name is neither, a set names a finding the table lacks, or a class stands twice.

    Example:
        >>> resolve_classes(["pneumonia-2", "edema"], ["Edema", "Pneumonia", "No Finding"])
        ('No Finding', 'Pneumonia', 'Edema')
    """
    spelled = {finding.casefold(): finding for finding in findings}
    classes: list[str] = []
    for name in names:
        members = CLASS_SETS.get(name.casefold(), (name,))
        for member in members:
            if member.casefold() not in spelled:
                origin = f"{member!r} of the set {name!r}" if len(members) > 1 else repr(name)
                close = nearest(member, [*spelled.values(), *CLASS_SETS] if len(members) == 1 else spelled.values())
                raise ConfigError(
                    f"classes names {origin}, which the table has no column for{close}; "
                    f"it has {', '.join(spelled.values()) or 'no finding at all'}; sets are {', '.join(CLASS_SETS)}; "
                    f"name others with --classes"
                )
            classes.append(spelled[member.casefold()])
    repeated = sorted({name for name in classes if classes.count(name) > 1})
    if repeated or not classes:
        raise ConfigError(f"classes={list(names)} names {repeated or 'nothing'}{' twice' if repeated else ''}")
    return tuple(classes)


def _place(finding: str) -> int:
    """Sorts CheXpert's findings as the authors do, others behind them, and "no finding" last."""
    if _is_no_finding(finding):
        return len(_PLACE) + 1
    return _PLACE.get(finding.casefold(), len(_PLACE))


def _is_no_finding(finding: str) -> bool:
    return clean_text(finding) == NO_FINDING
