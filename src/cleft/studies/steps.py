"""Steps of a study: what to run for each cell, in which folder, and after which other steps.

Steps are named by their folder, so that cells share them: one stage one serves every column, one context serves both
datasets, and rows of Table 3 use the stage one of a row of Table 1.

```
<runs>/<row>/seed-<k>/
├── stage-one/                    stage one, or an image encoder without training
├── context/                      stage two
├── linear-probe-rsna-0.1/        a classifier on 10 % of RSNA's training patients
└── fine-tune-chexpert-1/
<runs>/<row>-<digest of its weights>/
├── model/                        an imported model
└── seed-<k>/linear-probe-…
```
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cleft.config import (
    ClassifyConfig,
    DataConfig,
    Settings,
    TextTowerConfig,
    declared_settings,
    flat_settings,
    load_settings,
    setting_effect,
)
from cleft.errors import ConfigError
from cleft.studies.plans import BENCHMARKS, Column, Model, Plan, Row
from cleft.training.linear_probe import uses_solver

Kind = Literal[
    "exclusion-list", "caption-lm", "import", "pretrain", "context", "classify", "zero-shot", "evaluate-classifier"
]
"""`exclusion-list` writes the patients to leave out of training; `import` links an existing model into the study."""

KIND_NAMES: Mapping[Kind, str] = {
    "exclusion-list": "list patients to exclude",
    "caption-lm": "train a caption language model",
    "import": "import a model",
    "pretrain": "stage one",
    "context": "stage two",
    "classify": "train a classifier",
    "zero-shot": "evaluate",
    "evaluate-classifier": "evaluate",
}
"""Name of a kind of step in the printed plan."""


CAPTION_LM = "base-lm-"
"""Prefix of the folder of a caption language model."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to run; can be sent to another process."""

    name: str
    """Its folder relative to that of all runs; an evaluation has its benchmark appended."""
    kind: Kind
    folder: Path
    """Output folder; of an evaluation, the run that is evaluated."""
    settings: Settings
    needs: tuple[str, ...] = ()
    """Names of the steps that must be finished first."""
    source: Path | None = None
    """Run that it starts from."""
    benchmark: str | None = None
    """Benchmark of an evaluation or classifier: a key of `BENCHMARKS`."""
    data: str | None = None
    """`dataset:folder` if it is not the training dataset of the row."""
    others: tuple[str, ...] = ()
    """Of `exclusion-list`: the other datasets, each `dataset:folder`."""
    balanced: bool = True
    """Whether the balanced test set of the benchmark is drawn, as in the paper."""
    model: Model | None = None
    """Imported model of an `import` step and its evaluations. Test patients may be among its training patients; results
    note this."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Data, overrides and seeds of a study."""

    data: Mapping[str, Path]
    """Dataset to its folder."""
    overrides: tuple[str, ...] = ()
    """Overrides for every row, such as `--data.patient_dataset=nih`."""
    seeds: int = 3
    runs: Path = Path("runs")
    """Folder of all runs."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Steps of all cells."""

    steps: Mapping[str, Step] = field(default_factory=dict[str, Step])
    """By name, each after what it needs."""
    cells: Mapping[tuple[str, str, str], tuple[str, ...]] = field(
        default_factory=dict[tuple[str, str, str], tuple[str, ...]]
    )
    """Plan, row and column to the evaluation step of each seed, or to a single one if seeds give the same result; cells
    that cannot be run are left out."""
    unavailable: Mapping[tuple[str, str, str], tuple[str, str]] = field(
        default_factory=dict[tuple[str, str, str], tuple[str, str]]
    )
    """State and reason of cells that cannot be run."""


