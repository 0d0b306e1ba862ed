"""Model folders on disk: atomic save, verified load, and `model.json`.

A save is first written and synced inside the folder, under `.saving`. Renaming its `model.json` there completes it:
before, the folder holds the previous model; after it, the new one. Its files are then linked to their final paths and
the staging folder is removed. Until then the staging folder has every file, so after an interrupted save the model is
loaded from there; only the next save completes the move. Loading never writes.

The last entry of `model.json` is its digest. It covers every byte of the file, with its own 64 digits as zeros, so that
any changed byte is detected; files of schema 1 have none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from cleft.errors import CheckpointError, ConfigError, ResourceError
from cleft.files import read_limited, sync_folder
from cleft.strict_json import kind_of, parse_json

SCHEMA: Final = 2
"""Version of the folder format; newer ones are refused."""
DESCRIPTION: Final = "model.json"
WEIGHTS: Final = "model.safetensors"
LARGEST: Final = 16 * 2**20
"""Maximum size of a `model.json` in bytes."""
_BLANK: Final = "0" * 64
_DIGEST: Final = re.compile(rb'"digest": "([0-9a-f]{64})"\n\}\Z')
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.ASCII | re.IGNORECASE)
"""Names that Windows reserves for devices, with any suffix."""
_LARGEST_COUNT: Final = 2**53


def seal(description: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the text of a `model.json`: the description, its files and the digest of the text itself.

    Args:
        description: Facts about the model; entries with the names added here are replaced.
        files: Size and digest of every other file of the folder, by name.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    own = {name: value for name, value in description.items() if name not in ("schema", "files", "digest")}
    tree = {"schema": SCHEMA, **own, "files": files, "digest": _BLANK}
    text = json.dumps(tree, indent=1, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text[: -len(_BLANK) - 3]}{digest}{text[-3:]}"


def parse_description(data: bytes, where: str) -> dict[str, Any]:
    """Parses a `model.json`.

    Args:
        data: Content of the file.
        where: Its path, for messages.

    Raises:
        CheckpointError: If it is not strict JSON, has a newer schema, was altered, a field has the wrong type, or it
            lists a file that no model folder has.
    """
    tree = parse_json(data, where, error=CheckpointError, remedy=_COPY)
    schema = tree.get("schema")
    if type(schema) is not int or schema < 1:
        raise CheckpointError(f"{where} has schema {_shown(schema)}, so it is not a model of cleft; {_COPY}")
    if schema > SCHEMA:
        raise CheckpointError(f"{where} has schema {schema}, this version of cleft supports {SCHEMA}; upgrade cleft")
    if schema > 1 or "digest" in tree:
        _check_digest(data, where)
    for name, check in _FIELDS.items():
        if name in tree:
            expected = check(tree[name])
            if expected is not None:
                raise CheckpointError(f"{where}: {name} must be {expected}, found {_shown(tree[name])}; {_COPY}")
    if WEIGHTS not in tree.get("files", {}):
        raise CheckpointError(f"{where} does not list {WEIGHTS} among its files; {_COPY}")
    _check_names(list(tree["files"]), where)
    return tree


def require(description: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Checks that a description has all of these fields.

    Raises:
        CheckpointError: If one is missing; names the first.
    """
    missing = [name for name in names if name not in description]
    if missing:
        raise CheckpointError(f"{where} lacks {missing[0]}, which is needed to rebuild the model; {_COPY}")


def name_fault(name: str) -> str | None:
    """Returns why a file name is not allowed in a model folder, or None if it is allowed.

    Allowed are the weights and files below `towers/image` and `towers/text`, with relative names that mean the same on
    every operating system.

    Example:
        >>> name_fault("towers/text/tokenizer.json")
        >>> name_fault("towers/../../.bashrc")
        "its part '..' is not a plain name"
    """
    if name == WEIGHTS:
        return None
    parts = name.split("/")
    for part in parts:
        if not _PART.fullmatch(part) or part.endswith(".") or _DEVICES.fullmatch(part):
            return f"its part {_shown(part)} is not a plain name"
    if not (3 <= len(parts) <= 4 and parts[0] == "towers" and parts[1] in ("image", "text")):
        return f"a model folder has only {WEIGHTS} and files in towers/image and towers/text"
    return None


