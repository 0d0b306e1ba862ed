"""Declaration of settings: one dataclass field declares all of a setting.

The annotation is the type, the docstring below the field is the help text, and `setting` adds what Python cannot
express: the effect of a change on a run that is resumed, and when the setting has no effect.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

Stage: TypeAlias = Literal["pretrain", "context", "classify"]
"""`pretrain` is stage one, `context` stage two, `classify` a linear probe or fine-tuning."""
Changes: TypeAlias = tuple[Stage, ...] | Literal["rounding"]
"""Stages in which a change of a setting gives another result, or `rounding`: the same result up to rounding."""
ALL_STAGES: tuple[Stage, ...] = ("pretrain", "context", "classify")
"""Most settings of the data and images."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """All that is declared of one setting."""

    key: str
    """Dotted name, such as `text.rank`."""
    kind: Any
    """Type annotation."""
    default: Any
    changes: Changes
    """Effect of a change on a run that is resumed."""
    used_with: tuple[Mapping[str, tuple[Any, ...]], ...]
    """Conditions under which it has an effect: of each mapping, one setting must have one of the values."""
    overruled_by: tuple[str, ...]
    """Settings that decide in its place where they are set."""
    prepares: bool
    """Whether it decides which images are prepared, or how."""
    formerly: str | None
    """Dotted name in earlier versions."""
    old_values: Mapping[str, str]
    """Former name of a choice to its present one."""


def setting(
    default: _T,
    *,
    changes: Changes | None = None,
    used_with: Mapping[str, tuple[Any, ...]] | None = None,
    overruled_by: tuple[str, ...] = (),
    prepares: bool | None = None,
    formerly: str | None = None,
    old_values: Mapping[str, str] | None = None,
) -> _T:
    """Declares a setting; the arguments are those of `Declaration`.

    Args:
        default: Its default value.
        changes: By default as its group.
        used_with: Other setting, `.name` for one of the same group, to the values with which this one has an effect;
            of several, one is enough. None, which leaves the choice to the dataset, always counts.
        overruled_by: Settings that decide in its place.
        prepares: Whether it decides which images are prepared, or how.
        formerly: Dotted name in earlier versions: read in the settings of old runs, refused where it is typed.
        old_values: The same for choices.
    """
    return field(
        default=default,
        metadata={
            "changes": changes,
            "used_with": used_with,
            "overruled_by": overruled_by,
            "prepares": prepares,
            "formerly": formerly,
            "old_values": old_values or {},
        },
    )


def group(
    make: Callable[[], _T],
    *,
    changes: Changes | None = None,
    used_with: Mapping[str, tuple[Any, ...]] | None = None,
    prepares: bool | None = None,
) -> _T:
    """Declares a group of settings; what it declares holds for each of them that declares nothing else.

    Args:
        make: Returns the group with its defaults.
        changes: As in `setting`.
        used_with: As in `setting`; holds in addition to that of each setting.
        prepares: As in `setting`.
    """
    metadata = {"changes": changes, "used_with": used_with, "prepares": prepares}
    return field(default_factory=make, metadata=metadata)


def declarations(default: Any) -> Iterator[Declaration]:
    """Yields the declaration of every setting in a tree of groups, given with its defaults."""
    yield from _declarations(default, "", {"prepares": True}, ())


def _declarations(
    default: Any, prefix: str, inherited: Mapping[str, Any], used_with: tuple[Mapping[str, tuple[Any, ...]], ...]
) -> Iterator[Declaration]:
    kinds = field_types(type(default))
    for entry in dataclasses.fields(default):
        key, value = f"{prefix}{entry.name}", getattr(default, entry.name)
        own = {name: item for name, item in entry.metadata.items() if item is not None}
        conditions = used_with
        if "used_with" in own:
            named = {
                f"{prefix}{other[1:]}" if other[0] == "." else other: own["used_with"][other]
                for other in own["used_with"]
            }
            conditions = (*used_with, named)
        effects: dict[str, Any] = {name: own.get(name, inherited.get(name)) for name in ("changes", "prepares")}
        if dataclasses.is_dataclass(value):
            yield from _declarations(value, f"{key}.", effects, conditions)
            continue
        assert effects["changes"] is not None, f"{key}: neither it nor its group declares `changes`"
        yield Declaration(
            key=key,
            kind=kinds[entry.name],
            default=value,
            changes=effects["changes"],
            used_with=conditions,
            overruled_by=own.get("overruled_by", ()),
            prepares=effects["prepares"],
            formerly=own.get("formerly"),
            old_values=own.get("old_values", {}),
        )


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """Returns the annotations of a dataclass, resolved once: that takes longer than reading them."""
    return typing.get_type_hints(kind)


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """Returns the docstring below each field of a dataclass, on one line; fields without one are missing."""
    docs: dict[str, str] = {}
    name = ""
    for entry in _classes(kind.__module__)[kind.__name__].body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            name = entry.target.id
        elif isinstance(entry, ast.Expr) and isinstance(entry.value, ast.Constant) and name:
            docs[name], name = " ".join(str(entry.value.value).split()), ""
    return docs


def options_of(kind: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the type itself."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def choices_of(kind: Any) -> list[str]:
    """Returns the words that a setting of a type may be, or nothing where it is no choice among words."""
    return [
        str(word) for option in options_of(kind) if typing.get_origin(option) is Literal for word in option.__args__
    ]


def describe_kind(kind: Any) -> str:
    """Returns what a value of a type is, in words.

    Example:
        >>> describe_kind(float | None), describe_kind(tuple[str, ...]), describe_kind(int | Literal["auto"])
        ('a number or null', 'a list of texts', 'a whole number or auto')
    """
    words: list[str] = []
    for option in options_of(kind):
        items = typing.get_args(option)
        if typing.get_origin(option) is Literal:
            words += map(str, items)
        elif typing.get_origin(option) is tuple:
            many = "" if items[-1] is Ellipsis else f"{len(items)} "
            words.append(f"a list of {many}{_PLURALS[items[0]]}")
        else:
            words.append(_KINDS.get(option, "a mapping"))
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]


_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    Path: "a path",
    types.NoneType: "null",
}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}
