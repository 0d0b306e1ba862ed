"""The tables and figures of the paper as rows and columns: which model, and what it is asked.

A row is a preset and the settings in which it differs; a column is a question. At the scale `paper` both are the
paper's. At the scale `tiny` the same rows are differences from one small preset, and the five findings of
CheXpert-5x200 give way to pneumonia, of which a few hundred images are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from cleft.config import Settings
from cleft.config.loading import nearest
from cleft.errors import ConfigError

Scale = Literal["paper", "tiny"]
Task = Literal["zero-shot", "linear-probe", "fine-tune"]

TASKS: Mapping[str, str] = MappingProxyType(
    {"zero-shot": "zero-shot", "linear-probe": "linear probe", "fine-tune": "fine-tuned"}
)
"""Task to how a heading says it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What images are asked about."""

    dataset: str
    """As `data.dataset`, and as `--data` names it."""
    label: str
    classes: str | None = None
    """Name of a set; None for the run's own classes, or those usual for the dataset."""
    per_class: int | None = None
    """Images of each class, in place of all."""


SUBJECTS: Mapping[str, Subject] = MappingProxyType(
    {
        "chexpert": Subject(dataset="chexpert", label="CheXpert-5x200"),
        "rsna": Subject(dataset="rsna", label="RSNA"),
        "nih": Subject(dataset="nih", label="NIH"),
        "manifest": Subject(dataset="manifest", label="your table"),
        "embed-birads": Subject(dataset="embed", label="EMBED BI-RADS", classes="birads-7", per_class=200),
        "embed-density": Subject(dataset="embed", label="EMBED density", classes="density-4", per_class=500),
    }
)
"""By the first part of a column's key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A finished model that is a row as it is: an imported checkpoint, or a run."""

    folder: Path
    weights: str
    """Digest of what decides its answers; another one is another row of runs."""
    settings: Settings
    """Its own."""
    origin: str
    """Where it comes from, in a sentence."""
    mute: str = ""
    """Why it cannot be asked in words; empty where it can."""
    base: str | None = None
    """Language model that its folder names and does not hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A model of a table."""

    key: str
    label: str
    preset: str
    words: tuple[str, ...] = ()
    """Settings on top of the preset, as typed: `--text.adapt=ia3`."""
    home: str | None = None
    """Folder of its runs, where that is not its key."""
    stage_one: str | None = None
    """Folder of the row whose stage one this one goes on from; None for its own."""
    stage_one_words: tuple[str, ...] = ()
    """Settings of that row."""
    context: bool = True
    """Whether stage two is learned; otherwise class prompts are the handwritten ones."""
    speaks: bool = True
    """Whether it reads sentences, so that it can be asked without examples."""
    trains: bool = True
    """Whether anything is learned before heads are; otherwise settings of texts and training do nothing."""
    like: str | None = None
    """Preset whose images, image tower, optimiser and steps it takes, so that the method alone differs."""
    model: Model | None = None
    """What it is in place of what its preset describes, of which data, classes and heads remain."""
    heading: str = ""
    """Under which heading of the table it stands; empty where a table has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A question to every row."""

    key: str
    label: str
    subject: str
    """Key of `SUBJECTS`."""
    task: Task
    fraction: float = 1.0
    """Share of the training patients that a head learns from."""
    metrics: tuple[str, ...] = ("accuracy", "auc")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A table or a figure: who is asked what."""

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    scale: Scale = "paper"
    notes: tuple[str, ...] = ()
    reference: str = ""
    """Key of the row that the others are held against on the same images; empty for none."""


def column(
    text: str, *, metrics: Sequence[str] = ("accuracy", "auc"), labels: Mapping[str, str] | None = None
) -> Column:
    """A question from its key: subject, task, and for a head the share of the training patients.

    Raises:
        ConfigError: If it names none; with the nearest name.

    Example:
        >>> column("rsna/fine-tune/0.1").label
        'RSNA, fine-tuned, 10 %'
    """
    subject, _, rest = text.partition("/")
    task, _, share = rest.partition("/")
    if subject not in SUBJECTS:
        raise ConfigError(
            f"column {text!r}: {subject!r} is nothing to ask about{nearest(subject, list(SUBJECTS))}; known are "
            f"{', '.join(SUBJECTS)}"
        )
    if task not in TASKS:
        raise ConfigError(
            f"column {text!r}: {task!r} is no task{nearest(task, list(TASKS))}; write {subject}/<task>, "
            f"one of {', '.join(TASKS)}"
        )
    fraction = _share(text, task, share)
    label = f"{(labels or {}).get(subject, SUBJECTS[subject].label)}, {TASKS[task]}"
    return Column(
        key=text,
        label=f"{label}, {100 * fraction:g} %" if share else label,
        subject=subject,
        task=task,  # pyright: ignore[reportArgumentType]  it is one of TASKS
        fraction=fraction,
        metrics=tuple(metrics),
    )


def _share(text: str, task: str, share: str) -> float:
    if not share:
        return 1.0
    try:
        fraction = float(share)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1 or task == "zero-shot":
        what = "nothing is learned from" if task == "zero-shot" else "must lie above 0 and not above 1"
        raise ConfigError(f"column {text!r}: the share {share!r} of the training patients {what}; write {task} alone")
    return fraction


def paper_plan(name: str, scale: Scale) -> Plan:
    """Returns a table or figure of the paper.

    Raises:
        ConfigError: If the paper has no such table or figure here; with the nearest name.
    """
    if name not in PLANS:
        raise ConfigError(
            f"no study {name!r}{nearest(name, [*PLANS, 'all'])}, and no YAML file of that name; studies are "
            f"{', '.join(PLANS)} or all"
        )
    return PLANS[name](scale)


TINY = "tiny-scale"
"""The preset that every row of the tiny scale differs from."""
_TINY_LABELS = {"chexpert": "Pneumonia (CheXpert's layout)"}
_TINY_NOTES = (
    "Small towers on few images: what these numbers say of each other may hold; of the paper's they say nothing.",
    "In the place of CheXpert-5x200 stands Pneumonia against No Finding.",
)

_IMAGE_ONLY = (
    ("random-vit", "Random-ViT", "baseline-random-vit"),
    ("imagenet-vit", "ImageNet-ViT", "baseline-imagenet-vit"),
)
_TINY_IMAGE_ONLY = (
    ("Random", ("--method=image-only",)),
    (
        "DINOv2-small",
        (
            "--method=image-only",
            "--image.model=facebook/dinov2-with-registers-small",
            "--image.scratch=null",
            "--image.pooling=mean-before-norm",
        ),
    ),
)
"""Label and settings of the same two rows at the tiny scale."""
_BASELINES = (
    ("clip-vit", "CLIP-ViT", "baseline-clip", True),
    ("convirt-r50", "ConVIRT-R50", "baseline-convirt", True),
    ("gloria-r50", "GLoRIA-R50", "baseline-gloria", True),
    ("mgca-vit", "MGCA-ViT", "baseline-mgca", True),
    ("mrm-vit", "MRM-ViT", "baseline-mrm", False),
    ("medclip-swin", "MedCLIP-Swin", "baseline-medclip", True),
)
"""Key, label, preset, and whether it reads sentences."""
_MATCHED = "matched: the same images, image tower, optimiser and steps"
_AS_PUBLISHED = "as published: each method's own recipe, scaled down"
"""The two headings of the tiny scale."""
_MATCHED_LABELS = {"mrm-vit": "MRM (its own ViT)"}
"""Where a method cannot have the tower of the others: nothing of a ResNet's input can be hidden patch by patch."""
_CLEFT = (
    ("cleft-prefix", "CLEFT-Prefix", "prefix"),
    ("cleft-ia3", "CLEFT-IA3", "ia3"),
    ("cleft-lora", "CLEFT-LoRA", "lora"),
)

