"""Where a run takes place: versions, machine, threads, and what was typed, without folders."""

from __future__ import annotations

import logging
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch

from cleft.config import Settings
from cleft.models.hub import resolved_commit
from cleft.privacy import shown_name
from cleft.strict_json import find_json, write_json
from cleft.training.same import Stage

log = logging.getLogger(__name__)

_PACKAGES = ("cleft", "torch", "lightning", "transformers", "tokenizers", "peft", "numpy", "opencv-python-headless")


def device_of(settings: Settings) -> torch.device:
    """Where images are read outside of training: a card, where there is one and `train.accelerator` allows it."""
    wanted = settings.train.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if wanted else "cpu")


def stage_of(folder: Path) -> str | None:
    """Return the stage that ran in a folder, or None where no `environment.json` names it.

    Raises:
        DataError: If that file is damaged.
    """
    stage = (_read_environment(folder / "environment.json") or {}).get("stage")
    return stage if isinstance(stage, str) else None


def _read_environment(path: Path) -> dict[str, Any] | None:
    return find_json(
        path, remedy="move this file away: it records versions and device alone, and the run resumes without it"
    )


def keep_environment(path: Path, stage: Stage, *, processes: int = 1) -> None:
    """Writes `environment.json`; where a run goes on elsewhere, says that its bits may change.

    Args:
        path: The file.
        stage: Which stage runs in the folder.
        processes: That train together.
    """
    new = {"stage": stage, **_environment(), "processes": processes}
    old = _read_environment(path)
    if old is not None:
        before, now = _deciding(old), _deciding(new)
        differing = [f"{name} {before.get(name)} → {value}" for name, value in now.items() if before.get(name) != value]
        if differing:
            log.warning("%s: no longer bit-equal, because %s", path.parent, "; ".join(differing))
        if isinstance(old.get("models"), dict):
            new["models"] = old["models"]
    write_json(path, new)


def keep_commits(path: Path, settings: Settings) -> None:
    """Writes into `environment.json` which commit of a hub's models a run starts from.

    Args:
        path: The file.
        settings: Names the models of the towers.
    """
    names = {"image.model": settings.image.model, "text.model": settings.text.model}
    commits = {key: resolved_commit(name) for key, name in names.items() if name}
    new = {key: {"name": names[key], "commit": commit} for key, commit in commits.items() if commit}
    if not new:
        return
    environment = _read_environment(path) or {}
    known: Any = environment.get("models")
    old: dict[str, Any] = cast("dict[str, Any]", known) if isinstance(known, dict) else {}
    for key, model in new.items():
        before = old.get(key, model)
        if before != model:
            log.warning(
                "%s: no longer bit-equal, because %s %s is another version: commit %s → %s",
                path.parent,
                key,
                model["name"],
                before.get("commit") if isinstance(before, dict) else before,
                model["commit"],
            )
        elif key not in old:
            log.warning(
                "%s=%s may change on its hub; this run starts from commit %s (environment.json). To keep that version, "
                "copy its folder and set %s=<folder>",
                key,
                model["name"],
                model["commit"],
                key,
            )
    write_json(path, {**environment, "models": new})


def _deciding(environment: dict[str, Any]) -> dict[str, Any]:
    """What rounding may depend on."""
    versions = environment.get("versions")
    return {
        **(cast("dict[str, Any]", versions) if isinstance(versions, dict) else {}),
        **{name: environment.get(name) for name in ("machine", "device", "threads")},
        "processes": environment.get("processes", 1),
    }


def _environment() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}",
        "device": device,
        "threads": torch.get_num_threads(),
        "command": command_line(sys.argv),
    }


def command_line(words: list[str]) -> str:
    """What was typed, with every path cut to its last part.

    Example:
        >>> command_line(["/opt/bin/cleft", "pretrain", "tiny", "--data.root=/data/secret/chexpert", "--run", "a/b"])
        'cleft pretrain tiny --data.root=chexpert --run b'
    """
    return " ".join(_without_folder(word) for word in words)


def _without_folder(word: str) -> str:
    head, equals, value = word.partition("=")
    if equals:
        return f"{head}={_without_folder(value)}"
    head, colon, value = word.partition(":")  # as in --data chexpert:<folder>
    if colon and os.sep in value:
        return f"{head}:{Path(value).name}"
    return shown_name(word) if os.sep in word else word
