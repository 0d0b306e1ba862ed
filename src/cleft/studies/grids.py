"""A grid of one's own: a YAML file of rows, each a preset and what differs from it, and of columns, the questions.

```yaml
title: How many ranks
columns: [chexpert/zero-shot, chexpert/linear-probe/0.1]
against: rank-16
rows:
  rank-4: {preset: small, text: {adapt: lora, rank: 4}}
  rank-16: {preset: small, label: rank 16, text: {adapt: lora, rank: 16}}
  without: {stage_one: rank-16, stage_two: false, label: rank 16 without stage two}
  longer: {stage_one: rank-16, context: {length: 60}}
models:
  MGCA (published): models/mgca
```

`models` are folders of models that are there already, each a row under its label; with them a grid needs no rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cleft.config.loading import load_settings, nearest
from cleft.config.yaml_tree import Tree, read_yaml
from cleft.errors import ConfigError
from cleft.studies.models import add_models, model_key
from cleft.studies.plans import Plan, Row, Scale, column

_KEYS = ("title", "columns", "against", "rows", "models")
_ROW_KEYS = ("preset", "label", "stage_one", "stage_two")
"""What a row says beside its settings. `stage_two: false` asks with handwritten prompts."""
_OF_STAGE_TWO = ("context", "classes", "wording")
"""Settings in which rows may differ that share a stage one."""


def read_grid(path: Path, *, scale: Scale = "paper") -> Plan:
    """Reads a grid.

    Args:
        path: The file; folders in it are relative to where the command is typed.
        scale: Whether balanced sets and the paper's protocol are asked for.

    Raises:
        ConfigError: If the file is not as above, a preset or setting is unknown (with the nearest name and the row), or
            a column is no question.
        CheckpointError: If the folder of a model holds none, or a damaged or unfinished one.
    """
    file = read_yaml(path)
    for key in file.tree:
        if key not in _KEYS:
            raise ConfigError(
                f"{path}, line {file.lines[key]}: a grid has no {key!r}{nearest(key, _KEYS)}; it holds "
                f"{', '.join(_KEYS)}"
            )
    rows, columns, models = file.tree.get("rows", {}), file.tree.get("columns"), file.tree.get("models", {})
    if (
        not isinstance(rows, dict)
        or not isinstance(models, dict)
        or not (rows or models)
        or not isinstance(columns, list)
        or not columns
    ):
        raise ConfigError(
            f"{path}: a grid needs rows, each a preset and its settings, or models, each a label and its folder, and a "
            f"list of columns such as [chexpert/zero-shot]"
        )
    made: dict[str, Row] = {}
    for key, tree in rows.items():
        try:
            made[key] = _row(key, tree, made)
        except ConfigError as error:
            raise ConfigError(f"{path}, line {file.lines[f'rows.{key}']}: row {key}: {error}") from error
    try:
        questions = tuple(column(str(text)) for text in columns)
    except ConfigError as error:
        raise ConfigError(f"{path}, line {file.lines['columns']}: {error}") from error
    twice = next((each.key for number, each in enumerate(questions) if each in questions[:number]), None)
    if twice is not None:
        raise ConfigError(f"{path}, line {file.lines['columns']}: column {twice!r} stands twice; leave one of them out")
    title, reference = file.tree.get("title"), str(file.tree.get("against", ""))
    reference = model_key(reference) if reference in models else reference
    plan = Plan(
        name=path.stem,
        title=title if isinstance(title, str) else path.stem,
        rows=tuple(made.values()),
        columns=questions,
        scale=scale,
        reference=reference,
    )
    for label, folder in models.items():
        what = f"{path}, line {file.lines[f'models.{label}']}: models:"
        if not isinstance(folder, str):
            raise ConfigError(f"{what} {label!r}: name its folder, such as {label}: models/theirs")
        plan = add_models(plan, [(label, Path(folder).expanduser())], what=what)
    known = [row.key for row in plan.rows]
    if reference not in ("", *known):
        raise ConfigError(
            f"{path}, line {file.lines['against']}: against: there is no row {reference!r}{nearest(reference, known)}"
        )
    return plan


def _row(key: str, tree: Tree, known: Mapping[str, Row]) -> Row:
    if not re.fullmatch(r"[\w.-]+", key) or key.startswith("."):
        raise ConfigError(f"{key!r} names a folder too; use letters, digits, dots and dashes")
    if not isinstance(tree, dict):
        raise ConfigError("write its preset and what differs, such as {preset: small, text: {rank: 4}}")
    base = _base(tree, known)
    words = (*base.words, *_words({name: value for name, value in tree.items() if name not in _ROW_KEYS}))
    label, context = tree.get("label"), tree.get("stage_two", "true")
    if context not in ("true", "false"):
        raise ConfigError(f"stage_two={context!r} must be true or false")
    settings = load_settings(base.preset, words)
    return replace(
        base,
        key=key,
        label=label if isinstance(label, str) else key,
        words=words,
        context=context == "true",
        speaks=settings.method not in ("image-only", "mrm"),
        trains=settings.method != "image-only",
    )


def _base(tree: Mapping[str, Tree], known: Mapping[str, Row]) -> Row:
    """A row of a preset, or one that goes on from another row's stage one."""
    preset, other = tree.get("preset"), tree.get("stage_one")
    if isinstance(other, str) and preset is None:
        if other not in known:
            raise ConfigError(f"stage_one: there is no row {other!r} above{nearest(other, list(known))}")
        strange = [name for name in tree if name not in (*_ROW_KEYS, *_OF_STAGE_TWO)]
        if strange:
            raise ConfigError(
                f"{strange[0]}: goes on from the stage one of {other!r} and cannot differ in that; "
                f"give it a preset of its own"
            )
        base = known[other]
        if base.stage_one is not None:
            raise ConfigError(f"stage_one: row {other!r} goes on from {base.stage_one!r} itself; name that one")
        return replace(base, stage_one=other, stage_one_words=base.words)
    if not isinstance(preset, str) or other is not None:
        raise ConfigError("give a preset, or the row whose stage one it goes on from as stage_one; one of them")
    return Row(key="", label="", preset=preset)


def _words(tree: Mapping[str, Tree], prefix: str = "") -> list[str]:
    """A tree of settings as it would be typed."""
    words: list[str] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            words += _words(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            words.append(f"--{prefix}{name}=[{', '.join(map(str, value))}]")
        else:
            words.append(f"--{prefix}{name}={'null' if value is None else value}")
    return words
