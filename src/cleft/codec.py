"""Nouns to JSON and back, strictly: what has not the noun's exact form is refused.

It stands beside the nouns because two rooms need it that do not meet: evaluation writes results, report
reads them, perhaps on another machine and a year later.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from cleft.errors import DataError
from cleft.files import parse_json

SCHEMA = 1
"""Rises when a noun changes its form; files of another schema are refused."""

Noun = TypeVar("Noun")

_hints = functools.cache(get_type_hints)
"""The annotations of a noun: working them out took longer than all else in reading a result."""


def to_json(noun: Any, *, schema: int = SCHEMA) -> str:
    """Writes a frozen dataclass as JSON text, its schema first.

    Args:
        noun: What to write.
        schema: Of the noun's own form, where that lives longer than the forms of results.

    Raises:
        ValueError: If a number in it is NaN or infinite; what could not be measured is None.
    """
    return json.dumps({"schema": schema, **dataclasses.asdict(noun)}, indent=1, ensure_ascii=False, allow_nan=False)


def from_json(
    text: str | bytes, kind: type[Noun], *, where: str, schema: int = SCHEMA, remedy: str = "evaluate again"
) -> Noun:
    """Reads a noun back from `to_json`'s text.

    Args:
        text: JSON text.
        kind: The dataclass it must hold.
        where: Name of the file, for messages.
        schema: The one that is read.
        remedy: What to do about another.

    Raises:
        DataError: If the text is no JSON, of another schema, lacks a field, has one too many, or holds a value of
            another type than the field's.
    """
    tree = parse_json(text, where, remedy=remedy)
    written = tree.pop("schema", None)
    if type(written) is not int or written != schema:
        raise DataError(f"{where} has schema {written!r}, this version reads {schema}; {remedy}", reason="schema")
    return cast("Noun", _noun(tree, kind, where))


def _noun(tree: Any, kind: type, where: str) -> Any:
    if not isinstance(tree, dict):
        raise _mismatch(where, tree, kind.__name__)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    former = _former_names(kind)
    names = [former.get(name, name) for name in cast("dict[str, Any]", tree)]
    repeated = sorted({name for name in names if names.count(name) > 1}) if former else []
    if repeated:
        raise DataError(f"{where} holds {repeated} twice, under a former name too", reason="schema")
    tree = dict(zip(names, tree.values(), strict=True))
    needed = {name for name, field in fields.items() if _has_no_default(field)}
    if not needed <= set(tree) <= set(fields):
        missing, unknown = sorted(needed - set(tree)), sorted(set(tree) - set(fields))
        raise DataError(f"{where}: missing fields {missing}, unknown fields {unknown}", reason="schema")
    hints = _hints(kind)
    return kind(**{name: _value(value, hints[name], f"{where}: {name}") for name, value in tree.items()})


@functools.cache
def _former_names(kind: Any) -> dict[str, str]:
    """Maps each name that a field had in files of earlier versions (metadata `formerly`) to the field's name."""
    former: dict[str, str] = {}
    for field in dataclasses.fields(kind):
        names = field.metadata.get("formerly", ())
        former |= dict.fromkeys((names,) if isinstance(names, str) else names, field.name)
    return former


def _value(value: Any, hint: Any, where: str) -> Any:
    """The value as the annotation wants it: lists become tuples, whole numbers become floats, nothing else changes."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _noun(value, cast("type", hint), where)
    if origin in (types.UnionType, Union):
        options = [option for option in arguments if option is not types.NoneType]
        return None if value is None else _value(value, options[0], where)
    if origin in (tuple, Sequence):
        return _items(value, arguments, where)
    if origin is Mapping and isinstance(value, dict):
        return {str(name): _value(item, arguments[1], f"{where}.{name}") for name, item in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise _mismatch(where, value, getattr(hint, "__name__", str(hint)))


def _items(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _mismatch(where, value, "list")
    items = cast("list[Any]", value)
    repeated = len(arguments) == 1 or arguments[-1] is Ellipsis
    if not repeated and len(items) != len(arguments):
        raise _mismatch(where, items, f"list of {len(arguments)}")
    hints = [arguments[0]] * len(items) if repeated else list(arguments)
    if all(type(item) is hint and hint in _AS_THEY_ARE for item, hint in zip(items, hints, strict=True)) and all(
        math.isfinite(item) for item in items if type(item) is float
    ):
        return tuple(items)  # most of a result file is points of curves
    return tuple(_value(item, hints[index], f"{where}[{index}]") for index, item in enumerate(items))


_AS_THEY_ARE = (float, int, str)
"""Plain types; a value of exactly one of them is what its annotation wants."""


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _mismatch(where: str, value: Any, wanted: str) -> DataError:
    return DataError(f"{where} holds {type(value).__name__} {str(value)[:40]!r}, not {wanted}", reason="schema")