def plan_steps(
    plans: Sequence[Plan], options: StudyOptions, unavailable_weights: Mapping[str, str] | None = None
) -> StepPlan:
    """Return the steps of some studies.

    Args:
        plans: Studies; shared steps are planned once.
        options: Data, overrides, seeds, folder.
        unavailable_weights: Published models that are not available, with reasons.

    Raises:
        ConfigError: If a preset or setting is unknown or contradicts another, or two rows would share a folder.
    """
    steps: dict[str, Step] = {}
    cells: dict[tuple[str, str, str], list[str]] = {}
    unavailable: dict[tuple[str, str, str], tuple[str, str]] = {}
    for seed in range(options.seeds):
        for plan in plans:
            for row in plan.rows:
                builder = _RowSteps(plan, row, options, seed, steps)
                for column in plan.columns:
                    cell = (plan.name, row.key, column.key)
                    reason = _unavailable_reason(row, column, builder, options, unavailable_weights or {})
                    if reason is not None:
                        unavailable[cell] = reason
                        continue
                    if seed == 0 or builder.depends_on_seed(column):
                        cells.setdefault(cell, []).append(builder.add_evaluation(column))
    return StepPlan(steps=steps, cells={cell: tuple(names) for cell, names in cells.items()}, unavailable=unavailable)


def row_settings(row: Row, options: StudyOptions, seed: int = 0) -> Settings:
    """Return the settings of a row: preset, then overrides for all rows, then its own.

    Raises:
        ConfigError: If a setting is unknown or contradicts another; names the row.
    """
    overrides = overrides_of_row(row, options)
    try:
        settings = _load(row.preset, (*overrides, *row.overrides))
        if row.match_preset is not None:
            settings = _match_settings(settings, _load(row.match_preset, tuple(overrides)))
        if row.model is not None:
            settings = _settings_of_model(row.model.settings, settings)
    except ConfigError as error:
        raise ConfigError(f"row {row.key}: {error}") from error
    root = options.data.get(settings.data.dataset)
    return replace(settings, seed=seed, data=settings.data if root is None else replace(settings.data, root=root))


def overrides_of_row(row: Row, options: StudyOptions) -> list[str]:
    """Return the overrides for all rows that apply to a row: without text settings if it is not pretrained."""
    return [each for each in options.overrides if row.pretrains or not each.startswith(_TEXT_SETTINGS)]


def _match_settings(settings: Settings, other: Settings) -> Settings:
    """Return settings with images, image encoder, optimiser and steps of other settings; MRM keeps its own encoder."""
    image = settings.image if settings.method == "mrm" else other.image
    return replace(settings, images=other.images, image=image, optim=other.optim, train=other.train)


def _settings_of_model(own: Settings, study: Settings) -> Settings:
    """Return the settings of an imported model, with data, classes and classifier settings of the study."""
    train = {name: getattr(study.train, name) for name in ("precision", "accelerator", "devices", "nodes", "strategy")}
    return replace(
        own,
        data=replace(_without_texts(study.data), prompt_prefix=own.data.prompt_prefix, caption=DataConfig().caption),
        classes=study.classes,
        train=replace(own.train, **train),
        classify=study.classify,
    )


@functools.cache
def _load(preset: str, overrides: tuple[str, ...]) -> Settings:
    return load_settings(preset, overrides)  # cached: studies share most of their rows


_TEXT_SETTINGS = ("--text.", "--loss.", "--optim.", "--context.")
"""Settings that do not apply to rows without pretraining."""


def _unavailable_reason(
    row: Row, column: Column, builder: _RowSteps, options: StudyOptions, unavailable_weights: Mapping[str, str]
) -> tuple[str, str] | None:
    """Return state and reason of a cell that cannot be run, else None."""
    if column.task == "zero-shot" and not row.zero_shot:
        return "impossible", "no text encoder" if row.model is None else row.model.no_zero_shot
    trained_on = [builder.settings.data.dataset] if row.pretrains else []
    for dataset in [*trained_on, BENCHMARKS[column.benchmark].dataset]:
        if dataset not in options.data:
            return "missing", f"no data for {dataset}; give --data {dataset}=<folder>"
    models = (builder.settings.image.model, builder.settings.text.model if row.pretrains else None)
    if row.model is not None:
        models = (row.model.base_model if column.task == "zero-shot" else None,)
    for model in models:
        if model is not None and model in unavailable_weights:
            return "missing", unavailable_weights[model]
    return None