LENGTHS = (5, 10, 20, 30, 40, 50)
"""Context lengths of Figure 3. The paper's default is 30; its handwritten opening has about ten tokens."""
FRACTIONS = (0.01, 0.1, 1.0)


def _cleft(adapt: str, scale: Scale) -> tuple[str, tuple[str, ...]]:
    """Preset and settings of CLEFT with one of its adapters."""
    if scale == "paper":
        return f"table1-{adapt}", ()
    return TINY, (f"--text.adapt={adapt}",)


def _lora(scale: Scale, key: str = "cleft-lora", label: str = "CLEFT-LoRA") -> Row:
    preset, words = _cleft("lora", scale)
    return Row(key=key, label=label, preset=preset, words=words)


def _table_rows(scale: Scale) -> tuple[Row, ...]:
    """The eleven rows of Table 1; at the tiny scale the methods twice, under two headings."""
    if scale == "tiny":
        return _tiny_table_rows()
    rows = [Row(key=key, label=label, preset=preset, speaks=False, trains=False) for key, label, preset in _IMAGE_ONLY]
    rows += [
        Row(key=key, label=label, preset=preset, context=False, speaks=speaks)
        for key, label, preset, speaks in _BASELINES
    ]
    return (*rows, *_cleft_rows(scale))


def _tiny_table_rows() -> tuple[Row, ...]:
    rows = [
        Row(key=key, label=label, preset=TINY, words=words, speaks=False, trains=False)
        for (key, _, _), (label, words) in zip(_IMAGE_ONLY, _TINY_IMAGE_ONLY, strict=True)
    ]
    published = [
        Row(key=key, label=label, preset=f"tiny-{preset}", context=False, speaks=speaks, heading=_AS_PUBLISHED)
        for key, label, preset, speaks in _BASELINES
    ]
    rows += [
        replace(
            row,
            key=f"matched-{row.preset.rpartition('-')[2]}",
            label=_MATCHED_LABELS.get(row.key, row.label.partition("-")[0]),
            like=TINY,
        )
        for row in published
    ]
    rows += _cleft_rows("tiny")
    return (*(replace(row, heading=_MATCHED) for row in rows), *published)


