"""Small files: written atomically, read strictly, and never in place of a user's own.

The one place that writes a file in one step, the one place that reads JSON, and the one rule of what an output may
replace. A reader sees the old file or the new one, never half of one. JSON from outside is untrusted: it is read only
if every value has exactly one meaning.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, cast

from cleft.errors import CleftError, ConfigError, DataError, ResourceError

LARGEST: Final = 64 * 2**20
"""Bytes of the largest JSON file that is read unless the caller sets another limit."""
DEEPEST: Final = 64
"""Lists and objects inside each other; files written by this program or by transformers need about ten."""
_LARGEST_NUMBER: Final = 2**1023
"""Whole numbers beyond it have no value as a float."""
_DIGITS: Final = 4300
"""Digits of the longest whole number that Python converts."""

Failure = Callable[[str], CleftError]
"""Makes the error to raise from a message: an error class, or one with further arguments bound."""
bad_json: Failure = partial(DataError, reason="json")
"""The error for JSON that is data: a `DataError` with reason `json`."""


def write_whole(path: Path, data: bytes | str, *, mode: int | None = 0o600) -> None:
    """Write a file in one step: a reader finds the old file or the new one, also after a crash or a power cut.

    Args:
        path: The file; its folder must exist. A symbolic link is replaced, not followed.
        data: Content; text is encoded as UTF-8.
        mode: Permissions; None for those that the umask gives.

    Raises:
        OSError: If it cannot be written; an earlier file then stays as it was.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(draft, mode)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, tree: Mapping[str, Any], *, mode: int | None = None) -> None:
    """Write a JSON object as `write_whole` does.

    Raises:
        OSError: If it cannot be written.
        ValueError: If a number in it is NaN or infinite.
    """
    write_whole(path, json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n", mode=mode)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_lock(path: Path) -> IO[str]:
    """Open a lock file to read and append, made where it is missing; a symbolic link is not followed.

    Raises:
        OSError: If it is a link, or cannot be opened.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o666)
    return os.fdopen(handle, "a+", encoding="utf-8")


def lock_file(file: IO[Any], *, wait: bool = False, by_process: bool = False) -> None:
    """Lock an open file against other processes until it is closed; the system ends the lock with its holder.

    Args:
        file: Opened for writing.
        wait: Whether to wait while another process holds it.
        by_process: Whether the lock belongs to this process alone; otherwise forks of it hold it as well.

    Raises:
        BlockingIOError: If another process holds it, and `wait` is false.
        OSError: If the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        _lock_on_windows(file, wait=wait)
        return
    lock = fcntl.lockf if by_process else fcntl.flock
    try:
        lock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # So some systems report a lock that another process holds.
        raise BlockingIOError(error.errno, error.strerror) from error


def _lock_on_windows(file: IO[Any], *, wait: bool) -> None:
    """Lock one byte far behind the end, because Windows keeps others from reading what is locked."""
    try:
        windows: Any = importlib.import_module("msvcrt")
    except ImportError:
        raise OSError(errno.ENOLCK, "this system has no file locks") from None
    while True:
        place = file.tell()
        file.seek(_LOCKED_BYTE)
        try:
            windows.locking(file.fileno(), windows.LK_NBLCK, 1)
            return
        except OSError as error:
            if not wait:
                raise BlockingIOError(error.errno, error.strerror) from error
            time.sleep(0.1)
        finally:
            file.seek(place)


_LOCKED_BYTE: Final = 2**30


def read_json(
    path: Path, *, error: Failure = bad_json, remedy: str = "copy it again", limit: int = LARGEST
) -> dict[str, Any]:
    """Read a file that holds one JSON object, strictly as `parse_json` does.

    Args:
        path: The file.
        error: Makes the error.
        remedy: How to fix it, the last part of the message.
        limit: Bytes of the largest file that is read.

    Raises:
        CleftError: From `error`, if it is missing, unreadable, too large, or not strict JSON with an object on top.
    """
    data = read_limited(path, error=error, remedy=remedy, limit=limit)
    return cast("dict[str, Any]", parse_json(data, str(path), error=error, remedy=remedy))


def find_json(
    path: Path, *, error: Failure = bad_json, remedy: str = "copy it again", limit: int = LARGEST
) -> dict[str, Any] | None:
    """Read a JSON object as `read_json` does, or return None where there is no such file.

    Raises:
        CleftError: From `error`, if there is one and it cannot be read.
    """
    return read_json(path, error=error, remedy=remedy, limit=limit) if os.path.lexists(path) else None


def read_limited(
    path: Path,
    *,
    where: str | None = None,
    error: Failure = bad_json,
    remedy: str = "copy it again",
    limit: int = LARGEST,
) -> bytes:
    """Read a regular file whole; never waits for a pipe, never reads more than `limit` bytes.

    Args:
        path: The file.
        where: Its name in messages; by default the path.
        error: Makes the error.
        remedy: How to fix it, the last part of the message.
        limit: Bytes of the largest file that is read.

    Raises:
        CleftError: From `error`, if it is missing, no regular file, larger than `limit`, or unreadable.
    """
    name = where or path
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer that may never come.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise error(f"{name} is not a regular file; {remedy}")
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise error(f"{name} is missing; {remedy}") from None
    except IsADirectoryError:
        raise error(f"{name} is a folder, not a file; {remedy}") from None
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the name
        reason = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise error(f"{name} cannot be read ({reason}); {remedy}") from fault
    if len(data) > limit:
        raise error(f"{name} has more than {limit:,} bytes, the most that is read; {remedy}")
    return data


def parse_json(
    data: bytes | str, where: str, *, top: type | None = dict, error: Failure = bad_json, remedy: str = "copy it again"
) -> Any:
    """Parse JSON strictly: anything that two readers could understand differently is refused.

    Refused are: text that is not UTF-8, NaN and Infinity (also as a number too large for a float), an object with the
    same key twice, half a surrogate pair, more than `DEEPEST` levels, and another type on top than `top`.

    Args:
        data: JSON text; a byte order mark in front is allowed.
        where: Name of the file, for messages.
        top: `dict` or `list`; None allows any value.
        error: Makes the error.
        remedy: How to fix it, the last part of the message.

    Raises:
        CleftError: From `error`, with the file, the place in it and the remedy.

    Example:
        >>> parse_json('{"a": {"b": [1, NaN]}}', "x.json")
        Traceback (most recent call last):
        cleft.errors.DataError: x.json: a.b[1] is not a finite number; copy it again
    """
    try:
        text = data.removeprefix("\ufeff") if isinstance(data, str) else data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(f"{where} is not valid JSON (byte {fault.start} is not UTF-8); {remedy}") from None
    try:
        tree: Any = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as fault:
        place = f"line {fault.lineno} column {fault.colno}"
        raise error(f"{where} is not valid JSON ({place}: {_lower(fault.msg)}); {remedy}") from None
    except RecursionError:
        raise error(f"{where}: more than {DEEPEST} lists and objects inside each other; {remedy}") from None
    except ValueError:  # the only one left: a whole number longer than Python converts
        raise error(f"{where}{_place_of_number(text)}: a number of more than {_DIGITS} digits; {remedy}") from None
    fault = _fault(tree)
    if fault is not None:
        raise error(f"{where}: {fault}; {remedy}")
    if top is not None and not isinstance(tree, top):
        raise error(f"{where}: {_KINDS[top]} expected, found {kind_of(tree)}; {remedy}")
    return tree


def check_types(
    tree: Mapping[str, Any],
    types: Mapping[str, type],
    where: str,
    *,
    error: Failure = bad_json,
    remedy: str = "copy it again",
) -> None:
    """Refuse entries of another type than they are written with; those that are missing or null pass.

    Args:
        tree: What a file holds.
        types: Type of each entry: `dict`, `str`, `float` for any number, or `list` for a list of texts.
        where: Name of the file, for messages.
        error: Makes the error.
        remedy: How to fix it, the last part of the message.

    Raises:
        CleftError: From `error`, with the entry.

    Example:
        >>> check_types({"classes": [1]}, {"classes": list}, "summary.json")
        Traceback (most recent call last):
        cleft.errors.DataError: summary.json: classes must be a list of texts; copy it again
    """
    for name, kind in types.items():
        value = tree.get(name)
        allowed = (int, float) if kind is float else kind
        right = isinstance(value, allowed) and not (kind is float and isinstance(value, bool))
        if right and kind is list:
            right = all(isinstance(item, str) for item in cast("list[Any]", value))
        if value is not None and not right:
            raise error(f"{where}: {name} must be {'a list of texts' if kind is list else _KINDS[kind]}; {remedy}")


_KINDS: Final = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


def kind_of(value: Any) -> str:
    """Name the JSON type of a value, for messages.

    Example:
        >>> kind_of([1]), kind_of(None), kind_of(True)
        ('a list', 'null', 'true or false')
    """
    return _KINDS.get(type(value), type(value).__name__)


class _Repeated:
    """Represents an object in which a key occurs twice, until its place in the file is known."""

    def __init__(self, key: str) -> None:
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> Any:
    tree = dict(pairs)
    if len(tree) == len(pairs):
        return tree
    seen: set[str] = set()
    return _Repeated(next(key for key, _ in pairs if key in seen or seen.add(key)))


def _fault(tree: Any) -> str | None:
    """Find the first value that is not allowed; without recursion, so that depth costs no stack."""
    fault = _fault_of(tree)
    if fault is not None:
        return f"the file {fault}"
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), tree)]
    while stack:
        place, branch = stack.pop()
        if not isinstance(branch, dict | list):
            continue
        if len(place) >= DEEPEST:
            return f"more than {DEEPEST} lists and objects inside each other"
        for key, value in _items(branch):
            if type(key) is str and not _is_unicode(key):
                return f"{_path((*place, key))} is half a character (an unpaired surrogate)"
            if isinstance(value, dict | list):
                stack.append(((*place, key), value))
                continue
            fault = _fault_of(value)
            if fault is not None:
                return f"{_path((*place, key))} {fault}"
    return None


