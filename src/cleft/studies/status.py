"""Status of a study: run times, finished runs, results of the current weights, and parameter counts."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cleft.config import Settings, Stage, dump_settings, load_settings
from cleft.data import DATASETS, data_config
from cleft.data.datasets import CLASS_SETS
from cleft.errors import CleftError, ConfigError
from cleft.evaluation.result_files import read_evaluation
from cleft.files import file_key, write_whole
from cleft.grammar import count
from cleft.models.hub import check_weights_available
from cleft.models.model_folder import read_head_info
from cleft.models.parameter_count import TEXT_PARTS, build_meta_model, count_parameters, trained_token_rows
from cleft.privacy import is_hidden
from cleft.results import Evaluation
from cleft.strict_json import find_json, write_json
from cleft.studies.plans import BENCHMARKS, Plan, Row
from cleft.studies.steps import CAPTION_LM, Step, StepPlan, StudyOptions, row_settings
from cleft.training.linear_probe import apply_protocol
from cleft.training.provenance import read_summary
from cleft.training.run_folder import changes

TIMES_FILE = "times.json"


class StepTimes:
    """Run times in seconds of all steps that ran from beginning to end, stored in the folder of runs."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / TIMES_FILE
        self._seconds: dict[str, float] = {
            name: float(value) for name, value in (find_json(self._path) or {}).items() if _is_number(value)
        }

    def add(self, step: Step, seconds: float) -> None:
        """Store the time of a step that ran from beginning to end."""
        self._seconds[step.name] = round(seconds, 1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self._seconds)

    def of(self, name: str) -> float | None:
        """Return the time of a step, or None if it was not measured."""
        return self._seconds.get(name)

    def estimate(self, step: Step) -> float | None:
        """Return the median time of the same step over seeds, or None if none was measured."""
        measured = [
            seconds for name, seconds in self._seconds.items() if _without_seed(name) == _without_seed(step.name)
        ]
        return statistics.median(measured) if measured else None


def _without_seed(name: str) -> tuple[str, ...]:
    """Return the parts of a step name without the seed.

    Example:
        >>> _without_seed("cleft-lora/seed-2/stage-one")
        ('cleft-lora', 'stage-one')
    """
    return tuple(part for part in name.split("/") if not part.startswith("seed-"))


def describe_cost(steps: Sequence[Step], times: StepTimes) -> str:
    """Describe the expected run time of steps, as far as it was measured."""
    measured = [seconds for step in steps if (seconds := times.estimate(step)) is not None]
    unknown = len(steps) - len(measured)
    if not measured:
        return "time unknown" if unknown else "no time"
    return f"about {format_duration(sum(measured))}" + f" and {count(unknown, 'step')} of unknown time" * bool(unknown)


