"""Which settings may change when a run goes on, and which would make it another run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from cleft.config import Settings, load_settings
from cleft.data import recipe_of
from cleft.errors import CheckpointError, ConfigError
from cleft.training.provenance import Stage, stage_of


class Role(Enum):
    """What a change of a setting does to a run that has begun."""

    DECIDES = "another result in every stage"
    DECIDES_PRETRAIN = "another result in stage one alone"
    DECIDES_CONTEXT = "another result in stage two alone"
    DECIDES_CLASSIFY = "another result in classification alone"
    DECIDES_READING = "another result where images are read anew: in stage one and in classification"
    DECIDES_ANSWERS = "another result where classes are told apart: in stage two and in classification"
    ROUNDS = "the same result but for rounding"
    HARMLESS = "the same result"


ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "method": Role.DECIDES_PRETRAIN,
        "seed": Role.DECIDES,
        "classes": Role.DECIDES_ANSWERS,
        "wording": Role.DECIDES_CONTEXT,
        "data.dataset": Role.DECIDES,
        "data.root": Role.HARMLESS,  # a folder may move; what it holds is compared by digest
        "data.table": Role.DECIDES,
        "data.labels": Role.DECIDES,
        "data.views": Role.DECIDES,
        "data.opening": Role.DECIDES,
        "data.uncertain": Role.DECIDES,
        "data.split": Role.DECIDES,
        "data.split_file": Role.HARMLESS,  # a file may move; the split in it is compared by digest
        "data.test_list": Role.HARMLESS,  # a file may move; which images it names is compared by digest
        "data.val_fraction": Role.DECIDES,
        "data.test_fraction": Role.DECIDES,
        "data.negatives": Role.DECIDES,
        "data.empty_caption": Role.DECIDES,
        "data.caption": Role.DECIDES,
        "data.report": Role.DECIDES,
        "data.no_report": Role.DECIDES,
        "data.reports": Role.HARMLESS,  # reports may move; what they say is compared by digest
        "data.texts": Role.DECIDES_PRETRAIN,
        "data.caption_templates": Role.DECIDES_PRETRAIN,
        "data.bank": Role.HARMLESS,  # a file may move; its sentences are compared by digest
        "data.reword": Role.DECIDES_PRETRAIN,
        "data.reduce": Role.DECIDES,
        "data.mapping": Role.HARMLESS,  # a file may move; whom it names is compared by digest
        "data.people": Role.DECIDES,
        "data.exclude": Role.HARMLESS,  # a file may move; who is left is compared by digest
        "data.max_bad": Role.HARMLESS,
        "data.workers": Role.HARMLESS,
        "data.timeout": Role.HARMLESS,
        "data.cache": Role.HARMLESS,
        "data.prepare": Role.HARMLESS,
        "images.recipe": Role.DECIDES,
        "images.intensity": Role.DECIDES,
        "images.dicom": Role.DECIDES,
        "images.window": Role.DECIDES,
        "images.frame": Role.DECIDES,
        "images.stored_size": Role.DECIDES,
        "images.size": Role.DECIDES,
        "images.mean": Role.DECIDES,
        "images.std": Role.DECIDES,
        "images.augment": Role.DECIDES_READING,
        "image.gradient_checkpointing": Role.ROUNDS,
        "image.pooling": Role.DECIDES_READING,
        "image.resize": Role.DECIDES_READING,
        "image": Role.DECIDES_PRETRAIN,
        "text.gradient_checkpointing": Role.ROUNDS,
        "text.packing": Role.ROUNDS,
        "text.graphs": Role.ROUNDS,
        "text": Role.DECIDES_PRETRAIN,
        "loss": Role.DECIDES_PRETRAIN,
        "convirt": Role.DECIDES_PRETRAIN,
        "medclip": Role.DECIDES_PRETRAIN,
        "gloria": Role.DECIDES_PRETRAIN,
        "mgca": Role.DECIDES_PRETRAIN,
        "mrm": Role.DECIDES_PRETRAIN,
        "optim": Role.DECIDES_PRETRAIN,
        "train.batch_size": Role.DECIDES_PRETRAIN,
        "train.distinct": Role.DECIDES_PRETRAIN,
        "train.precision": Role.ROUNDS,
        "train.accelerator": Role.ROUNDS,
        "train.devices": Role.HARMLESS,  # environment.json holds the number of processes, which is compared
        "train.nodes": Role.HARMLESS,
        "train.strategy": Role.ROUNDS,
        "train.timeout": Role.HARMLESS,
        "train.patience": Role.DECIDES_PRETRAIN,
        "train.val_every": Role.DECIDES_PRETRAIN,
        "train.save_every": Role.HARMLESS,
        "train.log_every": Role.HARMLESS,
        "context": Role.DECIDES_CONTEXT,
        "classify.precision": Role.ROUNDS,
        "classify": Role.DECIDES_CLASSIFY,
    }
)
"""Setting, or group of settings, to its role; the longest name that fits a key counts."""

_DECIDING = {
    "pretrain": {Role.DECIDES, Role.DECIDES_PRETRAIN, Role.DECIDES_READING},
    "context": {Role.DECIDES, Role.DECIDES_CONTEXT, Role.DECIDES_ANSWERS},
    "classify": {Role.DECIDES, Role.DECIDES_CLASSIFY, Role.DECIDES_READING, Role.DECIDES_ANSWERS},
}


class Change(NamedTuple):
    """A setting that differs from what a run was begun with."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} {self.old!r} → {self.new!r}"