def _check_names(names: Sequence[str], where: str) -> None:
    for name in names:
        fault = name_fault(name)
        if fault is not None:
            raise CheckpointError(f"{where} lists the file {_shown(name)}: {fault}; refused, {_COPY}")
    folded = [name.casefold() for name in names]
    if len(set(folded)) < len(folded):
        twice = next(name for name in names if folded.count(name.casefold()) > 1)
        raise CheckpointError(f"{where} lists {_shown(twice)} twice, in different letter case; {_COPY}")


def _check_digest(data: bytes, where: str) -> None:
    found = _DIGEST.search(data)
    if found is None:
        raise CheckpointError(f"{where} does not end with its digest; it was edited; {_COPY}")
    blank = data[: found.start(1)] + _BLANK.encode() + data[found.end(1) :]
    if hashlib.sha256(blank).hexdigest() != found[1].decode():
        raise CheckpointError(f"{where} was altered: its digest differs; {_COPY}")


_COPY: Final = "copy the model again"
_Check = Callable[[Any], str | None]
"""Returns what a value must be, or None if it is valid."""


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a string"


def _count(value: Any) -> str | None:
    return None if type(value) is int and 0 <= value < _LARGEST_COUNT else "a non-negative integer"


def _texts(value: Any) -> str | None:
    good = isinstance(value, list) and value and all(isinstance(item, str) for item in cast("list[Any]", value))
    return None if good else "a list of strings"


def _counts(value: Any) -> str | None:
    good = isinstance(value, list) and all(_count(item) is None for item in cast("list[Any]", value))
    return None if good else "a list of non-negative integers"


def _one_of(*words: str) -> _Check:
    return lambda value: None if value in words else f"one of {', '.join(words)}"


def _hex(digits: int) -> _Check:
    shape = re.compile(f"[0-9a-f]{{{digits}}}", re.ASCII)
    return lambda value: (
        None if isinstance(value, str) and shape.fullmatch(value) else f"a digest of {digits} hexadecimal digits"
    )


def _or_null(check: _Check) -> _Check:
    def checked(value: Any) -> str | None:
        expected = None if value is None else check(value)
        return expected and f"null or {expected}"

    return checked


def _mapping(check: _Check | None = None) -> _Check:
    """Checks an object whose values are all of one kind."""

    def checked(value: Any) -> str | None:
        if not isinstance(value, dict):
            return "an object"
        found = ((name, check(item)) for name, item in cast("dict[str, Any]", value).items()) if check else ()
        return next((f"an object in which {_shown(name)} is {wrong}" for name, wrong in found if wrong), None)

    return checked


def _record(*, optional: Sequence[str] = (), **checks: _Check) -> _Check:
    """Checks an object with exactly these entries."""

    def checked(value: Any) -> str | None:
        if not isinstance(value, dict):
            return f"an object with {', '.join(checks)}"
        given = cast("dict[str, Any]", value)
        if not checks.keys() - set(optional) <= given.keys() <= checks.keys():
            return f"an object with {', '.join(checks)} alone"
        found = ((name, checks[name](item)) for name, item in given.items())
        return next((f"an object in which {name} is {wrong}" for name, wrong in found if wrong), None)

    return checked


_FIELDS: Final[dict[str, _Check]] = {
    "made_by": _mapping(_text),
    "method": _text,
    "settings": _mapping(_mapping()),
    "embed_dim": _count,
    "context_length": _count,
    "base": _or_null(_record(name=_text, sha256=_or_null(_hex(64)))),
    "trained_tokens": _counts,
    "token_ids": _or_null(_record(vocabulary=_count, end=_count)),
    "weights": _count,
    "extra": _mapping(),
    "head": _or_null(
        _record(
            optional=("logits",),
            classes=_texts,
            scoring=_one_of("multi-class", "present-absent"),
            logits=_one_of("plain", "unit"),
        )
    ),
    "tower": _text,
    "tower_weights": _hex(16),
    "files": _mapping(_record(bytes=_count, sha256=_hex(64))),
}
"""Check of every field of a `model.json`; other fields are kept and ignored."""


