"""A run is a folder you could mail: its settings, its surroundings, what it learned from, its log and its weights.

```
<run>/
├── config.yaml         resolved, complete, loadable as a preset
├── environment.json    versions, device, threads, command without folders
├── split.json          recipe, digests, counts; patients only as digests keyed with a secret that is not in the run
├── logs/               log.csv and TensorBoard's files
├── states/             training states, to go on from
├── model.safetensors, model.json, tokenizer files
└── summary.json        written last: with it, the run is finished
```
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from cleft.config import SETTINGS_MARK, Settings, dump_settings, load_settings
from cleft.data.tables.patients import id_key, person
from cleft.errors import ConfigError, DataError, ResourceError
from cleft.files import lock_file, open_lock, write_whole
from cleft.grammar import count
from cleft.launch import count_processes, find_launch, is_first
from cleft.privacy import USER_DIR, key_id, protect
from cleft.strict_json import check_types, find_json, write_json
from cleft.training.same import Stage, changes, file_changes
from cleft.training.surroundings import keep_environment, stage_of
from cleft.training.training_state import StateStore

log = logging.getLogger(__name__)

_BEFORE_SETTINGS = {"lock"}
"""What a new run folder may hold before it holds `config.yaml`."""


_BESIDE = {"sources", "leaks", "terms"}
"""What `split.json` says besides what is learned from: the same images may come out of a table that was packed."""


@dataclass(frozen=True)
class Run:
    """A run folder that is open for one process, or for the ranks of one training."""

    folder: Path
    stage: Stage
    store: StateStore

    @property
    def log_folder(self) -> Path:
        """Where the loggers write."""
        return self.folder / "logs"

    def summary(self) -> dict[str, Any] | None:
        """What the finished run says of itself, or None while it is not finished."""
        return read_summary(self.folder)

    def is_finished(self) -> bool:
        """Whether nothing is left to do; says so."""
        summary = self.summary()
        if summary is None:
            return False
        best, step = summary.get("best_loss"), summary.get("best_step")
        loss = f"{best:.4f}" if isinstance(best, float) else "none measured"
        log.info("%s is finished: %s", self.folder, summary.get("told") or f"validation loss {loss} at step {step}")
        return True

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Marks the run as finished; everything else must be on disk already."""
        write_json(self.folder / "summary.json", {"stage": self.stage, **summary, **self.terms()})

    def terms(self) -> dict[str, list[str]]:
        """What owners of data allow with these weights, under `terms`: of every stage that led here; else nothing."""
        found: list[str] = []
        facts: Any = read_split(self.folder)
        while isinstance(facts, dict):
            found += [facts["terms"]] if facts.get("terms") else []
            facts = facts.get("before")
        return {"terms": list(dict.fromkeys(found))} if found else {}

    def keep_split(self, facts: Mapping[str, Any]) -> None:
        """Writes down what the run learns from; when it goes on, checks that this is still the same.

        Args:
            facts: From `split_facts`, and whatever else decides the result and lies outside the settings.

        Raises:
            ConfigError: If the run was begun with other data; lists what differs.
        """
        path, old = self.folder / "split.json", read_split(self.folder)
        if old is None:
            if is_first_rank():
                write_json(path, facts)
            return
        old, new = _without_other_keys(old, json.loads(json.dumps(facts)))
        differing = [key for key in {**old, **new} if old.get(key) != new.get(key) and key not in _BESIDE]
        if differing:
            shown = "; ".join(f"{key} {_short(old.get(key))} → {_short(new.get(key))}" for key in differing)
            raise ConfigError(
                f"{self.folder} was begun with other data: {shown}; "
                f"give the data it was begun with, or choose another run folder"
            )


@contextmanager
def open_run(folder: Path, settings: Settings, stage: Stage) -> Generator[Run]:
    """Opens a run folder, a new one or one to go on with, and holds it against other processes.

    Args:
        folder: Made if it does not exist.
        settings: Resolved settings; the folder keeps them.
        stage: Which stage runs in it.

    Raises:
        ConfigError: If another process holds the folder, it belongs to another run or stage, or it was begun with
            other settings that decide the result.
        ResourceError: If the folder cannot be written.
    """
    run = Run(folder, stage, StateStore(folder / "states"))
    launch = find_launch()
    if not is_first_rank():
        if launch is not None and stage != "pretrain":
            raise ConfigError(
                f"{launch.launcher} started {launch.world_size} processes, but only stage one (pretrain) uses several; "
                f"start the command without {launch.launcher}"
            )
        _check_rank(folder, settings, stage)
        yield run
        return
    made = _made_folders(folder)
    _check_place(folder)
    with _locked(folder / "lock"):
        is_new = not (folder / "config.yaml").is_file()
        try:
            _check_settings(folder, settings, stage)
            if run.summary() is None:
                write_whole(folder / "config.yaml", dump_settings(settings), mode=None)
                keep_environment(folder / "environment.json", stage, processes=_processes(settings, stage))
            yield run
        except BaseException:
            if is_new and not has_begun(folder):
                _remove_refused(folder, made)
            raise


