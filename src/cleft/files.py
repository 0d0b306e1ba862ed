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
"""Default limit of `read_limited` in bytes."""


Failure = Callable[[str], CleftError]
"""Makes an error from a message: an error class, or one with further arguments bound."""


bad_json: Failure = partial(DataError, reason="json")
"""The error for JSON that is data: a `DataError` with reason `json`."""


def write_whole(path: Path, data: bytes | str, *, mode: int | None = 0o600) -> None:
    """Write a file atomically: readers see the old or the new file, also after a crash or a power cut.

    Args:
        path: The file; its folder must exist. A symbolic link is replaced, not followed.
        data: Content; text is encoded as UTF-8.
        mode: Permissions; None for those of the umask.

    Raises:
        OSError: If it cannot be written; an earlier file is then unchanged.
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
    """Synchronise a folder to disk, so that renames in it survive a power cut; not needed on Windows."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_lock(path: Path) -> IO[str]:
    """Open a lock file to read and append, created if missing; a symbolic link is not followed.

    Raises:
        OSError: If it is a link, or cannot be opened.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o666)
    return os.fdopen(handle, "a+", encoding="utf-8")


def lock_file(file: IO[Any], *, wait: bool = False, by_process: bool = False) -> None:
    """Lock an open file against other processes until it is closed or the process ends.

    Args:
        file: Opened for writing.
        wait: Whether to wait while another process holds it.
        by_process: Whether only this process holds the lock; otherwise its forks hold it too.

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
    except PermissionError as error:  # some systems report the lock of another process in this way
        raise BlockingIOError(error.errno, error.strerror) from error


def _lock_on_windows(file: IO[Any], *, wait: bool) -> None:
    """Lock one byte far beyond the end, because Windows prevents others from reading locked bytes."""
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
    """Read a regular file; never waits for a pipe, never reads more than `limit` bytes.

    Args:
        path: The file.
        where: Its name in messages; by default the path.
        error: Makes the error.
        remedy: How to fix it, the last part of the message.
        limit: Bytes of the largest file that is read.

    Raises:
        CleftError: From `error`, if it is missing, not a regular file, larger than `limit`, or unreadable.
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
"""Hidden file next to outputs with the SHA-256 of each, in the format of `sha256sum`."""


_DRAFT: Final = ".cleft-draft"
"""File that marks a folder as an unfinished draft of cleft."""


@dataclass(frozen=True)
class Output:
    """Output file named by the user; call `check` before any work is done.

    It replaces a file only if cleft wrote that file and it has not changed since, according to `RECORD` next to it. Two
    processes that write into one folder at once may lose a line of the record; that file is then not replaced.

    Args:
        path: The file; missing folders are created when it is written.
        option: Command-line option that names it, for messages.
        overwrite: Whether it may replace other files too; None if the command has no option `--overwrite`.
        inputs: Files and folders that the command reads; neither they nor files in them that cleft did not write are
            replaced.
        mode: Permissions.
    """

    path: Path
    option: str
    overwrite: bool | None = False
    inputs: tuple[Path, ...] = ()
    mode: int = 0o644

    def check(self) -> Output:
        """Return itself if it can be written and replaces only an earlier output of cleft.

        Raises:
            ConfigError: If the path is a folder, a link or a device, or a file that cleft did not write.
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
        """Write the file atomically and record it, after another check.

        Raises:
            ConfigError, ResourceError: As `check`, or if the disk is full.
        """
        self.check()
        data = data.encode() if isinstance(data, str) else data
        folder, name, digest = self.path.parent, self.path.name, hashlib.sha256(data).hexdigest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            known = _read_record(folder)
            _write_record(folder, known | {name: {digest, *known.get(name, ())}})  # after a crash both are known
            write_whole(self.path, data, mode=self.mode)
            _write_record(folder, _read_record(folder) | {name: {digest}})
        except OSError as fault:
            full = fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            fix = "free space on the disk" if full else "choose another place"
            raise ResourceError(f"{self.option} {self.path} cannot be written ({fault.strerror}); {fix}") from fault
        return self.path

    def is_ours(self) -> bool:
        """Return whether cleft wrote the file and it has not changed since."""
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
    """Whether a file is `place`, under any name or link, or is in that folder."""
    try:
        if place.is_dir():
            return path.resolve().is_relative_to(place.resolve())
        return os.path.samefile(path, place)
    except OSError:
        return False


