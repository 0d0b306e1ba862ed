"""From rows and columns to steps: what has to be run, in which folder, and what must stand before it.

Steps are named by their folder, so that what several cells need is one step: one stage one serves every column, a
context serves both data sets, and a row of Table 3 goes on from a row of Table 1.

```
<runs>/<row>/seed-<k>/
├── stage-one/                    stage one, or an image tower as it is
├── context/                      stage two
├── linear-probe-rsna-0.1/        a head on 10 % of RSNA's training patients
└── fine-tune-chexpert-1/
<runs>/<row>-<digest of its weights>/
├── model/                        a model that was given
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
    flat_settings,
    load_settings,
    setting_effect,
)
from cleft.errors import ConfigError
from cleft.studies.plans import SUBJECTS, Column, Model, Plan, Row
from cleft.training.linear_probe import is_exact

Kind = Literal["apart", "language-model", "adopt", "pretrain", "context", "classify", "zero-shot", "score"]
"""`apart` lists patients who must not be learned from; `adopt` brings a given model in; `score` asks a trained head."""

KINDS: Mapping[Kind, str] = {
    "apart": "keep patients apart",
    "language-model": "learn a language model",
    "adopt": "bring a model in",
    "pretrain": "stage one",
    "context": "stage two",
    "classify": "train a head",
    "zero-shot": "ask",
    "score": "ask",
}
"""Kind of a step to how a plan says it."""


LANGUAGE_MODEL = "base-lm-"
"""What the folder of a study's own language model begins with."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to run; it may be sent to another process."""

    name: str
    """Its folder below that of all runs; a question has its subject behind it."""
    kind: Kind
    folder: Path
    """Where what it makes lies; of a question, the run that is asked."""
    settings: Settings
    needs: tuple[str, ...] = ()
    """Names of the steps before it."""
    source: Path | None = None
    """Run that it starts from."""
    subject: str | None = None
    """What is asked about, or what a head learns: a key of `SUBJECTS`."""
    data: str | None = None
    """`dataset:folder` where that is not what the row learned from."""
    others: tuple[str, ...] = ()
    """Of `apart`: the other data sets, each `dataset:folder`."""
    balanced: bool = True
    """Whether a balanced set of the subject's size is drawn, as the paper has it."""
    model: Model | None = None
    """Of `adopt`, and of what is asked of such a model: it may know patients of the test, which its results say."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What was typed beside the name of a study."""

    data: Mapping[str, Path]
    """Dataset to its folder."""
    words: tuple[str, ...] = ()
    """Settings for every row, such as `--data.patient_dataset=nih`."""
    seeds: int = 3
    runs: Path = Path("runs")
    """Folder of all runs."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything the cells of some plans need."""

    steps: Mapping[str, Step] = field(default_factory=dict[str, Step])
    """By name, each behind what it needs."""
    cells: Mapping[tuple[str, str, str], tuple[str, ...]] = field(
        default_factory=dict[tuple[str, str, str], tuple[str, ...]]
    )
    """Plan, row and column to the name of its last step for each seed, or to one where seeds say the same; cells that
    cannot be run are not here."""
    lacking: Mapping[tuple[str, str, str], tuple[str, str]] = field(
        default_factory=dict[tuple[str, str, str], tuple[str, str]]
    )
    """Those: their state and why."""


def lay_out(plans: Sequence[Plan], given: Given, lacking_weights: Mapping[str, str] | None = None) -> Work:
    """Finds every step of some plans.

    Args:
        plans: Tables and figures; what they share is laid out once.
        given: Data, settings, seeds, folder.
        lacking_weights: Model that cannot be had, to why.

    Raises:
        ConfigError: If a preset or setting is unknown or contradicts another, or two rows would share a folder.
    """
    steps: dict[str, Step] = {}
    cells: dict[tuple[str, str, str], list[str]] = {}
    lacking: dict[tuple[str, str, str], tuple[str, str]] = {}
    for seed in range(given.seeds):
        for plan in plans:
            for row in plan.rows:
                builder = _Builder(plan, row, given, seed, steps)
                for column in plan.columns:
                    cell = (plan.name, row.key, column.key)
                    why = _why_not(row, column, builder, given, lacking_weights or {})
                    if why is not None:
                        lacking[cell] = why
                        continue
                    if seed == 0 or builder.differs(column):
                        cells.setdefault(cell, []).append(builder.ask(column))
    return Work(steps=steps, cells={cell: tuple(names) for cell, names in cells.items()}, lacking=lacking)


