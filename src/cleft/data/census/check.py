"""The dataset check: every fault of a dataset in one pass, and a summary of it without training."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from cleft.config import DataConfig, ImagesConfig
from cleft.data.census.image_files import (
    FileSummary,
    Sample,
    check_duplicates,
    decode_sample,
    draw_sample,
    exceeds_share,
    find_duplicates,
    find_unlisted,
    inspect_files,
)
from cleft.data.counts import count_ages, count_captions, count_labels, count_values, group_records, prevalence_by_group
from cleft.data.datasets import DATASETS, finish_reading, license_terms
from cleft.data.images.decode_pool import usable_cores
from cleft.data.splits.recipes import split_records
from cleft.data.splits.split_file import leakage_notes
from cleft.data.tables.paths import is_synthetic
from cleft.data.tables.reading import ReaderResult
from cleft.errors import DataError
from cleft.grammar import count, share, verb
from cleft.privacy import MIN_PATIENTS
from cleft.types import Captions, Census, Excluded, Groups, Reading, Record, Splits, Tally

_EXAMPLES = 3
_THUMBNAILS = 12


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How much of a dataset is inspected, besides its tables."""

    decode: int | None = 0
    """Number of images to decode; None for all."""
    inspect: int | None = 2000
    """Number of files whose first bytes are read; None for all, as when all images are decoded."""
    thumbnails: int | None = 0
    """Number of images to show; None for twelve if the images are synthetic, which may be shown to anyone."""
    seed: int = 0
    """Seed of the random sample."""
    jobs: int = 0
    """Child processes that decode; 0 means one."""
    progress: bool = False

    @classmethod
    def from_command(cls, *, decode: int | None, thumbnails: int | None, seed: int, progress: bool) -> CheckOptions:
        """Options of a command: one process decodes a sample, one per core decodes all images."""
        jobs = usable_cores() if decode is None else 1 if decode or thumbnails != 0 else 0
        return cls(decode=decode, thumbnails=thumbnails, seed=seed, jobs=jobs, progress=progress)


class DatasetCheck(NamedTuple):
    """Result of a dataset check."""

    census: Census

    @property
    def lines(self) -> list[str]:
        """Lines for a terminal."""
        return census_lines(self.census)

    @property
    def faults(self) -> int:
        """Number of kinds of fault; 0 means that training can begin."""
        return len(self.census.faults)


def check_dataset(
    config: DataConfig, images: ImagesConfig | None = None, options: CheckOptions | None = None
) -> DatasetCheck:
    """Read as much of a dataset as possible and report all its faults with a summary.

    Args:
        config: Data settings, including the split.
        images: Image settings, for images that are decoded.
        options: How many files to inspect and decode; by default none is decoded.

    Returns:
        One line per kind of fault, with the table lines it occurs on and the remedy; then, for the rows without fault,
        the number of images, patients, findings, views and sexes, what was left out and why, and the size of the
        splits.

    Raises:
        ConfigError: If `data.root` is not set or `data.table` is outside of it.
    """
    reader, images = DATASETS[config.dataset].reader, images or ImagesConfig()
    try:
        return DatasetCheck(summarise(reader(config), config, images, options or CheckOptions()))
    except DataError as error:
        if error.reason != "missing":
            return DatasetCheck(Census(dataset=config.dataset, table=config.table or "", faults=(str(error),)))
        missing = str(error)
    # No image was found: summarise the table alone.
    census = summarise(reader(config, check_files=False), config, images, CheckOptions(inspect=0))
    return DatasetCheck(replace(census, faults=(missing, *census.faults), unlisted=()))