def format_duration(seconds: float) -> str:
    """Format seconds as seconds, minutes or hours.

    Example:
        >>> format_duration(48), format_duration(150), format_duration(7200)
        ('48 s', '2.5 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def count_kinds(steps: Iterable[Step], names: Mapping[Any, str]) -> str:
    """Count steps by kind, in words."""
    kinds = [names[step.kind] for step in steps]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def row_facts(row: Row, options: StudyOptions, plan: StepPlan) -> dict[str, float]:
    """Return trainable and frozen parameters, counted from the configuration, and the context length of a row.

    Trainable embedding rows are counted once a run has found its tokens. Imported models have no trainable parameters
    and no training time.
    """
    if row.model is not None:
        untrained = {"trainable": 0.0, "seconds": 0.0}
        try:
            counts = count_parameters(build_meta_model(row.model.settings)).values()
        except CleftError:
            return untrained
        return untrained | {"frozen": float(sum(count.trainable + count.frozen for count in counts))}
    folder = row.stage_one_of or row.folder or row.key
    first = plan.steps.get(f"{folder}/seed-0/stage-one")
    settings = row_settings(row, options) if first is None else first.settings
    try:
        model = build_meta_model(settings, tokens=_tokens(first))
    except CleftError:
        return {}  # the configuration is not available offline, or the caption language model is not trained yet
    counts = count_parameters(model)
    facts = {
        "trainable": float(sum(count.trainable for count in counts.values())),
        "trainable_text": float(sum(count.trainable for part, count in counts.items() if part in TEXT_PARTS)),
        "frozen": float(sum(count.frozen for count in counts.values())),
    }
    return facts | (
        {"length": float(row_settings(row, options).context.length)} if row.zero_shot and row.learns_context else {}
    )


def find_unavailable_weights(plans: Sequence[Plan], options: StudyOptions) -> dict[str, str]:
    """Return the published models that rows start from and that are not available, with reasons."""
    rows = [row for plan in plans for row in plan.rows]
    settings = [row_settings(row, options) for row in rows if row.model is None]
    named = [(each.image.model, each.image.random_weights, "image.model") for each in settings]
    named += [
        (each.text.model, each.text.random_weights, "text.model") for each in settings if each.method != "image-only"
    ]
    named += [(row.model.base_model, False, "text.model") for row in rows if row.model is not None]
    models = {model: setting for model, random, setting in named if model is not None and not random}
    unavailable: dict[str, str] = {}
    for model, setting in models.items():
        try:
            check_weights_available(model, setting)
        except ConfigError as error:
            unavailable[model] = str(error)
    return unavailable


def _tokens(first: Step | None) -> int:
    """Return the number of distinct training tokens of a finished run, else 0."""
    return 0 if first is None else trained_token_rows(first.folder) or 0


_STAGES: dict[str, Stage] = {
    "import": "context",  # data and classes; its weights are in its name
    "pretrain": "pretrain",
    "context": "context",
    "classify": "classify",
}


def is_done(step: Step) -> bool:
    """Whether a step that trains or writes a table is finished."""
    if step.kind in ("exclusion-list", "import"):
        return False  # fast, and tables or folders may have changed
    return (step.folder / ("learned.json" if step.kind == "caption-lm" else "summary.json")).is_file()


def check_run_settings(step: Step) -> None:
    """Check that a folder has no run with other settings.

    Raises:
        ConfigError: If it has; names the settings that differ.
    """
    started = (step.folder / "summary.json").is_file() or any((step.folder / "states").glob("*.ckpt"))
    if step.kind not in _STAGES or not started or _is_unchanged(step):
        return
    stored = load_settings(step.folder)
    wanted = _expected_settings(step, stored.classes)
    differing, _ = changes(_with_current_paths(stored, wanted), wanted, _STAGES[step.kind])
    if differing:
        raise ConfigError(
            f"{step.folder} was started with other settings: {'; '.join(map(str, differing))}; restore the old values "
            f"to resume, or choose another folder for the study with --out"
        )


def update_paths(step: Step) -> None:
    """Update the paths in `config.yaml` of a run that was moved, or whose data were, so that it can be resumed.

    Its model files are unchanged, because results refer to their digest.
    """
    if step.kind not in _STAGES or not (step.folder / "config.yaml").is_file() or _is_unchanged(step):
        return
    stored = load_settings(step.folder)
    updated = _with_current_paths(stored, _expected_settings(step, stored.classes))
    if updated != stored:
        write_whole(step.folder / "config.yaml", dump_settings(updated), mode=None)


def _with_current_paths(stored: Settings, wanted: Settings) -> Settings:
    """Return stored settings with the current paths; a caption language model is identified by its folder name."""
    data = replace(stored.data, root=wanted.data.root, exclude_patients=wanted.data.exclude_patients)
    old, new = stored.text.model, wanted.text.model
    moved = old is not None and new is not None and _is_caption_lm(old) and Path(old).name == Path(new).name
    text = replace(stored.text, model=new) if moved else stored.text
    return replace(stored, data=data, text=text)


def _is_caption_lm(model: str) -> bool:
    """Whether a language model is a caption language model, whose name has a digest of its training settings."""
    return (Path(model).is_absolute() or is_hidden(model)) and Path(model).name.startswith(CAPTION_LM)


def _is_unchanged(step: Step) -> bool:
    """Whether the stored settings are textually equal, which is faster than parsing them."""
    facts = read_head_info(step.folder) if step.kind == "classify" else None
    if step.kind == "classify" and facts is None:
        return False
    wanted = dump_settings(_expected_settings(step, () if facts is None else facts.classes))
    return (step.folder / "config.yaml").read_text(encoding="utf-8") == wanted


def _expected_settings(step: Step, classes: tuple[str, ...]) -> Settings:
    """Return the settings that the run of a step stores; a classifier adds data, protocol and findings."""
    if step.kind != "classify":
        return step.settings
    data, head = data_config(step.settings, step.data), apply_protocol(step.settings.classify)
    return replace(step.settings, data=data, classify=head, classes=classes)


def find_result(step: Step) -> Path | None:
    """Return the result file of an evaluation of the current weights, if there is one."""
    weights = (read_summary(step.folder) or {}).get("weights")
    if weights is None:
        return None
    for path in sorted((step.folder / "results").glob("*.json")):
        try:
            evaluation = read_evaluation_header(path)
        except CleftError:
            continue  # of an older version, or damaged: evaluated again
        if evaluation.checkpoint == weights and is_result_of(evaluation, step):
            return path
    return None


def read_evaluation_header(path: Path) -> Evaluation:
    """Read what a result file evaluates, without its results.

    Raises:
        CleftError: If it cannot be read.
    """
    return _read_header(path, file_key(path))


@functools.cache
def _read_header(path: Path, key: str) -> Evaluation:
    # Cached by file key: unchanged files are read once.
    return replace(
        read_evaluation(path),
        results=(),
        baselines=(),
        confusion=None,
        roc={},
        examples=(),
        calibration=None,
        subgroups=(),
        retrieval=(),
        prompt_sensitivity=None,
        embedding_map=None,
    )


def is_result_of(evaluation: Evaluation, step: Step) -> bool:
    """Whether an evaluation is that of a step."""
    assert step.benchmark is not None
    benchmark = BENCHMARKS[step.benchmark]
    if (evaluation.dataset, evaluation.split, evaluation.scoring) != (benchmark.dataset, "test", "multi-class"):
        return False
    if evaluation.similarity != "global" or evaluation.standardised:
        return False
    if step.kind == "zero-shot" and evaluation.class_names != Path(step.settings.class_names).stem:
        return False
    if evaluation.task != ("zero-shot" if step.kind == "zero-shot" else step.settings.classify.mode):
        return False
    if (evaluation.per_class is not None) != (step.balanced and benchmark.per_class is not None):
        return False
    return _plain(evaluation.classes) in [_plain(names) for names in _expected_classes(step, benchmark.classes)]


def _expected_classes(step: Step, named: str | None) -> Iterable[Sequence[str]]:
    """Return the classes that a step may evaluate: those of the benchmark, of the run, or the dataset's default."""
    if named is not None:
        return [_members([named])]
    settings: Settings = step.settings
    default = [] if step.data is None else [_members(DATASETS[step.data.partition(":")[0]].classes or ())]
    return [_members(settings.classes), *default]


def _members(names: Sequence[str]) -> list[str]:
    return [member for name in names for member in CLASS_SETS.get(name.casefold(), (name,))]


def _plain(names: Sequence[str]) -> list[str]:
    return [name.casefold() for name in names]
