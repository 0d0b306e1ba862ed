"""Which images a question is put to, and whether the run may be asked about them.

Numbers on patients that a model was trained on are too good. A run keeps its patients as keyed digests, so that they
can be recognised in any table without being named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from cleft.config import DataConfig, Settings
from cleft.data import opening_of, read_dataset
from cleft.data.images.prepared import PreparedImages, obtain_images
from cleft.data.splits.recipes import split_records
from cleft.data.splits.split_file import leak_notes
from cleft.data.splits.subsets import PER_PATIENT, balanced, class_patients, ids_digest
from cleft.data.tables.files import PHANTOMS_FILE
from cleft.data.text.prompts import choose_classes
from cleft.errors import CheckpointError, ConfigError, DataError
from cleft.grammar import count, share, verb
from cleft.models.model_folder import DESCRIPTION
from cleft.training.run import people_of, seen_patients
from cleft.types import Reading, Record, Splits

Part = Literal["train", "val", "test", "all"]
"""Part of a dataset; `all` does not split it."""


class PerClass(NamedTuple):
    """As many images of each class, in place of all images of a part."""

    images: int
    """Of each class."""
    per_patient: int = PER_PATIENT
    """Most images of a patient in a class."""


class Known(NamedTuple):
    """Images left out because the run has seen their patient."""

    images: int = 0
    notes: tuple[str, ...] = ()


class Selection(NamedTuple):
    """The images of one question, and where they come from."""

    dataset: str
    people: str
    """Whose patients these are."""
    records: list[Record]
    """Readable ones alone, in the order of the table."""
    findings: tuple[str, ...]
    opening: str
    """What a class prompt begins with."""
    prepared: PreparedImages
    recipe: str
    split_digest: str
    """Of all parts together, as the run keeps it."""
    synthetic: bool
    """Whether the images were drawn."""
    notes: list[str]
    left_out: int = 0
    """Images of patients whom the run has seen, where only the others are asked about."""


def select_images(
    run: Path,
    config: DataConfig,
    settings: Settings,
    part: Part,
    *,
    classes: Sequence[str] | None = None,
    per_class: PerClass | None = None,
    allow_overlap: bool = False,
    drop_overlap: bool = False,
    progress: bool = True,
) -> Selection:
    """Reads the table, takes one part of it, refuses patients the run knows, and prepares the images.

    Args:
        run: Run folder.
        config: Where to read.
        settings: Of the run; they say how images are prepared.
        part: Which part of the data.
        classes: What will be told apart, as for `choose_classes`; only `per_class` asks for it.
        per_class: How many images of each class to draw from the part, as its ids say, whatever their order; None takes
            them all. A note counts them and their patients.
        allow_overlap: Whether patients the run was trained on may be asked about; a note then says so.
        drop_overlap: Whether such patients are left out and the others asked about; a note counts them.
        progress: Whether to show a bar.

    Raises:
        ConfigError: If a class is not a finding of the table, or overlap is both to be allowed and dropped.
        DataError: If the part is empty or has too few images of a class, too many images cannot be read, or patients
            were trained on.
    """
    reading = read_dataset(config)
    if part == "all":
        records, recipe, digest = reading.records, "all", ids_digest(record.id for record in reading.records)
        told: list[str] = []
        drawn: dict[str, set[str]] = {}
    else:
        splits = split_records(reading, config)
        drawn = {splits.digest: {record.patient for record in (*splits.train, *splits.val)}}
        records, recipe, digest = {"train": splits.train, "val": splits.val, "test": splits.test}[part], *splits[3:5]
        told = _told(splits, part)
    if not records:
        raise DataError(f"the split {part!r} of the recipe {recipe!r} holds no image", reason="no-image")
    if drop_overlap:
        if allow_overlap:
            raise ConfigError("--allow-overlap and --drop-overlap contradict each other; give one of them")
        records, known = _unseen(run, reading.people or reading.dataset, records, drawn)
    else:
        known = Known()
    if per_class is not None:
        named = choose_classes(classes, settings, reading.dataset, reading.findings)
        records, note = _draw(records, named, per_class)
        told = [*told, note]
    notes = [*told, *known.notes, *_cautions(run, reading)]
    if not drop_overlap:
        notes += _overlap(run, reading.people or reading.dataset, records, drawn, allowed=allow_overlap)
    prepared = obtain_images(records, config, settings.images, progress=progress)
    return _selection(reading, config, records, prepared, recipe, digest, notes)._replace(left_out=known.images)


def _selection(
    reading: Reading,
    config: DataConfig,
    records: list[Record],
    prepared: PreparedImages,
    recipe: str,
    digest: str,
    notes: list[str],
) -> Selection:
    """What can be read of some records; a note counts the rest."""
    usable = prepared.usable(records)
    notes = [*notes]
    if len(usable) < len(records):
        reasons = Counter(prepared.rejected[record.id] for record in records if record.id in prepared.rejected)
        listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        lost = len(records) - len(usable)
        notes.append(
            f"{share(lost, len(records), 'image')} of the split cannot be read and {verb(lost, 'was', 'were')} not "
            f"scored ({listed})."
        )
    return Selection(
        dataset=reading.dataset,
        people=reading.people or reading.dataset,
        records=usable,
        findings=reading.findings,
        opening=opening_of(config),
        prepared=prepared,
        recipe=recipe,
        split_digest=digest,
        synthetic=config.root is not None and (config.root / PHANTOMS_FILE).is_file(),
        notes=notes,
    )


def _cautions(run: Path, reading: Reading) -> list[str]:
    """What the reading has to say beside every number, and whether its patients could be recognised at all."""
    known, asked = people_of(run), reading.people or reading.dataset
    cautions = [f"{caution[0].upper()}{caution[1:]}." for caution in reading.cautions]
    if not known or asked in known:
        return cautions
    told = f"patients of {asked}, and the run was trained on those of {' and '.join(sorted(known))}"
    return [*cautions, f"Whether some of these people were trained on is not known: they are {told}."]


def _told(splits: Splits, part: Part) -> list[str]:
    """What the split has to say where numbers on one of its parts are read."""
    return [*(f"{note[0].upper()}{note[1:]}." for note in splits.notes), *leak_notes(splits, part)]


def _draw(records: Sequence[Record], classes: Sequence[str], per_class: PerClass) -> tuple[list[Record], str]:
    """The images drawn, and a sentence about them."""
    drawn = balanced(records, classes, per_class.images, per_class.per_patient)
    patients_of = ", ".join(f"{name} of {patients:,}" for name, (_, patients) in class_patients(drawn, classes).items())
    return drawn, (
        f"Drawn: {count(per_class.images, 'image')} of each class, at most {per_class.per_patient} of a patient in a "
        f"class; patients: {patients_of}."
    )


def _overlap(
    run: Path, people: str, records: Sequence[Record], drawn: Mapping[str, Collection[str]], *, allowed: bool
) -> list[str]:
    """Notes about patients the run was trained on, where they are allowed.

    Raises:
        DataError: If there are such patients, or that is not known, and it is not allowed.
        CheckpointError: If the run has not been trained yet.
    """
    patients = {record.patient for record in records}
    try:
        seen = seen_patients(run, people, patients, splits=drawn)
    except DataError as error:
        if error.reason != "unknown-training":
            raise
        if not (run / DESCRIPTION).is_file():
            raise CheckpointError(
                f"{run} is not finished: it holds no {DESCRIPTION}; resume it with the same command"
            ) from error
        if not allowed:
            raise DataError(
                f"{error}; --allow-overlap scores these all the same and says so", reason=error.reason
            ) from error
        return ["The run does not say which patients it was trained on; these may be among them."]
    if not seen:
        return []
    overlap = _trained_on(len(seen), len(patients))
    if not allowed:
        raise DataError(
            f"{overlap}: numbers on them would be too good; take another split, or --allow-overlap to score them all "
            f"the same and say so",
            reason="overlap",
        )
    return [f"Beware: {overlap}. These numbers are too good."]


def _unseen(
    run: Path, people: str, records: Sequence[Record], drawn: Mapping[str, Collection[str]]
) -> tuple[list[Record], Known]:
    """The images of patients whom the run has not seen, and a count of the others.

    Raises:
        DataError: If the run's patients are not known, or no image is left.
    """
    patients = {record.patient for record in records}
    seen = seen_patients(run, people, patients, splits=drawn)
    kept = [record for record in records if record.patient not in seen]
    if not kept:
        raise DataError(
            f"{_trained_on(len(seen), len(patients))}; none is left; take other data or another split",
            reason="overlap",
        )
    left_out = len(records) - len(kept)
    overlap = _trained_on(len(seen), len(patients))
    return kept, Known(
        left_out,
        (f"Left out: {overlap}; of them {count(left_out, 'image')} {verb(left_out, 'was', 'were')} not scored.",)
        * bool(seen),
    )


def _trained_on(seen: int, patients: int) -> str:
    return f"{share(seen, patients, 'patient')} {verb(seen, 'was', 'were')} trained on or used to choose the weights"
