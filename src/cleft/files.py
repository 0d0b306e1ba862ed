"""Files: atomic writing, limited reading, locks, outputs that never replace a user's own file, file identity."""

from __future__ import annotations

import errno
import hashlib
import importlib
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


def as_path(path: Any, name: str) -> Path:
    """Returns a path that was given as `str` or `Path`, `~` resolved.

    Args:
        path: What was given.
        name: Of the argument, for messages.

    Raises:
        ConfigError: If it is neither, or empty.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(path, bytes) or not str(cast("Any", path)):
        raise ConfigError(f"{name}={path!r} is no path; give a str or a pathlib.Path")
    return Path(cast("str | os.PathLike[str]", path)).expanduser()


def as_paths(paths: Any, name: str) -> list[Path]:
    """Returns paths as a list; one `str` or `Path` is one path.

    Raises:
        ConfigError: If one is neither, or there is none.
    """
    several = [paths] if isinstance(paths, str | bytes | os.PathLike) or paths is None else paths
    if not isinstance(several, Iterable) or isinstance(several, Mapping):
        raise ConfigError(f"{name}={paths!r} is no path and holds none; give a str, a pathlib.Path, or a list of them")
    found = [as_path(path, name) for path in cast("Iterable[Any]", several)]
    if not found:
        raise ConfigError(f"{name} names no path; give at least one")
    return found


def file_key(path: Path | str, status: os.stat_result | None = None, folders: dict[str, str] | None = None) -> str:
    """Return the key of a file in its present state, for caches: 32 hex digits that do not reveal its path.

    A path, a size and a modification time do not identify a file: `cp -p`, `rsync -t` and `os.utime` keep the last
    two, and a relative path names another file in another folder. The key therefore also covers the real path, the
    device, the inode and the change time, which no program can set. Where a file system has no stable inodes, the key
    changes without need, and whatever is cached under it is computed again.

    Args:
        path: The file.
        status: Its status, from the descriptor it was read through where it was read; by default that of the path.
        folders: Memo of resolved folders, to share between calls for many files of few folders.

    Raises:
        OSError: If `status` is not given and the file has none.
    """
    found = os.stat(path) if status is None else status
    facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    real = os.path.realpath(path) if folders is None else _real_path(os.fspath(path), folders)
    named = "\0".join((real, *map(str, facts)))
    return hashlib.sha256(named.encode(errors="surrogateescape")).hexdigest()[:32]


def _real_path(path: str, folders: dict[str, str]) -> str:
    """Resolve as `os.path.realpath`, looking at each folder once: 200,000 images are in far fewer folders."""
    head, tail = os.path.split(path)
    if not tail or not head or tail in (os.curdir, os.pardir) or os.path.islink(path):
        return os.path.realpath(path)
    if head not in folders:
        folders[head] = _real_path(head, folders)
    return os.path.join(folders[head], tail)
