"""Loading of settings: defaults, then a preset, then the command line; the last value counts.

YAML is read as plain text, without guessing types or running code. YAML 1.1 reads `4e-5` as text, `no` as false, `010`
as eight and `12:30` as 750, and accepts repeated keys; so scalars stay text until they are converted to the declared
type of their setting.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import shlex
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, cast

import yaml

from cleft.config.data_settings import choices_of, describe_kind, field_types, options_of, usual_split
from cleft.config.settings import Settings, declared_settings, flat_settings
from cleft.errors import ConfigError
from cleft.privacy import expand_user, find_path, hide_path
from cleft.text_rules import normalise, rule_for

Tree: TypeAlias = "str | list[Tree] | dict[str, Tree] | None"
"""Content of a YAML file: text, null, lists and mappings."""

PRESETS = Path(__file__).parents[1] / "presets"
"""Folder of the presets that come with the package."""

SETTINGS_MARK = "# Settings of a run, written by cleft; values that begin with local: are paths known to its user alone"
"""First line of a `config.yaml` written by cleft, which distinguishes a run from a folder of the user."""
_SETTINGS_END = "# End of the settings"
"""Last line of such a file: a copy that was truncated between two lines is valid YAML, with defaults for the rest."""

_Group = TypeVar("_Group")
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9_]*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def preset_names() -> list[str]:
    """Returns the names of the presets that come with the package, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_summaries() -> dict[str, str]:
    """Returns the first line of each preset by its name."""
    return {name: (PRESETS / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ") for name in preset_names()}


def load_settings(source: str | Path, overrides: str | Sequence[str] = ()) -> Settings:
    """Builds settings from a preset and command-line words.

    Args:
        source: Name of a preset, a YAML file, or the `config.yaml` of a run. A file may name another preset under
            `extends` and then holds only what differs from it.
        overrides: Command-line words such as `--text.rank 4` or `--text.rank=4`, as a list or as one line.

    Raises:
        ConfigError: If a key is unknown (with the nearest name and its line), a value is of the wrong type or
            contradicts another, or an override has no effect.
    """
    tree = _layers(_find(source), seen=())
    return _build_typed(tree, _words(overrides), where=f"{source}")


def load_run_settings(run: Path, overrides: Sequence[str] = ()) -> Settings:
    """Builds the settings of a run or a model folder, with command-line words applied on top.

    Raises:
        ConfigError: If the folder holds no settings; and as `load_settings`.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError(
            f"{run} is not a run folder: it holds no config.yaml; give a folder written by cleft pretrain, "
            f"cleft learn-context, cleft classify or cleft import"
        )
    return load_settings(run / "config.yaml", overrides)  # a folder may be called like a preset


def merge_overrides(settings: Settings, overrides: Sequence[str]) -> Settings:
    """Returns settings with command-line words such as `--data.root <folder>` applied on top."""
    return _build_typed(_plain(settings), _words(overrides), where="the command line")


def overridden_keys(overrides: Sequence[str]) -> frozenset[str]:
    """Returns the dotted names of the settings that command-line words set, such as `data.root`.

    Raises:
        ConfigError: If a word is no setting.
    """
    typed = _words(overrides)
    _check_keys(typed, {}, where="the command line", dashes="--")
    return frozenset(_dotted(typed))


def build_settings(tree: Mapping[str, Any], *, where: str) -> Settings:
    """Builds settings from a tree of plain values in a file, such as part of `plain_settings`; the rest are defaults.

    Args:
        tree: Groups of settings, as in a preset, also under former names.
        where: Name of the file, for messages.

    Raises:
        ConfigError: If a key is unknown, or a value is of the wrong type or contradicts another.
    """
    tree = _present_names(_here(tree))
    _check_keys(tree, {}, where=where)
    return _build(tree, where)


def _build_typed(tree: Mapping[str, Tree], typed: Mapping[str, Tree], where: str) -> Settings:
    """Builds settings from a tree and typed ones on top, each of which must have an effect."""
    _check_keys(typed, {}, where="the command line", dashes="--")
    settings = _build(_merge(tree, typed), where)
    _check_effect(_dotted(typed), settings)
    return settings


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Returns settings as a tree of JSON and YAML values, for files that may be shared.

    Paths that name a user, a machine or a folder elsewhere are hidden; see `cleft.privacy.hide_path`.
    """
    return {name: _hidden(_plain(value), value) for name, value in vars(settings).items()}


def dump_settings(settings: Settings) -> str:
    """Writes settings as YAML: complete, and loadable as a preset. Its first line is `SETTINGS_MARK`."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # four times as fast, where PyYAML was built with it
    text = yaml.dump(plain_settings(settings), Dumper=dumper, sort_keys=False, allow_unicode=True, width=100)
    return f"{SETTINGS_MARK}\n{text}{_SETTINGS_END}\n"


def nearest(name: str, known: Sequence[str]) -> str:
    """Returns `; did you mean 'x'?` for the most similar known name, or an empty text if none is similar."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def _find(source: str | Path) -> Path:
    """Returns the file of a preset, or of a path."""
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
    """Returns the tree of a file on top of the preset that it extends."""
    if path in seen:
        raise ConfigError(f"{path}: extends itself through {' and '.join(step.name for step in seen)}")
    file = read_yaml(path)
    is_of_run = _is_of_run(path)
    tree = cast("dict[str, Tree]", _here(file.tree))
    if is_of_run:
        tree = _present_names(tree)
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


def _is_of_run(path: Path) -> bool:
    """Returns whether settings were written by cleft; refuses a file that was truncated between two lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines[0] == SETTINGS_MARK and lines[-1] != _SETTINGS_END:
        raise ConfigError(
            f"{path}: line {len(lines)}: truncated: its last line, {_SETTINGS_END!r}, is missing; copy it again"
        )
    return lines[0] == SETTINGS_MARK or path.name == "config.yaml"


def _name_rule(path: Path, tree: dict[str, Tree]) -> None:
    """Adds the text rule to the settings of a run that was started before rules were recorded."""
    text, data = tree.get("text"), tree.get("data")
    if path.name != "config.yaml" or not isinstance(text, dict) or "max_tokens" not in text or "normalisation" in text:
        return
    data = data if isinstance(data, dict) else {}
    prefix = data.get("prompt_prefix")
    as_written = isinstance(prefix, str) and normalise(prefix, "words-1") != prefix
    texts = "whole" if as_written or data.get("texts") in ("bank", "medclip") else str(data.get("texts", "captions"))
    tree["text"] = {**text, "normalisation": rule_for(texts, version=1)}


def _merge(below: Mapping[str, Tree], above: Mapping[str, Tree]) -> dict[str, Tree]:
    """Merges mappings and replaces everything else, including a `scratch` model of another type."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and "model_type" not in value:
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _words(words: str | Sequence[str]) -> dict[str, Tree]:
    """Returns `--a.b value --c=value` as a tree."""
    tree: dict[str, Tree] = {}
    waiting = shlex.split(words) if isinstance(words, str) else list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"unexpected word {word!r}; settings are written --name value, such as --text.rank 4")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not waiting:
                raise ConfigError(f"--{name} has no value")
            value = waiting.pop(0)
        if not value.strip():
            raise ConfigError(f"--{name} is empty; give a value, or leave it out for that of the preset")
        place = tree
        *groups, leaf = name.split(".")
        for group in groups:
            deeper = place.setdefault(group, {})
            if not isinstance(deeper, dict):
                raise ConfigError(f"--{name}: --{group} has a value already")
            place = deeper
        place[leaf] = _read_word(value)
    return tree


def _read_word(value: str) -> Tree:
    """Reads a typed value as in a preset: `null`, a list `[a, b]`, or text."""
    if value == "null":
        return None
    value = expand_user(value)
    if value.startswith("[") and value.endswith("]"):
        return cast("Tree", split_list(value[1:-1]))
    return value


def _check_keys(tree: Mapping[str, Tree], lines: Mapping[str, int], *, where: str, dashes: str = "") -> None:
    """Refuses unknown settings and former names, and numbers that YAML would read as something else."""

    def walk(node: Mapping[str, Tree], kind: type, prefix: str) -> None:
        kinds = field_types(kind)
        for name, value in node.items():
            key = f"{prefix}{name}"
            place = f"{where}, line {lines[key]}" if key in lines else where
            if name not in kinds:
                raise ConfigError(f"{place}: {_explain_unknown(key, list(kinds), dashes)}")
            if dataclasses.is_dataclass(kinds[name]):
                if not isinstance(value, dict):
                    raise ConfigError(f"{place}: {dashes}{key}={value!r} is a group; name one of its settings")
                walk(value, cast(type, kinds[name]), f"{key}.")
            elif isinstance(value, str) and kinds[name] in (int, float) and not _NUMBER.fullmatch(value):
                raise ConfigError(f"{place}: {dashes}{key}={value!r} is not a number")
            elif isinstance(value, str) and value in declared_settings()[key].old_values:
                now = declared_settings()[key].old_values[value]
                raise ConfigError(f"{place}: {dashes}{key}={value} is now called {now}")

    walk(tree, Settings, "")


def _explain_unknown(key: str, siblings: list[str], dashes: str) -> str:
    """Suggests the new name of a renamed setting, or a similar one: same last part, same group, anywhere."""
    every = list(declared_settings())
    renamed = [each.key for each in declared_settings().values() if each.formerly == key]
    if renamed:
        return f"the setting {dashes}{key} is now called {dashes}{renamed[0]}"
    prefix, _, name = key.rpartition(".")
    same = [other for other in every if other.rpartition(".")[2] == name]
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    found = (
        same or [f"{prefix}.{near}".removeprefix(".") for near in close] or difflib.get_close_matches(key, every, n=1)
    )
    hint = f"; did you mean {found[0]}?" if found else f"; known here: {', '.join(siblings)}"
    return f"unknown setting {dashes}{key}{hint}"


def _present_names(tree: Mapping[str, Tree]) -> dict[str, Tree]:
    """Returns a tree with the present names of settings and choices that had others in earlier versions."""
    renamed = cast("dict[str, Tree]", _copy(tree))
    for each in declared_settings().values():
        if each.formerly is not None:
            group, name = _group_of(renamed, each.formerly)
            if group is not None and name in group:
                place, new = _group_of(renamed, each.key, make=True)
                assert place is not None
                place.setdefault(new, group.pop(name))
        if each.old_values:
            group, name = _group_of(renamed, each.key)
            if group is not None and isinstance(value := group.get(name), str):
                group[name] = each.old_values.get(value, value)
    return renamed


def _copy(tree: Any) -> Any:
    return {name: _copy(item) for name, item in tree.items()} if isinstance(tree, Mapping) else tree


def _group_of(tree: dict[str, Tree], key: str, *, make: bool = False) -> tuple[dict[str, Tree] | None, str]:
    """Returns the group that holds a dotted key, or None, and the last part of the key."""
    *groups, name = key.split(".")
    node: Any = tree
    for each in groups:
        node = node.setdefault(each, {}) if make else node.get(each) if isinstance(node, dict) else None
    return (node, name) if isinstance(node, dict) else (None, name)


def _build(tree: Mapping[str, Tree], where: str) -> Settings:
    """Converts a tree to the declared types and builds settings; contradictions are refused."""
    try:
        return _built(Settings(), tree, "")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _built(default: _Group, tree: Mapping[str, Tree], prefix: str) -> _Group:
    """Returns a group of settings, with the values of a tree in place of its defaults."""
    kinds = field_types(type(default))
    values: dict[str, Any] = {}
    for name, value in tree.items():
        if dataclasses.is_dataclass(kinds[name]):
            values[name] = _built(getattr(default, name), cast("dict[str, Tree]", value), f"{prefix}{name}.")
            continue
        try:
            values[name] = _converted(value, kinds[name])
        except (TypeError, ValueError):
            choices = choices_of(kinds[name])
            hint = nearest(str(value), choices) if choices else ""
            raise ConfigError(f"{prefix}{name}={value!r} must be {describe_kind(kinds[name])}{hint}") from None
    return dataclasses.replace(cast("Any", default), **values)


def _converted(value: Any, kind: Any) -> Any:
    """Converts text, or a value from JSON, to a declared type.

    Raises:
        TypeError, ValueError: If it does not hold one.
    """
    origin, items = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        for option in options_of(kind):
            try:
                return _converted(value, option)
            except (TypeError, ValueError):
                continue
    elif origin is Literal or kind is types.NoneType:
        if value in (items or (None, "null")):
            return value if items else None
    elif origin is tuple:
        values = split_list(value) if isinstance(value, str) else value
        if isinstance(values, list | tuple):
            return tuple(_converted(item, each) for item, each in _paired(cast("Sequence[Any]", values), items))
    elif origin is Mapping:
        value = _read_mapping(value) if isinstance(value, str) else value
        if isinstance(value, dict):
            return _scalars(cast("Tree", value))
    elif isinstance(value, str):
        if kind is bool:
            if value.lower() in _BOOLEANS:
                return _BOOLEANS[value.lower()]
        elif kind not in (int, float) or _NUMBER.fullmatch(value):
            return kind(value)
    elif type(value) in ((float, int) if kind is float else (kind,)):
        return kind(value)
    raise ValueError(value)


_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _read_mapping(text: str) -> Tree:
    """Reads a mapping that was typed as in a preset, or as JSON: `{model_type: vit, hidden_size: 64}`."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(text) from error
    return None if root is None else _yaml_value(root, Path("the command line"), "", {})


def _paired(values: Sequence[Any], kinds: tuple[Any, ...]) -> Iterable[tuple[Any, Any]]:
    repeated = kinds[-1] is Ellipsis
    return zip(values, [kinds[0]] * len(values) if repeated else kinds, strict=True)


def _scalars(value: Tree) -> Any:
    """Converts the scalars of a free mapping, such as the options of a model trained from scratch."""
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


def _check_effect(typed: Mapping[str, Any], settings: Settings) -> None:
    """Refuses typed settings that have no effect."""
    values = flat_settings(settings) | {"data.split": settings.data.split or usual_split(settings.data.dataset)}
    for key in typed:
        declared = declared_settings()[key]
        for condition in declared.used_with:
            if all(values[other] not in (None, *allowed) for other, allowed in condition.items()):
                other, allowed = next(iter(condition.items()))
                raise ConfigError(
                    f"--{key} does nothing here: {other} is {values[other]!r}, and it is used only with "
                    f"{' or '.join(map(str, allowed))}; leave it out or set --{other}"
                )
        for other in declared.overruled_by:
            if values[other] is not None:
                raise ConfigError(
                    f"--{key} does nothing here: {other} is {str(values[other])!r}, which decides in its place; leave "
                    f"it out, or set --{other} null"
                )


def _plain(value: Any) -> Any:
    """Returns dataclasses, tuples and paths as YAML values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    return str(value) if isinstance(value, Path) else value


def _hidden(tree: Any, value: Any) -> Any:
    """Returns the tree that `_plain` made of a value, with private paths hidden.

    Texts may be paths too, such as the folder of a language model or a file of class names.
    """
    if isinstance(tree, dict) and dataclasses.is_dataclass(value):
        return {name: _hidden(item, getattr(value, name)) for name, item in cast("dict[str, Any]", tree).items()}
    if isinstance(tree, str) and (isinstance(value, Path) or os.path.isabs(tree) or ".." in Path(tree).parts):
        return hide_path(tree)
    return tree


def _here(value: Any) -> Any:
    """Returns a tree from a file with hidden paths resolved, as far as known on this machine, and `~` expanded."""
    if isinstance(value, dict):
        return {name: _here(item) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_here(item) for item in cast("list[Any]", value)]
    return expand_user(find_path(value)) if isinstance(value, str) else value


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a tree of groups as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{name}" not in declared_settings():
            flat |= _dotted(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


_ITEM = re.compile(r"""\s*(?:"((?:[^"]|"")*)"|'((?:[^']|'')*)'|([^,]*))\s*(,|$)""")


def split_list(text: str) -> list[str]:
    """Returns the values of a comma-separated list, stripped; empty ones are left out.

    Raises:
        ConfigError: If a quote is not closed or something follows it.

    Example:
        >>> split_list('"Effusion, left", Edema'), split_list("Crohn's disease,'a, b'")
        (['Effusion, left', 'Edema'], ["Crohn's disease", 'a, b'])
    """
    values: list[str] = []
    place = 0
    while place < len(text):
        found = _ITEM.match(text, place)
        bare = "" if found is None or found[3] is None else found[3].strip()
        if found is None or bare[:1] in ('"', "'"):
            raise ConfigError(
                f'{text!r}: a quote is not closed, or text follows it; write "Effusion, left",Edema, each quote '
                f"within a quoted value twice"
            )
        double, single = found[1], found[2]
        value = double.replace('""', '"') if double is not None else single.replace("''", "'") if single else bare
        if value.strip():
            values.append(value.strip())
        place = found.end()
    return values


def join_list(values: Iterable[str]) -> str:
    """Returns values as a comma-separated list that `split_list` reads.

    Example:
        >>> join_list(["Effusion, left", "Edema"])
        '"Effusion, left",Edema'
    """
    return ",".join(
        '"' + value.replace('"', '""') + '"' if "," in value or value[:1] in ('"', "'") else value for value in values
    )


_PLAIN_TAGS = ("tag:yaml.org,2002:", "!")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The C loader, where available, is ten times as fast."""


@dataclass(frozen=True)
class YamlFile:
    """Tree of a file, and the line of each dotted key."""

    tree: dict[str, Tree]
    lines: dict[str, int]


def read_yaml(path: Path) -> YamlFile:
    """Reads a mapping from a YAML file, without running code or guessing types.

    Raises:
        ConfigError: If the file is absent or empty, is not UTF-8 or not YAML, repeats a key, or uses aliases or tags.
    """
    try:
        text = path.read_text(encoding="utf-8")
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"{path}: line {event.start_mark.line + 1}: write the values out; no aliases (*)")
        root = yaml.compose(text, Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if root is None:
        raise ConfigError(f"{path}: is empty; a preset holds at least one setting")
    lines: dict[str, int] = {}
    tree = _yaml_value(root, path, "", lines)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds no mapping of settings but {type(tree).__name__}")
    return YamlFile(tree, lines)


def _yaml_value(node: yaml.Node, path: Path, key: str, lines: dict[str, int]) -> Tree:
    line = node.start_mark.line + 1
    tag = str(node.tag)
    if not tag.startswith(_PLAIN_TAGS) or "python" in tag:
        raise ConfigError(f"{path}: line {line}: the tag {tag!r} is not allowed; write a plain value")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Tree] = {}
        for name_node, value_node in node.value:
            name = str(name_node.value)
            dotted = f"{key}.{name}" if key else name
            if name in mapping:
                raise ConfigError(f"{path}: line {name_node.start_mark.line + 1}: {dotted} is repeated")
            lines[dotted] = name_node.start_mark.line + 1
            mapping[name] = _yaml_value(value_node, path, dotted, lines)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_yaml_value(item, path, key, lines) for item in node.value]
    if tag == "tag:yaml.org,2002:null":
        return None
    return str(node.value)
