"""Says in one pass everything that is wrong with a dataset, and takes its census."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from cleft.config import DataConfig, ImagesConfig
from cleft.data.census.image_files import (
    Looks,
    Sample,
    check_duplicates,
    decode,
    draw,
    find_unlisted,
    is_surely_more,
    look_at_all,
    shared_contents,
)
from cleft.data.counts import count_captions, count_labels, group_by, share_present, tally, tally_ages
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
_PICTURES = 12


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How much is looked at. The rest is read from tables and names alone."""

    decode: int | None = 0
    """Images to decode; None for all."""
    look: int | None = 2000
    """Files whose first bytes are read; None for all, as whenever all are decoded."""
    pictures: int | None = 0
    """Images to show; None for twelve where they are phantoms, which may be shown to anybody."""
    seed: int = 0
    """Draws them."""
    jobs: int = 0
    """Processes that decode, which an image may crash without harm; 0 decodes here."""
    progress: bool = False

    @classmethod
    def from_command(cls, *, decode: int | None, pictures: int | None, seed: int, progress: bool) -> CheckOptions:
        """Decodes in other processes: one for a sample, as many as there are cores for all."""
        jobs = usable_cores() if decode is None else 1 if decode or pictures != 0 else 0
        return cls(decode=decode, pictures=pictures, seed=seed, jobs=jobs, progress=progress)


def summarise(scan: ReaderResult, config: DataConfig, images: ImagesConfig, effort: CheckOptions) -> Census:
    """Counts what a scan found, and looks at files and pixels as far as asked for."""
    faults = [fault.message(Path(scan.path.name)) for fault in scan.faults]
    reading, splits, told = _divide(scan.reading, config)
    # Too few rows are left to split because the others are faulty: that is no fault of its own.
    faults += told if not faults else []
    synthetic = is_synthetic(config.root)
    fewest = 1 if synthetic else MIN_PATIENTS
    files = _inspect(reading.records, images, effort, synthetic=synthetic)
    unlisted = find_unlisted(scan.images)
    if is_surely_more(len(files.sample.undecodable), files.decoded, len(reading.records), config.max_invalid):
        faults.append(_too_many(files, config))
    twins, leaking = _compare(reading.records, splits, files.sample)
    terms = license_terms(config)
    return Census(
        dataset=reading.dataset,
        table=scan.path.name,
        faults=(*faults, *leaking),
        notes=(*reading.notes, *files.looks.notes, *twins, *_notes(splits), *([terms] if terms else [])),
        images=len(reading.records),
        patients=len({record.patient for record in reading.records}),
        studies=len({(r.patient, r.study) for r in reading.records if r.study is not None}),
        labels=count_labels(scan.reading.records, reading.findings),
        tallies=_tallies(reading.records),
        groups=_groups(reading, fewest),
        captions=_captions(reading, scan.reading) if splits else None,
        splits=_share_splits(splits, reading, fewest),
        split_recipe=splits.recipe if splits else "",
        split_digest=splits.digest if splits else "",
        shared_patients=splits.shared_patients if splits else 0,
        sources=reading.sources,
        excluded_rows=_leftovers(reading.rejected, {fault.reason for fault in scan.faults} & {"missing"}),
        files_inspected=files.looked_at,
        file_tallies=files.looks.tallies,
        decoded=files.decoded,
        undecodable=_undecodable(files, reading.records),
        unlisted=unlisted.files,
        junk=unlisted.junk,
        thumbnails=files.sample.pictures,
        synthetic=synthetic,
    )


class _Files(NamedTuple):
    looked_at: int
    looks: Looks
    decoded: int
    sample: Sample


def _divide(reading: Reading, config: DataConfig) -> tuple[Reading, Splits | None, list[str]]:
    """Gives every image its caption and its split; where that cannot be done, the reading as it was and why."""
    try:
        captioned = finish_reading(reading, config)
        return captioned, split_records(captioned, config), []
    except DataError as error:
        return reading, None, [str(error)]


def _inspect(records: Sequence[Record], images: ImagesConfig, effort: CheckOptions, *, synthetic: bool) -> _Files:
    pictures = effort.pictures if effort.pictures is not None else _PICTURES if synthetic else 0
    everything = effort.decode is None
    drawn = draw(records, None if everything else max(effort.decode or 0, pictures, effort.look or 0), effort.seed)
    seen = drawn if everything or effort.look is None else drawn[: effort.look]
    asked = drawn if effort.decode is None else drawn[: max(effort.decode, pictures)]
    sample = decode(asked, images, pictures=pictures, jobs=effort.jobs, progress=effort.progress)
    looks = look_at_all([record.image for record in seen], progress=effort.progress)
    return _Files(len(seen), looks, len(asked), sample)


def _too_many(files: _Files, config: DataConfig) -> str:
    bad = files.sample.undecodable
    part = f"{len(bad) / files.decoded:.1%}, data.max_invalid allows {config.max_invalid:.1%}"
    images = share(len(bad), files.decoded, "image that was decoded", "images that were decoded")
    return (
        f"{images} cannot be used ({part}), for the reasons listed; "
        "fix these files, take out their rows, or raise data.max_invalid"
    )


def _compare(records: Sequence[Record], splits: Splits | None, sample: Sample) -> tuple[list[str], list[str]]:
    """Notes and faults about pictures that stand under two names among those that were decoded."""
    parts = splits._asdict() if splits else {"train": list(records)}
    twins = shared_contents({name: parts[name] for name in ("train", "val", "test") if name in parts}, sample.contents)
    try:
        notes = check_duplicates(twins)
    except DataError as error:
        return [], [f"{error}, such as {' and '.join(twins[0].ids[:2])}"]
    if not notes:
        return [], []
    return [*notes, f"these were found among {len(sample.contents):,} decoded files, such as {twins[0].ids[0]}"], []