def row_settings(row: Row, given: Given, seed: int = 0) -> Settings:
    """The settings of a row's runs: preset, then what was typed for all rows, then the row's own.

    Raises:
        ConfigError: If one is unknown or contradicts another; names the row.
    """
    typed = words_of_row(row, given)
    try:
        settings = _load(row.preset, (*typed, *row.words))
        if row.like is not None:
            settings = _match(settings, _load(row.like, tuple(typed)))
        if row.model is not None:
            settings = _as_given(row.model.settings, settings)
    except ConfigError as error:
        raise ConfigError(f"row {row.key}: {error}") from error
    root = given.data.get(settings.data.dataset)
    return replace(settings, seed=seed, data=settings.data if root is None else replace(settings.data, root=root))


def words_of_row(row: Row, given: Given) -> list[str]:
    """Returns the words typed for all rows that a row takes: one without a text tower leaves out those about texts."""
    return [word for word in given.words if row.trains or not word.startswith(_OF_TEXTS)]


def _match(settings: Settings, other: Settings) -> Settings:
    """A method on the images and the image tower of another run, trained as long and by the same optimiser.

    A method that hides patches keeps its own tower.
    """
    image = settings.image if settings.method == "mrm" else other.image
    return replace(settings, images=other.images, image=image, optim=other.optim, train=other.train)


def _as_given(own: Settings, study: Settings) -> Settings:
    """A model as it was given, asked about the images, patients and classes of a study's other rows."""
    train = {name: getattr(study.train, name) for name in ("precision", "accelerator", "devices", "nodes", "strategy")}
    return replace(
        own,
        data=replace(_unread(study.data), prompt_prefix=own.data.prompt_prefix, caption=DataConfig().caption),
        classes=study.classes,
        train=replace(own.train, **train),
        classify=study.classify,
    )


@functools.cache
def _load(preset: str, words: tuple[str, ...]) -> Settings:
    """Tables share most of their rows."""
    return load_settings(preset, words)


_OF_TEXTS = ("--text.", "--loss.", "--optim.", "--context.")
"""Settings for all rows that rows without a text tower leave out."""


def _why_not(
    row: Row, column: Column, builder: _Builder, given: Given, lacking: Mapping[str, str]
) -> tuple[str, str] | None:
    """State and reason of a cell that cannot be run."""
    if column.task == "zero-shot" and not row.speaks:
        return "impossible", "it reads no sentences" if row.model is None else row.model.mute
    learned = [builder.settings.data.dataset] if row.trains else []
    for dataset in [*learned, SUBJECTS[column.subject].dataset]:
        if dataset not in given.data:
            return "missing", f"the data set {dataset} was not given: --data {dataset}=<folder>"
    wanted = (builder.settings.image.model, builder.settings.text.model if row.trains else None)
    if row.model is not None:
        wanted = (row.model.base if column.task == "zero-shot" else None,)
    for model in wanted:
        if model is not None and model in lacking:
            return "missing", lacking[model]
    return None


