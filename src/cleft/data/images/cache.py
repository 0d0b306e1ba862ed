"""Cache of prepared images: each file is decoded once, then its pixels are read from a memory-mapped file.

The cache has one folder per preparation, named by a digest of everything that decides a pixel. Inside, rows are keyed
by the content of their source file, so that moved, copied and shared files are found again.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import logging
import os
import shlex
import stat
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig, ImagesConfig, Settings, declared_settings, flat_settings
from cleft.data.counts import progress_bar
from cleft.data.images.cache_files import (
    PART_ROWS,
    SCHEMA,
    CacheIndex,
    PixelRows,
    check_free_space,
    decoder_versions,
    disk_error,
    lock_folder,
    remove_leftovers,
)
from cleft.data.images.decode_pool import TRANSIENT, DecodeResult, prepare_pool
from cleft.data.images.dicom_headers import Header, read_headers
from cleft.data.images.source import DEFAULT_LIMITS, read_bytes, read_source
from cleft.errors import ConfigError, DataError, ResourceError
from cleft.files import Output, csv_text, write_whole
from cleft.grammar import agree, count, share, verb
from cleft.privacy import is_hidden
from cleft.strict_json import read_json
from cleft.types import Record

Rejects: TypeAlias = dict[Path, tuple[str, str]]
"""Image to the reason and message of its rejection."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImages:
    """The prepared images of a dataset, and the images that were rejected."""

    folder: Path
    digest: str
    """First 16 hex digits of a SHA-256 over the preparation and the id and content of every image."""
    rows: PixelRows
    numbers: Mapping[str, int]
    """Record id to its index in `rows`."""
    rejected: Mapping[str, str]
    """Record id to the reason it has no pixels."""
    messages: Mapping[str, str] = field(default_factory=dict[str, str])
    """Record id to a message about its file, which the message may name: for display on this machine only."""
    notes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Key of `cleft.data.images.dicom_headers.ODDITIES` to the number of prepared images it applies to."""
    rebuilt: int = 0
    """Number of damaged parts of the cache that were discarded and rebuilt."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __contains__(self, record_id: str) -> bool:
        return record_id in self.numbers

    def pixels(self, record_id: str) -> NDArray[np.uint8]:
        """Return a prepared image, `[S, S]` uint8 with `S` the stored size, read-only.

        Raises:
            KeyError: If the record was rejected or is not part of this dataset.
        """
        return self.rows[self.numbers[record_id]]

    def usable(self, records: Iterable[Record]) -> list[Record]:
        """Return the records that were not rejected, in their order."""
        return [record for record in records if record.id not in self.rejected]


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How `prepare_images` works; no pixel depends on it."""

    jobs: int = 0
    """Child processes that decode; 0 means one. An image that ends one is rejected."""
    max_invalid: float = 0.01
    """Share of images that may be rejected."""
    part_rows: int = PART_ROWS
    """Images of a part, which a killed run loses at most."""
    rejects: Output | None = None
    """Table to write with id and reason of every rejected image, also where there are too many."""
    retry: bool = False
    """Whether to try images again that crashed a decoder, took too long or too much memory."""
    progress: bool = True
    """Whether to show a progress bar if the error stream is a terminal."""


_PREPARE = PrepareOptions()


def prepare_images(
    records: Sequence[Record], config: ImagesConfig, folder: Path, options: PrepareOptions = _PREPARE
) -> PreparedImages:
    """Prepare every image once; images in the cache are only looked up and verified.

    May be killed at any time and repeated: finished parts are kept. If several processes prepare images in one cache,
    one works and the others wait and use its results. A complete cache is only read.

    Args:
        records: Images of one dataset; ids are unique.
        config: Image settings.
        folder: The cache.
        options: Processes, limits and the table of rejected images.

    Raises:
        DataError: If more than `max_invalid` of the images are missing or rejected, with a table by reason.
        ResourceError: If the cache cannot be written, or decoding processes are killed.
    """
    home = folder / preparation_digest(config)
    files, bad = _stat_files(dict.fromkeys(record.image for record in records))
    images = len(files) + len(bad)

    def check() -> None:
        try:
            check_rejects(bad, images, options.max_invalid)
        except DataError:
            if options.rejects:
                write_rejects(options.rejects, _reasons(records, bad))
            raise

    check()
    index = _open_index(home, config, retry=options.retry)
    contents = index.known_files(files)
    rebuilt = 0
    with ExitStack() as writing:
        alone = None
        if len(contents) < len(files):
            try:
                alone = writing.enter_context(_open_for_writing(home, config))
            except ResourceError:
                # A read-only cache may still contain the content of files under another identity.
                contents |= _find_by_content(
                    index, [path for path in files if path not in contents], progress=options.progress
                )
                if len(contents) < len(files):
                    raise
        if alone is not None:
            index = _open_index(home, config, retry=options.retry)
            rebuilt = len(index.damaged)
            remove_leftovers(home, index.damaged, alone=alone)
            contents = index.known_files(files)
            todo = list(dict.fromkeys(r.image for r in records if r.image in files and r.image not in contents))
            _log_plan(home, config, len(todo), len(contents), options.jobs)
            for results in _decode_missing(index, todo, config, options):
                contents |= {result.path: result.source.sha256 for result in results if result.source}
                bad |= {result.path: (result.reason, result.message) for result in results if result.reason}
                check()
            if alone:
                index.prune()
    if rebuilt:
        parts, were = count(rebuilt, "damaged part"), verb(rebuilt, "was", "were")
        log.warning("%s: %s %s discarded and rebuilt; check the disk", home, parts, were)
    bad |= _refused(index, contents)
    check()
    if options.rejects:
        write_rejects(options.rejects, _reasons(records, bad))
    return _collect(records, index, contents, bad, config, rebuilt)


def find_images(
    records: Sequence[Record], data: DataConfig, images: ImagesConfig, *, progress: bool = True
) -> PreparedImages:
    """Look up images that were prepared before; decode none and write nothing.

    A file that was moved, copied or touched since is read once and found by its content.

    Args:
        records: Images of one dataset; ids are unique.
        data: Location of the cache, and share of images that may be rejected.
        images: Image settings.
        progress: Whether to show a progress bar if the error stream is a terminal.

    Raises:
        DataError: With reason `unprepared`, if an image is missing from the cache or was prepared with other settings,
            with these and the command to run; or if more than `data.max_invalid` of the images are missing or rejected.
    """
    home = cache_folder(data) / preparation_digest(images)
    files, bad = _stat_files(dict.fromkeys(record.image for record in records))
    check_rejects(bad, len(files) + len(bad), data.max_invalid)
    index = CacheIndex(home, images.stored_size)
    contents = index.known_files(files)
    contents |= _find_by_content(index, [path for path in files if path not in contents], progress=progress)
    absent = [record.id for record in records if record.image in files and record.image not in contents]
    if absent:
        differs = [] if index.parts else closest_differences(home, images)
        made = f"; the most similar cache has other settings: {', '.join(map(str, differs))}" if differs else ""
        raise DataError(
            f"{home}: {share(len(absent), len(records), 'image')} "
            f"{verb(len(absent), 'is', 'are')} not prepared in the present state, the first is {absent[0]}, and "
            f"data.prepare=required forbids decoding{made}; run {prepare_command(data, images)}",
            reason="unprepared",
        )
    bad |= _refused(index, contents)
    check_rejects(bad, len(files) + len(bad), data.max_invalid)
    return _collect(records, index, contents, bad, images, 0)


def obtain_images(
    records: Sequence[Record], data: DataConfig, images: ImagesConfig, *, progress: bool = True
) -> PreparedImages:
    """Prepare missing images, or raise an error if there are any, as `data.prepare` says.

    Raises:
        DataError, ResourceError: As `prepare_images` and `find_images`.
    """
    if data.prepare == "required":
        return find_images(records, data, images, progress=progress)
    options = PrepareOptions(jobs=data.workers, max_invalid=data.max_invalid, progress=progress)
    return prepare_images(records, images, cache_folder(data), options)


def cache_folder(config: DataConfig) -> Path:
    """Return the folder of prepared images: `data.cache`, or `~/.cache/cleft`.

    The cache of another user or machine, which a copied run may name, is ignored.

    Raises:
        ConfigError: If there is neither a setting nor a home folder.
    """
    if config.cache is not None and not is_hidden(config.cache):
        return config.cache
    try:
        return Path.home() / ".cache" / "cleft"
    except RuntimeError as error:
        raise ConfigError("there is no home folder for the cache; set --data.cache <folder>") from error


def read_dataset_headers(config: DataConfig, files: Iterable[str]) -> dict[str, Header]:
    """Return the headers of DICOM files by path; each is read once and cached next to the prepared images."""
    headers = read_headers([Path(file) for file in files], cache_folder(config) / f"headers-{config.dataset}.parquet")
    return {str(path): header for path, header in headers.items()}


def _open_index(home: Path, config: ImagesConfig, *, retry: bool) -> CacheIndex:
    index = CacheIndex(home, config.stored_size)
    if retry:
        index.drop_refusals(TRANSIENT)
    return index


def _refused(index: CacheIndex, contents: Mapping[Path, str]) -> Rejects:
    found = {path: index.refused[content] for path, content in contents.items() if content in index.refused}
    return {path: (reason, _renamed(path, reason, message)) for path, (reason, message) in found.items()}


def _renamed(path: Path, reason: str, message: str) -> str:
    """A message about a file, for another file with the same bytes."""
    _, same, why = message.partition(f": {reason} (")
    return f"{path}{same}{why}" if same else message


def _reasons(records: Iterable[Record], bad: Rejects) -> dict[str, str]:
    return {record.id: bad[record.image][0] for record in records if record.image in bad}


def _log_plan(home: Path, config: ImagesConfig, todo: int, known: int, jobs: int) -> None:
    """Log how much is to be decoded, why images decoded before are decoded again, and how it could be faster."""
    if known:
        log.info(
            "%s %s prepared already; %s %s new, changed or moved",
            count(known, "image"),
            verb(known, "is", "are"),
            f"{todo:,}",
            verb(todo, "is", "are"),
        )
    elif not list(home.glob("part-*.json")) and (differs := closest_differences(home, config)):
        log.info("images are decoded again: the existing cache has %s", "; ".join(map(str, differs)))
    if jobs == 0 and todo > PART_ROWS:
        log.info("one process decodes %s images; cleft data prepare uses all cores", f"{todo:,}")


def _stat_files(paths: Iterable[Path]) -> tuple[dict[Path, os.stat_result], Rejects]:
    """Separate files that may be read from those that are missing or not files, without opening them."""
    files: dict[Path, os.stat_result] = {}
    bad: Rejects = {}
    for path in paths:
        try:
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and status.st_size <= DEFAULT_LIMITS.file_bytes:
                files[path] = status
                continue
        except OSError:
            pass  # Reading it gives the reason.
        try:
            files[path] = read_bytes(path)[1]
        except DataError as error:
            bad[path] = (error.reason, str(error))
    return files, bad


def _find_by_content(index: CacheIndex, paths: Sequence[Path], *, progress: bool) -> dict[Path, str]:
    """Return the content of each file whose result is in the cache under another identity, by reading it."""
    if not paths or not (index.positions or index.refused):
        return {}
    found: dict[Path, str] = {}
    with progress_bar("read files", len(paths), enabled=progress) as advance:
        for path in paths:
            with suppress(DataError):
                content = read_source(path)[1].sha256
                if content in index:
                    found[path] = content
            advance()
    if found:
        log.info(
            "%s %s; run cleft data prepare to record the new location, so that it is not read again",
            count(len(found), "image"),
            agree(
                len(found),
                "[was|were] moved, copied or touched since [it was|they were] prepared and [was|were] found by content",
            ),
        )
    return found


@contextmanager
def _open_for_writing(home: Path, config: ImagesConfig) -> Generator[bool]:
    with ExitStack() as stack:
        try:
            for folder in (home.parent, home):  # `parents=True` creates parents with the default mode
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            alone = stack.enter_context(lock_folder(home))
            write_settings(home, config)
        except OSError as error:
            existing = next(folder for folder in (home, *home.parents) if folder.is_dir())
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_error(existing, 0, error.strerror or str(error)) from error
            raise ResourceError(
                f"{home}: the cache cannot be written ({error.strerror or error}); set data.cache to another folder"
            ) from error
        yield alone


def _decode_missing(
    index: CacheIndex, todo: Sequence[Path], config: ImagesConfig, options: PrepareOptions
) -> Iterator[list[DecodeResult]]:
    """Prepare files part by part; yield their results, each part after it is safely on disk."""
    row_bytes = config.stored_size**2
    check_free_space(index.folder, len(todo) * row_bytes)
    with (
        prepare_pool(config, index.all_contents(), min(options.jobs, len(todo))) as prepare,
        progress_bar("prepare images", len(todo), enabled=options.progress) as advance,
    ):
        results = prepare(todo)

        def advancing() -> Iterator[DecodeResult]:
            for result in islice(results, options.part_rows):
                yield result
                advance()

        for start in range(0, len(todo), options.part_rows):
            yield index.store(advancing(), (len(todo) - start) * row_bytes)


def _collect(
    records: Sequence[Record],
    index: CacheIndex,
    contents: Mapping[Path, str],
    bad: Rejects,
    config: ImagesConfig,
    rebuilt: int,
) -> PreparedImages:
    good = [record for record in records if record.image not in bad]
    places = [index.positions[contents[record.image]] for record in good]
    rows = PixelRows(
        files=tuple(part.pixels for part in index.parts),
        lengths=tuple(len(part.rows) for part in index.parts),
        side=config.stored_size,
        positions=np.array(places, dtype=np.int64).reshape(-1, 2),
        checksums=np.array([index.parts[part].rows[row][1] for part, row in places], dtype=np.uint32),
    )
    named = sorted(f"{record.id}\0{contents[record.image]}" for record in good)
    return PreparedImages(
        folder=index.folder,
        digest=_digest([preparation_digest(config), *named]),
        rows=rows,
        numbers={record.id: number for number, record in enumerate(good)},
        rejected=_reasons(records, bad),
        notes=Counter(note for record in good for note in index.notes.get(contents[record.image], ())),
        messages={record.id: bad[record.image][1] for record in records if record.image in bad},
        rebuilt=rebuilt,
    )


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


Preparation: TypeAlias = dict[str, Any]
"""Everything that decides a prepared pixel, as stored in JSON."""

_RECORD = "settings.json"


class Difference(NamedTuple):
    """A value that differs between two preparations."""

    name: str
    """Dotted name, as on the command line if it is a setting."""
    cached: Any
    wanted: Any

    def __str__(self) -> str:
        return f"{self.name} {self.cached}, wanted {self.wanted}"


def preparation(config: ImagesConfig) -> Preparation:
    """Return everything that decides the pixels for these settings.

    What is applied after the cache (size, mean, std, augmentation) is not part of it.
    """
    return {
        "schema": SCHEMA,
        "recipe": config.recipe,
        "intensity": config.intensity,
        "dicom": config.dicom,
        "window": config.window,
        "frame": config.frame,
        "stored_size": config.stored_size,
        "limits": asdict(DEFAULT_LIMITS),
        "decoders": {**decoder_versions(), "opencv": cv2.__version__},
    }


def preparation_digest(config: ImagesConfig) -> str:
    """Return the name of a preparation: equal digests mean equal pixels from equal files."""
    return hashlib.sha256(json.dumps(preparation(config), sort_keys=True).encode()).hexdigest()[:16]


def write_settings(home: Path, config: ImagesConfig) -> None:
    """Write the preparation into a cache folder, for people and for comparison with other caches."""
    if not (home / _RECORD).is_file():
        write_whole(home / _RECORD, json.dumps(preparation(config), indent=2, sort_keys=True) + "\n")


def closest_differences(home: Path, config: ImagesConfig) -> list[Difference]:
    """Return how the most similar of the caches next to `home` differs; empty if there is none."""
    found = [
        differences(made, preparation(config))
        for other in sorted(home.parent.glob(f"*/{_RECORD}"))
        if other.parent != home and (made := _read(other)) is not None
    ]
    return min(found, key=len, default=[])


def differences(made: Preparation, wanted: Preparation) -> list[Difference]:
    """Return what differs between two preparations, named like settings where it is one.

    Example:
        >>> [str(difference) for difference in differences({"stored_size": 256}, {"stored_size": 518})]
        ['images.stored_size 256, wanted 518']
    """
    old, new = _flat(made), _flat(json.loads(json.dumps(wanted)))
    return [
        Difference(_name(key), old.get(key, "unknown"), new.get(key, "unknown"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def prepare_command(data: DataConfig, images: ImagesConfig) -> str:
    """Return the command that prepares these images with these settings.

    Every value that differs from the defaults is spelled out; the preset `cleft-paper` keeps the defaults.
    """
    values = flat_settings(Settings(data=data, images=images))
    words = ["cleft", "data", "prepare", "cleft-paper"]
    for key, declared in declared_settings().items():
        value = values[key]
        if declared.prepares and key.startswith(("data.", "images.")) and value != declared.default:
            words.append(f"--{key}={json.dumps(value) if isinstance(value, (tuple, list)) else value}")
    return shlex.join(words)


def _read(path: Path) -> Preparation | None:
    try:
        return read_json(path)
    except DataError:
        return None


def _name(key: str) -> str:
    first = key.partition(".")[0]
    return f"images.{key}" if first in {field.name for field in fields(ImagesConfig)} else key


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(cast("dict[str, Any]", value), f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


_EXAMPLES = 3
"""Messages shown per reason."""


def check_rejects(bad: Mapping[Path, tuple[str, str]], images: int, max_invalid: float) -> None:
    """Raise an error if too many images are rejected.

    Args:
        bad: Image to the reason and message of its rejection.
        images: Number of all images, good and bad.
        max_invalid: Share of them that may be rejected.

    Raises:
        DataError: With the most frequent reason, and a table of all.
    """
    if len(bad) <= max_invalid * images:
        return
    lines = [
        f"at least {len(bad)} of {count(images, 'image')} cannot be used; data.max_invalid={max_invalid:g} is the limit"
    ]
    lines += reject_lines(bad.values())
    lines.append("fix these files, remove their rows, or raise data.max_invalid")
    raise DataError("\n".join(lines), reason=_ranked(bad.values())[0][0])


def reject_lines(bad: Iterable[tuple[str, str]]) -> list[str]:
    """Return a table of reasons, the most frequent first, each with its count and a few messages.

    Args:
        bad: Reason and message of each rejected image.
    """
    lines: list[str] = []
    for reason, messages in _ranked(bad):
        lines.append(f"  {reason:<12} {len(messages):>7,}")
        lines += [f"    {message}" for message in messages[:_EXAMPLES]]
        lines += ["    …"] if len(messages) > _EXAMPLES else []
    return lines


def write_rejects(output: Output, reasons: Mapping[str, str]) -> None:
    """Write a CSV table of rejected images with columns `id` and `reason`, without paths or content of files.

    Args:
        output: A CSV file.
        reasons: Record id to reason.

    Raises:
        ConfigError, ResourceError: As `Output.write`.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", "reason"])
    table.writerows((csv_text(name), reasons[name]) for name in sorted(reasons))
    output.write(text.getvalue())


def _ranked(bad: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for reason, message in bad:
        by_reason[reason].append(message)
    return sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
