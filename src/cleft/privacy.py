"""Privacy: the local secret of a user, digests keyed with it, and paths kept out of files that may be shared.

The folder of a user (`CLEFT_USER_DIR`, else `$XDG_DATA_HOME/cleft`, else `~/.local/share/cleft`) holds

```
secret          32 random bytes in hex, mode 0600
paths/<token>   a path that shared files name by its token only, mode 0600
```

Neither is copied into a run. A digest of an id without a secret can be inverted by trying all ids, which takes seconds
for seven digits. With the secret only this user can do so.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import hmac
import logging
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from cleft.errors import ConfigError, ResourceError

log = logging.getLogger(__name__)

USER_DIR = "CLEFT_USER_DIR"
"""Environment variable of the user folder."""
MIN_PATIENTS = 5
"""Numbers that rest on fewer patients are not shown, unless the images are synthetic."""
LEFT_OUT = "left out: private to this machine"
_PRIVATE_KEYS = re.compile(r"(^|[._])(root|cache|host(name)?|user(name)?|pid|cwd|folder|argv|address|token|key)$")
_FOLDER = re.compile(r"(^|[\s=:\"'])(~|\.{0,2})/\S*|^[A-Za-z]:[\\/]|\\\\")
_TOKEN = re.compile(r"\b(hf_|gh[pousr]_|github_pat_|sk-|glpat-|AKIA|xox[bp]-)[A-Za-z0-9_-]{12,}")
_SECRET = re.compile(rb"[0-9a-f]{64}\n?")
_PLACEHOLDER = re.compile(r"local:([0-9a-f]{16})/(.*)", re.DOTALL)
_DIGITS = 16


def user_folder() -> Path:
    """Return the folder of the secret and paths of the user; it may not exist yet.

    Raises:
        ResourceError: If neither an environment variable nor a home folder is set.
    """
    named = os.environ.get(USER_DIR)
    if named:
        return Path(named).expanduser().absolute()
    data_home = os.environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(data_home):  # the XDG specification ignores relative paths
        return Path(data_home) / "cleft"
    try:
        return Path.home() / ".local" / "share" / "cleft"
    except RuntimeError as error:
        raise ResourceError(f"there is no home folder; set {USER_DIR} to a folder of your own") from error


def expand_user(path: str) -> str:
    """Return a path with `~` or `~user` at its start replaced by the home folder.

    Raises:
        ConfigError: If that user has no home folder.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{path}: no home folder is known for it; write the folder in full") from error


def protect(digest: str) -> str:
    """Return the HMAC-SHA256 of a digest with the user's secret, first 16 hex digits."""
    return _hmac(_secret(), f"digest|{digest}")


def key_id() -> str:
    """Return an identifier of the secret of the user, which does not reveal it."""
    return _hmac(_secret(), "key")


def hide_path(path: str) -> str:
    """Return a path in a form for files that may be shared.

    A relative path below the working directory is unchanged. A path that may name a user, a machine or a folder outside
    (absolute, with `..` or `~`, or with the name of user or machine) becomes `local:<token>/<last part>`; the user
    folder stores the path of the token.
    """
    if not _reveals(path):
        return path
    token = _hmac(_secret(), f"path|{path}")
    try:
        folder = _made(user_folder() / "paths")
        if not (folder / token).exists():
            _create(folder / token, path.encode(errors="surrogateescape"))
    except (OSError, ResourceError) as error:
        _warn_once(f"{path}: cannot be stored for later commands ({error}); give it again with them")
    return f"local:{token}/{shown_name(path)}"


def path_from(folder: Path, place: Path) -> str:
    """Return a path in a form for a file in `folder` that is shared or moved together with it.

    Relative if that reveals nothing; as from `hide_path` if the relative path passes the root or names the user.
    """
    folder, place = folder.resolve(), place.resolve()
    try:
        way = os.path.relpath(place, folder)
    except ValueError:  # another drive
        return hide_path(str(place))
    below = Path(*(part for part in Path(way).parts if part != ".."))
    common = Path(os.path.commonpath([folder, place]))
    return hide_path(str(place)) if _reveals(str(below)) or common == common.parent else way


