"""Split files, the summary of a split, and patients shared between its parts.

A split file lists the ids of each part with recipe, salts and digests of the tables. It contains neither images nor
labels and reproduces the split for anyone with the same images, whatever the version of this code.

If the owner's terms forbid sharing ids, slow digests (scrypt) are written instead. They hide ids and make a search
expensive, but do not protect ids that can be enumerated: testing one takes about a millisecond, all seven-digit numbers
four hours of one core. Share a file only where that is acceptable.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cleft.config import DataConfig
from cleft.data.counts import prevalence_by_group
from cleft.data.images.decode_pool import usable_cores
from cleft.data.readers.chexpert import LABEL_TABLES
from cleft.data.splits.subsets import ids_digest, leakage_notes, order_key
from cleft.errors import ConfigError, DataError
from cleft.files import Output, write_whole
from cleft.grammar import count, verb
from cleft.results import from_json, to_json
from cleft.types import Reading, Record, Splits

log = logging.getLogger(__name__)

FORMAT = "cleft-split"
VERSION = 1
"""Increases when the format changes; files of another version are refused."""

ID_SALT = "cleft-split-id-v1"

MAX_BYTES = 1 << 30
PARTS = ("train", "val", "test")
_DIGITS = 16
_COST = (512, 8, 1)
"""n, r and p of scrypt: 512 KiB and 1.3 ms per id, 85 s of one core for CheXpert's 65,240 patients; uses all cores."""

_MAX_MEMORY = 1 << 25
"""Bytes of memory that the parameters in a file may require; a file from elsewhere must not exhaust the machine."""

_MIN_CACHED = 2_000
"""Number of ids from which matched digests are cached."""


@dataclass(frozen=True, kw_only=True)
class IdHash:
    """How ids are hashed: scrypt with this salt and these parameters, first 16 hex digits."""

    name: str = "scrypt"
    n: int = _COST[0]
    r: int = _COST[1]
    p: int = _COST[2]
    salt: str
    """Derived from dataset and split, so that equal splits are equal files."""

    def check(self, path: Path) -> None:
        """Checks the parameters.

        Raises:
            DataError: If they are not valid for scrypt, or require too much memory.
        """
        valid = self.name == "scrypt" and self.n > 1 and self.n & (self.n - 1) == 0 and self.r > 0 and 0 < self.p <= 16
        if not valid or 128 * self.n * self.r > _MAX_MEMORY:
            raise DataError(
                f"{path}: its ids are hashed with {self.name} n={self.n} r={self.r} p={self.p}; supported is scrypt "
                f"with n a power of two, p up to 16 and at most {_MAX_MEMORY >> 20} MiB; write the file again with "
                f"cleft data split",
                reason="split-file",
            )

    def digests(self, ids: Sequence[str]) -> list[str]:
        """Returns the digest of each id, using all cores."""
        salt = self.salt.encode()

        def digest(identifier: str) -> str:
            return hashlib.scrypt(
                identifier.encode(),
                salt=salt,
                n=self.n,
                r=self.r,
                p=self.p,
                maxmem=2 * _MAX_MEMORY,
                dklen=_DIGITS // 2,
            ).hex()

        with ThreadPoolExecutor(max_workers=usable_cores()) as pool:  # scrypt runs without Python's lock
            return list(pool.map(digest, ids, chunksize=64))


@dataclass(frozen=True, kw_only=True)
class SplitFile:
    """Content of a split file. Dataset, recipe and `train` are required; the rest is provenance."""

    format: str = FORMAT
    dataset: str
    recipe: str
    """Name of the recipe. Any other name is allowed too; patients must not be shared then."""
    digest: str = ""
    """Digest of the split, as `Splits.digest`; empty in a file written by hand."""
    images: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of images by part; `left out` are images of the table in no part."""
    patients: Mapping[str, int] = field(default_factory=dict[str, int])
    shared_patients: int = 0
    salts: Mapping[str, str] = field(default_factory=dict[str, str])
    """Salt of each draw."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Other settings that determine the split."""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    """SHA-256 of each table, by name."""
    hashed: bool = False
    """Whether digests are written in place of ids."""
    id_hash: IdHash | None = None
    """How ids are hashed; None in files of earlier versions: SHA-256 of `cleft-split-id-v1|dataset|id`, first 16 hex
    digits, which anyone can invert by trying all ids."""
    written: str = ""
    """Digest of the ids as written, to detect damage; empty in a file written by hand."""
    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


