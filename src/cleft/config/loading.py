"""From a preset and overrides to settings: defaults, then the preset, then overrides; the last word wins."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
import shlex
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cleft.config.lists import split_list
from cleft.config.tree import Settings, usual_split
from cleft.config.yaml_tree import Tree, read_yaml
from cleft.errors import ConfigError
from cleft.privacy import expand_user, find_path, hide_path
from cleft.text_rules import RuleName, normalise, rule_for

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

PRESETS = Path(__file__).parents[1] / "presets"
"""Folder of the presets that come with the package."""

SETTINGS_MARK = "# Settings of a run, written by cleft; values that begin with local: are paths known to its user alone"
"""First line of a `config.yaml` that this program wrote, which distinguishes a run from a folder of the user's."""
_SETTINGS_END = "# End of the settings"
"""Last line of such a file: a copy that was cut between two lines is valid YAML, and has defaults for the rest."""

_Group = TypeVar("_Group")
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9_]*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class _Idle:
    """A setting that does nothing unless another one has a certain value, or is left to the dataset (None)."""

    key: str
    other: str
    values: tuple[str, ...]


_TWO_LAYERS = ("mlp", "mlp-norm", "mlp-gelu")
_IDLE = (
    _Idle("text.rank", "text.adapt", ("lora",)),
    _Idle("text.alpha", "text.adapt", ("lora",)),
    _Idle("text.dropout", "text.adapt", ("lora",)),
    _Idle("text.lora_targets", "text.adapt", ("lora",)),
    _Idle("text.ia3_targets", "text.adapt", ("ia3",)),
    _Idle("text.ia3_feedforward", "text.adapt", ("ia3",)),
    _Idle("text.prefix_length", "text.adapt", ("prefix",)),
    _Idle("text.frozen_layers", "text.adapt", ("full",)),
    _Idle("loss.hidden_width", "loss.projection", _TWO_LAYERS),
    _Idle("loss.hidden_width", "loss.text_projection", _TWO_LAYERS),
    _Idle("text.train_embeddings", "text.adapt", ("lora", "ia3", "prefix", "frozen")),
    _Idle("loss.bias", "loss.name", ("sigmoid",)),
    _Idle("optim.betas", "optim.name", ("adamw",)),
    _Idle("optim.momentum", "optim.name", ("sgd",)),
    _Idle("context.optim.betas", "context.optim.name", ("adamw",)),
    _Idle("context.optim.momentum", "context.optim.name", ("sgd",)),
    _Idle("data.caption", "data.dataset", ("embed",)),
    _Idle("data.caption_templates", "data.texts", ("captions",)),
    _Idle("data.bank", "data.texts", ("bank",)),
    _Idle("data.reduce", "data.dataset", ("embed",)),
    _Idle("data.test_fraction", "data.split", ("patients",)),
    _Idle(
        "data.val_fraction",
        "data.split",
        ("patients", "5x200-strict", "5x200-paper", "5x200-images", "rsna-balanced", "given"),
    ),
)

_OVERRULED = (
    ("data.split", "data.split_file"),
    ("data.val_fraction", "data.split_file"),
    ("data.test_fraction", "data.split_file"),
    ("data.test_fraction", "data.test_list"),
)
"""Settings that do nothing where another one is set."""