def _shown(value: Any) -> str:
    text = ascii(value) if value is None or isinstance(value, str | int | float) else kind_of(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


STAGE = ".saving"
"""Staging folder of a save."""
_TOWERS = "towers"
_OWN = (STAGE, DESCRIPTION, WEIGHTS, _TOWERS, f"{_TOWERS}/image", f"{_TOWERS}/text")
"""Paths a save writes to, as far as they are known in advance."""


def write_folder(folder: Path, description: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    """Writes a model folder and replaces a model that is already there; other files in it are kept.

    Args:
        folder: Created if missing.
        description: Content of `model.json`; schema, the digest of every file and its own are added.
        write: Writes all other files into an empty folder.

    Raises:
        ConfigError: If the folder has files at these paths that were not written by cleft, or links.
        ResourceError: If the disk is full or not writable; the previous model is still complete.
    """
    stage = folder / STAGE
    check_place(folder)
    try:
        _finish_interrupted(folder)
        stage.mkdir(parents=True)
        write(stage)
        paths = sorted(path for path in stage.rglob("*") if path.is_file())
        files = {path.relative_to(stage).as_posix(): _facts(path) for path in paths}
        odd = [name for name in files if name_fault(name) is not None]
        if odd:
            raise ConfigError(f"{folder}: the model's tokenizer has a file {odd[0]!r}, a name that is not allowed")
        draft = stage / f"{DESCRIPTION}.part"
        draft.write_text(seal(description, files), encoding="utf-8")
        for path in (*paths, draft):
            _sync(path)
        os.replace(draft, stage / DESCRIPTION)
        sync_folder(stage)
        _finish(folder, files)
    except OSError as error:
        if not (stage / DESCRIPTION).exists():
            shutil.rmtree(stage, ignore_errors=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free disk space and save again" if full else "check its permissions"
        raise ResourceError(
            f"{folder}: the model could not be written ({error.strerror or error}); {remedy}"
        ) from error


def check_place(folder: Path) -> None:
    """Refuses a folder in which a save would replace files that cleft did not write, or follow a link.

    Raises:
        ConfigError: If it would.
    """
    for name in _OWN:
        if (folder / name).is_symlink():
            raise ConfigError(
                f"{folder / name} is a symbolic link, so a save would write elsewhere; remove it or choose another "
                f"folder for the model"
            )
    try:
        known = {name for home in (folder, folder / STAGE) for name in _listed(home)}
    except CheckpointError as error:
        raise ConfigError(
            f"{folder} has a {DESCRIPTION} that is not of a model ({error}); choose another folder for the "
            f"model, or move {STAGE}, {DESCRIPTION}, {WEIGHTS} and {_TOWERS} away"
        ) from error
    foreign = [name for name in (WEIGHTS,) if os.path.lexists(folder / name) and name not in known]
    foreign += _unlisted(folder, known)
    if foreign:
        raise ConfigError(
            f"{folder / foreign[0]} was not written by cleft and is not replaced; move it away, or choose another "
            f"folder for the model"
        )


def read_folder(folder: Path) -> dict[str, Any]:
    """Checks every file of a model folder against its digest; nothing is written, moved or removed.

    Returns:
        Its `model.json`.

    Raises:
        CheckpointError: If it is not a model folder, has a newer schema, or a file is missing, truncated, altered or
            unexpected.
    """
    home = find_files(folder)
    if not os.path.lexists(home / DESCRIPTION):
        raise CheckpointError(f"{folder} is not a model folder: {_missing(folder)}")
    description = _read_description(home)
    files = cast("dict[str, Any]", description["files"])
    for name, facts in files.items():
        _check_file(home, name, facts)
    added = _unlisted(home, files)
    if added:
        raise CheckpointError(f"{folder}: {added[:5]} were not saved with the model; remove them")
    return description


def peek_description(folder: Path) -> dict[str, Any]:
    """Returns the content of `model.json` without checking other files; empty if there is no model folder.

    Raises:
        CheckpointError: If there is one and it cannot be read.
    """
    home = find_files(folder)
    return _read_description(home) if os.path.lexists(home / DESCRIPTION) else {}


@dataclass(frozen=True, kw_only=True)
class HeadInfo:
    """Meaning of the outputs of a head."""

    classes: tuple[str, ...]
    scoring: str
    """`multi-class`: logits of exclusive classes. `present-absent`: log-odds of each finding."""
    logits: str = "plain"
    """`unit`: the logits of an image are divided by their norm."""


def read_head_info(folder: Path) -> HeadInfo | None:
    """Returns the meaning of a model folder's head; None without a head."""
    return head_info(peek_description(folder))


def head_info(description: Mapping[str, Any]) -> HeadInfo | None:
    """Returns the classes of the head in a description; None without a head."""
    head = description.get("head")
    if head is None:
        return None
    return HeadInfo(
        classes=tuple(head["classes"]), scoring=str(head["scoring"]), logits=str(head.get("logits", "plain"))
    )


def find_files(folder: Path) -> Path:
    """Returns the folder with the files of a model: the folder itself, or its staging folder after an interrupted save.

    Raises:
        CheckpointError: If the staging folder is a link.
    """
    return folder if _entry(folder, f"{STAGE}/{DESCRIPTION}") is None else folder / STAGE


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finish_interrupted(folder: Path) -> None:
    """Completes an interrupted save that is complete, and removes an incomplete or damaged one."""
    stage = folder / STAGE
    if not os.path.lexists(stage):
        return
    if (stage / DESCRIPTION).is_file():
        try:
            files = cast("dict[str, Any]", _read_description(stage)["files"])
            for name, facts in files.items():
                _check_file(stage, name, facts)
            _finish(folder, files)
        except CheckpointError:
            pass  # the following save replaces it
    shutil.rmtree(stage, ignore_errors=True)


def _finish(folder: Path, files: Iterable[str]) -> None:
    """Links the files of a complete staging folder to their paths; the staging folder is removed last."""
    stage, listed = folder / STAGE, set(files)
    earlier = _listed(folder)
    places = {folder}
    for name in sorted(listed):
        _link(stage / name, folder / name)
        places.add((folder / name).parent)
    for name in sorted(earlier - listed):  # such as a tokenizer file of the previous model
        (folder / name).unlink(missing_ok=True)
    for place in places:
        sync_folder(place)
    os.replace(stage / DESCRIPTION, folder / DESCRIPTION)
    sync_folder(folder)
    shutil.rmtree(stage, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """Hard-links a file to a new name, replacing that name; copies where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.part")
    draft.unlink(missing_ok=True)
    try:
        os.link(source, draft)
    except OSError:
        shutil.copyfile(source, draft)
        shutil.copymode(source, draft)
        _sync(draft)
    os.replace(draft, target)
    draft.unlink(missing_ok=True)  # os.replace does nothing if both names are the same file


def _listed(home: Path) -> set[str]:
    """Returns the files listed in a folder's `model.json`; none if there is no such file."""
    found = _entry(home, DESCRIPTION)
    return set() if found is None else set(cast("dict[str, Any]", _read_description(home)["files"]))


def _read_description(home: Path) -> dict[str, Any]:
    _entry(home, DESCRIPTION)
    path = home / DESCRIPTION
    data = read_limited(path, error=CheckpointError, remedy="copy the model again", limit=LARGEST)
    return parse_description(data, str(path))


def _check_file(home: Path, name: str, facts: Mapping[str, Any]) -> None:
    path, found = home / name, _entry(home, name)
    if found is None:
        remedy = "its last save was interrupted; save it again" if home.name == STAGE else "copy the model again"
        raise CheckpointError(f"{path} is missing; {remedy}")
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is not a regular file; copy the model again")
    if found.st_size != facts["bytes"]:
        raise CheckpointError(
            f"{path} has {found.st_size:,} bytes, not the {facts['bytes']} that were saved; copy it again"
        )
    try:
        digest = digest_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); copy it again") from error
    if digest != facts["sha256"]:
        raise CheckpointError(f"{path} was altered: its digest differs; copy it again")


def _entry(home: Path, name: str) -> os.stat_result | None:
    """Returns the status of a path in a folder, or None; a link in any component below the folder is refused.

    Raises:
        CheckpointError: If there is a link, or a folder cannot be searched.
    """
    path, found = home, None
    for part in name.split("/"):
        path = path / part
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the folder's name
            return None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
        if stat.S_ISLNK(found.st_mode):
            raise CheckpointError(
                f"{path} is a symbolic link, which a model folder may not contain; copy the model again without links"
            )
    return found


def _unlisted(home: Path, listed: Iterable[str]) -> list[str]:
    """Returns files below `towers` that are not listed; system files such as `.DS_Store` are ignored."""
    _entry(home, _TOWERS)
    known, found = set(listed), list[str]()
    for parent, folders, files in os.walk(home / _TOWERS):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found += [(Path(parent) / name).relative_to(home).as_posix() for name in (*files, *links) if name[0] != "."]
    return sorted(name for name in found if name not in known)


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": digest_of(path)}


def _missing(folder: Path) -> str:
    if folder.is_file():
        return "it is a file; import the authors' checkpoints with `cleft import <file.ckpt> --out <folder>`"
    if not folder.is_dir():
        return "it does not exist"
    if any(folder.glob("*.ckpt")):
        return "it has .ckpt files; import the authors' checkpoints with `cleft import <file.ckpt> --out <folder>`"
    return "it has no model.json; a finished run has one, next to model.safetensors"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