def _fault_of(value: Any) -> str | None:
    kind = type(value)
    if kind is str:
        return None if _is_unicode(value) else "holds half a character (an unpaired surrogate)"
    if kind is int:
        return None if -_LARGEST_NUMBER < value < _LARGEST_NUMBER else "is a number too large to use"
    if kind is float:
        return None if math.isfinite(value) else "is not a finite number"
    return f"holds the key {_shown(value.key)} twice" if kind is _Repeated else None


def _items(branch: Any) -> Iterable[tuple[str | int, Any]]:
    return branch.items() if isinstance(branch, dict) else enumerate(branch)


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _path(place: tuple[str | int, ...]) -> str:
    """Write a place in a file as in `settings.images.mean[0]`."""
    words = [f"[{key}]" if isinstance(key, int) else f".{_shown(key)}" for key in place]
    return "".join(words).removeprefix(".")


def _shown(key: str) -> str:
    """Return a key as a message may show it: short, and quoted where it is not a plain name."""
    plain = re.fullmatch(r"[\w/-]{1,60}", key, re.ASCII)
    return key if plain else ascii(key if len(key) <= 60 else f"{key[:60]}…")


def _place_of_number(text: str) -> str:
    found = re.search(rf"\d{{{_DIGITS + 1}}}", text)
    return "" if found is None else f" line {text.count(chr(10), 0, found.start()) + 1}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


