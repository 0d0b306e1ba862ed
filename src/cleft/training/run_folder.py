"""Run folders: opened, locked, compared with the settings of a resumed run, purged of patient data.

A run folder can be shared. It holds settings, environment, digests of the data, log and weights.

```
<run>/
├── config.yaml         resolved, complete, loadable as a preset
├── environment.json    versions, device, threads, command without folders
├── split.json          recipe, digests, counts; patients only as digests keyed with a secret that is not in the run
├── logs/               log.csv and TensorBoard event files
├── states/             training states, from which the run is resumed
├── model.safetensors, model.json, tokenizer files
└── summary.json        written last: the run is finished
```
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from cleft.config import SETTINGS_MARK, Settings, Stage, dump_settings, flat_settings, load_settings, setting_effect
from cleft.data import split_recipe
from cleft.data.images.cache_files import lock_folder
from cleft.errors import CheckpointError, ConfigError, DataError, ResourceError
from cleft.files import RECORD, Output, lock_file, open_lock, write_whole
from cleft.grammar import count
from cleft.launch import count_processes, find_launch, is_first
from cleft.strict_json import find_json, write_json
from cleft.training.provenance import read_split, read_summary, stage_of, write_environment

log = logging.getLogger(__name__)


class Change(NamedTuple):
    """A setting that differs from that of a run."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} {self.old!r} → {self.new!r}"


def changes(old: Settings, new: Settings, stage: Stage) -> tuple[list[Change], list[Change]]:
    """Compares the settings of a run with those to resume it with.

    `text.normalisation=auto` counts as the rule of the run.

    Returns:
        Changes that give another result, and changes that only change rounding.
    """
    before, after = (flat_settings(settings) | {"data.split": split_recipe(settings.data)} for settings in (old, new))
    if after["text.normalisation"] == "auto":
        after["text.normalisation"] = before["text.normalisation"]
    found = [Change(key, before[key], value) for key, value in after.items() if before[key] != value]
    deciding = [change for change in found if stage in setting_effect(change.key)]
    return deciding, [change for change in found if setting_effect(change.key) == "rounding"]


def file_changes(old: Settings, new: Settings) -> list[Change]:
    """Returns the settings that name a file, such as `data.exclude_patients`, in only one of `old` and `new`.

    A file named in both may have been moved; digests of its content are compared when it is read.
    """
    before, after = vars(old.data), vars(new.data)
    return [
        Change(f"data.{name}", before[name], after[name])
        for name in _FILES
        if (before[name] is None) != (after[name] is None)
    ]


_FILES = ("split_file", "test_list", "reports", "sentence_bank", "patient_mapping", "exclude_patients")


_STAGE_COMMANDS = {"context": ("stage two", "cleft learn-context"), "classify": ("classification", "cleft classify")}


def check_source(source: Path, settings: Settings, folder: Path, *, what: str, free: Sequence[str] = ()) -> None:
    """Checks that a stage can start from a run, and does not change settings of its encoders.

    Args:
        source: Run folder or other model folder to start from.
        settings: Settings of the new stage.
        folder: Run folder of the new stage.
        what: Name of the new stage, for messages.
        free: Prefixes of encoder settings that the new stage may change.

    Raises:
        ConfigError: If `folder` is the source itself, or an encoder setting differs.
        CheckpointError: If the source is an unfinished run.
    """
    if folder.resolve() == source.resolve():
        raise ConfigError(f"{folder} holds the model to start from; choose another run folder for {what}")
    if (source / "states").is_dir() and not (source / "summary.json").is_file():
        stage = stage_of(source)
        name, command = _STAGE_COMMANDS.get(str(stage), ("stage one", "cleft pretrain"))
        raise CheckpointError(f"{source}: {name} is not finished; repeat the {command} command to resume it")
    if not (source / "config.yaml").is_file():
        return
    changed, _ = changes(load_settings(source), settings, "pretrain")
    changed_encoder = [
        change
        for change in changed
        if "context" not in setting_effect(change.key) or change.key.startswith("images.")
        if not change.key.startswith(tuple(free))
    ]
    if changed_encoder:
        raise ConfigError(
            f"{what} cannot change {'; '.join(map(str, changed_encoder))}: {source} was trained with the old "
            f"value; leave it out, or train stage one with the new one"
        )


_BEFORE_SETTINGS = {"lock"}
"""Files that a new run folder may hold before `config.yaml`."""

