"""Studies: the tables and figures of the paper as rows (models) and columns (evaluations).

A row is a preset with overrides; a column is a benchmark and a task. At scale `paper` both are the paper's. At scale
`tiny` all rows are overrides of one small preset, and pneumonia, for which a few hundred images are enough, replaces
the five findings of CheXpert-5x200.
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
"""Task to its name in column labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """A dataset and its classes, on which rows are evaluated."""

    dataset: str
    """As in `data.dataset` and `--data`."""
    label: str
    classes: str | None = None
    """Name of a class set; None for the classes of the run, or the default classes of the dataset."""
    per_class: int | None = None
    """Images of each class in a balanced test set; None for all images."""


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "chexpert": Benchmark(dataset="chexpert", label="CheXpert-5x200"),
        "rsna": Benchmark(dataset="rsna", label="RSNA"),
        "nih": Benchmark(dataset="nih", label="NIH"),
        "manifest": Benchmark(dataset="manifest", label="your table"),
        "embed-birads": Benchmark(dataset="embed", label="EMBED BI-RADS", classes="birads-7", per_class=200),
        "embed-density": Benchmark(dataset="embed", label="EMBED density", classes="density-4", per_class=500),
    }
)
"""By the first part of a column key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A trained model that is a row by itself: an imported checkpoint or a finished run."""

    folder: Path
    weights: str
    """Digest of everything that determines its predictions."""
    settings: Settings
    """Settings of the model."""
    origin: str
    """Where it comes from, without paths."""
    no_zero_shot: str = ""
    """Why it cannot be evaluated zero-shot; empty if it can."""
    base_model: str | None = None
    """Published language model that its folder refers to, if any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A model of a study."""

    key: str
    label: str
    preset: str
    overrides: tuple[str, ...] = ()
    """Settings that override the preset, such as `--text.adapt=ia3`."""
    folder: str | None = None
    """Folder of its runs, if it is not its key."""
    stage_one_of: str | None = None
    """Folder of the row whose stage one it uses; None for its own."""
    stage_one_overrides: tuple[str, ...] = ()
    """Overrides of that row."""
    learns_context: bool = True
    """Whether stage two is trained; otherwise zero-shot uses handwritten prompts."""
    zero_shot: bool = True
    """Whether it encodes text, so that it can be evaluated zero-shot."""
    pretrains: bool = True
    """Whether stage one is trained; otherwise settings of text and training have no effect."""
    match_preset: str | None = None
    """Preset whose images, image encoder, optimiser and steps it takes, so that only the method differs."""
    model: Model | None = None
    """Model that replaces the one of the preset, which then only sets data, classes and classifiers."""
    heading: str = ""
    """Heading above it in the table; empty for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """An evaluation of every row."""

    key: str
    label: str
    benchmark: str
    """Key of `BENCHMARKS`."""
    task: Task
    fraction: float = 1.0
    """Share of the training patients that the classifier is trained on."""
    metrics: tuple[str, ...] = ("accuracy", "auc")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A study: its rows and columns."""

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    scale: Scale = "paper"
    notes: tuple[str, ...] = ()
    reference: str = ""
    """Key of the row that the others are compared with on the same images; empty for none."""