# Outputs: files and folders that a user names. What a user made is never replaced.

RECORD: Final = ".cleft-written"
"""Hidden file beside outputs with the SHA-256 of each as it was written, a line each as `sha256sum` prints them."""
_DRAFT: Final = ".cleft-draft"
"""File that marks a folder as an unfinished draft of this program."""


@dataclass(frozen=True)
class Output:
    """A file to write where a user says; `check` it before any work is done.

    It replaces a file only if this program wrote that file and it was not changed since, as `RECORD` beside it says.
    Two processes that write into one folder at once may lose a line of the record; that file is then not replaced.

    Args:
        path: The file; missing folders are made when it is written.
        option: What chooses it on the command line, for messages.
        overwrite: Whether it may replace other files too; None where the command has no option `--overwrite`.
        inputs: Files and folders that the same command reads; never replaced, nor is anything inside them that this
            program did not write.
        mode: Permissions.
    """

    path: Path
    option: str
    overwrite: bool | None = False
    inputs: tuple[Path, ...] = ()
    mode: int = 0o644

    def check(self) -> Output:
        """Return itself if it can be written and replaces nothing but an earlier output of this program.

        Raises:
            ConfigError: If the path is a folder, a link or a device, or holds a file that this program did not write.
            ResourceError: If the folder cannot be written.
        """
        path, named = self.path, f"{self.option} {self.path}"
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return self._check_folder()
        except (OSError, ValueError) as fault:
            reason = fault.strerror if isinstance(fault, OSError) else str(fault)
            raise ConfigError(f"{named} cannot be a file name ({reason}); choose another name") from fault
        if stat.S_ISDIR(status.st_mode):
            raise ConfigError(f"{named} is a folder; name a file")
        if stat.S_ISLNK(status.st_mode):
            raise ConfigError(f"{named} is a symbolic link to {os.readlink(path)}; name the file itself")
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{named} is not a regular file; choose another name")
        if not status.st_mode & 0o222:
            raise ConfigError(f"{named} is read-only; choose another name, or make it writable first")
        if not self.is_ours():
            if any(_is_within(path, place) for place in self.inputs):
                raise ConfigError(f"{named} is among the files that this command reads; choose another name")
            if not self.overwrite:
                way_out = "" if self.overwrite is None else ", or add --overwrite to replace it"
                raise ConfigError(
                    f"{named} exists and was not written by cleft, or was changed since; move it away, choose another "
                    f"name{way_out}"
                )
        return self._check_folder()

    def write(self, data: bytes | str) -> Path:
        """Write the file in one step and record it; checks again, because time has passed.

        Raises:
            ConfigError, ResourceError: As `check`, or if the disk is full.
        """
        self.check()
        data = data.encode() if isinstance(data, str) else data
        folder, name, digest = self.path.parent, self.path.name, hashlib.sha256(data).hexdigest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            known = _read_record(folder)
            _write_record(folder, known | {name: {digest, *known.get(name, ())}})  # a crash leaves both known
            write_whole(self.path, data, mode=self.mode)
            _write_record(folder, _read_record(folder) | {name: {digest}})
        except OSError as fault:
            full = fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            fix = "make room on the disk" if full else "choose another place"
            raise ResourceError(f"{self.option} {self.path} cannot be written ({fault.strerror}); {fix}") from fault
        return self.path

    def is_ours(self) -> bool:
        """Return whether the file is as this program wrote it."""
        known = _read_record(self.path.parent).get(self.path.name)
        if not known:
            return False
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() in known
        except OSError:
            return False

    def _check_folder(self) -> Output:
        folder = next(place for place in self.path.absolute().parents if os.path.lexists(place))
        if not folder.is_dir():
            raise ResourceError(f"{self.option} {self.path}: {folder} is not a folder; choose another place")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ResourceError(f"{self.option} {self.path}: cannot write into {folder}; choose another place")
        return self