def summarise(scan: ReaderResult, config: DataConfig, images: ImagesConfig, options: CheckOptions) -> Census:
    """Summarise what a reader returned, and inspect files and pixels as requested."""
    faults = [fault.message(Path(scan.path.name)) for fault in scan.faults]
    reading, splits, split_faults = _split(scan.reading, config)
    # If other rows are faulty, too few may remain for a split, which is not a separate fault.
    faults += split_faults if not faults else []
    synthetic = is_synthetic(config.root)
    min_patients = 1 if synthetic else MIN_PATIENTS
    files = _inspect_files(reading.records, images, options, synthetic=synthetic)
    unlisted = find_unlisted(scan.images)
    if exceeds_share(len(files.sample.undecodable), files.decoded, len(reading.records), config.max_invalid):
        faults.append(_too_many(files, config))
    duplicates, leaking = _check_duplicates(reading.records, splits, files.sample)
    terms = license_terms(config)
    return Census(
        dataset=reading.dataset,
        table=scan.path.name,
        faults=(*faults, *leaking),
        notes=(*reading.notes, *files.summary.notes, *duplicates, *_notes(splits), *([terms] if terms else [])),
        images=len(reading.records),
        patients=len({record.patient for record in reading.records}),
        studies=len({(r.patient, r.study) for r in reading.records if r.study is not None}),
        labels=count_labels(scan.reading.records, reading.findings),
        tallies=_tallies(reading.records),
        groups=_groups(reading, min_patients),
        captions=_captions(reading, scan.reading) if splits else None,
        splits=_share_splits(splits, reading, min_patients),
        split_recipe=splits.recipe if splits else "",
        split_digest=splits.digest if splits else "",
        shared_patients=splits.shared_patients if splits else 0,
        sources=reading.sources,
        excluded_rows=_leftovers(reading.rejected, {fault.reason for fault in scan.faults} & {"missing"}),
        files_inspected=files.inspected,
        file_tallies=files.summary.tallies,
        decoded=files.decoded,
        undecodable=_undecodable(files, reading.records),
        unlisted=unlisted.files,
        junk=unlisted.junk,
        thumbnails=files.sample.thumbnails,
        synthetic=synthetic,
    )


class _Files(NamedTuple):
    inspected: int
    summary: FileSummary
    decoded: int
    sample: Sample


def _split(reading: Reading, config: DataConfig) -> tuple[Reading, Splits | None, list[str]]:
    """Add captions and split the records; if that fails, return the reading unchanged and the message."""
    try:
        captioned = finish_reading(reading, config)
        return captioned, split_records(captioned, config), []
    except DataError as error:
        return reading, None, [str(error)]


def _inspect_files(
    records: Sequence[Record], images: ImagesConfig, options: CheckOptions, *, synthetic: bool
) -> _Files:
    thumbnails = options.thumbnails if options.thumbnails is not None else _THUMBNAILS if synthetic else 0
    decode_all = options.decode is None
    drawn = draw_sample(
        records, None if decode_all else max(options.decode or 0, thumbnails, options.inspect or 0), options.seed
    )
    inspected = drawn if decode_all or options.inspect is None else drawn[: options.inspect]
    decoded = drawn if options.decode is None else drawn[: max(options.decode, thumbnails)]
    sample = decode_sample(decoded, images, thumbnails=thumbnails, jobs=options.jobs, progress=options.progress)
    summary = inspect_files([record.image for record in inspected], progress=options.progress)
    return _Files(len(inspected), summary, len(decoded), sample)


def _too_many(files: _Files, config: DataConfig) -> str:
    bad = files.sample.undecodable
    part = f"{len(bad) / files.decoded:.1%}, data.max_invalid allows {config.max_invalid:.1%}"
    images = share(len(bad), files.decoded, "decoded image", "decoded images")
    return (
        f"{images} cannot be used ({part}), for the reasons listed; "
        "fix these files, remove their rows, or raise data.max_invalid"
    )


def _check_duplicates(records: Sequence[Record], splits: Splits | None, sample: Sample) -> tuple[list[str], list[str]]:
    """Notes and faults about duplicate images among those that were decoded."""
    parts = splits._asdict() if splits else {"train": list(records)}
    duplicates = find_duplicates(
        {name: parts[name] for name in ("train", "val", "test") if name in parts}, sample.contents
    )
    try:
        notes = check_duplicates(duplicates)
    except DataError as error:
        return [], [f"{error}, such as {' and '.join(duplicates[0].ids[:2])}"]
    if not notes:
        return [], []
    return [*notes, f"found among {len(sample.contents):,} decoded files, such as {duplicates[0].ids[0]}"], []