def _cleft_rows(scale: Scale) -> list[Row]:
    rows: list[Row] = []
    for key, label, adapt in _CLEFT:
        preset, words = _cleft(adapt, scale)
        rows.append(Row(key=key, label=label, preset=preset, words=words))
    return rows


def _columns(
    subjects: Sequence[str], tasks: Sequence[str], scale: Scale, fractions: Sequence[float] = ()
) -> tuple[Column, ...]:
    """Zero-shot prints accuracy alone in the paper; the tiny scale has so few images that the AUC stands beside it."""
    labels = _TINY_LABELS if scale == "tiny" else {}
    alone = ("accuracy",) if scale == "paper" else ("accuracy", "auc")
    made: list[Column] = []
    for subject in subjects:
        for task in tasks:
            metrics = alone if task == "zero-shot" else ("accuracy", "auc")
            ends = [f"/{fraction:g}" for fraction in fractions] or [""]
            made += [column(f"{subject}/{task}{end}", metrics=metrics, labels=labels) for end in ends]
    return tuple(made)


def _notes(scale: Scale) -> tuple[str, ...]:
    return _TINY_NOTES if scale == "tiny" else ()


def _table1(scale: Scale) -> Plan:
    return Plan(
        name="table1",
        title="Table 1: chest radiographs, zero-shot, linear probe and fine-tuning",
        rows=_table_rows(scale),
        columns=_columns(("chexpert", "rsna"), tuple(TASKS), scale),
        scale=scale,
        notes=_notes(scale),
        reference="cleft-lora",
    )