def _is_within(path: Path, place: Path) -> bool:
    """Whether a file is `place`, by whatever name or link, or is in that folder."""
    try:
        if place.is_dir():
            return path.resolve().is_relative_to(place.resolve())
        return os.path.samefile(path, place)
    except OSError:
        return False


def _read_record(folder: Path) -> dict[str, set[str]]:
    """Name of each output in a folder to the digests it may have; lines of any other form are ignored."""
    try:
        data = read_limited(folder / RECORD)
    except DataError:
        return {}
    known: dict[str, set[str]] = {}
    for line in data.decode(errors="surrogateescape").splitlines():
        found = _RECORD_LINE.fullmatch(line)
        if found:
            name = found[3].replace("\\n", "\n").replace("\\\\", "\\") if found[1] else found[3]
            known.setdefault(name, set()).add(found[2])
    return known


_RECORD_LINE = re.compile(r"(\\?)([0-9a-f]{64})  (.+)")


def _write_record(folder: Path, known: Mapping[str, Iterable[str]]) -> None:
    lines: list[str] = []
    for name, digests in sorted(known.items()):
        if len(known) > 1 and not os.path.lexists(folder / name) and len(set(digests)) < 2:
            continue  # removed meanwhile
        plain = name.replace("\\", "\\\\").replace("\n", "\\n")
        lines += [f"{'' if plain == name else chr(92)}{digest}  {plain}\n" for digest in sorted(digests)]
    write_whole(folder / RECORD, "".join(lines).encode(errors="surrogateescape"), mode=None)


def csv_text(text: str) -> str:
    """Return a text cell of a table that a spreadsheet does not run as a formula: a quote in front where it would.

    Numbers, and lists of numbers, stay as they are.

    Example:
        >>> csv_text("=1+1"), csv_text("-0.5"), csv_text("plain")
        ("'=1+1", '-0.5', 'plain')
    """
    return f"'{text}" if text and text[0] in _FORMULA and not _NUMBERS.fullmatch(text) else text


_FORMULA: Final = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
"""First characters of formulas, also in full width."""
_NUMBERS: Final = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?((; |\.\.)[-+]?[0-9.]+(e[-+]?[0-9]+)?)*", re.IGNORECASE)


@contextmanager
def draft_folder(folder: Path) -> Generator[Path]:
    """Yield an empty folder beside `folder` that takes its name when the block ends without an error.

    A draft that a killed process left is removed; a folder of that name from another source is not.

    Args:
        folder: Absent or empty.

    Raises:
        ConfigError: If `folder` holds something, or the draft's place is taken.
    """
    folder = folder.resolve()
    draft = folder.with_name(f".{folder.name}.draft")
    if os.path.lexists(draft):
        if draft.is_symlink() or not draft.is_dir() or not ((draft / _DRAFT).is_file() or not any(draft.iterdir())):
            raise ConfigError(f"{draft} is needed for a draft and is not one of cleft; move it away")
        shutil.rmtree(draft)
    draft.mkdir(parents=True)
    try:
        (draft / _DRAFT).touch()
        yield draft
        if os.path.lexists(folder):
            folder.rmdir()
        draft.rename(folder)
        (folder / _DRAFT).unlink()
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)  # frees the space on a full disk
        raise
