"""Training and validation data of a stage: records, prepared images, labelled examples of a classifier.

Shapes: `N` images, `C` classes.
"""

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
    """Training and validation records with their prepared images; nothing of the test split."""

    people: str
    """Dataset of the patients, or the name of a population that several datasets share."""
    train: list[Record]
    val: list[Record]
    findings: tuple[str, ...]
    prepared: PreparedImages
    recipe: str
    digest: str
    """Digest of the splits before unreadable images are left out."""
    sources: Mapping[str, str]
    """Name of each table to the SHA-256 of its bytes."""
    leaks: Sequence[Leakage]
    """Patients in more than one split."""
    terms: str | None = None
    """Terms of use of the images, if they apply to trained weights."""

    def facts(self, **more: Any) -> dict[str, Any]:
        """Returns the content of `split.json`."""
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


def drop_images_without_text(data: TrainingData, config: DataConfig) -> TrainingData:
    """Leaves out images whose report has no text for `data.texts`; logs how many.

    Raises:
        DataError: If no training image is left.
    """
    format = report_format(config)
    if format is None:
        return data
    parts = {"train": data.train, "val": data.val}
    for part, records in parts.items():
        if records:
            reading = Reading(dataset=config.dataset, records=records, findings=data.findings)
            kept = drop_unreported(reading, format)
            reasons = ", ".join(f"{reason} {len(ids):,}" for reason, ids in kept.rejected.items())
            if reasons:
                log.warning("%s: images without report text are left out (%s)", part, reasons)
            parts[part] = kept.records
    return replace(data, train=parts["train"], val=parts["val"])


def read_training_data(settings: Settings, *, reading: Reading | None = None, progress: bool = True) -> TrainingData:
    """Reads and splits the table, and prepares the training and validation images.

    Args:
        settings: Data, split and image settings.
        reading: The data, if they were read already.
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
    """Images with labels that a classifier can be trained or validated on."""

    records: list[Record]
    targets: Tensor
    """Multi-class: class of each image, `[N]` int64. Per finding: 1 present, 0 absent, NaN unknown, `[N, C]` float."""
    description: str
    """How many images are used and left out, for messages."""

    def patients(self) -> int:
        """Returns the number of patients."""
        return len({record.patient for record in self.records})


def select_examples(records: Sequence[Record], classes: Sequence[str], config: ClassifyConfig) -> LabelledExamples:
    """Selects the labelled images of a split.

    Multi-class: images that show exactly one of the classes. Per finding: images with at least one known label.

    Args:
        records: Images of a split.
        classes: Classes or findings.
        config: Scoring, and what blank labels count as.

    Source:
        The authors' code takes the argmax of a row of labels, which assigns images without any of the classes to the
        first one (docs/decisions/0101).
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
        left_out = f"{int((~kept).sum()):,} without a known label"
    chosen = [record for record, keep in zip(records, kept.tolist(), strict=True) if keep]
    return LabelledExamples(chosen, targets, f"{share(len(chosen), len(records), 'image')} ({left_out})")


def check_examples(examples: LabelledExamples, classes: Sequence[str], config: ClassifyConfig) -> None:
    """Checks that every class has training images, and every finding has positive and negative ones.

    Raises:
        ConfigError: If there are fewer than two classes to discriminate.
        DataError: If classes or findings lack examples; names them.
    """
    if config.scoring == "multi-class":
        if len(classes) < 2:
            raise ConfigError(
                f"classes={list(classes)}: multi-class scoring needs two classes or more; or score each alone "
                f"with --scoring present-absent"
            )
        counts = torch.bincount(examples.targets, minlength=len(classes)).tolist()
        empty = [name for name, images in zip(classes, counts, strict=True) if not images]
        what = f"no training image shows {' or '.join(empty)} alone of the classes {', '.join(classes)}"
        hint = "leave it out of --classes"
    else:
        missing = {
            what: [name for column, name in enumerate(classes) if not (examples.targets[:, column] == value).any()]
            for value, what in ((1, "shows"), (0, "lacks"))
        }
        empty = [name for names in missing.values() for name in names]
        sentences = [
            f"no training image is labelled to {shown[:-1]} {' or '.join(names)}"
            for shown, names in missing.items()
            if names
        ]
        what, hint = (
            "; ".join(sentences),
            "leave it out of --classes, or count blank labels as absent with --blank absent",
        )
    if empty:
        raise DataError(f"{what}; {hint}, or add images ({examples.description})", reason="empty-class")


def training_data_config(source: Path, settings: Settings, data: str | None) -> DataConfig:
    """Returns the data settings of a classifier; logs which settings of `source` are not used for other data.

    Args:
        source: Run folder of the image encoder.
        settings: Settings of the classifier; data settings that differ from those of `source` are kept for any data.
        data: As for `classify`.
    """
    if data is None:
        return data_config(settings, None)
    inherited = load_run_settings(source).data if (source / "config.yaml").is_file() else settings.data
    config = data_config(settings, data, inherited=inherited)
    report_not_inherited(inherited, config)
    return config