def has_begun(folder: Path) -> bool:
    """Returns whether a run has made a step, or is finished; before that there is nothing in it to keep."""
    return _has_learned(folder) or (folder / "logs").is_dir()


def _made_folders(folder: Path) -> list[Path]:
    """Those of `folder` and its parents that do not exist yet, the innermost first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _remove_refused(folder: Path, made: list[Path]) -> None:
    """Removes what this command wrote before it was refused, and the folders it made."""
    for name in ("config.yaml", "environment.json", "split.json"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # files of the user, or of another process by now
        (folder / "states").rmdir() if (folder / "states").is_dir() else None
        (folder / "lock").unlink(missing_ok=True)
        for place in made:
            place.rmdir()


def _processes(settings: Settings, stage: Stage) -> int:
    if stage != "pretrain":
        return 1
    devices, nodes = count_processes(settings.train.devices, settings.train.nodes)
    return devices * nodes


def split_facts(
    *, people: str, recipe: str, digest: str, counts: Mapping[str, int], patients: Iterable[str], **more: Any
) -> dict[str, Any]:
    """What `split.json` holds.

    Args:
        people: Whose patients these are: a dataset's name, or that of the people several datasets show.
        recipe: Name of the rule that made the splits.
        digest: Of the splits.
        counts: Images of each split.
        patients: Of training and validation. Only digests keyed with the user's secret are kept: this user can test
            whether a known patient was among them, and others cannot identify the patients.
        more: Whatever else must not change while the run goes on. `before` is the `split.json` of the run whose
            weights this one starts from, or None where that does not say what it was trained on.
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


def carried_facts(source: Path) -> dict[str, Any] | None:
    """Returns the `split.json` of a run for one that starts from its weights, or None where it has none.

    Unkeyed digests, as runs of earlier versions hold them, are keyed on the way.
    """
    facts = read_split(source)
    inner: Any = facts
    while isinstance(inner, dict):
        if "key" not in inner and isinstance(inner.get("patients"), list):
            inner |= {"key": key_id(), "patients": sorted(protect(str(key)) for key in inner["patients"])}
        inner = inner.get("before")
    return facts


def read_split(folder: Path) -> dict[str, Any] | None:
    """Return a run's `split.json`, or None where it has none.

    Raises:
        DataError: If it, or that of an earlier stage in it, is not as it was written.
    """
    path = folder / "split.json"
    facts = find_json(path)
    inner = facts
    while inner is not None:
        if not (isinstance(inner.get("patients"), list) and "digest" in inner):
            raise DataError(f"{path} is not as it was written; copy the run again", reason="json")
        check_types(inner, _SPLIT, str(path), remedy="copy the run again")
        inner = inner.get("before")
    return facts


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return a run's `summary.json`, or None while the run is not finished.

    Raises:
        DataError: If it is not as it was written.
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
    "told": str,
    "classes": list,
    "images": dict,
    "patients": dict,
    "terms": list,
}


def seen_patients(
    folder: Path, people: str, patients: Iterable[str], *, splits: Mapping[str, Collection[str]] | None = None
) -> set[str]:
    """Returns those of `patients` whose images a run trained on or chose its weights by.

    Args:
        folder: Run folder.
        people: Whose patients these are; ids of different people never meet.
        patients: Who may be scored.
        splits: Digest of a split of the data at hand to its patients of training and validation. They decide where a
            run was trained on the same split and its patients are digests keyed with the secret of another user.

    Raises:
        DataError: If the folder does not say what it learned from, or only to another user (`unknown-training`), or is
            not as it was written.
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
    """Returns whose patients a run knows: of every stage that led to it, as far as that is written down."""
    found: set[str] = set()
    facts: Any = read_split(folder)
    while isinstance(facts, dict):
        found.add(str(facts.get("people")))
        facts = facts.get("before")
    return found


def texts_digest(texts: Iterable[str]) -> str:
    """First 16 hex digits of a SHA-256 over texts in their order."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def is_first_rank() -> bool:
    """Whether this process writes for all ranks of a training."""
    return is_first()


