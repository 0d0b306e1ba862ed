"""Run folders as a page wants them: settings, curves and results, with whatever is private left out.

Only files are read: `config.yaml`, `environment.json`, CSV logs and `results/*.json`. A missing piece
becomes a sentence on the page; a folder that is not a run at all is refused.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from cleft.errors import CleftError, DataError
from cleft.files import read_limited
from cleft.privacy import redact
from cleft.results import Comparison, Evaluation, Noun, from_json
from cleft.strict_json import read_json

_MOST_POINTS = 400
_SEED = re.compile(r"seed-\d+")


@dataclass(frozen=True, kw_only=True)
class StoredResult:
    """One file of a run's `results`."""

    file: str
    anchor: str
    """Id of its section on the page."""
    evaluation: Evaluation
    href: str = ""
    """Where to find its numbers, if the page has no section of it."""

    def link(self, line: str = "") -> str:
        """Where a number comes from: a line of its section, or the file itself."""
        return self.href or "-".join(filter(None, (f"#{self.anchor}", line)))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder, read."""

    name: str
    """Name of the folder, with that of the folder above or a number where two runs share one."""
    anchor: str
    stage: str
    """`pretrain` or `context`, or nothing where the folder does not say."""
    config: Mapping[str, Any]
    """Settings under dotted keys."""
    environment: Mapping[str, str]
    """Versions and device under dotted keys."""
    curves: Mapping[str, Sequence[tuple[float, float]]]
    """Logged quantity to points (step, value)."""
    results: Sequence[StoredResult]
    problems: Sequence[str]
    """Sentences about what is missing or unreadable."""
    split: str = ""
    """How its images were split and the digest of that, where the folder says."""
    terms: Sequence[str] = ()
    """What owners of the data allow with the weights, where that reaches them."""
    comparisons: Sequence[Comparison] = ()
    """With other results on the same images."""


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads each folder once, in the order given.

    Raises:
        DataError: If a folder is missing or is not a run.
    """
    if not folders:
        raise DataError("no run folder given; name at least one", reason="not-a-run")
    distinct = list(dict.fromkeys(folder.resolve() for folder in folders))
    names = _names(distinct)
    return [
        _read_run(folder, _unique(names[index], names[:index]), f"run-{index + 1}")
        for index, folder in enumerate(distinct)
    ]


def _names(folders: Sequence[Path]) -> list[str]:
    """Name of each run: that of its folder, with the folder above where that is needed to distinguish it."""
    alike = Counter(folder.name for folder in folders)
    return [
        f"{folder.parent.name}/{folder.name}" if alike[folder.name] > 1 or _SEED.fullmatch(folder.name) else folder.name
        for folder in folders
    ]


def _read_run(folder: Path, name: str, anchor: str) -> Run:
    config = folder / "config.yaml"
    if not config.is_file():
        raise DataError(
            f"{folder} is not a run folder: it holds no config.yaml; give a folder that "
            f"cleft pretrain or cleft learn-context wrote",
            reason="not-a-run",
        )
    problems: list[str] = []
    environment = _environment(folder / "environment.json", problems)
    results = _results(folder / "results", anchor, problems)
    curves = _curves(sorted((folder / "logs").rglob("*.csv")), problems)
    if not results:
        problems.append("It has no results yet: cleft evaluate measures them.")
    if not curves:
        problems.append("It has no log of its training.")
    return Run(
        name=name,
        anchor=anchor,
        stage=environment.get("stage", ""),
        config=_settings(config),
        environment=environment,
        curves=curves,
        results=results,
        problems=problems,
        split=_split(_tree(folder / "split.json")),
        terms=_terms(_tree(folder / "summary.json")),
        comparisons=_comparisons(folder / "comparisons", problems),
    )


def _tree(path: Path) -> dict[str, Any]:
    """What a JSON file holds by name; nothing where it is missing or damaged."""
    try:
        return read_json(path)
    except DataError:
        return {}


def _terms(summary: Mapping[str, Any]) -> list[str]:
    terms = summary.get("terms")
    return [str(term) for term in cast("list[Any]", terms)] if isinstance(terms, list) else []


def _split(written: Mapping[str, Any]) -> str:
    recipe, digest = written.get("recipe"), written.get("digest")
    return f"{recipe}, {digest}" if recipe and digest else ""


def _settings(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML; is the run complete?", reason="not-a-run") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} holds no settings; is the run complete?", reason="not-a-run")
    return flatten(cast("dict[str, Any]", tree))


def _environment(path: Path, problems: list[str]) -> dict[str, str]:
    tree = _tree(path)
    if not tree:
        problems.append("Its environment.json, which names versions and device, is missing or unreadable.")
    return {key: redact(key, value) for key, value in flatten(tree).items()}


def _results(folder: Path, anchor: str, problems: list[str]) -> list[StoredResult]:
    found = _stored(folder, Evaluation, problems)
    return [
        StoredResult(file=name, anchor=f"{anchor}-result-{number}", evaluation=evaluation)
        for number, (name, evaluation) in found
    ]


def _comparisons(folder: Path, problems: list[str]) -> list[Comparison]:
    return [comparison for _, (_, comparison) in _stored(folder, Comparison, problems)]


def _stored(folder: Path, kind: type[Noun], problems: list[str]) -> list[tuple[int, tuple[str, Noun]]]:
    """Place and name of each file of a folder, and what it holds; a damaged one becomes a sentence."""
    found: list[tuple[int, tuple[str, Noun]]] = []
    for number, path in enumerate(sorted(folder.glob("*.json")), start=1):
        try:
            found.append((number, (path.name, from_json(read_limited(path, where=path.name), kind, where=path.name))))
        except CleftError as error:
            problems.append(f"A result is left out: {error}.")
    return found


def _curves(paths: Sequence[Path], problems: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Every logged quantity by step. Where a resumed run wrote a step twice, the later line counts."""
    points: dict[str, dict[float, float]] = {}
    for path in paths:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    _add_row(points, row)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            problems.append(f"Its log {path.name} cannot be read ({type(error).__name__}).")
    return {name: _thin(sorted(series.items())) for name, series in points.items() if series}


def _add_row(points: dict[str, dict[float, float]], row: Mapping[str | None, Any]) -> None:
    step = _number(row.get("step"))
    if step is None:
        return
    for name, text in row.items():
        value = _number(text)
        if name and name not in ("step", "epoch") and value is not None:
            points.setdefault(name, {})[step] = value


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _thin(series: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = -(-len(series) // _MOST_POINTS)
    kept = series[::stride]
    return kept if kept[-1] == series[-1] else [*kept, series[-1]]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping under dotted keys.

    Example:
        >>> flat({"text": {"rank": 8}, "seed": 0})
        {'text.rank': 8, 'seed': 0}
    """
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            leaves.update(flatten(cast("dict[str, Any]", value), f"{prefix}{name}."))
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _unique(name: str, taken: Sequence[str]) -> str:
    before = sum(other == name for other in taken)
    return f"{name} ({before + 1})" if before else name