def preset_names() -> list[str]:
    """Names of the presets that come with the package, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_summaries() -> dict[str, str]:
    """Each preset's name and the first line of its page."""
    return {name: (PRESETS / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ") for name in preset_names()}


def settings_help() -> str:
    """Every setting with its type, default and meaning."""
    _, _, settings = settings_parser("cleft", "cleft", "").format_help().partition("exit.\n")
    return re.sub(r"  --[\w.]+ CONFIG +Path to a configuration file.\n", "", settings)


def short_settings_help(keys: Sequence[str]) -> str:
    """Returns one to three lines for each of some settings: its name, the first clause of its meaning, its choices."""
    text = settings_help()
    lines: list[str] = []
    for key in keys:
        named = rf"^  --{re.escape(key)} (?:\[[^]]*\]|{{[^}}]*}}|\S+)\s+(.*?)\(type: "
        found = re.search(named, text, re.MULTILINE | re.DOTALL)
        meaning = " ".join(re.sub(r"-\n\s+", "-", found[1]).split()) if found else ""
        clause, choices = re.split(r"[.;:](?: |$)", meaning)[0], _allowed(key)
        summary = f"{clause}: {', '.join(choices)}" if choices and not clause.startswith("`") else clause
        lines += textwrap.wrap(f"--{key:21} {summary}", 100, initial_indent="  ", subsequent_indent=" " * 26)
    return "\n".join(lines)


def load_settings(source: str | Path, overrides: str | Sequence[str] = ()) -> Settings:
    """Builds settings from a preset and what was typed after it.

    Args:
        source: Name of a preset, a YAML file, or the `config.yaml` of a run. A file may name another preset under
            `extends` and then holds only what differs from it.
        overrides: Command-line words such as `--text.rank 4` or `--text.rank=4`, as a list or as one line.

    Raises:
        ConfigError: If a key is unknown (with the nearest name and the line it stands in), a value is of the wrong
            type or contradicts another, or an override does nothing here.
    """
    tree = _layers(_find(source), seen=())
    typed = _words(overrides)
    _check_keys(typed, {}, where="the command line", dashes="--")
    settings = _build(_merge(tree, typed), where=f"{source}")
    _check_idle(_dotted(typed), settings)
    _check_untrained(_dotted(typed), settings)
    return settings


def load_run_settings(run: Path, overrides: Sequence[str] = ()) -> Settings:
    """Builds the settings a run or a model folder was made with, and what was typed after it.

    Raises:
        ConfigError: If the folder holds no settings; and as `load_settings`.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError(
            f"{run} is not a run folder: it holds no config.yaml; give a folder that cleft pretrain, "
            f"cleft learn-context, cleft classify or cleft import wrote"
        )
    return load_settings(run / "config.yaml", overrides)  # a folder may be called like a preset


def merge_overrides(settings: Settings, overrides: Sequence[str]) -> Settings:
    """Returns settings with command-line words such as `--data.root <folder>` applied on top."""
    typed = _words(overrides)
    _check_keys(typed, {}, where="the command line", dashes="--")
    merged = _build(_merge(_plain(settings), typed), where="the command line")
    _check_idle(_dotted(typed), merged)
    _check_untrained(_dotted(typed), merged)
    return merged


def overridden_keys(overrides: Sequence[str]) -> frozenset[str]:
    """Returns the dotted names of the settings that command-line words set, such as `data.root`.

    Raises:
        ConfigError: If a word is no setting.
    """
    typed = _words(overrides)
    _check_keys(typed, {}, where="the command line", dashes="--")
    return frozenset(_dotted(typed))


def build_settings(tree: Mapping[str, Any], *, where: str) -> Settings:
    """Builds settings from a tree of plain values, such as a part of `plain_settings`; the rest are defaults.

    Args:
        tree: Groups of settings, as in a preset.
        where: What holds the tree, for messages.

    Raises:
        ConfigError: If a key is unknown, or a value is of the wrong type or contradicts another.
    """
    tree = _here(tree)
    _check_keys(tree, {}, where=where)
    return _build(tree, where)


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Returns settings as a tree of values that JSON and YAML can hold, as a file that may be shared holds them.

    Paths that name a user, a machine or a folder elsewhere are hidden; see `cleft.privacy.hide_path`.
    """
    return {name: _hidden(_plain(group), group) for name, group in vars(settings).items()}


def dump_settings(settings: Settings) -> str:
    """Writes settings as YAML: complete, and loadable as a preset. Its first line is `SETTINGS_MARK`."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # four times as fast, where PyYAML was built with it
    text = yaml.dump(plain_settings(settings), Dumper=dumper, sort_keys=False, allow_unicode=True, width=100)
    return f"{SETTINGS_MARK}\n{text}{_SETTINGS_END}\n"


def settings_parser(prog: str, usage: str, description: str) -> ArgumentParser:
    """A parser that knows every setting and its docstring; it types values and prints the help.

    Args:
        prog: What stands before the options, e.g. `cleft pretrain`.
        usage: The line of the help that shows how to call it.
        description: What the command does.
    """
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, usage=usage, description=description, exit_on_error=False, default_env=False)
    parser.add_class_arguments(Settings)
    return parser


@functools.cache
def _group_parser(kind: type) -> ArgumentParser:
    """The parser that types the values of one group.

    One a group, because a parser looks through all it knows at every value; made once, because that takes longest.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(
        kind, skip={name for name, hint in _hints(kind).items() if dataclasses.is_dataclass(hint)}
    )
    return parser


def nearest(name: str, known: Sequence[str]) -> str:
    """Returns `; did you mean 'x'?` for the nearest known name, or nothing where none is near."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def _find(source: str | Path) -> Path:
    """The file behind a preset's name or a path."""
    shipped = PRESETS / f"{source}.yaml"
    if re.fullmatch(r"[\w.-]+", str(source)) and shipped.is_file():
        return shipped
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / "config.yaml"
    if not path.is_file():
        known = preset_names()
        near = f"; did you mean 'baseline-{source}'?" if f"baseline-{source}" in known else nearest(str(source), known)
        raise ConfigError(
            f"no preset {str(source)!r}{near}, and no YAML file or run folder of that "
            f"name; cleft presets lists the presets"
        )
    return path


def _layers(path: Path, seen: tuple[Path, ...]) -> dict[str, Tree]:
    """A file's tree on top of what it extends."""
    if path in seen:
        raise ConfigError(f"{path}: extends itself, by way of {' and '.join(step.name for step in seen)}")
    file = read_yaml(path)
    _check_end(path)
    tree = cast("dict[str, Tree]", _here(file.tree))
    _name_rule(path, tree)
    base = tree.pop("extends", None)
    _check_keys(tree, file.lines, where=str(path))
    below: dict[str, Tree] = {}
    if isinstance(base, str):
        sibling = path.parent / f"{base}.yaml"
        below = _layers(sibling if sibling.is_file() else _find(base), (*seen, path))
    elif base is not None:
        raise ConfigError(f"{path}: extends holds {base!r}; name one preset")
    return _merge(below, tree)


def _check_end(path: Path) -> None:
    """Refuse a file of settings that this program wrote and that was cut off between two lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines[0] == SETTINGS_MARK and lines[-1] != _SETTINGS_END:
        raise ConfigError(
            f"{path}: line {len(lines)}: cut off: its last line, {_SETTINGS_END!r}, is missing; copy it again"
        )


def _name_rule(path: Path, tree: dict[str, Tree]) -> None:
    """Adds the text rule to the settings of a run that was begun before rules were recorded."""
    text, data = tree.get("text"), tree.get("data")
    if path.name != "config.yaml" or not isinstance(text, dict) or "max_tokens" not in text or "normalisation" in text:
        return
    data = data if isinstance(data, dict) else {}
    opening = data.get("opening")
    as_written = isinstance(opening, str) and normalise(opening, "words-1") != opening
    texts = "whole" if as_written or data.get("texts") in ("bank", "medclip") else str(data.get("texts", "captions"))
    tree["text"] = {**text, "normalisation": rule_for(texts, version=1)}


def text_rule(settings: Settings) -> RuleName:
    """Returns the text rule of settings: `text.normalisation`, or where that is `auto` the one that fits the texts."""
    if settings.text.normalisation != "auto":
        return settings.text.normalisation
    texts = settings.data.texts
    return rule_for("captions" if texts == "bank" and settings.data.bank is None else texts)


def _merge(below: Mapping[str, Tree], above: Mapping[str, Tree]) -> dict[str, Tree]:
    """Mappings grow together, everything else is replaced; so is a `scratch` tower of another type."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and "model_type" not in value:
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _words(words: str | Sequence[str]) -> dict[str, Tree]:
    """`--a.b value --c=value` as a tree."""
    tree: dict[str, Tree] = {}
    waiting = shlex.split(words) if isinstance(words, str) else list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"unexpected word {word!r}; settings are written --name value, such as --text.rank 4")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not waiting:
                raise ConfigError(f"--{name} has no value behind it")
            value = waiting.pop(0)
        place = tree
        *groups, leaf = name.split(".")
        for group in groups:
            deeper = place.setdefault(group, {})
            if not isinstance(deeper, dict):
                raise ConfigError(f"--{name}: --{group} was given a value of its own before")
            place = deeper
        place[leaf] = _read_word(value)
    return tree


def _read_word(value: str) -> Tree:
    """`null` is nothing and `[a, b]` a list, as in a preset."""
    if value == "null":
        return None
    value = expand_user(value)
    if value.startswith("[") and value.endswith("]"):
        return cast("Tree", split_list(value[1:-1]))
    return value


def _check_keys(tree: Mapping[str, Tree], lines: Mapping[str, int], *, where: str, dashes: str = "") -> None:
    """Refuses keys that no setting has, and numbers that YAML would read as something else."""

    def walk(node: Mapping[str, Tree], kind: type, prefix: str) -> None:
        hints = _hints(kind)
        for name, value in node.items():
            key = f"{prefix}{name}"
            place = f"{where}, line {lines[key]}" if key in lines else where
            if name not in hints:
                raise ConfigError(
                    f"{place}: unknown setting {dashes}{key}{_nearest_key(key, name, list(hints), prefix)}"
                )
            if dataclasses.is_dataclass(hints[name]):
                if not isinstance(value, dict):
                    raise ConfigError(f"{place}: {dashes}{key}={value!r} is a group; name one of its settings below it")
                walk(value, cast(type, hints[name]), f"{key}.")
            elif isinstance(value, str) and hints[name] in (int, float) and not _NUMBER.fullmatch(value):
                raise ConfigError(f"{place}: {dashes}{key}={value!r} is not a number")

    walk(tree, Settings, "")


def _nearest_key(key: str, name: str, siblings: list[str], prefix: str) -> str:
    """Looks for the same last word anywhere, then beside the wrong key, then in the whole tree."""
    every = list(_dotted(_plain(Settings())))
    same = [other for other in every if other.rpartition(".")[2] == name]
    beside = [f"{prefix}{near}" for near in difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)]
    found = same or beside or difflib.get_close_matches(key, every, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else f"; known here: {', '.join(siblings)}"


def _build(tree: Mapping[str, Tree], where: str) -> Settings:
    """Types the tree by the settings' annotations and builds it, contradictions refused."""
    try:
        return _built(Settings, tree, "")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _built(kind: type[_Group], tree: Mapping[str, Tree], prefix: str) -> _Group:
    """A group of settings, and the groups in it, with what the tree does not name at its default."""
    from argparse import ArgumentError

    hints = _hints(kind)
    groups = {name: value for name, value in tree.items() if dataclasses.is_dataclass(hints[name])}
    values = {name: _listed(value, hints[name]) for name, value in tree.items() if name not in groups}
    try:
        parser = _group_parser(kind)
        made = parser.instantiate(parser.parse_object(values, defaults=False))
        inner = {
            name: _built(cast(type, hints[name]), cast("dict[str, Tree]", value), f"{prefix}{name}.")
            for name, value in groups.items()
        }
        return kind(**{name: made[name] for name in values}, **inner)
    except ConfigError:
        raise
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_explain(str(error), prefix)) from error


