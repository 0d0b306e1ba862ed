"""`model.json`: the description of a model, checked field by field, with a digest over its own bytes.

The digest is the last entry. It covers every byte of the file, its own 64 digits replaced by zeros, so that a change
of one byte anywhere is found; files of schema 1 have none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

from cleft.errors import CheckpointError
from cleft.files import kind_of, parse_json

SCHEMA: Final = 2
"""Rises when a model folder changes its form; newer ones are refused."""
DESCRIPTION: Final = "model.json"
WEIGHTS: Final = "model.safetensors"
LARGEST: Final = 16 * 2**20
"""Bytes of the largest `model.json` that is read."""
_BLANK: Final = "0" * 64
_DIGEST: Final = re.compile(rb'"digest": "([0-9a-f]{64})"\n\}\Z')
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.ASCII | re.IGNORECASE)
"""Names that Windows takes for devices, whatever their suffix."""
_LARGEST_COUNT: Final = 2**53


def seal(description: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of a `model.json`: the description, its files and the digest of the text itself.

    Args:
        description: What is known about the model; entries of the names added here are replaced.
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
    """Parse a `model.json`.

    Args:
        data: Content of the file.
        where: Its path, for messages.

    Raises:
        CheckpointError: If it is not strict JSON, of a newer schema, altered, or a field has another type than it is
            written with, or lists a file that no model folder has.
    """
    tree = parse_json(data, where, error=CheckpointError, remedy=_COPY)
    schema = tree.get("schema")
    if type(schema) is not int or schema < 1:
        raise CheckpointError(f"{where} has schema {_shown(schema)}, so it is no model of cleft; {_COPY}")
    if schema > SCHEMA:
        raise CheckpointError(f"{where} has schema {schema}, this version of cleft reads {SCHEMA}; upgrade cleft")
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
    """Refuse a description that lacks fields.

    Raises:
        CheckpointError: If it does; names the first.
    """
    missing = [name for name in names if name not in description]
    if missing:
        raise CheckpointError(f"{where} does not say how to rebuild the model: {missing[0]} is missing; {_COPY}")


def fault_of_name(name: str) -> str | None:
    """Return why no model folder can have a file of this name, or None.

    Allowed are the weights and files below `towers/image` and `towers/text`, by relative names that mean the same on
    every system.

    Example:
        >>> fault_of_name("towers/text/tokenizer.json")
        >>> fault_of_name("towers/../../.bashrc")
        "its part '..' is not a plain name"
    """
    if name == WEIGHTS:
        return None
    parts = name.split("/")
    for part in parts:
        if not _PART.fullmatch(part) or part.endswith(".") or _DEVICES.fullmatch(part):
            return f"its part {_shown(part)} is not a plain name"
    if not (3 <= len(parts) <= 4 and parts[0] == "towers" and parts[1] in ("image", "text")):
        return f"a model folder has {WEIGHTS} and files in towers/image and towers/text alone"
    return None


def _check_names(names: Sequence[str], where: str) -> None:
    for name in names:
        fault = fault_of_name(name)
        if fault is not None:
            raise CheckpointError(f"{where} lists the file {_shown(name)}: {fault}; it is not opened, {_COPY}")
    folded = [name.casefold() for name in names]
    if len(set(folded)) < len(folded):
        twice = next(name for name in names if folded.count(name.casefold()) > 1)
        raise CheckpointError(f"{where} lists {_shown(twice)} twice, in different letter case; {_COPY}")


def _check_digest(data: bytes, where: str) -> None:
    found = _DIGEST.search(data)
    if found is None:
        raise CheckpointError(f"{where} does not end with its digest, so it was edited; {_COPY}")
    blank = data[: found.start(1)] + _BLANK.encode() + data[found.end(1) :]
    if hashlib.sha256(blank).hexdigest() != found[1].decode():
        raise CheckpointError(f"{where} is not what was saved: its digest differs; {_COPY}")


_COPY: Final = "copy the model again"
_Check = Callable[[Any], str | None]
"""Returns what a value must be, or None where it is that."""


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a text"


def _count(value: Any) -> str | None:
    return None if type(value) is int and 0 <= value < _LARGEST_COUNT else "a whole number from 0"


def _texts(value: Any) -> str | None:
    good = isinstance(value, list) and value and all(isinstance(item, str) for item in cast("list[Any]", value))
    return None if good else "a list of texts"


def _counts(value: Any) -> str | None:
    good = isinstance(value, list) and all(_count(item) is None for item in cast("list[Any]", value))
    return None if good else "a list of whole numbers from 0"


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
    """An object, every value of one kind."""

    def checked(value: Any) -> str | None:
        if not isinstance(value, dict):
            return "an object"
        found = ((name, check(item)) for name, item in cast("dict[str, Any]", value).items()) if check else ()
        return next((f"an object in which {_shown(name)} is {wrong}" for name, wrong in found if wrong), None)

    return checked


def _record(*, optional: Sequence[str] = (), **checks: _Check) -> _Check:
    """An object with exactly these entries."""

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
"""Every field of a `model.json` with its form; others are kept and have no effect."""


def _shown(value: Any) -> str:
    text = ascii(value) if value is None or isinstance(value, str | int | float) else kind_of(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
