"""Model folders on disk: whole or not there, and never a mixture of two saves.

A save is first written and synced completely inside the folder, under `.saving`. Renaming its `model.json` there is
the one moment at which it counts: before it the old model stands, after it the new one. What is then left is moving
files into place, and whoever opens the folder next finishes that if it was interrupted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from cleft.errors import CheckpointError, ResourceError
from cleft.files import read_json

SCHEMA = 1
"""Rises when a model folder changes its form; newer ones are refused."""
DESCRIPTION = "model.json"
STAGE = ".saving"
"""Where a save lies until it counts."""
_FILES = "files"
_LARGEST_DESCRIPTION = 16 * 2**20


def write_folder(folder: Path, description: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    """Writes a model folder, in place of one that is there already; other files in it stay.

    Args:
        folder: Made where it is missing.
        description: Content of `model.json`; schema and the digest of every file are added.
        write: Puts all other files into an empty folder.

    Raises:
        ResourceError: If the disk is full or cannot be written; what was there before is still whole.
    """
    stage = folder / STAGE
    try:
        finish_save(folder)
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        write(stage)
        paths = sorted(path for path in stage.rglob("*") if path.is_file())
        files = {path.relative_to(stage).as_posix(): _facts(path) for path in paths}
        text = json.dumps({"schema": SCHEMA, **description, _FILES: files}, indent=1, allow_nan=False)
        (stage / "model.json.part").write_text(text)
        for path in (*paths, stage / "model.json.part"):
            _sync(path)
        os.replace(stage / "model.json.part", stage / DESCRIPTION)
        _sync(stage)
        finish_save(folder)
    except OSError as error:
        if not (stage / DESCRIPTION).exists():
            shutil.rmtree(stage, ignore_errors=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        mend = "make room and save again" if full else "look at its permissions"
        raise ResourceError(f"{folder}: the model could not be written ({error.strerror or error}); {mend}") from error


def finish_save(folder: Path) -> None:
    """Moves a completely written save into place; does nothing where there is none."""
    stage = folder / STAGE
    if not (stage / DESCRIPTION).is_file():
        return
    listed = set(cast("dict[str, Any]", json.loads((stage / DESCRIPTION).read_text()))[_FILES])
    for name in sorted(listed):
        if (stage / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / name, folder / name)
    for name in _strangers(folder, listed):  # a tokenizer file of the model that was here before
        (folder / name).unlink()
    _sync(folder)
    os.replace(stage / DESCRIPTION, folder / DESCRIPTION)
    _sync(folder)
    shutil.rmtree(stage, ignore_errors=True)


def read_folder(folder: Path) -> dict[str, Any]:
    """Checks every file of a model folder against its digest.

    Returns:
        Its `model.json`.

    Raises:
        CheckpointError: If it is no model folder, of a newer schema, or a file is missing, cut, altered or added.
    """
    if not (folder / DESCRIPTION).is_file() and not (folder / STAGE / DESCRIPTION).is_file():
        raise CheckpointError(f"{folder} is not a model: {_missing(folder)}")
    try:
        finish_save(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: its last save was interrupted; make it writable, so that it can be finished"
        ) from error
    description = _read_description(folder / DESCRIPTION)
    files = cast("dict[str, Any]", description[_FILES])
    for name, facts in files.items():
        _check_file(folder, name, facts)
    strangers = _strangers(folder, set(files))
    if strangers:
        raise CheckpointError(f"{folder}: {strangers[:5]} were not saved with the model; remove them")
    return description


def peek_description(folder: Path) -> dict[str, Any]:
    """Returns what `model.json` says, no other file checked; empty where there is no folder of a model."""
    path = folder / STAGE / DESCRIPTION
    path = path if path.is_file() else folder / DESCRIPTION
    return _read_description(path) if path.is_file() else {}


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": digest_of(path)}


def _read_description(path: Path) -> dict[str, Any]:
    description = read_json(path, error=CheckpointError, remedy="copy the model again", limit=_LARGEST_DESCRIPTION)
    schema = description.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise CheckpointError(f"{path} has schema {schema!r}, this version of cleft reads {SCHEMA}; upgrade cleft")
    files = description.get(_FILES)
    if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
        raise CheckpointError(f"{path} does not list its files; copy the model again")
    return description


def _check_file(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{folder / DESCRIPTION} names {name!r}, which lies outside; it is not opened")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy the model again")
    size, digest = path.stat().st_size, facts.get("sha256")
    if size != facts.get("bytes"):
        raise CheckpointError(f"{path} has {size:,} bytes, not the {facts.get('bytes')} that were saved; copy it again")
    if digest_of(path) != digest:
        raise CheckpointError(f"{path} is not what was saved: its digest differs; copy it again")


def _strangers(folder: Path, listed: set[str]) -> list[str]:
    """Files among the towers' that no list names; those of the system, such as `.DS_Store`, do not count."""
    found = (path for path in (folder / "towers").rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(name for path in found if (name := path.relative_to(folder).as_posix()) not in listed)


def _missing(folder: Path) -> str:
    if folder.is_file():
        return "it is a file; files of the authors' release are read by `cleft import <file.ckpt> --out <folder>`"
    if not folder.is_dir():
        return "there is no such folder"
    if any(folder.glob("*.ckpt")):
        return "it holds .ckpt files; `cleft import <file.ckpt> --out <folder>` reads those of the authors' release"
    return "it holds no model.json; a finished run has one, beside model.safetensors"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
