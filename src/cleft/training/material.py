"""What a stage learns from: the records of a dataset, apart, with their pixels prepared."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cleft.config import DataConfig, Settings
from cleft.data import read_dataset, terms_of
from cleft.data.images.headers import oddity_notes
from cleft.data.images.prepared import PreparedImages, obtain_images
from cleft.data.splits.recipes import split_records
from cleft.data.splits.split_file import Leak, leak_notes, measure_leaks
from cleft.data.text.reports import keep_reported
from cleft.data.text.texts import way_of
from cleft.grammar import count, verb
from cleft.training.run import split_facts, texts_digest
from cleft.types import Reading, Record

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Material:
    """Records to learn from and to choose by; none of the test split has been looked at."""

    people: str
    """Whose patients these are."""
    train: list[Record]
    val: list[Record]
    findings: tuple[str, ...]
    prepared: PreparedImages
    recipe: str
    digest: str
    """Of the splits, as they were drawn; images that cannot be read are left out afterwards."""
    sources: Mapping[str, str]
    """Name of each table read to the SHA-256 of its bytes."""
    leaks: Sequence[Leak]
    """Patients who stand in two parts."""
    terms: str | None = None
    """What the owner of the images allows, where that reaches weights."""

    def facts(self, **more: Any) -> dict[str, Any]:
        """What `split.json` of a run holds."""
        records = [*self.train, *self.val]
        return split_facts(
            people=self.people,
            recipe=self.recipe,
            digest=self.digest,
            counts={"train": len(self.train), "val": len(self.val)},
            patients=(record.patient for record in records),
            captions=texts_digest(f"{record.id}\0{record.caption}" for record in records),
            pixels=self.prepared.digest,
            sources=dict(self.sources),
            leaks=[leak._asdict() for leak in self.leaks],
            **({"terms": self.terms} if self.terms else {}),
            **more,
        )


def keep_readable(material: Material, config: DataConfig) -> Material:
    """Leaves out images whose report gives `data.texts` nothing to read, and says how many.

    Raises:
        DataError: If no training image is left.
    """
    way = way_of(config)
    if way is None:
        return material
    parts = {"train": material.train, "val": material.val}
    for part, records in parts.items():
        if records:
            reading = Reading(dataset=config.dataset, records=records, findings=material.findings)
            kept = keep_reported(reading, way)
            told = ", ".join(f"{reason} {len(ids):,}" for reason, ids in kept.rejected.items())
            if told:
                log.warning("%s: images without a report to read are left out (%s)", part, told)
            parts[part] = kept.records
    return replace(material, train=parts["train"], val=parts["val"])


def read_material(settings: Settings, *, reading: Reading | None = None, progress: bool = True) -> Material:
    """Reads the table, splits it, and prepares the images of training and validation.

    Args:
        settings: Which data, which split, which pixels.
        reading: Of these data, where they were read already.
        progress: Whether to show a bar while images are decoded.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If the table is not what the reader expects, too many images cannot be read, or images are not
            prepared and `data.prepare` is `ahead`.
    """
    reading = read_dataset(settings.data) if reading is None else reading
    terms = terms_of(settings.data)
    if terms:
        log.warning("%s", terms)
    for note in reading.notes:
        log.info("%s", note)
    splits = split_records(reading, settings.data)
    train, *others = (len(part) for part in (splits.train, splits.val, splits.test))
    sizes = [count(train, "image"), *(f"{size:,}" for size in others)]
    log.info("split %s (digest %s): %s for training, %s validation, %s test", *splits[3:5], *sizes)
    for note in splits.notes:
        log.info("%s", note)
    for note in leak_notes(splits):
        log.warning("%s", note)
    prepared = obtain_images([*splits.train, *splits.val], settings.data, settings.images, progress=progress)
    for note in oddity_notes(prepared.notes):
        log.info("of the images to train on, %s", note)
    if prepared.rejected:
        reasons = Counter(prepared.rejected.values())
        listed = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common())
        rejected = len(prepared.rejected)
        are = verb(rejected, "is", "are")
        log.warning("%s cannot be read and %s left out (%s)", count(rejected, "image"), are, listed)
    return Material(
        people=reading.people or reading.dataset,
        train=prepared.usable(splits.train),
        val=prepared.usable(splits.val),
        findings=reading.findings,
        prepared=prepared,
        recipe=splits.recipe,
        digest=splits.digest,
        sources=reading.sources,
        leaks=measure_leaks(splits),
        terms=terms,
    )