def _read_record(folder: Path) -> dict[str, set[str]]:
    """Return the digests that each output of a folder may have, by name; other lines are ignored."""
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
    """Return a text cell with a quote before it if a spreadsheet would evaluate it as a formula.

    Numbers, and lists of numbers, are unchanged.

    Example:
        >>> csv_text("=1+1"), csv_text("-0.5"), csv_text("plain")
        ("'=1+1", '-0.5', 'plain')
    """
    return f"'{text}" if text and text[0] in _FORMULA and not _NUMBERS.fullmatch(text) else text


_FORMULA: Final = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
"""First characters of formulas, including full-width forms."""


_NUMBERS: Final = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?((; |\.\.)[-+]?[0-9.]+(e[-+]?[0-9]+)?)*", re.IGNORECASE)


@contextmanager
def draft_folder(folder: Path) -> Generator[Path]:
    """Yield an empty folder next to `folder` that is renamed to it when the block ends without an error.

    A draft left by a killed process is removed; another folder of that name is not.

    Args:
        folder: Absent or empty.

    Raises:
        ConfigError: If `folder` is not empty, or the name of the draft is taken.
    """
    folder = folder.resolve()
    draft = folder.with_name(f".{folder.name}.draft")
    if os.path.lexists(draft):
        if draft.is_symlink() or not draft.is_dir() or not ((draft / _DRAFT).is_file() or not any(draft.iterdir())):
            raise ConfigError(f"{draft} is needed for a draft, but is not a draft of cleft; move it away")
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
        shutil.rmtree(draft, ignore_errors=True)  # frees space on a full disk
        raise


def as_path(path: Any, name: str) -> Path:
    """Returns a `str` or `Path` as a path, with `~` resolved.

    Args:
        path: The value of the argument.
        name: Name of the argument, for messages.

    Raises:
        ConfigError: If it is neither, or empty.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(path, bytes) or not str(cast("Any", path)):
        raise ConfigError(f"{name}={path!r} is not a path; give a str or a pathlib.Path")
    return Path(cast("str | os.PathLike[str]", path)).expanduser()


def as_paths(paths: Any, name: str) -> list[Path]:
    """Returns paths as a list; one `str` or `Path` is one path.

    Raises:
        ConfigError: If one is neither, or there is none.
    """
    several = [paths] if isinstance(paths, str | bytes | os.PathLike) or paths is None else paths
    if not isinstance(several, Iterable) or isinstance(several, Mapping):
        raise ConfigError(f"{name}={paths!r} contains no path; give a str, a pathlib.Path, or a list of them")
    found = [as_path(path, name) for path in cast("Iterable[Any]", several)]
    if not found:
        raise ConfigError(f"{name} is empty; give at least one path")
    return found


def file_key(path: Path | str, status: os.stat_result | None = None, folders: dict[str, str] | None = None) -> str:
    """Return the key of a file in its present state, for caches: 32 hex digits that do not reveal its path.

    A path, a size and a modification time do not identify a file: `cp -p`, `rsync -t` and `os.utime` keep the last
    two, and a relative path names another file in another folder. The key therefore also covers the real path, the
    device, the inode and the change time, which no program can set. Where a file system has no stable inodes, the key
    changes without need, and whatever is cached under it is computed again.

    Args:
        path: The file.
        status: Status from the descriptor through which it was read; by default that of the path.
        folders: Cache of resolved folders, to share between calls for many files in few folders.

    Raises:
        OSError: If `status` is not given and the file does not exist.
    """
    found = os.stat(path) if status is None else status
    facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    real = os.path.realpath(path) if folders is None else _real_path(os.fspath(path), folders)
    named = "\0".join((real, *map(str, facts)))
    return hashlib.sha256(named.encode(errors="surrogateescape")).hexdigest()[:32]


def _real_path(path: str, folders: dict[str, str]) -> str:
    """Resolve as `os.path.realpath`, but each folder once: 200,000 images are in far fewer folders."""
    head, tail = os.path.split(path)
    if not tail or not head or tail in (os.curdir, os.pardir) or os.path.islink(path):
        return os.path.realpath(path)
    if head not in folders:
        folders[head] = _real_path(head, folders)
    return os.path.join(folders[head], tail)
