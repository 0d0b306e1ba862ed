"""Studies defined in a YAML file (a grid), and existing models as additional rows.

A row is a preset with overrides, a column an evaluation:

```yaml
title: How many ranks
columns: [chexpert/zero-shot, chexpert/linear-probe/0.1]
reference: rank-16
rows:
  rank-4: {preset: small, text: {adapt: lora, rank: 4}}
  rank-16: {preset: small, label: rank 16, text: {adapt: lora, rank: 16}}
  without: {stage_one: rank-16, stage_two: false, label: rank 16 without stage two}
  longer: {stage_one: rank-16, context: {length: 60}}
models:
  MGCA (published): models/mgca
```

`models` are folders of existing models, imported checkpoints or runs, each a row with its label; a grid with models
needs no rows. Only classifiers are trained for such a row. The model is linked into the folder of the study, with its
results; its own folder is only read.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from cleft.config import Tree, dump_settings, load_run_settings, read_yaml
from cleft.config.loading import load_settings, nearest
from cleft.errors import CheckpointError, CleftError, ConfigError
from cleft.files import write_whole
from cleft.models.checkpoint import has_joint_space, is_image_only, locate_base, read_settings, weights_digest
from cleft.models.model_folder import find_files, peek_description, read_folder, read_head_info, write_folder
from cleft.strict_json import write_json
from cleft.studies.plans import TINY_PRESET, Model, Plan, Row, Scale, column
from cleft.studies.steps import Step
from cleft.training.provenance import inherited_split, read_summary
from cleft.training.run_folder import check_source, is_run

_GRID_KEYS = ("title", "columns", "reference", "rows", "models")
_FORMER_KEYS = {"against": "reference"}
_ROW_KEYS = ("preset", "label", "stage_one", "stage_two")
"""Keys of a row besides its settings. `stage_two: false` evaluates with handwritten prompts."""
_STAGE_TWO_SETTINGS = ("context", "classes", "class_names")
"""Settings in which rows with the same stage one may differ."""


def read_grid(path: Path, *, scale: Scale = "paper") -> Plan:
    """Read a grid.

    Args:
        path: YAML file; folders in it are relative to the working directory.
        scale: `paper` uses balanced test sets and the paper's protocol.

    Raises:
        ConfigError: If the file is not as above, a preset or setting is unknown (names the row and the nearest name),
            or a column is not an evaluation.
        CheckpointError: If the folder of a model has none, or a damaged or unfinished one.
    """
    file = read_yaml(path)
    for key in file.tree:
        if key not in _GRID_KEYS:
            current = _FORMER_KEYS.get(key)
            hint = f"; it is now called {current!r}" if current else nearest(key, _GRID_KEYS)
            raise ConfigError(
                f"{path}, line {file.lines[key]}: unknown key {key!r}{hint}; the keys of a grid are "
                f"{', '.join(_GRID_KEYS)}"
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
            f"{path}: a grid needs rows (a preset and settings each) or models (a label and a folder each), and a list "
            f"of columns such as [chexpert/zero-shot]"
        )
    parsed: dict[str, Row] = {}
    for key, tree in rows.items():
        try:
            parsed[key] = _row(key, tree, parsed)
        except ConfigError as error:
            raise ConfigError(f"{path}, line {file.lines[f'rows.{key}']}: row {key}: {error}") from error
    try:
        parsed_columns = tuple(column(str(text)) for text in columns)
    except ConfigError as error:
        raise ConfigError(f"{path}, line {file.lines['columns']}: {error}") from error
    twice = next((each.key for number, each in enumerate(parsed_columns) if each in parsed_columns[:number]), None)
    if twice is not None:
        raise ConfigError(f"{path}, line {file.lines['columns']}: column {twice!r} is listed twice; remove one of them")
    title, reference = file.tree.get("title"), str(file.tree.get("reference", ""))
    reference = model_key(reference) if reference in models else reference
    plan = Plan(
        name=path.stem,
        title=title if isinstance(title, str) else path.stem,
        rows=tuple(parsed.values()),
        columns=parsed_columns,
        scale=scale,
        reference=reference,
    )
    for label, folder in models.items():
        what = f"{path}, line {file.lines[f'models.{label}']}: models:"
        if not isinstance(folder, str):
            raise ConfigError(f"{what} {label!r}: give its folder, such as {label}: models/published")
        plan = add_models(plan, [(label, Path(folder).expanduser())], what=what)
    keys = [row.key for row in plan.rows]
    if reference not in ("", *keys):
        raise ConfigError(
            f"{path}, line {file.lines['reference']}: reference: no row {reference!r}{nearest(reference, keys)}"
        )
    return plan


def _row(key: str, tree: Tree, rows: Mapping[str, Row]) -> Row:
    if not re.fullmatch(r"[\w.-]+", key) or key.startswith("."):
        raise ConfigError(f"{key!r} is also a folder name; use letters, digits, dots and dashes")
    if not isinstance(tree, dict):
        raise ConfigError("give its preset and settings, such as {preset: small, text: {rank: 4}}")
    base = _base(tree, rows)
    overrides = (*base.overrides, *_overrides({name: value for name, value in tree.items() if name not in _ROW_KEYS}))
    label, stage_two = tree.get("label"), tree.get("stage_two", "true")
    if stage_two not in ("true", "false"):
        raise ConfigError(f"stage_two={stage_two!r} must be true or false")
    settings = load_settings(base.preset, overrides)
    return replace(
        base,
        key=key,
        label=label if isinstance(label, str) else key,
        overrides=overrides,
        learns_context=stage_two == "true",
        zero_shot=settings.method not in ("image-only", "mrm"),
        pretrains=settings.method != "image-only",
    )


def _base(tree: Mapping[str, Tree], rows: Mapping[str, Row]) -> Row:
    """Return a row of a preset, or one that uses the stage one of another row."""
    preset, other = tree.get("preset"), tree.get("stage_one")
    if isinstance(other, str) and preset is None:
        if other not in rows:
            raise ConfigError(f"stage_one: there is no row {other!r} above{nearest(other, list(rows))}")
        fixed = [name for name in tree if name not in (*_ROW_KEYS, *_STAGE_TWO_SETTINGS)]
        if fixed:
            raise ConfigError(
                f"{fixed[0]}: cannot differ from row {other!r}, whose stage one it uses; give a preset instead of "
                f"stage_one"
            )
        base = rows[other]
        if base.stage_one_of is not None:
            raise ConfigError(
                f"stage_one: row {other!r} itself uses the stage one of {base.stage_one_of!r}; name that row"
            )
        return replace(base, stage_one_of=other, stage_one_overrides=base.overrides)
    if not isinstance(preset, str) or other is not None:
        raise ConfigError("give either a preset, or the row whose stage one it uses as stage_one")
    return Row(key="", label="", preset=preset)


def _overrides(tree: Mapping[str, Tree], prefix: str = "") -> list[str]:
    """Return a tree of settings as command-line overrides."""
    overrides: list[str] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            overrides += _overrides(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            overrides.append(f"--{prefix}{name}=[{', '.join(map(str, value))}]")
        else:
            overrides.append(f"--{prefix}{name}={'null' if value is None else value}")
    return overrides


MODELS_HEADING = "imported models"
_NO_TEXT_ENCODER = "no text encoder"


def add_models(plan: Plan, models: Iterable[tuple[str, Path]], *, what: str = "--model") -> Plan:
    """Add existing models to a study as rows.

    Data, split, classes and classifier settings are those of the reference row, or else of the first.

    Args:
        plan: Study of the paper, or grid.
        models: Label and folder of each model.
        what: Where they were given, for messages.

    Raises:
        ConfigError: If a label is empty or taken, or a folder is that of a study or of a classifier.
        CheckpointError: If a folder is not a model, is damaged, or is an unfinished run.
    """
    rows = list(plan.rows)
    template = next((row for row in rows if row.key == plan.reference), rows[0] if rows else _default_row(plan))
    for label, folder in models:
        key = model_key(label)
        if not key:
            raise ConfigError(f"{what} {label!r} for {folder}: the label needs a letter or a digit")
        taken = next((row for row in rows if key == row.key or label.casefold() == row.label.casefold()), None)
        if taken is not None:
            raise ConfigError(
                f"{what} {label!r}: {_conflict(taken, label, plan)}; give {folder} another label, as <label>=<folder>"
            )
        try:
            model = read_imported_model(folder)
        except CleftError as error:
            raise type(error)(f"{what} {label!r}: {error}") from error
        rows.append(
            replace(
                template,
                key=key,
                label=label,
                heading=MODELS_HEADING,
                folder=f"{key}-{model.weights[:8]}",
                stage_one_of=None,
                stage_one_overrides=(),
                learns_context=False,  # zero-shot uses the learned context of the model, if any
                zero_shot=not model.no_zero_shot,
                pretrains=False,
                match_preset=None,
                model=model,
            )
        )
    return replace(plan, rows=tuple(rows))


def model_key(label: str) -> str:
    """Return the row key of a label, which is also a folder name.

    Example:
        >>> model_key("MGCA (published)")
        'mgca-published'
    """
    return re.sub(r"[^\w.]+", "-", label.casefold()).strip("-._")


def parse_models(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """Parse `label=folder`; the label of a folder alone is its name.

    Raises:
        ConfigError: If a label or a folder is empty.
    """
    models: list[tuple[str, Path]] = []
    for text in texts:
        label, equals, folder = text.partition("=")
        if not equals or Path(text).expanduser().is_dir():
            label, folder = Path(text).expanduser().resolve().name, text
        if not label.strip() or not folder:
            raise ConfigError(f"--model {text!r} is not a label and a folder; write --model '<label>=<folder>'")
        models.append((label.strip(), Path(folder).expanduser()))
    return models


def read_imported_model(folder: Path) -> Model:
    """Read a model folder and check its files.

    Raises:
        ConfigError: If it is the folder of a study or of a classifier.
        CheckpointError: If it is not a model, is damaged, or is an unfinished run.
    """
    if (folder / "study.json").is_file():
        raise ConfigError(
            f"{folder} is a study; give one of its models, such as "
            f"{folder / 'runs' / 'cleft-lora' / 'seed-0' / 'context'}"
        )
    if read_head_info(folder) is not None:
        raise ConfigError(f"{folder} is a classifier on the image encoder of another run; give that run")
    if (folder / "config.yaml").is_file():
        settings = load_run_settings(folder)
        check_source(folder, settings, folder / "row", what="a row")
        weights = weights_digest(folder)
        description = peek_description(folder)
    else:
        weights = weights_digest(folder)
        description = peek_description(folder)
        settings = read_settings(folder, description, tuple(cast("dict[str, Any]", description.get("settings", {}))))
    base: Any = description.get("base")
    return Model(
        folder=folder,
        weights=weights,
        settings=settings,
        origin=_origin(folder, description, settings.seed),
        no_zero_shot=_no_zero_shot(description),
        base_model=None if base is None else locate_base(folder, str(base["name"])),
    )


def import_model(step: Step) -> Path:
    """Link a model into the folder of a study, with the study's settings for data, classes and classifiers.

    Files are copied if they cannot be linked.

    Raises:
        CheckpointError: If the folder is damaged, or its weights changed since the study was planned.
        ConfigError: If its place in the study is taken by another folder.
        ResourceError: If the disk is full or cannot be written.
    """
    assert step.model is not None
    source, folder, weights = step.model.folder, step.folder, step.model.weights
    if (folder / "config.yaml").is_file() and not is_run(folder):
        raise ConfigError(f"{folder} exists and is not a model of the study; move it away, or choose another --out")
    summary = read_summary(folder)
    if summary is None or weights_digest(folder) != weights:
        description, home = read_folder(source), find_files(source)
        names = list(cast("dict[str, Any]", description["files"]))
        write_folder(folder, description, lambda stage: _link_files(home, stage, names))
        if weights_digest(folder) != weights:
            raise CheckpointError(f"the weights in {source} changed while they were read; run the same command again")
    write_whole(folder / "config.yaml", dump_settings(step.settings), mode=None)
    if (facts := inherited_split(source)) is not None:  # its training patients
        write_json(folder / "split.json", facts)
    write_json(folder / "summary.json", {**(read_summary(source) or {}), "weights": weights})
    return folder


def _link_files(source: Path, stage: Path, names: Iterable[str]) -> None:
    for name in names:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, stage / name)
        except OSError:
            shutil.copyfile(source / name, stage / name)


def _default_row(plan: Plan) -> Row:
    """Return the row that sets data and classifiers of a grid without rows."""
    return Row(key="", label="", preset=TINY_PRESET if plan.scale == "tiny" else "cleft-paper")


def _conflict(row: Row, label: str, plan: Plan) -> str:
    if row.model is None:
        return f"{plan.name} already has a row {row.label!r} ({row.key})"
    return f"it is also the label of {row.model.folder}" if row.label == label else f"it is the same as {row.label!r}"


def _no_zero_shot(description: dict[str, Any]) -> str:
    if is_image_only(description) or not has_joint_space(description):
        return _NO_TEXT_ENCODER
    if description.get("token_ids"):
        return "its tokenizer is unknown; import it again with --tokenizer <folder>"
    return ""


def _origin(folder: Path, description: dict[str, Any], seed: int) -> str:
    """Describe the origin of a model, without paths because pages are shared."""
    parts = folder.resolve().parts
    name = " ".join(parts[-3:]) if parts[-2:-1] and parts[-2].startswith("seed-") else parts[-1]  # a run of a study
    extra = cast("dict[str, Any]", description.get("extra") or {})
    imported: Any = extra.get("imported")
    if isinstance(imported, dict):
        facts = cast("dict[str, Any]", imported)
        source = f"a checkpoint of {facts.get('method', 'the authors')}"
        sha = str(facts.get("sha256", ""))[:12]
        return f"{name}: imported from {facts.get('file')} (SHA-256 {sha}…), {source}"
    return f"{name}: a run of the method {description.get('method', 'cleft')}, seed {seed}"