def make_split_file(
    splits: Splits, reading: Reading, config: DataConfig, *, salts: Mapping[str, str], hashed: bool
) -> SplitFile:
    """Returns the split file of a split.

    Args:
        splits: Result of `split_records`.
        reading: The reading that was split.
        config: Settings of the reading and the split.
        salts: Salts of the recipe.
        hashed: Whether digests are written in place of ids.

    Raises:
        DataError: If two ids have the same digest.
    """
    parts = _parts(splits)
    id_hash = IdHash(salt=f"cleft-split-id-v2|{reading.dataset}|{splits.digest}") if hashed else None
    keys = _keys([record.id for part in parts.values() for record in part], reading.dataset, id_hash, hashed)
    written = {name: sorted(keys[record.id] for record in part) for name, part in parts.items()}
    total = sum(len(part) for part in parts.values())
    if len({key for keys in written.values() for key in keys}) < total:
        raise DataError("two ids have the same digest; write this split with its ids", reason="split-file")
    return SplitFile(
        dataset=reading.dataset,
        recipe=splits.recipe,
        digest=splits.digest,
        images={**{name: len(part) for name, part in parts.items()}, "left out": len(reading.records) - total},
        patients={name: len({record.patient for record in part}) for name, part in parts.items()},
        shared_patients=splits.shared_patients,
        salts=dict(salts),
        settings={
            "labels": config.label_source,
            "views": None if config.views is None else list(config.views),
            "uncertain": config.uncertain,
            "empty_caption": config.empty_caption,
            "test_list": None if config.test_list is None else config.test_list.name,
            "val_fraction": config.val_fraction,
            "test_fraction": config.test_fraction,
        },
        sources=dict(reading.sources),
        hashed=hashed,
        id_hash=id_hash,
        written=_digest(written),
        train=tuple(written["train"]),
        val=tuple(written["val"]),
        test=tuple(written["test"]),
    )


def check_split_output(path: Path) -> None:
    """Checks, before a split is drawn, that `write_split_file` can write to a path.

    Raises:
        ConfigError: If it is a folder, a link, or a file that is not a split file.
        ResourceError: If the folder cannot be written.
    """
    try:
        regular = stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        regular = False
    if not regular:
        Output(path, "--out", overwrite=None).check()
        return
    try:
        read_split_file(path)
    except DataError as error:
        raise ConfigError(f"{path} exists and is not overwritten; use another name") from error


def write_split_file(path: Path, split: SplitFile) -> Path:
    """Writes a split file as JSON, compressed with gzip if the name ends in `.gz`. Equal splits give equal bytes.

    Raises:
        ConfigError: If a different file exists, even if cleft wrote it: runs may have used it.
        ResourceError: If it cannot be written.
    """
    data = to_json(split, schema=VERSION).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    if path.exists():
        if path.is_file() and path.read_bytes() == data:
            return path
        raise ConfigError(f"{path} exists and is not overwritten; use another name")
    return Output(path, "--out", overwrite=None).write(data)


def read_split_file(path: Path) -> SplitFile:
    """Reads a split file, plain or compressed with gzip.

    Raises:
        DataError: If it is not a split file, has another version, is damaged, or contains an id twice.
    """
    text = _text(path)
    try:
        split = from_json(text, SplitFile, where=path.name, schema=VERSION, remedy="write it with cleft data split")
    except DataError as error:
        raise DataError(f"{path} is not a split file: {error}", reason="split-file") from error
    if split.format != FORMAT:
        raise DataError(
            f"{path} is not a split file: its format is {split.format!r}, not {FORMAT!r}", reason="split-file"
        )
    if split.id_hash is not None:
        split.id_hash.check(path)
    written = {name: list(getattr(split, name)) for name in PARTS}
    if (split.written and split.written != _digest(written)) or (
        split.digest and not split.hashed and split.digest != _digest(written)
    ):
        raise DataError(
            f"{path} is damaged: its ids differ from those it was written with; copy it again", reason="split-file"
        )
    counts = Counter(key for keys in written.values() for key in keys)
    twice = sorted(key for key, count in counts.items() if count > 1)
    if twice:
        shown = ", ".join(twice[:3])
        ids = f"{count(len(twice), 'id')} {verb(len(twice), 'is', 'are')}"
        raise DataError(f"{path}: {ids} in it twice, such as {shown}; remove one of them", reason="split-file")
    return split


