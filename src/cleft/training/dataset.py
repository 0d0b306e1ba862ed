"""What a stage learns from: the records of a dataset, apart, with their pixels prepared."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cleft.config import ClassifyConfig, DataConfig, Settings, load_run_settings
from cleft.data import data_config, license_terms, read_dataset, report_not_inherited
from cleft.data.batches import label_table
from cleft.data.images.cache import PreparedImages, obtain_images
from cleft.data.images.dicom_headers import oddity_notes
from cleft.data.splits.recipes import split_records
from cleft.data.splits.split_file import leakage_notes
from cleft.data.splits.subsets import Leakage, measure_leakage
from cleft.data.text.reports import drop_unreported
from cleft.data.text.texts import report_format
from cleft.errors import ConfigError, DataError
from cleft.grammar import count, share, verb
from cleft.training.provenance import split_record, texts_digest
from cleft.types import Reading, Record

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
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
    leaks: Sequence[Leakage]
    """Patients who stand in two parts."""
    terms: str | None = None
    """What the owner of the images allows, where that reaches weights."""

    def facts(self, **more: Any) -> dict[str, Any]:
        """What `split.json` of a run holds."""
        records = [*self.train, *self.val]
        return split_record(
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


def drop_images_without_text(material: TrainingData, config: DataConfig) -> TrainingData:
    """Leaves out images whose report gives `data.texts` nothing to read, and says how many.

    Raises:
        DataError: If no training image is left.
    """
    way = report_format(config)
    if way is None:
        return material
    parts = {"train": material.train, "val": material.val}
    for part, records in parts.items():
        if records:
            reading = Reading(dataset=config.dataset, records=records, findings=material.findings)
            kept = drop_unreported(reading, way)
            told = ", ".join(f"{reason} {len(ids):,}" for reason, ids in kept.rejected.items())
            if told:
                log.warning("%s: images without a report to read are left out (%s)", part, told)
            parts[part] = kept.records
    return replace(material, train=parts["train"], val=parts["val"])


def read_training_data(settings: Settings, *, reading: Reading | None = None, progress: bool = True) -> TrainingData:
    """Reads the table, splits it, and prepares the images of training and validation.

    Args:
        settings: Which data, which split, which pixels.
        reading: Of these data, where they were read already.
        progress: Whether to show a bar while images are decoded.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If the table is not what the reader expects, too many images cannot be read, or images are not
            prepared and `data.prepare` is `required`.
    """
    reading = read_dataset(settings.data) if reading is None else reading
    terms = license_terms(settings.data)
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
    for note in leakage_notes(splits):
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
    return TrainingData(
        people=reading.patient_dataset or reading.dataset,
        train=prepared.usable(splits.train),
        val=prepared.usable(splits.val),
        findings=reading.findings,
        prepared=prepared,
        recipe=splits.recipe,
        digest=splits.digest,
        sources=reading.sources,
        leaks=measure_leakage(splits),
        terms=terms,
    )


class LabelledExamples(NamedTuple):
    """Images with a right answer."""

    records: list[Record]
    targets: Tensor
    """Class of each image, `[N]` int64; or, finding by finding, 1 there, 0 not there, NaN not known, `[N, C]` float."""
    description: str
    """How many images that left in and out, in a sentence."""

    def patients(self) -> int:
        """How many people these images show."""
        return len({record.patient for record in self.records})


def select_examples(records: Sequence[Record], classes: Sequence[str], config: ClassifyConfig) -> LabelledExamples:
    """Takes the images of a split that have a right answer.

    Multi-class, these show exactly one of the classes: one that shows none would otherwise count as the first class,
    and one that shows several has more than one right answer. Finding by finding, something must be known.

    Args:
        records: Images of a split.
        classes: What is told apart.
        config: How it is asked, and what blank labels count as.

    Source:
        The authors' code takes the largest of a row of labels, which makes the first class of every image that shows
        none (docs/decisions/0101).
    """
    labels = torch.from_numpy(label_table(records, classes))  # [N, C]
    if config.scoring == "multi-class":
        present = labels == 1
        shown = present.sum(dim=1)
        kept = shown == 1
        targets = present.long().argmax(dim=1)[kept] if len(records) else torch.zeros(0, dtype=torch.int64)
        none = int((shown == 0).sum())
        left_out = f"{none:,} {verb(none, 'shows', 'show')} none of the classes, {int((shown > 1).sum()):,} several"
    else:
        labels[labels == -1] = torch.nan
        if config.blank == "absent":
            labels = labels.nan_to_num(0.0)
        kept = ~labels.isnan().all(dim=1)
        targets = labels[kept]
        left_out = f"of {int((~kept).sum()):,} nothing is known"
    chosen = [record for record, keep in zip(records, kept.tolist(), strict=True) if keep]
    return LabelledExamples(chosen, targets, f"{share(len(chosen), len(records), 'image')} ({left_out})")


def check_examples(examples: LabelledExamples, classes: Sequence[str], config: ClassifyConfig) -> None:
    """Refuses classes that nothing can be learned about.

    Raises:
        ConfigError: If there is nothing to tell apart.
        DataError: If a class has no training image, or a finding is never there or never absent; names them.
    """
    if config.scoring == "multi-class":
        if len(classes) < 2:
            raise ConfigError(
                f"classes={list(classes)}: telling apart takes at least two; or ask for one finding at a time with "
                f"--scoring present-absent"
            )
        counts = torch.bincount(examples.targets, minlength=len(classes)).tolist()
        empty = [name for name, images in zip(classes, counts, strict=True) if not images]
        what = f"no training image shows {' or '.join(empty)} and no other of the classes {', '.join(classes)}"
        hint = "leave it out of --classes"
    else:
        silent = {
            what: [name for column, name in enumerate(classes) if not (examples.targets[:, column] == value).any()]
            for value, what in ((1, "shows"), (0, "lacks"))
        }
        empty = [name for names in silent.values() for name in names]
        told = [
            f"no training image is known to {verb[:-1]} {' or '.join(names)}" for verb, names in silent.items() if names
        ]
        what, hint = "; ".join(told), "leave it out of --classes, or count blank labels as absent with --blank absent"
    if empty:
        raise DataError(f"{what}; {hint}, or add images ({examples.description})", reason="empty-class")


def training_data_config(source: Path, settings: Settings, data: str | None) -> DataConfig:
    """Returns the data that a head is trained on; reports which settings of `source` are not used for other data.

    Args:
        source: Run folder whose image tower it is trained on.
        settings: Of the head. Data settings that differ from those of `source` are kept whatever the data.
        data: As for `classify`.
    """
    if data is None:
        return data_config(settings, None)
    inherited = load_run_settings(source).data if (source / "config.yaml").is_file() else settings.data
    config = data_config(settings, data, inherited=inherited)
    report_not_inherited(inherited, config)
    return config