def _listed(value: Tree, hint: Any) -> Any:
    """Text where a list belongs is a list of one or, with commas, of several."""
    if isinstance(value, str) and value != "null" and _is_list(hint):
        return split_list(value)
    return _scalars(value) if isinstance(value, dict) else value


def _is_list(hint: Any) -> bool:
    """Whether a setting takes several values, or several or null."""
    return tuple in (typing.get_origin(hint), *map(typing.get_origin, typing.get_args(hint)))


def _scalars(value: Tree) -> Any:
    """Types what stands in a free mapping, such as the options of a tower built from scratch."""
    if isinstance(value, dict):
        return {name: _scalars(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_scalars(item) for item in value]
    if not isinstance(value, str):
        return value
    if value in ("true", "false"):
        return value == "true"
    if value and _NUMBER.fullmatch(value):
        return int(value) if re.fullmatch(r"[-+]?[0-9_]+", value) else float(value)
    return value


def _explain(message: str, prefix: str) -> str:
    """A sentence out of a group's parser's words: the key, the value, what is allowed."""
    plain = " ".join(message.split())
    found = re.search(r'Parser key "([\w.]+)":.*(?:Got value|Given value): (.*)', plain)
    if not found:
        return plain
    key, value = f"{prefix}{found[1]}", found[2]
    allowed = _allowed(key)
    if allowed:
        return f"{key}={value!r} must be one of {', '.join(allowed)}{nearest(value, allowed)}"
    kinds = [_TYPE.sub(r"\1", kind) for kind in re.findall(r"Expected a (.+?)(?=\. Got| - Expected| Given|$)", plain)]
    return f"{key}={value!r} must be: {' or '.join('null' if kind == 'NoneType' else kind for kind in kinds)}"


_TYPE = re.compile(r"<class '([\w.]+)'>")


def _allowed(key: str) -> list[str]:
    """The words a setting may take, where it is a choice among words."""
    kind: Any = Settings
    for name in key.split("."):
        if not dataclasses.is_dataclass(kind):
            return []
        kind = _hints(kind).get(name)
    choices = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else [kind]
    words = [typing.get_args(choice) for choice in choices if typing.get_origin(choice) is typing.Literal]
    numbers = ["a whole number"] if words and int in choices else []
    return [*numbers, *(str(word) for group in words for word in group)]


def _check_idle(given: Mapping[str, Any], settings: Settings) -> None:
    """Refuses an override that would change nothing."""
    values = _dotted(_plain(settings))
    values["data.split"] = settings.data.split or usual_split(settings.data.dataset)
    used = {rule.key for rule in _IDLE if values[rule.other] in (None, *rule.values)}
    for rule in _IDLE:
        if rule.key in given and rule.key not in used:
            raise ConfigError(
                f"--{rule.key} does nothing here: {rule.other} is {values[rule.other]!r}, and it is used with "
                f"{' or '.join(rule.values)} alone; drop it or set --{rule.other}"
            )
    for key, other in _OVERRULED:
        if key in given and values[other] is not None:
            raise ConfigError(
                f"--{key} does nothing here: {other} is {values[other]!r}, which decides in its place; drop it, or set "
                f"--{other} null"
            )


def _check_untrained(given: Mapping[str, Any], settings: Settings) -> None:
    """Refuses an override of what is read by a method that trains."""
    key = next((key for key in given if key.startswith(_OF_TRAINING)), None)
    if settings.method == "image-only" and key is not None:
        raise ConfigError(f"--{key} does nothing here: method is 'image-only', which has no texts and trains nothing")


_OF_TRAINING = ("text.", "loss.", "optim.", "context.")


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as what YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    return str(value) if isinstance(value, Path) else value


def _hidden(tree: Any, value: Any) -> Any:
    """A tree that `_plain` made of a value, without paths that reveal anything.

    Texts may be paths too, such as the folder of a language model or a file of class names.
    """
    if isinstance(tree, dict) and dataclasses.is_dataclass(value):
        return {name: _hidden(item, getattr(value, name)) for name, item in cast("dict[str, Any]", tree).items()}
    if isinstance(tree, str) and (isinstance(value, Path) or os.path.isabs(tree) or ".." in Path(tree).parts):
        return hide_path(tree)
    return tree


def _here(value: Any) -> Any:
    """A tree from a file with hidden paths as they are on this machine, where they are known, and `~` expanded."""
    if isinstance(value, dict):
        return {name: _here(item) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_here(item) for item in cast("list[Any]", value)]
    return expand_user(find_path(value)) if isinstance(value, str) else value


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of groups as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        kind = _kind(f"{prefix}{name}")
        if isinstance(value, dict) and dataclasses.is_dataclass(kind):
            flat |= _dotted(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The annotations of a group: working them out takes longer than reading them."""
    return typing.get_type_hints(kind)


@functools.cache
def _kind(key: str) -> Any:
    """The annotation of a dotted key, or None."""
    kind: Any = Settings
    for name in key.split("."):
        kind = _hints(kind).get(name) if dataclasses.is_dataclass(kind) else None
    return kind
