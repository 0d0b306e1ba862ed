"""What a run records about its environment, data and result: `environment.json`, `split.json`, `summary.json`.

Patients are recorded as digests keyed with a secret that is not in the run; commands without folders.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sys
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch

from cleft.config import Settings, Stage
from cleft.data.tables.patients import canonical_patient, id_key
from cleft.errors import DataError
from cleft.models.hub import resolved_commit
from cleft.privacy import USER_DIR, key_id, protect, shown_name
from cleft.strict_json import check_types, find_json, write_json

log = logging.getLogger(__name__)

_PACKAGES = ("cleft", "torch", "lightning", "transformers", "tokenizers", "peft", "numpy", "opencv-python-headless")


def stage_of(folder: Path) -> str | None:
    """Returns the stage of a run folder, or None if no `environment.json` names it.

    Raises:
        DataError: If that file is damaged.
    """
    stage = (_read_environment(folder / "environment.json") or {}).get("stage")
    return stage if isinstance(stage, str) else None


def _read_environment(path: Path) -> dict[str, Any] | None:
    return find_json(
        path, remedy="move this file away: it records versions and device alone, and the run resumes without it"
    )


def write_environment(path: Path, stage: Stage, *, processes: int = 1) -> None:
    """Writes `environment.json`; warns if a run is resumed in an environment that may change rounding.

    Args:
        path: The file.
        stage: Stage of the run.
        processes: Number of processes that train together.
    """
    new = {"stage": stage, **_environment(), "processes": processes}
    old = _read_environment(path)
    if old is not None:
        before, now = _reproducibility_facts(old), _reproducibility_facts(new)
        differing = [f"{name} {before.get(name)} → {value}" for name, value in now.items() if before.get(name) != value]
        if differing:
            log.warning("%s: no longer bitwise reproducible: %s", path.parent, "; ".join(differing))
        if isinstance(old.get("models"), dict):
            new["models"] = old["models"]
    write_json(path, new)


def record_commits(path: Path, settings: Settings) -> None:
    """Records in `environment.json` the commits of the hub models that a run starts from.

    Args:
        path: The file.
        settings: Settings of the run, which name the models.
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
                "%s: no longer bitwise reproducible: %s %s has changed, commit %s → %s",
                path.parent,
                key,
                model["name"],
                before.get("commit") if isinstance(before, dict) else before,
                model["commit"],
            )
        elif key not in old:
            log.warning(
                "%s=%s may change on the hub; this run starts from commit %s (environment.json). To keep this version, "
                "copy its folder and set %s=<folder>",
                key,
                model["name"],
                model["commit"],
                key,
            )
    write_json(path, {**environment, "models": new})


