"""The run that a stage starts from: it must be finished, and its towers stay what they were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cleft.config import Settings, load_settings
from cleft.errors import CheckpointError, ConfigError
from cleft.training.same import Role, changes, role
from cleft.training.surroundings import stage_of

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
