"""Says in one pass everything that is wrong with a dataset, and takes its census."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from cleft.config import DataConfig
from cleft.data.datasets import DATASETS, finish_reading
from cleft.data.splits import split_records
from cleft.errors import DataError
from cleft.types import Reading, Record


class Check(NamedTuple):
    """What there is to say about a dataset."""

    lines: list[str]
    """To be printed one below the other."""
    faults: int
    """Kinds of fault. 0 means that training can begin."""


def check_dataset(config: DataConfig) -> Check:
    """Reads a table as far as it can be read and reports on all of it; no image is decoded.

    Returns:
        First one line per kind of fault, with the lines it occurs on and the remedy; then, of the rows without
        fault, how many images, patients, findings, views and sexes there are, what was left out and why, and
        how large the splits would be.

    Raises:
        ConfigError: If `data.root` is not set or `data.table` leads out of it.
    """
    try:
        scan = DATASETS[config.dataset].scan(config)
    except DataError as error:
        return Check([f"fault: {error}"], 1)
    faults = [f"fault: {fault.sentence(scan.path)}" for fault in scan.faults]
    lines = list(_census(scan.reading))
    try:
        lines += _splits(scan.reading, config)
    except DataError as error:
        # Too few rows are left to split because the others are faulty: that is no fault of its own.
        if not faults:
            faults.append(f"fault: {error}")
    return Check([*faults, *lines], len(faults))


def _census(reading: Reading) -> Iterable[str]:
    records = reading.records
    yield from reading.notes
    yield f"{len(records):,} images of {len({record.patient for record in records}):,} patients can be used"
    for reason, rows in reading.rejected.items():
        yield f"left out, {reason}: {len(rows):,}"
    for name, digest in reading.sources.items():
        yield f"SHA-256 of {name}: {digest}"
    if not records:
        return
    yield f"views: {_counts(record.view for record in records)}"
    yield f"sex: {_counts(record.sex for record in records)}"
    yield f"captions in the table: {sum(record.caption is not None for record in records):,}"
    yield from _findings(reading)


def _findings(reading: Reading) -> Iterable[str]:
    """A table of label counts. Records with equal labels share one mapping, so each mapping is counted once."""
    if not reading.findings:
        return
    labels = {id(record.labels): record.labels for record in reading.records}
    times = Counter(id(record.labels) for record in reading.records)
    width = max(len("finding"), *(len(name) for name in reading.findings))
    yield f"{'finding':{width}} {'1':>9} {'0':>9} {'-1':>9} {'blank':>9}"
    for name in reading.findings:
        counts: Counter[float | None] = Counter()
        for key, mapping in labels.items():
            counts[mapping.get(name)] += times[key]
        yield f"{name:{width}} " + " ".join(f"{counts[value]:>9,}" for value in (1.0, 0.0, -1.0, None))


def _splits(reading: Reading, config: DataConfig) -> list[str]:
    captioned = finish_reading(reading, config)
    splits = split_records(captioned, config)
    sizes = ", ".join(f"{name} {_images(part)}" for name, part in zip(splits._fields, splits[:3], strict=False))
    distinct = len({record.caption for record in captioned.records})
    return [
        f"distinct captions: {distinct:,}",
        f"split {splits.recipe}: {sizes}; {splits.shared_patients:,} patients stand in two (digest {splits.digest})",
    ]


def _images(records: list[Record]) -> str:
    return f"{len(records):,} images of {len({record.patient for record in records}):,} patients"


def _counts(values: Iterable[str | None]) -> str:
    return ", ".join(f"{value or 'unknown'} {count:,}" for value, count in Counter(values).most_common())