def role(key: str) -> Role:
    """The role of a dotted key of the settings tree.

    Raises:
        KeyError: If the key is in no group; every setting must be.
    """
    name = key
    while name not in ROLES:
        name, dot, _ = name.rpartition(".")
        if not dot:
            raise KeyError(key)
    return ROLES[name]


def changes(old: Settings, new: Settings, stage: Stage) -> tuple[list[Change], list[Change]]:
    """Compares the settings of a run with those to resume it with; `text.normalisation=auto` is the run's own rule.

    Returns:
        Changes that would make it another run, and changes that only round differently.
    """
    before, after = (flat(settings) | {"data.split": recipe_of(settings.data)} for settings in (old, new))
    if after["text.normalisation"] == "auto":
        after["text.normalisation"] = before["text.normalisation"]
    found = [Change(key, before[key], value) for key, value in after.items() if before[key] != value]
    deciding = [change for change in found if role(change.key) in _DECIDING[stage]]
    return deciding, [change for change in found if role(change.key) is Role.ROUNDS]


def file_changes(old: Settings, new: Settings) -> list[Change]:
    """Return the files that choose or describe images, such as `data.exclude`, that only one of the settings names.

    A file that both name may have moved; whether it says the same is known by reading it.
    """
    before, after = vars(old.data), vars(new.data)
    return [
        Change(f"data.{name}", before[name], after[name])
        for name in _FILES
        if (before[name] is None) != (after[name] is None)
    ]


_FILES = ("split_file", "test_list", "reports", "bank", "mapping", "exclude")


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting under its dotted key, e.g. `text.rank`."""
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            leaves |= flat(value, f"{prefix}{field.name}.")
        else:
            leaves[f"{prefix}{field.name}"] = value
    return leaves


_VERBS = {"context": ("stage two", "cleft learn-context"), "classify": ("classification", "cleft classify")}


def check_source(source: Path, settings: Settings, folder: Path, *, what: str, free: Sequence[str] = ()) -> None:
    """Refuses a source that cannot be started from, and settings that would have made it another one.

    Args:
        source: Run folder, or another model folder.
        settings: Of the stage that starts from it.
        folder: Run folder of that stage.
        what: Name of that stage.
        free: Beginnings of settings of the towers that it may change.

    Raises:
        ConfigError: If `folder` is the source itself, or a setting of the towers was changed.
        CheckpointError: If the source is a run that is not finished.
    """
    if folder.resolve() == source.resolve():
        raise ConfigError(f"{folder} holds the model to start from; choose another run folder for {what}")
    if (source / "states").is_dir() and not (source / "summary.json").is_file():
        stage = stage_of(source)
        name, verb = _VERBS.get(str(stage), ("stage one", "cleft pretrain"))
        raise CheckpointError(
            f"{source}: {name} is not finished; run the same {verb} again, it goes on where it was stopped"
        )
    if not (source / "config.yaml").is_file():
        return
    changed, _ = changes(load_settings(source), settings, "pretrain")
    idle = [
        change
        for change in changed
        if role(change.key) in (Role.DECIDES_PRETRAIN, Role.DECIDES_READING) or change.key.startswith("images.")
        if not change.key.startswith(tuple(free))
    ]
    if idle:
        raise ConfigError(
            f"{what} cannot change {'; '.join(map(str, idle))}: {source} was trained with it; "
            f"leave it out, or train stage one with it"
        )