def _notes(splits: Splits | None) -> list[str]:
    return [*splits.notes, *leakage_notes(splits)] if splits else []


def _tallies(records: Sequence[Record]) -> tuple[Tally, ...]:
    tallies = (
        count_values("view", (record.view for record in records)),
        count_values("side", (record.laterality for record in records)),
        count_values("sex", (record.sex for record in records)),
        count_ages(record.age for record in records),
        count_values("scanner", (record.scanner for record in records)),
    )
    return tuple(each for each in tallies if each is not None)


def _groups(reading: Reading, min_patients: int) -> tuple[Groups, ...]:
    by = {
        name: group_records(reading.records, key)
        for name, key in (
            ("view", lambda record: record.view),
            ("sex", lambda record: record.sex),
            ("scanner", lambda record: record.scanner),
        )
    }
    return tuple(
        prevalence_by_group(name, groups, reading.findings, min_patients=min_patients)
        for name, groups in by.items()
        if len(groups) > 1
    )


def _share_splits(splits: Splits | None, reading: Reading, min_patients: int) -> Groups | None:
    if splits is None:
        return None
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    return prevalence_by_group("split", parts, reading.findings, min_patients=min_patients)


def _captions(captioned: Reading, raw: Reading) -> Captions:
    return count_captions(captioned.records, sum(record.caption is not None for record in raw.records))


def _leftovers(rejected: Mapping[str, Sequence[str]], reported: Collection[str]) -> tuple[Excluded, ...]:
    """Rows that are not used, by reason; without reasons that a fault reports already."""
    return tuple(
        Excluded(reason=reason, count=len(rows), examples=tuple(rows[:_EXAMPLES]))
        for reason, rows in rejected.items()
        if reason not in reported
    )


def _undecodable(files: _Files, records: Sequence[Record]) -> tuple[Excluded, ...]:
    """Images that cannot be decoded, the most frequent reason first; messages name the id instead of the path."""
    images = {record.id: str(record.image) for record in records if record.id in files.sample.undecodable}
    by_reason: dict[str, list[str]] = {}
    for name, (reason, message) in files.sample.undecodable.items():
        by_reason.setdefault(reason, []).append(message.replace(images[name], name))
    ranked = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(
        Excluded(reason=reason, count=len(messages), examples=tuple(messages[:_EXAMPLES]))
        for reason, messages in ranked
    )


_MOST_VALUES = 8
_MOST_FINDINGS = 30
_WIDEST = 34
_LONGEST = 200


def census_lines(census: Census) -> list[str]:
    """Return the summary as lines for a terminal: faults first, then notes and counts; long lists are cut."""
    lines = [f"problem: {fault}" for fault in census.faults]
    lines += census.notes
    if not census.images and census.faults and not census.sources:
        return lines
    lines.append(f"{count(census.images, 'image')} of {count(census.patients, 'patient')} can be used")
    lines += _left_out_lines(census)
    lines += _with_gap(_tally_lines("images", census.tallies))
    lines += _with_gap(_tally_lines(_files_heading(census), census.file_tallies))
    lines += _with_gap(_label_lines(census))
    lines += _with_gap(_caption_lines(census))
    lines += _with_gap(_split_lines(census))
    lines += _with_gap(f"SHA-256 of {name}: {digest}" for name, digest in census.sources.items())
    return lines


def _with_gap(lines: Iterator[str]) -> list[str]:
    """Lines preceded by an empty one; nothing if there are none."""
    listed = list(lines)
    return ["", *listed] if listed else []


