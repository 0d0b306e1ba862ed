"""Strict JSON: input files are untrusted, and are read only if every value has exactly one meaning."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from cleft.files import LARGEST, Failure, bad_json, read_limited, write_whole

DEEPEST: Final = 64
"""Maximum nesting; files written by cleft or transformers need about ten levels."""


_LARGEST_NUMBER: Final = 2**1023
"""Larger whole numbers cannot be converted to float."""


_DIGITS: Final = 4300
"""Digits of the longest whole number that Python converts."""


def write_json(path: Path, tree: Mapping[str, Any], *, mode: int | None = None) -> None:
    """Write a JSON object as `write_whole` does.

    Raises:
        OSError: If it cannot be written.
        ValueError: If a number in it is NaN or infinite.
    """
    write_whole(path, json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n", mode=mode)


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


def parse_json(
    data: bytes | str, where: str, *, top: type | None = dict, error: Failure = bad_json, remedy: str = "copy it again"
) -> Any:
    """Parse JSON strictly: whatever two parsers could read differently is refused.

    Refused are text that is not UTF-8, NaN and Infinity (also as a number too large for a float), repeated keys,
    unpaired surrogates, more than `DEEPEST` levels, and a top-level type other than `top`.

    Args:
        data: JSON text; a leading byte order mark is allowed.
        where: Name of the file, for messages.
        top: `dict` or `list`; None allows any value.
        error: Makes the error.
        remedy: How to fix it, the last part of the message.

    Raises:
        CleftError: From `error`, with file, place and remedy.

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
    """Refuse entries of an unexpected type; missing and null entries are accepted.

    Args:
        tree: Content of a file.
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
    """Object with a repeated key, until its place in the file is known."""

    def __init__(self, key: str) -> None:
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> Any:
    tree = dict(pairs)
    if len(tree) == len(pairs):
        return tree
    seen: set[str] = set()
    return _Repeated(next(key for key, _ in pairs if key in seen or seen.add(key)))


def _fault(tree: Any) -> str | None:
    """Find the first value that is not allowed; iterative, because of the nesting."""
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
    """Return a place in a file in the form `settings.images.mean[0]`."""
    words = [f"[{key}]" if isinstance(key, int) else f".{_shown(key)}" for key in place]
    return "".join(words).removeprefix(".")


def _shown(key: str) -> str:
    """Return a key for a message: short, and quoted if it is not a plain name."""
    plain = re.fullmatch(r"[\w/-]{1,60}", key, re.ASCII)
    return key if plain else ascii(key if len(key) <= 60 else f"{key[:60]}…")


def _place_of_number(text: str) -> str:
    found = re.search(rf"\d{{{_DIGITS + 1}}}", text)
    return "" if found is None else f" line {text.count(chr(10), 0, found.start()) + 1}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