_NOT_COMPARED = {"sources", "leaks", "terms"}
"""Entries of `split.json` that may change on resume: the same images may come from a table that was compressed."""


@dataclass(frozen=True)
class Run:
    """A run folder that is open for one process, or for the ranks of one training."""

    folder: Path
    stage: Stage

    @property
    def log_folder(self) -> Path:
        """Where the loggers write."""
        return self.folder / "logs"

    def summary(self) -> dict[str, Any] | None:
        """Returns `summary.json`, or None if the run is not finished."""
        return read_summary(self.folder)

    def is_finished(self) -> bool:
        """Returns whether the run is finished; if so, logs its result."""
        summary = self.summary()
        if summary is None:
            return False
        best, step = summary.get("best_loss"), summary.get("best_step")
        loss = f"{best:.4f}" if isinstance(best, float) else "not available"
        log.info(
            "%s is finished: %s",
            self.folder,
            summary.get("description", summary.get("told")) or f"validation loss {loss} at step {step}",
        )
        return True

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`, which marks the run as finished; everything else must be on disk already."""
        write_json(self.folder / "summary.json", {"stage": self.stage, **summary, **self.terms()})

    def terms(self) -> dict[str, list[str]]:
        """Returns the terms of use of the training data of this and all earlier stages under `terms`, if any."""
        found: list[str] = []
        facts: Any = read_split(self.folder)
        while isinstance(facts, dict):
            found += [facts["terms"]] if facts.get("terms") else []
            facts = facts.get("before")
        return {"terms": list(dict.fromkeys(found))} if found else {}

    def record_split(self, facts: Mapping[str, Any]) -> None:
        """Writes `split.json`; when the run is resumed, checks that the training data are the same.

        Args:
            facts: From `split_record`, with everything outside the settings that decides the result.

        Raises:
            ConfigError: If the training data changed; lists the differences.
        """
        path, old = self.folder / "split.json", read_split(self.folder)
        if old is None:
            if is_first():
                write_json(path, facts)
            return
        old, new = _without_other_keys(old, json.loads(json.dumps(facts)))
        differing = [key for key in {**old, **new} if old.get(key) != new.get(key) and key not in _NOT_COMPARED]
        if differing:
            shown = "; ".join(f"{key} {_short(old.get(key))} → {_short(new.get(key))}" for key in differing)
            raise ConfigError(
                f"{self.folder}: cannot resume, the training data changed: {shown}; use the data of the run, or "
                f"choose another run folder"
            )


@contextmanager
def open_run(folder: Path, settings: Settings, stage: Stage) -> Generator[Run]:
    """Creates or resumes a run folder and locks it against other processes.

    Args:
        folder: The run folder.
        settings: Resolved settings, saved in the folder.
        stage: Stage of the run.

    Raises:
        ConfigError: If another process uses the folder, it belongs to another run or stage, or settings that decide the
            result have changed.
        ResourceError: If the folder cannot be written.
    """
    run = Run(folder, stage)
    launch = find_launch()
    if not is_first():
        if launch is not None and stage != "pretrain":
            raise ConfigError(
                f"{launch.launcher} started {launch.world_size} processes, but only stage one (pretrain) uses several; "
                f"start the command without {launch.launcher}"
            )
        _check_rank(folder, settings, stage)
        yield run
        return
    created = _missing_folders(folder)
    _check_folder(folder)
    with _locked(folder / "lock"):
        is_new = not (folder / "config.yaml").is_file()
        try:
            _check_settings(folder, settings, stage)
            if run.summary() is None:
                write_whole(folder / "config.yaml", dump_settings(settings), mode=None)
                write_environment(folder / "environment.json", stage, processes=_processes(settings, stage))
            yield run
        except BaseException:
            if is_new and not has_started(folder):
                _remove_refused(folder, created)
            raise


def has_started(folder: Path) -> bool:
    """Returns whether a run has made a step or is finished, so that there is something to lose."""
    return _has_weights(folder) or (folder / "logs").is_dir()


def _missing_folders(folder: Path) -> list[Path]:
    """Returns those of `folder` and its parents that do not exist, innermost first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _remove_refused(folder: Path, created: list[Path]) -> None:
    """Removes the files and folders that a refused command created."""
    for name in ("config.yaml", "environment.json", "split.json"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another process may have written files by now
        (folder / "states").rmdir() if (folder / "states").is_dir() else None
        (folder / "lock").unlink(missing_ok=True)
        for place in created:
            place.rmdir()


def _processes(settings: Settings, stage: Stage) -> int:
    if stage != "pretrain":
        return 1
    devices, nodes = count_processes(settings.train.devices, settings.train.nodes)
    return devices * nodes


def _check_folder(folder: Path) -> None:
    """Checks that a folder is new or a run, and that files can be written and renamed in it."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose another folder for the run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ".probe", "")
        (folder / ".probe").unlink()
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written ({error.strerror}); choose another run folder") from error
    # A killed process leaves temporary files such as .config.yaml.1a2b3c4d (`write_whole`).
    names = (path.name for path in folder.iterdir() if not path.name.startswith((".config.yaml.", ".probe")))
    foreign = sorted(name for name in names if name not in _BEFORE_SETTINGS)
    if foreign and not is_run(folder):
        raise ConfigError(
            f"{folder} is not empty and holds no run (found {', '.join(foreign[:3])}); choose another run folder"
        )


def is_run(folder: Path) -> bool:
    """Returns whether a folder is a run or an imported model, not only a `config.yaml` of the user."""
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
    if (folder / "summary.json").is_file():  # its data are not read again, so digests are not compared
        deciding += file_changes(before, settings)
    if deciding and not _has_weights(folder):
        log.info("%s: nothing was trained yet, so the new settings are used", folder)
        (folder / "split.json").unlink(missing_ok=True)
        return
    if deciding:
        raise ConfigError(
            f"{folder}: cannot resume, settings changed: {'; '.join(map(str, deciding))}; restore the old values, or "
            f"choose another run folder"
        )
    if rounding:
        log.warning("%s: no longer bitwise reproducible: %s", folder, "; ".join(map(str, rounding)))


def _check_rank(folder: Path, settings: Settings, stage: Stage) -> None:
    """Checks that a rank has the settings that the first rank has written."""
    if (folder / "config.yaml").is_file():
        deciding, _ = changes(load_settings(folder / "config.yaml"), settings, stage)
        if deciding:
            raise ConfigError(
                f"this process has other settings than the first rank: {'; '.join(map(str, deciding))}; start all "
                f"processes with the same command"
            )


def _has_weights(folder: Path) -> bool:
    """Returns whether the folder holds training states or a model."""
    finished = any((folder / name).exists() for name in ("summary.json", "model.json", "model.safetensors"))
    return finished or any((folder / "states").glob("*.ckpt"))


def lock_run(folder: Path) -> AbstractContextManager[None]:
    """Locks a run folder against other processes, as `open_run` does.

    Raises:
        ConfigError: If another process uses it.
    """
    return _locked(folder / "lock")


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Locks `path` for this process; the operating system releases it however the process ends."""
    if path.is_symlink():
        raise ConfigError(
            f"{path} is a symbolic link, not a lock file of cleft; remove it, or choose another run folder"
        )
    with open_lock(path) as file:
        try:
            # Per process: forked loader workers would keep it for seconds after their parent was killed.
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


def _without_other_keys(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Removes the patient digests of two `split.json` that were keyed with different secrets and cannot be compared.

    The digests of split, captions and pixels still show whether the data are the same.
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


_KEY = re.compile(r"[0-9a-f]{16}")
_EMBEDDING = re.compile(r"manifest\.json|\w+\.safetensors|\.(manifest\.json|\w+\.safetensors)\.[0-9a-f]{8}")
_STATE = re.compile(r"step-\d{8}\.[0-9a-f]{16}\.(ckpt|bad)|\.step-\d{8}\.tmp")
_PREPARED = re.compile(r"part-[0-9a-f]{16}\.(u8|json)|part-\w+\.tmp|settings\.json|\.part-[0-9a-f]{16}\.json\.\w{8}")
_HEADERS = re.compile(r"headers-(mimic|rsna|iu-xray)\.parquet")
_REJECTS = re.compile(r"rejects-[a-z-]+\.csv")
_MATCHED = re.compile(r"[0-9a-f]{32}\.json")


class Purge(NamedTuple):
    """Files of a run or cache with patient data that can be removed, and what is kept.

    Only files with the place, name and format in which this program writes them; links are not followed. Weights are
    kept, and so are the training states of an unfinished run, its only weights.
    """

    place: Path
    kind: Literal["run", "cache"]
    files: tuple[Path, ...]
    left: tuple[str, ...]
    """A line for each kind of file that is kept, with the reason."""

    def size(self) -> int:
        """Returns the bytes of all files."""
        return sum(path.lstat().st_size for path in self.files)

    def folders(self) -> dict[str, int]:
        """Returns the number of files in each subfolder."""
        return dict(Counter(path.parent.relative_to(self.place).as_posix() for path in self.files))

    def remove(self) -> None:
        """Removes the files and empty folders; waits for processes that prepare images in a cache.

        Raises:
            ConfigError: If another process uses the run.
            OSError: If a file cannot be removed.
        """
        folders = {folder for path in self.files for folder in path.parents if self.place in folder.parents}
        with ExitStack() as held:
            if self.kind == "run":
                held.enter_context(lock_run(self.place))
            else:
                for home in sorted(folder for folder in folders if (folder / "lock").is_file()):
                    held.enter_context(lock_folder(home))
            for path in self.files:
                if path.is_file() and not path.is_symlink():
                    path.unlink()
            for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
                if [path.name for path in folder.iterdir()] == ["lock"]:
                    (folder / "lock").unlink()
                if not any(folder.iterdir()):
                    folder.rmdir()


def find_purges(places: Sequence[Path]) -> list[Purge]:
    """Lists what can be removed, without removing it.

    Args:
        places: Run folders, cache folders, or folders that contain runs at any depth.

    Raises:
        ConfigError: If a folder contains neither a run nor a cache.
    """
    found: dict[Path, Purge] = {}
    for place in places:
        here = list(_purges(place))
        if not here:
            raise ConfigError(f"{place} contains no run and no cache of cleft; give a run folder or a cache folder")
        found |= {purge.place.resolve(): purge for purge in here}
    return list(found.values())


def _purges(place: Path) -> Iterator[Purge]:
    if place.is_symlink() or not place.is_dir():
        what = "a symbolic link" if place.is_symlink() else "no folder"
        raise ConfigError(f"{place} is {what}; give a run folder or a cache folder")
    if is_run(place):
        yield _of_run(place)
        return
    cache = _of_cache(place)
    if cache.files:
        yield cache
        return
    for folder, names, files in os.walk(place):  # follows no links
        if "config.yaml" in files and is_run(Path(folder)):
            names.clear()
            yield _of_run(Path(folder))


def _of_run(run: Path) -> Purge:
    files = [path for key in _folders(run / "embeddings", _KEY) for path in _files(key, _EMBEDDING)]
    left = ["model, settings and logs", "split.json: patients as digests that only your secret can test"]
    states = list(_files(run / "states", _STATE))
    if (run / "summary.json").is_file() and (run / "model.json").is_file():
        files += states
    elif states:
        left.append("states: the run is not finished, and these are its only weights; finish it first")
    if any((run / "results").glob("*.json")):
        left.append("results: metrics, predictions per image without ids, and example images if there are any")
    return Purge(run, "run", tuple(files), (*left, *_foreign_files(run, ("embeddings", "states"), {*files, *states})))


def _of_cache(cache: Path) -> Purge:
    files: list[Path] = []
    homes = [home for home in _folders(cache, _KEY) if (home / "settings.json").is_file()]
    for home in homes:
        files += _files(home, _PREPARED)
    files += _files(cache / "splits", _MATCHED)
    files += _files(cache, _HEADERS)
    files += [path for path in _files(cache, _REJECTS) if Output(path, "data.cache").is_ours()]
    names = [home.name for home in homes]
    left = _foreign_files(cache, (*names, "splits"), set(files))
    known = {*names, "splits", RECORD, *(path.name for path in files)}
    left += [f"{path.name}: not written by cleft" for path in sorted(cache.iterdir()) if path.name not in known]
    return Purge(cache, "cache", tuple(files), tuple(left))


def _folders(place: Path, pattern: re.Pattern[str]) -> list[Path]:
    if place.is_symlink() or not place.is_dir():
        return []
    found = (path for path in sorted(place.iterdir()) if pattern.fullmatch(path.name))
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _files(place: Path, pattern: re.Pattern[str]) -> list[Path]:
    if place.is_symlink() or not place.is_dir():
        return []
    found = (path for path in sorted(place.iterdir()) if pattern.fullmatch(path.name))
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _foreign_files(place: Path, folders: Iterable[str], known: set[Path]) -> list[str]:
    """Returns a line for each file in `folders` that this program did not write."""
    others = [
        path
        for name in folders
        if (place / name).is_dir()
        for path in sorted((place / name).rglob("*"))
        if path not in known and path.name != "lock" and (path.is_symlink() or not path.is_dir())
    ]
    return [f"{path.relative_to(place)}: not written by cleft" for path in others]