def _left_out_lines(census: Census) -> Iterator[str]:
    if census.decoded:
        complete = census.decoded == census.images
        drawn = (
            count(census.decoded, "image")
            if complete
            else f"{share(census.decoded, census.images, 'image')}, drawn at random,"
        )
        bad = sum(left.count for left in census.undecodable)
        result = f"{bad:,} cannot be used" if bad else "all can be used"
        yield f"{drawn} {verb(census.decoded, 'was', 'were')} decoded; {result}"
    for left in census.excluded_rows:
        yield f"left out, {left.reason}: {left.count:,}{_such_as(left)}"
    for left in census.undecodable:
        yield f"cannot be decoded, {left.reason}: {left.count:,}{_such_as(left)}"
    for left in census.unlisted[:_MOST_VALUES]:
        yield f"files that no row names, {left.reason}: {left.count:,}{_such_as(left)}"
    if census.junk:
        yield f"system and temporary files, such as .DS_Store, ._*, Thumbs.db, *.part: {census.junk:,}, ignored"


def _such_as(left: Excluded) -> str:
    return f", such as {_end(left.examples[0], _LONGEST)}" if left.examples else ""


def _end(text: str, most: int) -> str:
    """The end of a long text: paths and captions with the same beginning differ there."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _files_heading(census: Census) -> str:
    return "files" if census.files_inspected == census.images else count(census.files_inspected, "file")


def _tally_lines(what: str, tallies: Sequence[Tally]) -> Iterator[str]:
    width = max((len(each.name) for each in tallies), default=0)
    for place, each in enumerate(tallies):
        head = f"{what} by" if place == 0 else ""
        yield f"{head:{len(what) + 3}} {each.name:{width}}  {_tally_values(each)}"


def _tally_values(each: Tally) -> str:
    shown = each.counts if each.ordered else each.counts[:_MOST_VALUES]
    listed = ", ".join(f"{name} {count:,}" for name, count in shown)
    rest = len(each.counts) - len(shown)
    return listed + (f" and {rest:,} more" if rest else "")


def _label_lines(census: Census) -> Iterator[str]:
    if not census.labels or not census.images:
        return
    names = list(census.labels)
    if len(names) > _MOST_FINDINGS:
        names.sort(key=lambda name: -census.labels[name][0])
    shown = names[:_MOST_FINDINGS]
    width = min(_WIDEST, max(len("finding"), *(len(name) for name in shown)))
    parts = [f"{f'in {name}':>9}" for name in census.splits.groups] if census.splits else []
    yield " ".join([f"{'finding':{width}} {'1':>9} {'0':>9} {'-1':>9} {'blank':>9}", *parts])
    for name in shown:
        counts = " ".join(f"{count:>9,}" for count in census.labels[name])
        yield f"{_short(name):{width}} {counts}{_shares(name, census.splits)}"
    if len(names) > len(shown):
        yield f"and {count(len(names) - len(shown), 'rarer finding')}"


def _shares(finding: str, splits: Groups | None) -> str:
    if splits is None:
        return ""
    return "".join(f" {'–' if share is None else f'{100 * share:.1f} %':>9}" for share in splits.shares[finding])


def _short(name: str) -> str:
    return name if len(name) <= _WIDEST else f"{name[: _WIDEST - 1]}…"


def _caption_lines(census: Census) -> Iterator[str]:
    captions = census.captions
    if captions is None:
        return
    if 0 < captions.from_table < census.images:
        yield f"captions in the table: {captions.from_table:,}; the others are made from labels"
    yield f"distinct captions: {captions.distinct:,}, the longest of {count(captions.longest, 'word')}"
    for text, times in captions.common[:3]:
        yield f"{times:>9,}  {_end(text, 90)}"


def _split_lines(census: Census) -> Iterator[str]:
    splits = census.splits
    if splits is None:
        return
    shared = f"{count(census.shared_patients, 'patient')} {verb(census.shared_patients, 'is', 'are')} in two splits"
    yield f"split {census.split_recipe}: {shared} (digest {census.split_digest})"
    for name, images, patients in zip(splits.groups, splits.images, splits.patients, strict=True):
        yield f"{name:>9} {images:>9,} {verb(images, 'image', 'images')} of {count(patients, 'patient')}"
