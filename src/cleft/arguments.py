"""Arguments of public functions: one text or several, one path or several, in whatever sequence they come."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, TypeAlias, cast

from cleft.errors import ConfigError, DataError

Texts: TypeAlias = str | Iterable[str]
"""One text, or several in order: a list, a tuple, a generator, an array of strings, a column of a data frame."""


def as_texts(texts: Texts, what: str = "text") -> list[str]:
    """Returns texts as a list; a `str` is one text.

    Args:
        texts: One or several.
        what: What one of them is called in messages.

    Raises:
        DataError: If there is none, they have no order, or one is no `str`.
    """
    values: Any = texts
    if hasattr(values, "tolist") and not isinstance(values, str):  # arrays and columns of data frames
        values = values.tolist()
    if isinstance(values, str):
        return [str(values)]
    if isinstance(values, bytes | Mapping | Set) or not isinstance(values, Iterable):
        given = "None" if values is None else type(values).__name__
        why = "; decode it first" if isinstance(values, bytes) else "; give a str, or a list of them"
        raise DataError(f"{given} is no {what}{why}", reason="not-text")
    found = list(cast("Iterable[Any]", values))
    for place, value in enumerate(found):
        if not isinstance(value, str):
            given = repr(value) if value is None or isinstance(value, float) else type(value).__name__
            raise DataError(
                f"the {what} at position {place} is {given}, not a str; leave it out or write one", reason="not-text"
            )
    if not found:
        raise DataError(f"no {what} was given; give at least one", reason="empty-text")
    return [str(value) for value in found]


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
