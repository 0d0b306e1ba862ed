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
from cleft.models.image_classifier import read_head_info
from cleft.models.model_folder import find_files, peek_description, read_folder, write_folder
from cleft.strict_json import write_json
from cleft.studies.plans import TINY, Model, Plan, Row, Scale, column
from cleft.studies.steps import Step
from cleft.training.provenance import carried_facts, read_summary
from cleft.training.run_folder import check_source, is_run

_KEYS = ("title", "columns", "against", "rows", "models")
_ROW_KEYS = ("preset", "label", "stage_one", "stage_two")
"""What a row says beside its settings. `stage_two: false` asks with handwritten prompts."""
_OF_STAGE_TWO = ("context", "classes", "class_names")
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


HEADING = "your models: as they were given"
_NO_SENTENCES = "it reads no sentences"


def add_models(plan: Plan, models: Iterable[tuple[str, Path]], *, what: str = "--model") -> Plan:
    """A plan with further rows: models that are there already.

    Of the row that the others are held against, or else of the first, they take which data are read and how they are
    split, which classes are told apart and how heads are trained.

    Args:
        plan: Of a table, a figure or a grid.
        models: Label and folder of each.
        what: Where they were named, for messages.

    Raises:
        ConfigError: If a label is empty or taken, or a folder is that of a study or of a head.
        CheckpointError: If a folder is no model, is damaged, or is a run that is not finished.
    """
    rows = list(plan.rows)
    like = next((row for row in rows if row.key == plan.reference), rows[0] if rows else _usual(plan))
    for label, folder in models:
        key = model_key(label)
        if not key:
            raise ConfigError(f"{what} {label!r} for {folder}: give the row a label with a letter or a digit in it")
        taken = next((row for row in rows if key == row.key or label.casefold() == row.label.casefold()), None)
        if taken is not None:
            raise ConfigError(
                f"{what} {label!r}: {_whose(taken, label, plan)}; give {folder} a label of its own, as <label>=<folder>"
            )
        try:
            model = read_model(folder)
        except CleftError as error:
            raise type(error)(f"{what} {label!r}: {error}") from error
        rows.append(
            replace(
                like,
                key=key,
                label=label,
                heading=HEADING,
                home=f"{key}-{model.weights[:8]}",
                stage_one=None,
                stage_one_words=(),
                context=False,  # zero-shot takes a learned context where the model has one
                speaks=not model.mute,
                trains=False,
                like=None,
                model=model,
            )
        )
    return replace(plan, rows=tuple(rows))


def model_key(label: str) -> str:
    """A label as a row's key, which names a folder too.

    Example:
        >>> model_key("MGCA (published)")
        'mgca-published'
    """
    return re.sub(r"[^\w.]+", "-", label.casefold()).strip("-._")


def labelled_folders(words: Sequence[str]) -> list[tuple[str, Path]]:
    """`label=folder` as typed; a folder alone is labelled by its name.

    Raises:
        ConfigError: If a label or a folder is empty.
    """
    found: list[tuple[str, Path]] = []
    for word in words:
        label, equals, folder = word.partition("=")
        if not equals or Path(word).expanduser().is_dir():
            label, folder = Path(word).expanduser().resolve().name, word
        if not label.strip() or not folder:
            raise ConfigError(f"--model {word!r} is not a label and a folder; write --model '<label>=<folder>'")
        found.append((label.strip(), Path(folder).expanduser()))
    return found


def read_model(folder: Path) -> Model:
    """What a model folder holds, its files checked.

    Raises:
        ConfigError: If it is the folder of a study or of a head.
        CheckpointError: If it is no model, is damaged, or is a run that is not finished.
    """
    if (folder / "study.json").is_file():
        raise ConfigError(
            f"{folder} is the folder of a study; give one of the models in it, such as "
            f"{folder / 'runs' / 'cleft-lora' / 'seed-0' / 'context'}"
        )
    if read_head_info(folder) is not None:
        raise ConfigError(f"{folder} is a head on the tower of another run; give the run of that tower")
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
        mute=_mute(description),
        base=None if base is None else locate_base(folder, str(base["name"])),
    )


def adopt(step: Step) -> Path:
    """Brings a model into a study's folder, with the study's settings for data, classes and heads.

    Its files are linked, or copied where the disk is another.

    Raises:
        CheckpointError: If the folder is damaged, or holds other weights than when the study was planned.
        ConfigError: If its place in the study holds a folder of the user's.
        ResourceError: If the disk is full or cannot be written.
    """
    assert step.model is not None
    source, folder, weights = step.model.folder, step.folder, step.model.weights
    if (folder / "config.yaml").is_file() and not is_run(folder):
        raise ConfigError(f"{folder} is in the way of a model of the study; move it away, or choose another --out")
    summary = read_summary(folder)
    if summary is None or weights_digest(folder) != weights:
        description, home = read_folder(source), find_files(source)
        names = list(cast("dict[str, Any]", description["files"]))
        write_folder(folder, description, lambda stage: _bring(home, stage, names))
        if weights_digest(folder) != weights:
            raise CheckpointError(f"{source} holds other weights than a moment ago; run the same command again")
    write_whole(folder / "config.yaml", dump_settings(step.settings), mode=None)
    if (facts := carried_facts(source)) is not None:  # whom it was trained on
        write_json(folder / "split.json", facts)
    write_json(folder / "summary.json", {**(read_summary(source) or {}), "weights": weights})
    return folder


def _bring(source: Path, stage: Path, names: Iterable[str]) -> None:
    for name in names:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, stage / name)
        except OSError:
            shutil.copyfile(source / name, stage / name)


def _usual(plan: Plan) -> Row:
    """What a grid without rows takes data and heads from."""
    return Row(key="", label="", preset=TINY if plan.scale == "tiny" else "cleft-paper")


def _whose(row: Row, label: str, plan: Plan) -> str:
    if row.model is None:
        return f"{plan.name} has a row {row.label!r} ({row.key})"
    return f"it stands twice, for {row.model.folder} too" if row.label == label else f"it is read as {row.label!r}"


def _mute(description: dict[str, Any]) -> str:
    if is_image_only(description) or not has_joint_space(description):
        return _NO_SENTENCES
    if description.get("token_ids"):
        return "it reads token ids and no sentences; import it again with --tokenizer <folder>"
    return ""


def _origin(folder: Path, description: dict[str, Any], seed: int) -> str:
    """Where a model comes from: no path, for pages travel."""
    parts = folder.resolve().parts
    name = " ".join(parts[-3:]) if parts[-2:-1] and parts[-2].startswith("seed-") else parts[-1]  # of a study's run
    extra = cast("dict[str, Any]", description.get("extra") or {})
    imported: Any = extra.get("imported")
    if isinstance(imported, dict):
        facts = cast("dict[str, Any]", imported)
        whose = f"a checkpoint of {facts.get('method', 'the authors')}"
        sha = str(facts.get("sha256", ""))[:12]
        return f"{name}: imported from {facts.get('file')} (SHA-256 {sha}…), {whose}"
    return f"{name}: a run of the method {description.get('method', 'cleft')}, seed {seed}"