def column(
    text: str, *, metrics: Sequence[str] = ("accuracy", "auc"), labels: Mapping[str, str] | None = None
) -> Column:
    """Parse a column key: benchmark, task, and for a classifier the share of the training patients.

    Raises:
        ConfigError: If benchmark, task or share is unknown; names the nearest.

    Example:
        >>> column("rsna/fine-tune/0.1").label
        'RSNA, fine-tuned, 10 %'
    """
    benchmark, _, rest = text.partition("/")
    task, _, share = rest.partition("/")
    if benchmark not in BENCHMARKS:
        raise ConfigError(
            f"column {text!r}: unknown benchmark {benchmark!r}{nearest(benchmark, list(BENCHMARKS))}; use one of "
            f"{', '.join(BENCHMARKS)}"
        )
    if task not in TASKS:
        raise ConfigError(
            f"column {text!r}: unknown task {task!r}{nearest(task, list(TASKS))}; write {benchmark}/<task> "
            f"with one of {', '.join(TASKS)}"
        )
    fraction = _share(text, task, share)
    label = f"{(labels or {}).get(benchmark, BENCHMARKS[benchmark].label)}, {TASKS[task]}"
    return Column(
        key=text,
        label=f"{label}, {100 * fraction:g} %" if share else label,
        benchmark=benchmark,
        task=task,  # pyright: ignore[reportArgumentType]  one of TASKS
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
        what = "has no effect" if task == "zero-shot" else "must be in (0, 1]"
        raise ConfigError(f"column {text!r}: the share {share!r} of the training patients {what}; write {task} alone")
    return fraction


def paper_plan(name: str, scale: Scale) -> Plan:
    """Return the study of a table or figure of the paper.

    Raises:
        ConfigError: If there is no such study; names the nearest.
    """
    if name not in PLANS:
        raise ConfigError(
            f"unknown study {name!r}{nearest(name, [*PLANS, 'all'])}; give a YAML file, or one of "
            f"{', '.join(PLANS)} or all"
        )
    return PLANS[name](scale)


TINY_PRESET = "tiny-scale"
"""The preset that all rows of the tiny scale override."""
_TINY_LABELS = {"chexpert": "Pneumonia (CheXpert's layout)"}
_TINY_NOTES = (
    "Small encoders on few images: rows may be compared with each other, but not with the paper.",
    "Pneumonia vs. No Finding replaces CheXpert-5x200.",
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
"""Label and overrides of the same two rows at the tiny scale."""
_BASELINES = (
    ("clip-vit", "CLIP-ViT", "baseline-clip", True),
    ("convirt-r50", "ConVIRT-R50", "baseline-convirt", True),
    ("gloria-r50", "GLoRIA-R50", "baseline-gloria", True),
    ("mgca-vit", "MGCA-ViT", "baseline-mgca", True),
    ("mrm-vit", "MRM-ViT", "baseline-mrm", False),
    ("medclip-swin", "MedCLIP-Swin", "baseline-medclip", True),
)
"""Key, label, preset, and whether it encodes text."""
_MATCHED = "matched: same images, image encoder, optimiser and steps"
_AS_PUBLISHED = "as published: each method's own recipe, scaled down"
"""Row headings of the tiny scale."""
_MATCHED_LABELS = {"mrm-vit": "MRM (its own ViT)"}
"""Methods that cannot share the image encoder: a ResNet cannot mask patches of its input."""
_CLEFT = (
    ("cleft-prefix", "CLEFT-Prefix", "prefix"),
    ("cleft-ia3", "CLEFT-IA3", "ia3"),
    ("cleft-lora", "CLEFT-LoRA", "lora"),
)

LENGTHS = (5, 10, 20, 30, 40, 50)
"""Context lengths of Figure 3. The paper's default is 30; its handwritten template has about ten tokens."""
FRACTIONS = (0.01, 0.1, 1.0)


def _cleft(adapt: str, scale: Scale) -> tuple[str, tuple[str, ...]]:
    """Return preset and overrides of CLEFT with one of its adapters."""
    if scale == "paper":
        return f"table1-{adapt}", ()
    return TINY_PRESET, (f"--text.adapt={adapt}",)


def _lora(scale: Scale, key: str = "cleft-lora", label: str = "CLEFT-LoRA") -> Row:
    preset, overrides = _cleft("lora", scale)
    return Row(key=key, label=label, preset=preset, overrides=overrides)


def _table_rows(scale: Scale) -> tuple[Row, ...]:
    """Return the eleven rows of Table 1; at the tiny scale the methods appear twice, under two headings."""
    if scale == "tiny":
        return _tiny_table_rows()
    rows = [
        Row(key=key, label=label, preset=preset, zero_shot=False, pretrains=False) for key, label, preset in _IMAGE_ONLY
    ]
    rows += [
        Row(key=key, label=label, preset=preset, learns_context=False, zero_shot=zero_shot)
        for key, label, preset, zero_shot in _BASELINES
    ]
    return (*rows, *_cleft_rows(scale))


def _tiny_table_rows() -> tuple[Row, ...]:
    rows = [
        Row(key=key, label=label, preset=TINY_PRESET, overrides=overrides, zero_shot=False, pretrains=False)
        for (key, _, _), (label, overrides) in zip(_IMAGE_ONLY, _TINY_IMAGE_ONLY, strict=True)
    ]
    published = [
        Row(
            key=key,
            label=label,
            preset=f"tiny-{preset}",
            learns_context=False,
            zero_shot=zero_shot,
            heading=_AS_PUBLISHED,
        )
        for key, label, preset, zero_shot in _BASELINES
    ]
    rows += [
        replace(
            row,
            key=f"matched-{row.preset.rpartition('-')[2]}",
            label=_MATCHED_LABELS.get(row.key, row.label.partition("-")[0]),
            match_preset=TINY_PRESET,
        )
        for row in published
    ]
    rows += _cleft_rows("tiny")
    return (*(replace(row, heading=_MATCHED) for row in rows), *published)


def _cleft_rows(scale: Scale) -> list[Row]:
    rows: list[Row] = []
    for key, label, adapt in _CLEFT:
        preset, overrides = _cleft(adapt, scale)
        rows.append(Row(key=key, label=label, preset=preset, overrides=overrides))
    return rows


def _columns(
    benchmarks: Sequence[str], tasks: Sequence[str], scale: Scale, fractions: Sequence[float] = ()
) -> tuple[Column, ...]:
    """Return one column per benchmark, task and fraction. The paper reports zero-shot accuracy only; tiny adds AUC."""
    labels = _TINY_LABELS if scale == "tiny" else {}
    alone = ("accuracy",) if scale == "paper" else ("accuracy", "auc")
    columns: list[Column] = []
    for benchmark in benchmarks:
        for task in tasks:
            metrics = alone if task == "zero-shot" else ("accuracy", "auc")
            ends = [f"/{fraction:g}" for fraction in fractions] or [""]
            columns += [column(f"{benchmark}/{task}{end}", metrics=metrics, labels=labels) for end in ends]
    return tuple(columns)


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
    """Mammograms; the tiny scale uses synthetic ones, and all of their images."""
    names = ("random-vit", "imagenet-vit", "clip-vit")
    preset = "embed" if scale == "paper" else "tiny-scale-embed"
    data = ("--data.dataset=embed", "--data.split=embed", "--classes=[birads-7]")
    if scale == "paper":
        rows = [replace(row, overrides=data) for row in _table_rows(scale) if row.key in names]
    else:
        rows = [replace(row, preset=preset, heading="") for row in _tiny_table_rows() if row.key in names[:2]]
        rows.append(
            Row(
                key="clip-vit",
                label="CLIP",
                preset="tiny-baseline-clip",
                overrides=data,
                learns_context=False,
                match_preset=preset,
            )
        )
    rows.append(Row(key="cleft-lora", label="CLEFT-LoRA", preset=preset))
    return Plan(
        name="table2",
        title="Table 2: mammograms of EMBED",
        rows=tuple(replace(row, folder=f"embed-{row.key}") for row in rows),
        columns=tuple(
            column(f"{benchmark}/{task}", metrics=("accuracy",))
            for benchmark in ("embed-birads", "embed-density")
            for task in TASKS
        ),
        scale=scale,
        notes=_notes(scale)[:1],
        reference="cleft-lora",
    )


def _table3(scale: Scale) -> Plan:
    frozen, full = (("table3-frozen", ()), ("table3-full", ()))
    if scale == "tiny":
        frozen = (TINY_PRESET, ("--text.adapt=frozen", "--text.train_embeddings=false"))
        full = (TINY_PRESET, ("--text.adapt=full",))
    ours = _lora(scale)
    return Plan(
        name="table3",
        title="Table 3: without stage two, with a frozen and with a fully fine-tuned language model",
        rows=(
            Row(
                key="no-context",
                label="without stage two",
                preset=ours.preset,
                overrides=ours.overrides,
                stage_one_of="cleft-lora",
                stage_one_overrides=ours.overrides,
                learns_context=False,
            ),
            Row(key="frozen-lm", label="frozen language model", preset=frozen[0], overrides=frozen[1]),
            Row(key="full-lm", label="full language model", preset=full[0], overrides=full[1]),
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
            overrides=(*ours.overrides, f"--context.length={length}"),
            stage_one_of="cleft-lora",
            stage_one_overrides=ours.overrides,
        )
        for length in LENGTHS
    ]
    return Plan(
        name="figure3",
        title="Figure 3: accuracy against context length",
        rows=tuple(rows),
        columns=_columns(("chexpert", "rsna"), ("zero-shot",), scale),
        scale=scale,
        notes=_notes(scale),
    )


def _data_efficiency(name: str, benchmark: str) -> Callable[[Scale], Plan]:
    def plan(scale: Scale) -> Plan:
        what = (_TINY_LABELS if scale == "tiny" else {}).get(benchmark, BENCHMARKS[benchmark].label)
        return Plan(
            name=name,
            title=f"Table {name.removeprefix('table')}: {what} with 1, 10 and 100 % of the training patients",
            rows=_table_rows(scale),
            columns=_columns((benchmark,), ("linear-probe", "fine-tune"), scale, FRACTIONS),
            scale=scale,
            notes=_notes(scale),
            reference="cleft-lora",
        )

    return plan


def _table_s3(scale: Scale) -> Plan:
    return Plan(
        name="tableS3",
        title="Table S3: trainable and frozen parameters",
        rows=_table_rows(scale),
        columns=(),
        scale=scale,
        notes=("Counted from the model configurations; nothing was trained or downloaded.",),
    )


PLANS: Mapping[str, Callable[[Scale], Plan]] = MappingProxyType(
    {
        "table1": _table1,
        "table2": _table2,
        "table3": _table3,
        "figure3": _figure3,
        "tableS1": _data_efficiency("tableS1", "chexpert"),
        "tableS2": _data_efficiency("tableS2", "rsna"),
        "tableS3": _table_s3,
    }
)
"""Study name to its definition. The assignment of datasets to Tables S1 and S2 is our guess (docs/decisions/0110)."""