class AppliedSplit(NamedTuple):
    """A split file applied to a reading."""

    parts: dict[str, list[Record]]
    """`train`, `val` and `test`, each in the order of the reading."""
    recipe: str
    notes: list[str]
    """Ids without an image, images without an id, and whether the digest still matches."""


@dataclass(frozen=True, kw_only=True)
class _Matched:
    """Ids matched to the digests of a split file, as stored in the cache."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    digest: str
    """Digest of these ids, to detect damage."""


def apply_split_file(path: Path, reading: Reading, cache: Path | None = None) -> AppliedSplit:
    """Assigns records to train, val and test according to a split file. Shared patients are checked by the caller.

    Args:
        path: The split file.
        reading: The records.
        cache: Folder in which matched digests are cached, because they are slow to compute; None caches nothing.

    Raises:
        DataError: If the file cannot be read, belongs to another dataset, or leaves no training images.
    """
    split = read_split_file(path)
    if split.dataset != reading.dataset:
        what = f"{path} is a split of data.dataset={split.dataset}, not of {reading.dataset}"
        raise DataError(f"{what}; use that dataset, or another split file", reason="split-file")
    part_of = _part_of(path, split, reading, cache)
    parts: dict[str, list[Record]] = {name: [] for name in PARTS}
    for record in reading.records:
        if record.id in part_of:
            parts[part_of[record.id]].append(record)
    if not parts["train"]:
        images = verb(len(split.train), "training image", f"{len(split.train):,} training images")
        what = f"none of the {images} of {path} is among the {len(reading.records):,} here"
        raise DataError(f"{what}; compare data.table and data.views with those of the file", reason="split-file")
    return AppliedSplit(
        parts,
        split.recipe,
        list(_notes(path.name, split, reading, parts, sum(len(getattr(split, name)) for name in PARTS))),
    )


def _notes(
    name: str, split: SplitFile, reading: Reading, parts: Mapping[str, Sequence[Record]], ids: int
) -> Iterable[str]:
    found = sum(len(part) for part in parts.values())
    digest = _digest({part: [record.id for record in records] for part, records in parts.items()})
    other = [table for table, sha in split.sources.items() if reading.sources.get(table, sha) != sha]
    yield f"the split is read from {name}"
    if found < ids:
        yield f"{count(ids - found, 'id')} of {name} {verb(ids - found, 'is', 'are')} not among the images"
    if found < len(reading.records):
        before = f" ({split.images['left out']:,} when it was written)" if "left out" in split.images else ""
        unassigned = len(reading.records) - found
        is_ = verb(unassigned, "is", "are")
        yield f"{count(unassigned, 'image')} {is_} in no part of {name} and {is_} left out{before}"
    if split.digest and digest != split.digest:
        yield f"the split differs from the one in {name}: its digest is {digest}, in the file {split.digest}"
    if other:
        yield f"{name} was made from tables with other content: {', '.join(other)}"


def _parts(splits: Splits) -> dict[str, list[Record]]:
    return {"train": splits.train, "val": splits.val, "test": splits.test}


def _part_of(path: Path, split: SplitFile, reading: Reading, cache: Path | None) -> dict[str, str]:
    """Returns the part of each record that is in the file, by id."""
    ids = [record.id for record in reading.records]
    cached = None
    if split.id_hash is not None and cache is not None and len(ids) >= _MIN_CACHED:
        named = hashlib.sha256(f"{split.id_hash}|{split.written}|{ids_digest(ids)}".encode()).hexdigest()
        cached = cache / "splits" / f"{named[:32]}.json"
        matched = _read_matched(cached)
        if matched is not None:
            return {key: name for name in PARTS for key in getattr(matched, name)}
        log.info("%s: computing the digests of %s ids, once", path, f"{len(ids):,}")
    names = {key: name for name in PARTS for key in getattr(split, name)}
    keys = _keys(ids, reading.dataset, split.id_hash, split.hashed)
    part_of = {identifier: names[key] for identifier, key in keys.items() if key in names}
    if cached is not None:
        _cache_matched(cached, part_of)
    return part_of


def _read_matched(path: Path) -> _Matched | None:
    try:
        matched = from_json(path.read_text(encoding="utf-8"), _Matched, where=path.name, schema=VERSION)
    except (OSError, ValueError, DataError):
        return None
    return matched if matched.digest == _digest({name: getattr(matched, name) for name in PARTS}) else None


def _cache_matched(path: Path, part_of: Mapping[str, str]) -> None:
    """Caches matched ids, readable by the owner only. If that fails, the digests are computed again next time."""
    parts = {name: tuple(sorted(key for key, part in part_of.items() if part == name)) for name in PARTS}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, to_json(_Matched(**parts, digest=_digest(parts)), schema=VERSION).encode())
    except OSError as error:
        log.info("%s cannot be written (%s)", path, error.strerror)


def _keys(ids: Sequence[str], dataset: str, id_hash: IdHash | None, hashed: bool) -> dict[str, str]:
    """Returns what a file contains for each id: the id or its digest."""
    if not hashed:
        return {identifier: identifier for identifier in ids}
    if id_hash is None:
        return {identifier: order_key(f"{ID_SALT}|{dataset}", identifier)[:_DIGITS] for identifier in ids}
    return dict(zip(ids, id_hash.digests(ids), strict=True))


def _digest(parts: Mapping[str, Sequence[str]]) -> str:
    """Returns the digest of a split, as `Splits.digest`."""
    return ids_digest(f"{name}|{key}" for name, keys in parts.items() for key in keys)


def _text(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(
            f"no split file at {path}; set data.split_file to an existing file, or omit it", reason="split-file"
        )
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES >> 30} GiB; it is not a split file", reason="split-file")
        return data
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as a split file ({error}); copy it again", reason="split-file"
        ) from error


_CELL = 10


def split_lines(splits: Splits, reading: Reading, config: DataConfig, salts: Mapping[str, str]) -> list[str]:
    """Returns a summary of a split as lines: recipe, salts, sources, sizes and the share of each finding by part.

    Shares of fewer than five patients are not shown.
    """
    salted = ", ".join(f"{what} {salt}" for what, salt in salts.items())
    lines = [f"split {splits.recipe} (digest {splits.digest}){f'; salts: {salted}' if salted else ''}"]
    lines.append(f"labels: {label_source(reading, config)}")
    lines += [f"SHA-256 of {name}: {digest}" for name, digest in reading.sources.items()]
    return [*lines, *splits.notes, *leakage_notes(splits), "", *_table(splits, reading)]


def label_source(reading: Reading, config: DataConfig) -> str:
    """Returns the name of the table that the labels were read from."""
    return LABEL_TABLES.get(config.label_source) or next(iter(reading.sources), reading.dataset)


def _table(splits: Splits, reading: Reading) -> Iterator[str]:
    groups = prevalence_by_group(
        "split", {"train": splits.train, "val": splits.val, "test": splits.test}, reading.findings
    )
    width = max(len(name) for name in ("finding", "patients", *reading.findings))
    left_out = len(reading.records) - sum(groups.images)

    def row(name: str, cells: tuple[str, ...]) -> str:
        return f"{name:{width}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)

    yield row("", groups.groups)
    yield row("images", tuple(f"{count:,}" for count in groups.images))
    yield row("patients", tuple(f"{count:,}" for count in groups.patients))
    for finding in reading.findings:
        shares = groups.shares[finding]
        yield row(finding, tuple("–" if share is None else f"{100 * share:.1f} %" for share in shares))
    if left_out:
        yield f"{count(left_out, 'image')} {verb(left_out, 'is', 'are')} in no part"