class _RowSteps:
    """Adds the steps of one row and seed."""

    def __init__(self, plan: Plan, row: Row, options: StudyOptions, seed: int, steps: dict[str, Step]) -> None:
        self._row = row
        self._options = options
        self._steps = steps
        self._balanced = plan.scale == "paper"
        self._preparation: list[Step] = []
        self._tiny = plan.scale == "tiny" and row.pretrains
        self._folder = row.stage_one_of or row.folder or row.key
        self._stage_one = f"{self._folder}/seed-{seed}"
        first = replace(row, overrides=row.stage_one_overrides) if row.stage_one_of else row
        self.settings = self._with_preparation(row_settings(row, options, seed))
        self._first = self._with_preparation(row_settings(first, options, seed))
        # With the same context settings as the other row, its context is shared too.
        self._own = self._stage_one if self.settings == self._first else f"{row.folder or row.key}/seed-{seed}"

    def depends_on_seed(self, column: Column) -> bool:
        """Whether another seed can change the result; for imported models, only classifiers with random draws can."""
        if self._row.model is None:
            return True
        return column.task != "zero-shot" and not (uses_solver(self._classify_config(column)) and column.fraction == 1)

    def add_evaluation(self, column: Column) -> str:
        """Add the steps of an evaluation and return the name of the last."""
        if column.task != "zero-shot":
            return self._add_classifier(column)
        run = self._context(column) if self._row.learns_context else self._pretrain()
        name = f"{run.name}/{column.benchmark}"
        return self._add(self._step(name, "zero-shot", run.folder, run.settings, (run.name,), column)).name

    def _pretrain(self) -> Step:
        for step in self._preparation:
            self._add(step)
        needs = tuple(step.name for step in self._preparation)
        if self._row.model is not None:
            name, settings = f"{self._folder}/model", replace(self._first, seed=0)
            source = self._row.model.folder
            return self._add(self._step(name, "import", self._options.runs / name, settings, needs, source=source))
        name = f"{self._stage_one}/stage-one"
        return self._add(self._step(name, "pretrain", self._options.runs / name, self._first, needs))

    def _context(self, column: Column) -> Step:
        before = self._pretrain()
        classes = BENCHMARKS[column.benchmark].classes
        name, settings = f"{self._own}/context", self.settings
        if classes is not None and (classes,) != settings.classes:
            name, settings = f"{name}-{classes}", replace(settings, classes=(classes,))
        folder = self._options.runs / name
        return self._add(self._step(name, "context", folder, settings, (before.name,), source=before.folder))

    def _add_classifier(self, column: Column) -> str:
        before = self._pretrain()
        benchmark = BENCHMARKS[column.benchmark]
        name = f"{self._stage_one}/{column.task}-{column.benchmark}-{column.fraction:g}"
        classes = (benchmark.classes,) if benchmark.classes else self._first.classes
        settings = replace(self._first, classes=classes, classify=self._classify_config(column))
        folder = self._options.runs / name
        self._add(self._step(name, "classify", folder, settings, (before.name,), column, source=before.folder))
        return self._add(self._step(f"{name}/score", "evaluate-classifier", folder, settings, (name,), column)).name

    def _classify_config(self, column: Column) -> ClassifyConfig:
        """Return the classifier settings: the paper's protocol at paper scale, unless overridden."""
        config = replace(self._first.classify, mode=column.task, fraction=column.fraction)  # pyright: ignore[reportArgumentType]  never zero-shot
        if self._balanced and not any(each.startswith("--classify.protocol=") for each in self._options.overrides):
            config = replace(config, protocol="paper")
        if uses_solver(config):  # step settings of a preset apply to fine-tuning only
            kept = {name: getattr(config, name) for name in ("mode", "fraction", "scoring", "blank", "select_by")}
            return ClassifyConfig(**kept)
        return config

    def _with_preparation(self, settings: Settings) -> Settings:
        self._preparation = []
        settings = self._with_exclusion_list(settings)
        return self._with_caption_lm(settings) if self._tiny else settings

    def _with_caption_lm(self, settings: Settings) -> Settings:
        """Replace the language model by one trained on captions; MRM has its own."""
        if settings.text.scratch is None or settings.method == "mrm":
            return settings
        # One per model shape, for every row, method, adapter and seed.
        text = TextTowerConfig(model=None, scratch=settings.text.scratch, max_tokens=settings.text.max_tokens)
        shape = Settings(data=_without_texts(settings.data), text=text)
        name = f"{CAPTION_LM}{settings.data.dataset}-{_digest(shape)}"
        folder = self._options.runs.resolve() / name
        step = self._step(name, "caption-lm", folder, shape, tuple(each.name for each in self._preparation))
        self._preparation.append(step)
        return replace(settings, text=replace(settings.text, model=str(folder), scratch=None))

    def _with_exclusion_list(self, settings: Settings) -> Settings:
        """Exclude the test patients of other datasets from training, where datasets may share patients."""
        data = settings.data
        others = [name for name in self._options.data if name != data.dataset]
        if (
            data.exclude_patients is not None
            or (data.patient_dataset is None and data.dataset not in _SHARED_PATIENTS)
            or not others
        ):
            return settings
        only_data = Settings(data=_without_texts(data))
        name = f"excluded-{data.dataset}-{_digest(only_data)}.csv"
        table = self._options.runs.resolve() / name
        folders = tuple(f"{other}:{self._options.data[other]}" for other in others)
        self._preparation.append(replace(self._step(name, "exclusion-list", table, only_data), others=folders))
        return replace(settings, data=replace(data, exclude_patients=table))

    def _step(
        self,
        name: str,
        kind: Kind,
        folder: Path,
        settings: Settings,
        needs: tuple[str, ...] = (),
        column: Column | None = None,
        *,
        source: Path | None = None,
    ) -> Step:
        benchmark = None if column is None else column.benchmark
        dataset = settings.data.dataset if benchmark is None else BENCHMARKS[benchmark].dataset
        return Step(
            name=name,
            kind=kind,
            folder=folder,
            settings=settings,
            needs=needs,
            source=source,
            benchmark=benchmark,
            data=None if dataset == settings.data.dataset else f"{dataset}:{self._options.data[dataset]}",
            balanced=self._balanced,
            model=None if kind in _SHARED_STEPS else self._row.model,
        )

    def _add(self, step: Step) -> Step:
        if self._steps.setdefault(step.name, step) != step:
            raise ConfigError(
                f"row {self._row.key}: {step.name} is also a run of another row with other settings; rename the row"
            )
        return step


_SHARED_STEPS: tuple[Kind, ...] = ("exclusion-list", "caption-lm")
"""Steps that rows share."""
_SHARED_PATIENTS = ("nih", "rsna")
"""Datasets with patients in common."""


def _without_texts(data: DataConfig) -> DataConfig:
    """Return data settings for the same images and patients, with default texts."""
    defaults = DataConfig()
    return replace(
        data, prompt_prefix=defaults.prompt_prefix, texts=defaults.texts, augment_texts=defaults.augment_texts
    )


def _digest(settings: Settings) -> str:
    """Return a digest (six hex digits) of the settings that affect results; folders do not.

    Defaults are left out and renamed settings keep their first name, so that the digests of existing studies do not
    change.
    """
    defaults = flat_settings(Settings())
    declared = declared_settings()
    relevant = {
        (declared[key].formerly if key in declared else None) or key: value
        for key, value in flat_settings(settings).items()
        if setting_effect(key) != () and value != defaults.get(key)
    }
    return hashlib.sha256(repr(sorted(relevant.items())).encode()).hexdigest()[:6]
