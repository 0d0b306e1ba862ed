"""Commands and their options: each command takes a request dataclass, from which its options and help are derived.

A field is an option `--name` of its type; its docstring is the help. `argument` makes it positional.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from cleft.config import Settings, declared_settings
from cleft.config.data_settings import choices_of, describe_kind, field_docs, field_types, options_of
from cleft.errors import ConfigError
from cleft.privacy import expand_user

_Run = TypeVar("_Run", bound="Callable[..., int | None]")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command and how to call it."""

    name: str
    """Such as `pretrain` or `data check`."""
    run: Callable[..., int | None]
    """Takes an instance of `request`, and the words of dotted settings."""
    request: type
    """Dataclass of its options."""
    settings: tuple[str, ...] | None
    """Settings that its help lists; None if it takes none."""
    loads_torch: bool

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.run.__doc__ or "").splitlines()[0].rstrip(".")


COMMANDS: dict[str, Command] = {}
"""Every command by its name."""


def command(name: str, *, settings: tuple[str, ...] | None = None, loads_torch: bool = False) -> Callable[[_Run], _Run]:
    """Registers a function as a command; the annotation of its first parameter is its request.

    Args:
        name: Words behind `cleft`.
        settings: Settings that its help lists, empty for none; None if it takes no settings.
        loads_torch: Whether it loads PyTorch, which takes half a minute on a slow machine.
    """

    def register(run: _Run) -> _Run:
        request = next(iter(typing.get_type_hints(run).values()))
        COMMANDS[name] = Command(name=name, run=run, request=request, settings=settings, loads_torch=loads_torch)
        return run

    return register


def argument(default: Any = dataclasses.MISSING, *, metavar: str | None = None) -> Any:
    """Declares a positional argument; a field of type `tuple` takes several, at least one if there is no default."""
    return field(default=default, metadata={"positional": True, "metavar": metavar})


def option(
    default: Any = dataclasses.MISSING, *, metavar: str | None = None, read: Callable[[str], Any] | None = None
) -> Any:
    """Declares an option.

    Args:
        default: Its default, which the help shows unless it is empty; an option without one is required.
        metavar: Placeholder of its value in the help.
        read: Converts its text; by default by the type of the field.
    """
    return field(default=default, metadata={"metavar": metavar, "read": read})


def setting_option(key: str) -> Any:
    """Declares an option that is short for a setting, with the choices of the setting."""
    return field(default=None, metadata={"choices": choices_of(declared_settings()[key].kind)})


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Request of commands without options."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options of commands that write a file for the user."""

    overwrite: bool = False
    """Also replace files that cleft did not write, or that were changed since."""


class CommandParser(argparse.ArgumentParser):
    """Parser of one command, whose help ends with its settings."""

    command: Command | None = None
    every_setting = False

    def format_help(self) -> str:
        """Returns the help, with the most used settings of the command, or with all."""
        text = super().format_help()
        if self.command is None or not self.command.settings:
            return text
        if self.every_setting:
            return f"{text}\nsettings:\n{settings_help()}\n"
        usual = short_settings_help(self.command.settings)
        return f"{text}\nsettings, each as --name value (--help-all lists all):\n{usual}\n"