def _check_place(folder: Path) -> None:
    """A new or known folder, in which a file can be written and renamed."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose another folder for the run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ".probe", "")
        (folder / ".probe").unlink()
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written ({error.strerror}); choose another run folder") from error
    # A killed process leaves drafts such as .config.yaml.1a2b3c4d (`write_whole`).
    names = (path.name for path in folder.iterdir() if not path.name.startswith((".config.yaml.", ".probe")))
    foreign = sorted(name for name in names if name not in _BEFORE_SETTINGS)
    if foreign and not is_run(folder):
        raise ConfigError(
            f"{folder} is not empty and holds no run (found {', '.join(foreign[:3])}); choose another run folder"
        )


def is_run(folder: Path) -> bool:
    """Whether this program wrote the settings in a folder: a run, or a model that was imported or brought into a study.

    A `config.yaml` alone may be a user's own settings.
    """
    try:
        with (folder / "config.yaml").open("rb") as file:
            if file.readline(200).decode(errors="replace").rstrip() == SETTINGS_MARK:
                return True
    except OSError:
        return False
    try:  # as earlier versions wrote them
        stage = stage_of(folder)
        model = find_json(folder / "model.json") or {}
        split = find_json(folder / "split.json") or {}
    except DataError:
        return True  # a damaged run is still a run; the code that reads these files reports the damage
    return stage in get_args(Stage) or {"schema", "files"} <= set(model) or {"digest", "patients"} <= set(split)


def _check_settings(folder: Path, settings: Settings, stage: Stage) -> None:
    if not (folder / "config.yaml").is_file():
        return
    if (folder / "model.json").is_file() and not (folder / "split.json").is_file():
        raise ConfigError(
            f"{folder} holds a model that was not trained in it, such as an imported one, and training would replace "
            f"it; choose another run folder"
        )
    old_stage = stage_of(folder) or stage
    if old_stage != stage:
        raise ConfigError(f"{folder} is a run of stage {old_stage!r}, not {stage!r}; choose another run folder")
    before = load_settings(folder / "config.yaml")
    deciding, rounding = changes(before, settings, stage)
    if (folder / "summary.json").is_file():  # no data are read again, with which the digests would be compared
        deciding += file_changes(before, settings)
    if deciding and not _has_learned(folder):
        log.info("%s: nothing was learned here yet, so it takes the new settings", folder)
        (folder / "split.json").unlink(missing_ok=True)
        return
    if deciding:
        raise ConfigError(
            f"{folder} was begun with other settings: {'; '.join(map(str, deciding))}; "
            f"put the old values back to go on, or choose another run folder"
        )
    if rounding:
        log.warning("%s: no longer bit-equal, because %s", folder, "; ".join(map(str, rounding)))


def _check_rank(folder: Path, settings: Settings, stage: Stage) -> None:
    """Refuses a rank that was given other settings than the first one, which has written them."""
    if (folder / "config.yaml").is_file():
        deciding, _ = changes(load_settings(folder / "config.yaml"), settings, stage)
        if deciding:
            raise ConfigError(
                f"this process has other settings than the first one: {'; '.join(map(str, deciding))}; give "
                f"all the same command"
            )


def _has_learned(folder: Path) -> bool:
    """Whether a training state, or a model, would be lost if the run were begun anew."""
    whole = any((folder / name).exists() for name in ("summary.json", "model.json", "model.safetensors"))
    return whole or any((folder / "states").glob("*.ckpt"))


def hold_run(folder: Path) -> AbstractContextManager[None]:
    """Hold a run folder against other processes, as `open_run` does.

    Raises:
        ConfigError: If another process holds it.
    """
    return _locked(folder / "lock")


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Holds `path` for this process; the system gives it back however the process ends."""
    if path.is_symlink():
        raise ConfigError(f"{path} is a symbolic link, which a lock never is; remove it, or choose another run folder")
    with open_lock(path) as file:
        try:
            # By process: forked loader workers would hold it for seconds after their parent was killed.
            lock_file(file, by_process=True)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ConfigError(
                f"{path.parent} is in use by {holder}; wait for it, stop it, or choose another run folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _patient_keys(salt: str, people: str, patient: str) -> list[str]:
    """Returns the digest of a patient whatever the spelling of the id, and that of the id as it is written.

    The second is what runs of earlier versions hold.
    """
    name = person(people, patient)
    names = dict.fromkeys((id_key(name), name))
    return [hashlib.sha256(f"{salt}|{people}|{each}".encode()).hexdigest()[:16] for each in names]


def _without_other_keys(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two `split.json` without the patients' digests that were made with different secrets: these cannot be compared.

    The digest of the split, the captions and the pixels still say whether the data are the same.
    """
    if old.get("key") != new.get("key"):
        old, new = ({key: facts[key] for key in facts if key not in ("key", "patients")} for facts in (old, new))
    if isinstance(old.get("before"), dict) and isinstance(new.get("before"), dict):
        before = _without_other_keys(old["before"], new["before"])
        old, new = {**old, "before": before[0]}, {**new, "before": before[1]}
    return old, new


def _short(value: Any) -> str:
    text = count(len(value), "patient") if isinstance(value, list) else repr(value)
    return text if len(text) < 60 else f"{text[:57]}…"
