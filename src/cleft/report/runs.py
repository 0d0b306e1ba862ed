"""Read run folders for reports: settings, environment, training logs and results, without private values.

Reads `config.yaml`, `environment.json`, CSV logs, `results/*.json` and `comparisons/*.json`. A missing or damaged file
is reported on the page; a folder that is not a run is an error.
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
from cleft.privacy import LEFT_OUT, redact
from cleft.results import Comparison, Evaluation, Stored, from_json
from cleft.strict_json import read_json

_MOST_POINTS = 400
_SEED = re.compile(r"seed-\d+")


@dataclass(frozen=True, kw_only=True)
class StoredResult:
    """One file in `results/` of a run."""

    file: str
    anchor: str
    """HTML id of its section."""
    evaluation: Evaluation
    href: str = ""
    """Link to its values if the page has no section of it."""

    def link(self, line: str = "") -> str:
        """Return the link to a row of its section, or to the file."""
        return self.href or "-".join(filter(None, (f"#{self.anchor}", line)))


@dataclass(frozen=True, kw_only=True)
class Run:
    """Contents of a run folder."""

    name: str
    """Folder name, with its parent or a number if several runs share the name."""
    anchor: str
    stage: str
    """`pretrain`, `context`, or empty if unknown."""
    config: Mapping[str, Any]
    """Settings by dotted key."""
    environment: Mapping[str, str]
    """Versions and device by dotted key."""
    curves: Mapping[str, Sequence[tuple[float, float]]]
    """Logged quantity to points (step, value)."""
    results: Sequence[StoredResult]
    problems: Sequence[str]
    """What is missing or unreadable, in sentences."""
    split: str = ""
    """Split recipe and digest, if known."""
    terms: Sequence[str] = ()
    """Restrictions that the data use agreement puts on the weights."""
    comparisons: Sequence[Comparison] = ()
    """Comparisons with other results on the same images."""


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read each run folder once, in the given order.

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
    """Return the name of each run: its folder, with the parent folder where names repeat or are those of seeds."""
    counts = Counter(folder.name for folder in folders)
    return [
        f"{folder.parent.name}/{folder.name}"
        if counts[folder.name] > 1 or _SEED.fullmatch(folder.name)
        else folder.name
        for folder in folders
    ]


def _read_run(folder: Path, name: str, anchor: str) -> Run:
    config = folder / "config.yaml"
    if not config.is_file():
        raise DataError(
            f"{folder} is not a run folder: it has no config.yaml; give a folder that "
            f"cleft pretrain or cleft learn-context wrote",
            reason="not-a-run",
        )
    problems: list[str] = []
    environment = _environment(folder / "environment.json", problems)
    results = _results(folder / "results", anchor, problems)
    curves = _curves(sorted((folder / "logs").rglob("*.csv")), problems)
    if not results:
        problems.append("No results yet: run cleft evaluate.")
    if not curves:
        problems.append("No training log.")
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
    """Read a JSON object; empty if it is missing or damaged."""
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
        problems.append("environment.json (versions and device) is missing or unreadable.")
    return {key: redact(key, value) for key, value in flatten(tree).items()}


def _results(folder: Path, anchor: str, problems: list[str]) -> list[StoredResult]:
    stored = _stored(folder, Evaluation, problems)
    return [
        StoredResult(file=name, anchor=f"{anchor}-result-{number}", evaluation=evaluation)
        for number, (name, evaluation) in stored
    ]


def _comparisons(folder: Path, problems: list[str]) -> list[Comparison]:
    return [comparison for _, (_, comparison) in _stored(folder, Comparison, problems)]


def _stored(folder: Path, kind: type[Stored], problems: list[str]) -> list[tuple[int, tuple[str, Stored]]]:
    """Return number, name and contents of each result file; a damaged one is added to the problems."""
    stored: list[tuple[int, tuple[str, Stored]]] = []
    for number, path in enumerate(sorted(folder.glob("*.json")), start=1):
        try:
            stored.append((number, (path.name, from_json(read_limited(path, where=path.name), kind, where=path.name))))
        except CleftError as error:
            problems.append(f"Result file skipped: {error}.")
    return stored


def _curves(paths: Sequence[Path], problems: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Return each logged quantity by step. If a resumed run logged a step twice, the later row counts."""
    points: dict[str, dict[float, float]] = {}
    for path in paths:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    _add_row(points, row)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            problems.append(f"Training log {path.name} cannot be read ({type(error).__name__}).")
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
    """Flatten a nested mapping to dotted keys.

    Example:
        >>> flatten({"text": {"rank": 8}, "seed": 0})
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


ADAPTER_NAMES = {
    "lora": "LoRA (rank {rank})",
    "ia3": "IA3",
    "prefix": "prefix tuning ({prefix} virtual tokens)",
    "full": "all weights trainable",
    "frozen": "frozen",
}
FAMILY_NAMES = {
    "vit": "ViT",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
    "swin": "Swin transformer",
    "resnet": "ResNet",
    "gpt2": "GPT-2",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "bert": "BERT",
}
LOSS_NAMES = {
    "info_nce": "InfoNCE",
    "label_aware_nce": "label-aware InfoNCE (equal captions are positives)",
    "soft_overlap_nce": "InfoNCE with soft targets from label overlap",
    "sigmoid": "sigmoid loss",
}


def describe_run(run: Run) -> str:
    """Describe encoders, loss and training steps of a run, and its second stage if there is one."""
    config = run.config
    adapter = ADAPTER_NAMES.get(str(config.get("text.adapt")), str(config.get("text.adapt", "unknown adapter")))
    adapter = adapter.format(rank=config.get("text.rank", "?"), prefix=config.get("text.prefix_length", "?"))
    frozen = ", frozen" if config.get("image.train") is False else ""
    loss = str(config.get("loss.name", "unknown"))
    description = (
        f"Image encoder: {_encoder(config, 'image')}{frozen}. Text encoder: {_encoder(config, 'text')}, {adapter}. "
        f"Loss: {LOSS_NAMES.get(loss, loss)}. Stage one: {_format_steps(config.get('optim.steps'))} steps of "
        f"{_format_steps(config.get('train.batch_size'))} image-text pairs."
    )
    if run.stage == "context":
        description += (
            f" Stage two: {_format_steps(config.get('context.length'))} context vectors, "
            f"{_format_steps(config.get('context.optim.steps'))} steps, encoders frozen."
        )
    return description


def _encoder(config: Mapping[str, Any], modality: str) -> str:
    model = config.get(f"{modality}.model")
    if model is not None:
        name = redact(f"{modality}.model", model)
        name = "local model" if name == LEFT_OUT else name
        return f"{name} (random weights)" if config.get(f"{modality}.random_weights") else name
    kind = str(config.get(f"{modality}.scratch.model_type", "model"))
    return f"{FAMILY_NAMES.get(kind, kind)} (from scratch)"


def _format_steps(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "an unknown number of"
