"""Models that are there already as rows: an imported checkpoint, or a run, asked what a study's columns ask.

Nothing is learned for such a row but heads. It is asked about the same images as the study's other rows, and its folder
is brought into the study's, so that its answers lie with theirs and the folder it came from is only read.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from cleft.config import dump_settings, load_run_settings
from cleft.errors import CheckpointError, CleftError, ConfigError
from cleft.files import write_json, write_whole
from cleft.models.bases import base_now
from cleft.models.checkpoint import compares_texts, is_image_only, read_settings, weights_digest
from cleft.models.image_classifier import head_facts
from cleft.models.model_folder import home_of, peek_description, read_folder, write_folder
from cleft.studies.plans import TINY, Model, Plan, Row
from cleft.studies.steps import Step
from cleft.training.run import carried_facts, is_run, read_summary
from cleft.training.sources import check_source

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
    if head_facts(folder) is not None:
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
        base=None if base is None else base_now(folder, str(base["name"])),
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
        description, home = read_folder(source), home_of(source)
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
    if is_image_only(description) or not compares_texts(description):
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