def shown_name(path: str) -> str:
    """Return the last part of a path, or `folder` if that names the user or the machine."""
    name = Path(path).name
    return name if name and not _reveals(name) else "folder"


def find_path(text: str) -> str:
    """Return the path that `hide_path` replaced; text without a token, or with an unknown one, is unchanged."""
    found = _PLACEHOLDER.fullmatch(text)
    if found is None:
        return text
    try:
        path = (user_folder() / "paths" / found[1]).read_bytes().decode(errors="surrogateescape")
    except (OSError, ResourceError):
        return text
    return path if shown_name(path) == found[2] else text  # the name behind the token was changed


def is_hidden(path: Path | str | None) -> bool:
    """Return whether a path is a token of another user or machine, which `find_path` cannot resolve."""
    return path is not None and _PLACEHOLDER.fullmatch(str(path)) is not None


def hidden_name(path: Path | str) -> str:
    """Return the last part of a path returned by `hide_path`."""
    found = _PLACEHOLDER.fullmatch(str(path))
    return found[2] if found else Path(path).name


def names_here() -> tuple[str, ...]:
    """Return the names of the user, the machine and the home folder, which shared files must not contain."""
    found = [socket.gethostname(), socket.gethostname().partition(".")[0]]
    try:
        found += [getpass.getuser(), Path.home().name]
    except (OSError, KeyError, RuntimeError):  # a user without a name or home folder, as in many containers
        pass
    return tuple(dict.fromkeys(name for name in found if len(name) > 3 and name not in ("root", "home", "localhost")))


def redact(key: str, value: Any) -> str:
    """Return a setting or a command as a shared file may hold it: without local folders, machine names and tokens.

    Example:
        >>> redact("text.rank", 8), redact("data.root", "/home/me/data")
        ('8', 'left out: private to this machine')
    """
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(redact(key, item) for item in cast("Sequence[Any]", value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if _PRIVATE_KEYS.search(key) or _FOLDER.search(text):
        return LEFT_OUT
    return _TOKEN.sub("left out: it looks like a token", text)


def _reveals(path: str) -> bool:
    parts = Path(path).parts
    if os.path.isabs(path) or ".." in parts or path.startswith("~"):
        return True
    return any(name.casefold() in part.casefold() for part in parts for name in names_here())


def _hmac(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()[:_DIGITS]


def _secret() -> bytes:
    """Return the secret of the user, created on first use; one for this process if it cannot be stored."""
    try:
        path = user_folder() / "secret"
        return _read_secret(path) or _new_secret(path)
    except (OSError, ResourceError) as error:
        _warn_once(
            f"no secret can be stored ({error}): later commands will not recognise the patients of this run by their "
            f"digests; set {USER_DIR} to a permanent folder"
        )
        return _passing_secret()


def _read_secret(path: Path) -> bytes | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return _checked_secret(path, status.st_ino, status.st_ctime_ns)


@functools.lru_cache(maxsize=8)  # called for tens of thousands of patients
def _checked_secret(path: Path, inode: int, changed: int) -> bytes:
    data = path.read_bytes()
    if not _SECRET.fullmatch(data):
        raise ConfigError(
            f"{path} is damaged: it holds {len(data)} bytes and not 64 hex digits; restore it from a backup, or move "
            f"it away (patients of earlier runs are then no longer recognised)"
        )
    if os.name == "posix" and path.stat().st_mode & 0o077:
        _warn_once(f"{path}: others may read this secret; run chmod 600 {path}")
    return data.strip()


def _new_secret(path: Path) -> bytes:
    _made(path.parent)
    _create(path, secrets.token_hex(32).encode() + b"\n")
    made = _read_secret(path)  # that of the first process
    if made is None:
        raise ResourceError(f"{path} was removed while it was written")
    return made


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _create(path: Path, data: bytes) -> None:
    """Create a complete file for its owner only, unless another process has created it."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # atomic, and never replaces a file
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


@functools.cache
def _passing_secret() -> bytes:
    return secrets.token_bytes(32)


@functools.cache
def _warn_once(sentence: str) -> None:
    log.warning("%s", sentence)