def _table2(scale: Scale) -> Plan:
    """Mammograms; the tiny scale means drawn ones, and asks about as many images as there are."""
    names = ("random-vit", "imagenet-vit", "clip-vit")
    preset = "embed" if scale == "paper" else "tiny-scale-embed"
    data = ("--data.dataset=embed", "--data.split=embed", "--classes=[birads-7]")
    if scale == "paper":
        rows = [replace(row, words=data) for row in _table_rows(scale) if row.key in names]
    else:
        rows = [replace(row, preset=preset, heading="") for row in _tiny_table_rows() if row.key in names[:2]]
        rows.append(
            Row(key="clip-vit", label="CLIP", preset="tiny-baseline-clip", words=data, context=False, like=preset)
        )
    rows.append(Row(key="cleft-lora", label="CLEFT-LoRA", preset=preset))
    return Plan(
        name="table2",
        title="Table 2: mammograms of EMBED",
        rows=tuple(replace(row, home=f"embed-{row.key}") for row in rows),
        columns=tuple(
            column(f"{subject}/{task}", metrics=("accuracy",))
            for subject in ("embed-birads", "embed-density")
            for task in TASKS
        ),
        scale=scale,
        notes=_notes(scale)[:1],
        reference="cleft-lora",
    )


def _table3(scale: Scale) -> Plan:
    frozen, full = (("table3-frozen", ()), ("table3-full", ()))
    if scale == "tiny":
        frozen = (TINY, ("--text.adapt=frozen", "--text.train_embeddings=false"))
        full = (TINY, ("--text.adapt=full",))
    ours = _lora(scale)
    return Plan(
        name="table3",
        title="Table 3: without stage two, with a frozen and with a fully tuned language model",
        rows=(
            Row(
                key="no-context",
                label="without stage two",
                preset=ours.preset,
                words=ours.words,
                stage_one="cleft-lora",
                stage_one_words=ours.words,
                context=False,
            ),
            Row(key="frozen-lm", label="frozen language model", preset=frozen[0], words=frozen[1]),
            Row(key="full-lm", label="full language model", preset=full[0], words=full[1]),
            ours,
        ),
        columns=_columns(("chexpert", "rsna"), ("zero-shot",), scale),
        scale=scale,
        notes=_notes(scale),
        reference="cleft-lora",
    )


def _figure3(scale: Scale) -> Plan:
    ours = _lora(scale)
    rows = [
        Row(
            key=f"length-{length}",
            label=f"{length} vectors",
            preset=ours.preset,
            words=(*ours.words, f"--context.length={length}"),
            stage_one="cleft-lora",
            stage_one_words=ours.words,
        )
        for length in LENGTHS
    ]
    return Plan(
        name="figure3",
        title="Figure 3: accuracy against the length of the context",
        rows=tuple(rows),
        columns=_columns(("chexpert", "rsna"), ("zero-shot",), scale),
        scale=scale,
        notes=_notes(scale),
    )


def _efficiency(name: str, subject: str) -> Callable[[Scale], Plan]:
    def made(scale: Scale) -> Plan:
        what = (_TINY_LABELS if scale == "tiny" else {}).get(subject, SUBJECTS[subject].label)
        return Plan(
            name=name,
            title=f"Table {name.removeprefix('table')}: {what} with 1, 10 and 100 % of the training patients",
            rows=_table_rows(scale),
            columns=_columns((subject,), ("linear-probe", "fine-tune"), scale, FRACTIONS),
            scale=scale,
            notes=_notes(scale),
            reference="cleft-lora",
        )

    return made


def _sizes(scale: Scale) -> Plan:
    return Plan(
        name="tableS3",
        title="Table S3: moving and frozen weights",
        rows=_table_rows(scale),
        columns=(),
        scale=scale,
        notes=("Counted from the shapes alone; nothing was trained or downloaded.",),
    )


PLANS: Mapping[str, Callable[[Scale], Plan]] = MappingProxyType(
    {
        "table1": _table1,
        "table2": _table2,
        "table3": _table3,
        "figure3": _figure3,
        "tableS1": _efficiency("tableS1", "chexpert"),
        "tableS2": _efficiency("tableS2", "rsna"),
        "tableS3": _sizes,
    }
)
"""Name of a study to what makes it. Which data set Tables S1 and S2 print in which order is our guess
(docs/decisions/0110)."""