class _HelpAll(argparse.Action):
    """Prints the help with every setting."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        text = "show this help message with every setting and exit"
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=text)

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        assert isinstance(parser, CommandParser)
        parser.every_setting = True
        parser.print_help()
        parser.exit()


def add_command(parent: Any, each: Command) -> None:
    """Adds the parser of a command to the subparsers of `cleft` or of a group of commands."""
    summary = each.summary
    required = ""
    for entry, kind, _ in request_fields(each.request):
        name = entry.metadata.get("metavar") or entry.name
        several = " ..." if typing.get_origin(kind) is tuple else ""
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            flag = "" if entry.metadata.get("positional") else f"--{entry.name} "
            required += f" {flag}{name}{several}"
        elif entry.metadata.get("positional"):
            required += f" [{name}{several}]"
    parser: CommandParser = parent.add_parser(
        each.name.rpartition(" ")[2],
        help=summary[0].lower() + summary[1:],
        description=f"{summary}.",
        usage=f"cleft {each.name} [options]{required}",
        allow_abbrev=False,
    )
    parser.command = each
    if each.settings:
        parser.add_argument("--help-all", action=_HelpAll)
    parser.set_defaults(command=each.name)
    for entry, kind, doc in request_fields(each.request):
        _add_option(parser, entry, kind, doc)


def request_fields(request: type) -> Iterator[tuple[dataclasses.Field[Any], Any, str]]:
    """Yields the fields of a request that are options, with type and help."""
    docs = {name: doc for kind in reversed(request.__mro__[:-1]) for name, doc in field_docs(kind).items()}
    for entry in sorted(dataclasses.fields(request), key=lambda entry: entry.name == "overwrite"):
        if entry.metadata.get("tasks"):
            seen: set[str] = set()
            for kind in entry.metadata["tasks"]():
                for each in request_fields(kind):
                    if each[0].name not in seen and each[0].metadata.get("option", True):
                        seen.add(each[0].name)
                        yield each
        elif entry.metadata.get("option", True):
            yield entry, field_types(request)[entry.name], docs[entry.name]


def _add_option(parser: argparse.ArgumentParser, entry: dataclasses.Field[Any], kind: Any, doc: str) -> None:
    meta, flag = entry.metadata, f"--{entry.name.replace('_', '-')}"
    options = [each for each in options_of(kind) if each is not types.NoneType]
    many = typing.get_origin(options[0]) is tuple
    default = None if entry.default is dataclasses.MISSING else entry.default
    shown = "" if default is None or isinstance(default, bool | tuple) else f" (default: {default})"
    words: dict[str, Any] = {"help": (doc.rstrip(".") + shown).replace("%", "%%")}
    metavar = meta.get("metavar") or _METAVARS.get(options[0])
    if metavar and not (meta.get("positional") and not meta.get("metavar")):
        words["metavar"] = metavar
    if options == [bool]:
        words["action"] = argparse.BooleanOptionalAction if default is None else "store_true"
        parser.add_argument(flag, default=argparse.SUPPRESS, **words)
        return
    words["type"] = meta.get("read") or _READERS.get(typing.get_args(options[0])[0] if many else options[0], str)
    choices = meta.get("choices") or choices_of(kind)
    if choices:
        words["choices"] = choices
    if meta.get("positional"):
        required = entry.default is dataclasses.MISSING
        words["nargs"] = ("+" if required else "*") if many else None if required else "?"
        parser.add_argument(entry.name, default=default, **words)
        return
    if many:
        words["action"] = "append"
    parser.add_argument(flag, default=argparse.SUPPRESS, required=entry.default is dataclasses.MISSING, **words)


def make_request(each: Command, values: Mapping[str, Any]) -> Any:
    """Returns the request of a command from parsed options; those of a task are kept apart in its field of tasks."""
    own = {entry.name: entry for entry in dataclasses.fields(each.request)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    rest = next((name for name, entry in own.items() if entry.metadata.get("tasks")), None)
    others = {name: given.pop(name) for name in list(given) if name not in own}
    return each.request(**given, **({rest: others} if rest else {}))


def read_path(text: str) -> Path:
    """Returns a typed path, with `~` at its start replaced by the home folder."""
    try:
        return Path(expand_user(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_number(text: str) -> int:
    """Returns a whole number that is not negative."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


_METAVARS: dict[Any, str] = {int: "N", Path: "PATH"}
_READERS: dict[Any, Callable[[str], Any]] = {int: read_number, float: float, Path: read_path, str: str}


def split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates settings and their values, which argparse would take for positional arguments, from the rest."""
    names = [word for word in words if not word.startswith("-")]  # `cleft --debug evaluate ...`
    name = next((name for name in COMMANDS if name.split() == names[: name.count(" ") + 1]), None)
    options = {entry.name for entry, _, _ in request_fields(COMMANDS[name].request)} if name else set[str]()
    own: list[str] = []
    settings: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        flag = word.partition("=")[0]
        key = flag.removeprefix("--")
        is_setting = key != flag and ("." in key or (key in declared_settings() and key not in options))
        place = settings if is_setting else own
        place.append(word)
        if is_setting and "=" not in word and waiting:
            place.append(waiting.pop(0))
    return own, settings


def settings_help() -> str:
    """Returns every setting with its choices, meaning, type and default."""
    return "\n".join(_group_help(Settings(), ""))


def _group_help(group: Any, prefix: str) -> Iterator[str]:
    docs, kinds = field_docs(type(group)), field_types(type(group))
    values = vars(group)
    below = [name for name, value in values.items() if dataclasses.is_dataclass(value)]
    yield f"\n{(type(group).__doc__ or '').splitlines()[0].rstrip('.')}:"
    for name in (name for name in values if name not in below):
        kind, value = kinds[name], values[name]
        words = choices_of(kind) if all(typing.get_origin(each) is Literal for each in options_of(kind)) else []
        yield f"  --{prefix}{name} {'{' + ','.join(words) + '}' if words else name.upper()}"
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else _plain(value)
        facts = f"default: {shown}" if words else f"{describe_kind(kind)}; default: {shown}"
        yield from textwrap.wrap(f"{docs[name]} ({facts})", 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    for name in below:
        yield from _group_help(values[name], f"{prefix}{name}.")


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def short_settings_help(keys: Sequence[str]) -> str:
    """Returns one to three lines for each of some settings: its name, the first clause of its meaning, its choices."""
    lines: list[str] = []
    for key in keys:
        clause, kind = re.split(r"[.;:](?: |$)", setting_doc(key))[0], declared_settings()[key].kind
        choices = choices_of(kind)
        values = describe_kind(kind) if int in options_of(kind) else ", ".join(choices)
        summary = f"{clause}: {values}" if choices else clause
        lines += textwrap.wrap(f"--{key:21} {summary}", 100, initial_indent="  ", subsequent_indent=" " * 26)
    return "\n".join(lines)


def setting_doc(key: str) -> str:
    """Returns the help text of a setting."""
    group: Any = Settings()
    *groups, name = key.split(".")
    for each in groups:
        group = getattr(group, each)
    return field_docs(type(group))[name]