def _reproducibility_facts(environment: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of an environment that rounding may depend on."""
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
    """Returns a command line with every path shortened to its last part.

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


def split_record(
    *, people: str, recipe: str, digest: str, counts: Mapping[str, int], patients: Iterable[str], **more: Any
) -> dict[str, Any]:
    """Returns the content of `split.json`.

    Args:
        people: Dataset whose patients these are, or the name of a patient population that several datasets share.
        recipe: Name of the split recipe.
        digest: Digest of the splits.
        counts: Number of images of each split.
        patients: Training and validation patients. Only digests keyed with the user's secret are kept: this user can
            test whether a given patient was among them, and others cannot identify the patients.
        more: Other entries that must not change when the run is resumed. `before` is the `split.json` of the run whose
            weights this run starts from, or None if that run does not have one.
    """
    keys = sorted(protect(key) for key in {_patient_keys(digest, people, patient)[0] for patient in patients})
    return {
        "people": people,
        "recipe": recipe,
        "digest": digest,
        "counts": dict(counts),
        **more,
        "key": key_id(),
        "patients": keys,
    }


def inherited_split(source: Path) -> dict[str, Any] | None:
    """Returns the `split.json` of a run for a run that starts from its weights, or None if it has none.

    Digests without a key, as in runs of early versions, are keyed.
    """
    facts = read_split(source)
    inner: Any = facts
    while isinstance(inner, dict):
        if "key" not in inner and isinstance(inner.get("patients"), list):
            inner |= {"key": key_id(), "patients": sorted(protect(str(key)) for key in inner["patients"])}
        inner = inner.get("before")
    return facts


def read_split(folder: Path) -> dict[str, Any] | None:
    """Returns the `split.json` of a run, or None if it has none.

    Raises:
        DataError: If it, or that of an earlier stage inside it, is damaged.
    """
    path = folder / "split.json"
    facts = find_json(path)
    inner = facts
    while inner is not None:
        if not (isinstance(inner.get("patients"), list) and "digest" in inner):
            raise DataError(f"{path} is damaged; copy the run again", reason="json")
        check_types(inner, _SPLIT, str(path), remedy="copy the run again")
        inner = inner.get("before")
    return facts


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Returns the `summary.json` of a run, or None if the run is not finished.

    Raises:
        DataError: If it is damaged.
    """
    path = folder / "summary.json"
    summary = find_json(path)
    if summary is not None:
        check_types(summary, _SUMMARY, str(path), remedy="copy the run again")
        for name in ("images", "patients"):
            counts = cast("dict[str, Any]", summary.get(name) or {})
            check_types(counts, dict.fromkeys(counts, float), f"{path}: {name}", remedy="copy the run again")
    return summary


_SPLIT = {
    "people": str,
    "recipe": str,
    "digest": str,
    "counts": dict,
    "patients": list,
    "terms": str,
    "key": str,
    "before": dict,
}

_SUMMARY = {
    "stage": str,
    "steps": float,
    "best_step": float,
    "best_loss": float,
    "weights": str,
    "told": str,  # name of `description` in early versions
    "description": str,
    "classes": list,
    "images": dict,
    "patients": dict,
    "terms": list,
}


def seen_patients(
    folder: Path, people: str, patients: Iterable[str], *, splits: Mapping[str, Collection[str]] | None = None
) -> set[str]:
    """Returns those of `patients` who were in the training or validation data of a run or of its earlier stages.

    Args:
        folder: Run folder.
        people: Dataset or population of the patients; equal ids of different ones are different patients.
        patients: Patients to look up.
        splits: Digest of a split of the current data to its training and validation patients. Used if a run was trained
            on the same split and its patients are keyed with the secret of another user.

    Raises:
        DataError: If the training patients are not recorded, or only readable by another user (`unknown-training`), or
            a file is damaged.
    """
    candidates, seen, splits = set(patients), set[str](), splits or {}
    facts: Any = read_split(folder)
    while facts is not None:
        if facts.get("key") in (None, key_id()):
            known = set(facts["patients"])
            keyed = protect if "key" in facts else str
            seen |= {
                patient
                for patient in candidates
                if any(keyed(key) in known for key in _patient_keys(facts["digest"], people, patient))
            }
        elif facts["digest"] in splits:
            seen |= candidates & set(splits[facts["digest"]])
        elif facts["patients"] and facts.get("people") in (None, people):
            raise DataError(
                f"{folder / 'split.json'} was written by another user or on another machine: its patients can be "
                f"recognised with that user's secret alone; evaluate the split it was trained on, or set {USER_DIR} "
                f"to a copy of that user's folder",
                reason="unknown-training",
            )
        if "before" not in facts:
            return seen
        facts = facts["before"]
    raise DataError(f"{folder} does not say which patients it was trained on", reason="unknown-training")


def people_of(folder: Path) -> set[str]:
    """Returns the datasets or populations of the patients of a run and its earlier stages, as far as recorded."""
    found: set[str] = set()
    facts: Any = read_split(folder)
    while isinstance(facts, dict):
        found.add(str(facts.get("people")))
        facts = facts.get("before")
    return found


def texts_digest(texts: Iterable[str]) -> str:
    """Returns the first 16 hex digits of the SHA-256 of texts, in order."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _patient_keys(salt: str, people: str, patient: str) -> list[str]:
    """Returns the digest of a patient whatever the spelling of the id, and that of the id as it is written.

    The second is what runs of earlier versions hold.
    """
    name = canonical_patient(people, patient)
    names = dict.fromkeys((id_key(name), name))
    return [hashlib.sha256(f"{salt}|{people}|{each}".encode()).hexdigest()[:16] for each in names]