def _notes(splits: Splits | None) -> list[str]:
    return [*splits.notes, *leakage_notes(splits)] if splits else []


def _tallies(records: Sequence[Record]) -> tuple[Tally, ...]:
    found = (
        tally("view", (record.view for record in records)),
        tally("side", (record.laterality for record in records)),
        tally("sex", (record.sex for record in records)),
        tally_ages(record.age for record in records),
        tally("scanner", (record.scanner for record in records)),
    )
    return tuple(counted for counted in found if counted is not None)


def _groups(reading: Reading, fewest: int) -> tuple[Groups, ...]:
    by = {
        name: group_by(reading.records, key)
        for name, key in (
            ("view", lambda record: record.view),
            ("sex", lambda record: record.sex),
            ("scanner", lambda record: record.scanner),
        )
    }
    return tuple(
        share_present(name, groups, reading.findings, fewest=fewest) for name, groups in by.items() if len(groups) > 1
    )


def _share_splits(splits: Splits | None, reading: Reading, fewest: int) -> Groups | None:
    if splits is None:
        return None
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    return share_present("split", parts, reading.findings, fewest=fewest)


def _captions(captioned: Reading, raw: Reading) -> Captions:
    return count_captions(captioned.records, sum(record.caption is not None for record in raw.records))


def _leftovers(rejected: Mapping[str, Sequence[str]], told: Collection[str]) -> tuple[Excluded, ...]:
    """Rows by reason; what a fault tells already is not told again."""
    return tuple(
        Excluded(reason=reason, count=len(rows), examples=tuple(rows[:_EXAMPLES]))
        for reason, rows in rejected.items()
        if reason not in told
    )


def _undecodable(files: _Files, records: Sequence[Record]) -> tuple[Excluded, ...]:
    """By reason, the commonest first; the examples say what is wrong, with an id in place of the path."""
    images = {record.id: str(record.image) for record in records if record.id in files.sample.undecodable}
    by_reason: dict[str, list[str]] = {}
    for name, (reason, sentence) in files.sample.undecodable.items():
        by_reason.setdefault(reason, []).append(sentence.replace(images[name], name))
    ranked = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(Excluded(reason=reason, count=len(told), examples=tuple(told[:_EXAMPLES])) for reason, told in ranked)


_MOST_VALUES = 8
_MOST_FINDINGS = 30
_WIDEST = 34
_LONGEST = 200


def census_lines(census: Census) -> list[str]:
    """Returns the lines to be printed one below the other."""
    lines = [f"fault: {fault}" for fault in census.faults]
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
    """Some lines with an empty one in front; nothing if there are none."""
    found = list(lines)
    return ["", *found] if found else []


def _left_out_lines(census: Census) -> Iterator[str]:
    if census.decoded:
        whole = census.decoded == census.images
        drawn = (
            count(census.decoded, "image")
            if whole
            else f"{share(census.decoded, census.images, 'image')}, drawn at random,"
        )
        bad = sum(left.count for left in census.undecodable)
        became = f"{bad:,} cannot be used" if bad else "all can be used"
        yield f"{drawn} {verb(census.decoded, 'was', 'were')} decoded; {became}"
    for left in census.excluded_rows:
        yield f"left out, {left.reason}: {left.count:,}{_such_as(left)}"
    for left in census.undecodable:
        yield f"cannot be decoded, {left.reason}: {left.count:,}{_such_as(left)}"
    for left in census.unlisted[:_MOST_VALUES]:
        yield f"files that no row names, {left.reason}: {left.count:,}{_such_as(left)}"
    if census.junk:
        yield f"files that are no data, such as .DS_Store, ._*, Thumbs.db, *.part: {census.junk:,}, ignored"


def _such_as(left: Excluded) -> str:
    return f", such as {_end(left.examples[0], _LONGEST)}" if left.examples else ""


def _end(text: str, most: int) -> str:
    """The end of a long text: paths and captions that begin alike differ there."""
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
    told = ", ".join(f"{name} {count:,}" for name, count in shown)
    rest = len(each.counts) - len(shown)
    return told + (f" and {rest:,} more" if rest else "")


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


class Check(NamedTuple):
    """What there is to say about a dataset."""

    census: Census

    @property
    def lines(self) -> list[str]:
        """To be printed one below the other."""
        return census_lines(self.census)

    @property
    def faults(self) -> int:
        """Kinds of fault. 0 means that training can begin."""
        return len(self.census.faults)


def check_dataset(config: DataConfig, images: ImagesConfig | None = None, effort: CheckOptions | None = None) -> Check:
    """Reads a table as far as it can be read and reports on all of it.

    Args:
        config: What to read, and how it would be split.
        images: How images would be prepared, where some are decoded.
        effort: How many files to look at and to decode; by default none is decoded.

    Returns:
        First one line per kind of fault, with the lines it occurs on and the remedy; then, of the rows without
        fault, how many images, patients, findings, views and sexes there are, what was left out and why, and
        how large the splits would be.

    Raises:
        ConfigError: If `data.root` is not set or `data.table` leads out of it.
    """
    reader, images = DATASETS[config.dataset].reader, images or ImagesConfig()
    try:
        return Check(summarise(reader(config), config, images, effort or CheckOptions()))
    except DataError as error:
        if error.reason != "missing":
            return Check(Census(dataset=config.dataset, table=config.table or "", faults=(str(error),)))
        missing = str(error)
    # No image is where it should be: the table is reported all the same.
    census = summarise(reader(config, check_files=False), config, images, CheckOptions(look=0))
    return Check(replace(census, faults=(missing, *census.faults), unlisted=()))
