"""YAML as plain text in a tree: no types guessed, no code run, every key with its line.

YAML 1.1 reads `4e-5` as text, `no` as false, `010` as eight and `12:30` as 750, and lets a repeated key win
in silence. So scalars stay the text that was written, and `config.loading` types them by the settings' tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

from cleft.errors import ConfigError

Tree: TypeAlias = "str | list[Tree] | dict[str, Tree] | None"
"""What a YAML file holds: text, nothing, lists and mappings."""

_PLAIN_TAGS = ("tag:yaml.org,2002:", "!")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C, where PyYAML was built with it, is ten times as fast."""


@dataclass(frozen=True)
class YamlFile:
    """A file's tree and the line of each dotted key."""

    tree: dict[str, Tree]
    lines: dict[str, int]


def read_yaml(path: Path) -> YamlFile:
    """Reads a mapping from a YAML file without running or guessing anything.

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
    tree = _plain(root, path, "", lines)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds no mapping of settings but {type(tree).__name__}")
    return YamlFile(tree, lines)


def _plain(node: yaml.Node, path: Path, key: str, lines: dict[str, int]) -> Tree:
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
                raise ConfigError(f"{path}: line {name_node.start_mark.line + 1}: {dotted} stands here a second time")
            lines[dotted] = name_node.start_mark.line + 1
            mapping[name] = _plain(value_node, path, dotted, lines)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path, key, lines) for item in node.value]
    if tag == "tag:yaml.org,2002:null":
        return None
    return str(node.value)