class _Builder:
    """Adds the steps of one row and seed as they are asked for."""

    def __init__(self, plan: Plan, row: Row, given: Given, seed: int, steps: dict[str, Step]) -> None:
        self._row = row
        self._given = given
        self._steps = steps
        self._balanced = plan.scale == "paper"
        self._before: list[Step] = []
        self._tiny = plan.scale == "tiny" and row.trains
        self._home = row.stage_one or row.home or row.key
        self._stage_one = f"{self._home}/seed-{seed}"
        first = replace(row, words=row.stage_one_words) if row.stage_one else row
        self.settings = self._begin(row_settings(row, given, seed))
        self._first = self._begin(row_settings(first, given, seed))
        # A context of the length that the other row has too is the other row's.
        self._own = self._stage_one if self.settings == self._first else f"{row.home or row.key}/seed-{seed}"

    def differs(self, column: Column) -> bool:
        """Whether another seed can answer otherwise: of a model that was given, nothing is drawn but for a head."""
        if self._row.model is None:
            return True
        return column.task != "zero-shot" and not (is_exact(self._head(column)) and column.fraction == 1)

    def ask(self, column: Column) -> str:
        """The name of the step that answers a question."""
        if column.task != "zero-shot":
            return self._ask_head(column)
        run = self._context(column) if self._row.context else self._pretrain()
        name = f"{run.name}/{column.subject}"
        return self._add(self._step(name, "zero-shot", run.folder, run.settings, (run.name,), column)).name

    def _pretrain(self) -> Step:
        for step in self._before:
            self._add(step)
        needs = tuple(step.name for step in self._before)
        if self._row.model is not None:
            name, settings = f"{self._home}/model", replace(self._first, seed=0)
            source = self._row.model.folder
            return self._add(self._step(name, "adopt", self._given.runs / name, settings, needs, source=source))
        name = f"{self._stage_one}/stage-one"
        return self._add(self._step(name, "pretrain", self._given.runs / name, self._first, needs))

    def _context(self, column: Column) -> Step:
        before = self._pretrain()
        classes = SUBJECTS[column.subject].classes
        name, settings = f"{self._own}/context", self.settings
        if classes is not None and (classes,) != settings.classes:
            name, settings = f"{name}-{classes}", replace(settings, classes=(classes,))
        folder = self._given.runs / name
        return self._add(self._step(name, "context", folder, settings, (before.name,), source=before.folder))

    def _ask_head(self, column: Column) -> str:
        before = self._pretrain()
        subject = SUBJECTS[column.subject]
        name = f"{self._stage_one}/{column.task}-{column.subject}-{column.fraction:g}"
        classes = (subject.classes,) if subject.classes else self._first.classes
        settings = replace(self._first, classes=classes, classify=self._head(column))
        folder = self._given.runs / name
        self._add(self._step(name, "classify", folder, settings, (before.name,), column, source=before.folder))
        return self._add(self._step(f"{name}/score", "score", folder, settings, (name,), column)).name

    def _head(self, column: Column) -> ClassifyConfig:
        """How a head of a table is trained: by the paper's protocol at its scale, unless another was asked for."""
        config = replace(self._first.classify, mode=column.task, fraction=column.fraction)  # pyright: ignore[reportArgumentType]  it is no zero-shot
        if self._balanced and not any(word.startswith("--classify.protocol=") for word in self._given.words):
            config = replace(config, protocol="paper")
        if is_exact(config):  # what a preset says of steps holds for fine-tuning alone
            kept = {name: getattr(config, name) for name in ("mode", "fraction", "scoring", "blank", "select_by")}
            return ClassifyConfig(**kept)
        return config

    def _begin(self, plain: Settings) -> Settings:
        self._before = []
        apart = self._apart(plain)
        return self._begin_tiny(apart) if self._tiny else apart

    def _begin_tiny(self, plain: Settings) -> Settings:
        """A language model that knows the captions, in the place of a published one; MRM has none of those."""
        if plain.text.scratch is None or plain.method == "mrm":
            return plain
        # Every row, whatever its method, adapter and seed, begins from the same one of its kind.
        text = TextTowerConfig(model=None, scratch=plain.text.scratch, max_tokens=plain.text.max_tokens)
        shape = Settings(data=_unread(plain.data), text=text)
        name = f"{LANGUAGE_MODEL}{plain.data.dataset}-{_digest(shape)}"
        folder = self._given.runs.resolve() / name
        step = self._step(name, "language-model", folder, shape, tuple(each.name for each in self._before))
        self._before.append(step)
        return replace(plain, text=replace(plain.text, model=str(folder), scratch=None))

    def _apart(self, plain: Settings) -> Settings:
        """Patients of the other data sets' tests stay out, where both may show the same people."""
        data = plain.data
        others = [name for name in self._given.data if name != data.dataset]
        if (
            data.exclude_patients is not None
            or (data.patient_dataset is None and data.dataset not in _SHARED)
            or not others
        ):
            return plain
        only_data = Settings(data=_unread(data))
        name = f"apart-{data.dataset}-{_digest(only_data)}.csv"
        table = self._given.runs.resolve() / name
        folders = tuple(f"{other}:{self._given.data[other]}" for other in others)
        self._before.append(replace(self._step(name, "apart", table, only_data), others=folders))
        return replace(plain, data=replace(data, exclude_patients=table))

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
        subject = None if column is None else column.subject
        dataset = settings.data.dataset if subject is None else SUBJECTS[subject].dataset
        return Step(
            name=name,
            kind=kind,
            folder=folder,
            settings=settings,
            needs=needs,
            source=source,
            subject=subject,
            data=None if dataset == settings.data.dataset else f"{dataset}:{self._given.data[dataset]}",
            balanced=self._balanced,
            model=None if kind in _SHARED_STEPS else self._row.model,
        )

    def _add(self, step: Step) -> Step:
        if self._steps.setdefault(step.name, step) != step:
            raise ConfigError(
                f"row {self._row.key}: {step.name} is a run of another row with other settings; rename the row"
            )
        return step


_SHARED_STEPS: tuple[Kind, ...] = ("apart", "language-model")
"""What rows have in common, whatever they are."""
_SHARED = ("nih", "rsna")
"""Datasets that show each other's people."""


def _unread(data: DataConfig) -> DataConfig:
    """The same images and patients, whatever is read with them."""
    usual = DataConfig()
    return replace(data, prompt_prefix=usual.prompt_prefix, texts=usual.texts, augment_texts=usual.augment_texts)


def _digest(settings: Settings) -> str:
    """Six hex digits that tell apart settings which decide a result; folders do not.

    Defaults are left out, so that a setting which is new does not give another name to what was made before it.
    """
    usual = flat_settings(Settings())
    deciding = {
        key: value
        for key, value in flat_settings(settings).items()
        if setting_effect(key) != () and value != usual.get(key)
    }
    return hashlib.sha256(repr(sorted(deciding.items())).encode()).hexdigest()[:6]
