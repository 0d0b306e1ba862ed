"""Result files: what evaluations, comparisons and studies hold, and their strict JSON form."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from cleft.errors import DataError
from cleft.strict_json import parse_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One metric with its interval."""

    metric: str
    """`accuracy`, `auc`, `auprc`, `sensitivity@0.90` (at that specificity), …; of one class: `auc/Edema`."""
    value: float | None
    """In [0, 1], except the ranks of retrieval, which count from 1. None if it could not be measured."""
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval over patients."""
    images: int = 0
    """Images that the metric was computed on."""
    patients: int = 0
    reason: str | None = None
    """Why `value` or `interval` is None, or what they leave out: `mean over 4 of 5 classes: no image shows Edema`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityBin:
    """One point of a reliability curve: predictions of similar probability, and how often they were correct."""

    predicted: float
    """Mean predicted probability, in [0, 1]."""
    observed: float
    """Observed frequency, in [0, 1]. Above `predicted` the model is under-confident, below it over-confident."""
    images: int
    """Predictions in the bin: images, or pairs of image and finding for `present-absent`."""
    patients: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Agreement of predicted probabilities with observed frequencies.

    `multi-class`: probability of the predicted class, and whether it is correct. `present-absent`: probability of
    presence, and whether the finding is present, over all labelled pairs of image and finding.
    """

    bins: tuple[ReliabilityBin, ...]
    """Up to ten bins of equally many predictions by rising probability; equal probabilities share a bin."""
    ece: Result
    """Expected calibration error: mean |predicted - observed| over the bins, weighted by their predictions; 0 is best.
    Few images bias it upwards, and resampling patients biases it further: it may be below its own interval."""
    temperature: float | None = None
    """Temperature that minimises the validation negative log-likelihood; above 1 the model was over-confident. None if
    it was not fitted: see `reason`."""
    validation_images: int = field(default=0, metadata={"formerly": "fitted_on"})
    """Number of images it was fitted on."""
    bins_after: tuple[ReliabilityBin, ...] = ()
    """The bins of the same test images after temperature scaling; empty without a temperature."""
    ece_after: Result | None = None
    """`ece-after-temperature`; None without a temperature."""
    reason: str | None = None
    """Why there is no temperature: `the data have no validation split`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subgroup:
    """Results on the images of one group of patients."""

    name: str
    """`F`, `40-60`, `AP`, …, as in the table."""
    images: int
    patients: int
    results: tuple[Result, ...]
    """`accuracy` and `auc` on these images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subgroups:
    """Results by sex, age, view or scanner, and the gap between groups."""

    by: str
    """`sex`, `age`, `view` or `scanner`."""
    groups: tuple[Subgroup, ...]
    """Two or more, the largest first; ages in order. At least five patients each, unless the images are synthetic."""
    gaps: tuple[Result, ...]
    """`accuracy` and `auc` of the best group minus those of the worst, among groups of at least twenty patients, with
    the interval of this difference. `reason` names them: `best F, worst M`. With fewer than two such groups `value` is
    None and `reason` says so."""
    left_out: int = 0
    """Images in groups of too few patients."""
    unknown: int = 0
    """Images without this attribute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalItem:
    """An image or a caption of a retrieval example."""

    image: str = ""
    """PNG as base64; empty for a caption."""
    text: str = ""
    """The caption, or the findings present in an image. Empty for a caption that fewer than five patients of a real
    dataset share."""
    relevant: bool = field(default=True, metadata={"formerly": "right"})
    """Whether it matches the query; True for the query itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalExample:
    """A query and its first results, without ids."""

    query: RetrievalItem
    retrieved: tuple[RetrievalItem, ...] = field(metadata={"formerly": "answers"})
    """The most similar first."""
    rank: int
    """Rank of the first match, from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """One retrieval direction.

    Its metrics are in `Evaluation.results`: `<direction>/recall@1`, `@5`, `@10` (share of queries with a match among
    the first k), `<direction>/precision@1`, `@5`, `@10` (mean share of the first k that are relevant),
    `<direction>/mean-rank` and `<direction>/median-rank` (rank of the first match, from 1: lower is better). Chance
    level is in `Evaluation.baselines`: `chance/<direction>/recall@1`, ….
    """

    direction: str
    """`image-to-text`, `text-to-image` or `image-to-image`."""
    queries: int
    """Queries with a match; the metrics are computed on these."""
    without_match: int = field(metadata={"formerly": "unanswerable"})
    """Queries without a match, which are not evaluated."""
    candidates: int
    """Number of images, or of distinct captions, that are searched."""
    relevant_per_query: float = field(metadata={"formerly": "right"})
    """Mean number of matches per query."""
    examples: tuple[RetrievalExample, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTemplate:
    """Zero-shot results with one prompt template."""

    template: str = field(metadata={"formerly": "opening"})
    """Words in front of the class name."""
    default: bool = field(metadata={"formerly": "usual"})
    """Whether it is the template of captions and class prompts."""
    results: tuple[Result, ...]
    """`accuracy` and `auc`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateSpread:
    """Variation of a metric over prompt templates."""

    metric: str
    """`accuracy` or `auc`."""
    lowest: float
    highest: float
    mean: float
    std: float = field(metadata={"formerly": "deviation"})
    """Sample standard deviation (n - 1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NegationTest:
    """Whether the model uses the word "no": the prompt for a finding against the prompt for its absence."""

    finding: str
    present_prompt: str = field(metadata={"formerly": "present"})
    absent_prompt: str = field(metadata={"formerly": "absent"})
    cosine: float
    """Cosine of the two prompt embeddings; 1 if the model ignores the negation."""
    predicted_present: float = field(metadata={"formerly": "said_present"})
    """Share of images more similar to the prompt for presence."""
    prevalence: float | None = field(metadata={"formerly": "shown"})
    """Share of labelled images that show the finding; None if no image is labelled."""
    results: tuple[Result, ...]
    """`auc/present`: ranked by the prompt for presence; `auc/absent`: by the prompt for absence, reversed; `auc/pair`:
    by their difference, as in present-absent scoring."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextVector:
    """One vector of a learned prompt context, and the vocabulary tokens nearest to it."""

    position: int = field(metadata={"formerly": "place"})
    """From 1."""
    norm: float
    displacement: float | None = field(metadata={"formerly": "moved"})
    """Distance from its initial value, or None if that is unknown."""
    nearest_tokens: tuple[tuple[str, float], ...] = field(metadata={"formerly": "nearest"})
    """Tokens and their cosines, the nearest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSensitivity:
    """Sensitivity of zero-shot results to the prompt template and to negation."""

    templates: tuple[PromptTemplate, ...]
    spread: tuple[TemplateSpread, ...]
    negation: tuple[NegationTest, ...] = field(metadata={"formerly": "denials"})
    context: tuple[ContextVector, ...] = ()
    """Empty if the run has no learned context."""
    token_norm: float | None = None
    """Mean norm of the token embeddings of the language model, for comparison with the context vectors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingMap:
    """2-D PCA projection of image embeddings and class prompts; distances are approximate.

    Images and prompts are centred separately, since the gap between the two kinds exceeds the differences within each.
    """

    images: tuple[tuple[int, float, float], ...]
    """Class index, first and second component of each image."""
    prompts: tuple[tuple[float, float], ...]
    """Components of each class prompt, in the order of the classes."""
    explained_variance: tuple[float, float] = field(metadata={"formerly": "shares"})
    """Share of the images' variance along each component, in [0, 1]."""
    modality_gap: float = field(metadata={"formerly": "gap"})
    """Distance between the mean image and the mean prompt embedding (unit-length vectors)."""
    omitted: int = field(default=0, metadata={"formerly": "left_out"})
    """Images not drawn, to keep the figure readable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Results of one task for one model on one set of images: a file in `results/` of a run."""

    task: str
    """`zero-shot`, `linear-probe`, `fine-tune`, `retrieval` or `prompts`."""
    dataset: str
    split: str
    """`train`, `val`, `test`, or `all` if the data were not split."""
    split_recipe: str
    split_digest: str
    ids_digest: str
    """SHA-256 of the sorted ids of the evaluated images, first 16 hex digits."""
    checkpoint: str
    """SHA-256 of the weights, first 16 hex digits."""
    scoring: str
    """`multi-class` or `present-absent`; `nearest` for retrieval."""
    prompts: str
    """`context` (learned in stage two) or `handwritten`; `captions` for retrieval, `none` without text."""
    classes: tuple[str, ...]
    class_prompts: tuple[str, ...]
    results: tuple[Result, ...]
    baselines: tuple[Result, ...] = field(metadata={"formerly": "floors"})
    """Results of rules without a model on the same images: `majority-class/accuracy`, `ap-view/auc/Edema`, …"""
    confusion: tuple[tuple[int, ...], ...] | None = None
    """Number of images by true class (row) and predicted class (column)."""
    roc: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict[str, Sequence[tuple[float, float]]])
    """Points (false positive rate, true positive rate) by class."""
    examples: Sequence[Mapping[str, Any]] = ()
    """A few images with predictions: `image` (PNG as base64), `truth`, `answers` (class, probability)."""
    synthetic: bool = False
    """Whether the images are synthetic, so that anybody may see them."""
    per_class: int | None = None
    """Number of images selected of each class; None if all images of the split were evaluated."""
    class_names: str = field(default="default", metadata={"formerly": "wording"})
    """Class names in prompts: `default`, `released`, or the name of a YAML file."""
    similarity: str = "global"
    """Zero-shot: `global` (image and prompt embeddings), or `local`, `both`, `released`: with words and regions."""
    standardised: bool = False
    """Whether the scores of each class were standardised over the images, so that predictions depend on each other."""
    overlap_left_out: int = 0
    """Images left out because the model was trained on their patients."""
    command: str = ""
    """Command of this evaluation, without folders."""
    seed: int = 0
    """Seed of the bootstrap."""
    notes: tuple[str, ...] = ()
    protocol: str = field(default="", metadata={"old_values": {"usual": "standard"}})
    """Training protocol of a classifier: `standard` or `paper`; empty otherwise, as the next four fields."""
    training_fraction: float = field(default=1.0, metadata={"formerly": "fraction"})
    """Share of the training patients."""
    training_seed: int = 0
    """Seed of the choice of patients, the order of images and the initial weights of the classifier."""
    training_images: int = 0
    training_patients: int = 0
    calibration: Calibration | None = None
    """None for retrieval, and in results of earlier versions."""
    subgroups: tuple[Subgroups, ...] = ()
    """By sex, age, view and scanner, each if the table has two groups or more."""
    retrieval: tuple[Retrieval, ...] = ()
    """The directions of a retrieval evaluation."""
    prompt_sensitivity: PromptSensitivity | None = field(default=None, metadata={"formerly": "audit"})
    """Of the task `prompts`."""
    embedding_map: EmbeddingMap | None = field(default=None, metadata={"formerly": "space"})
    """Of multi-class zero-shot classification with one prompt per class and `global` similarity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Difference of one metric between two models on the same images."""

    metric: str
    """`accuracy`, `auc`, `auc/Edema`, …"""
    first: float | None
    second: float | None
    difference: float | None
    """First minus second; None if one of them is undefined."""
    interval: tuple[float, float] | None
    """95 % paired bootstrap interval over patients."""
    p_value: float | None
    """Two-sided, from the same resamples. None without an interval."""
    images: int
    patients: int
    reason: str | None = None
    """Why a value is None, or what it leaves out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Comparison of two results on the same images: a file in `comparisons/` of the first run."""

    first: str
    """Name of the first run's folder."""
    second: str
    first_result: str
    """File name of the first result, without a folder."""
    second_result: str
    first_task: str
    """`zero-shot`, …"""
    second_task: str
    first_checkpoint: str
    """As in the evaluations."""
    second_checkpoint: str
    dataset: str
    split: str
    ids_digest: str
    """Digest of the images both were evaluated on."""
    scoring: str
    classes: tuple[str, ...]
    differences: tuple[Difference, ...]
    """`accuracy` and `auc`, then by class."""
    synthetic: bool = False
    """Whether the images are synthetic."""
    command: str = ""
    """Command of this comparison, without folders."""
    seed: int = 0
    resamples: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyLine:
    """Row or column of the table of a study."""

    key: str
    """Name in files and folders: `cleft-lora`, `chexpert/zero-shot`."""
    label: str
    """Label in the table."""
    heading: str = ""
    """Of a row: heading of its section, if the table has sections."""
    metrics: tuple[str, ...] = ()
    """Of a column: metrics to print, such as `accuracy` and `auc`."""
    facts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of a row, as far as known: `moving` (trainable) and `frozen` parameters, `seconds` of training,
    context `length`, …"""
    origin: str = ""
    """Of a row that is an existing model: its source. Without random draws it is evaluated once, whatever the number of
    seeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyCell:
    """Cell of the table of a study: its result files, or why there are none."""

    row: str
    column: str
    state: str
    """`done`; `planned`; `missing`: its data or weights were not given; `failed`; `impossible`: the method does
    not support the task."""
    results: tuple[str, ...] = ()
    """Result files, one per seed, relative to the folder of the study."""
    reason: str | None = None
    """Why it is not `done`."""
    differences: tuple[Difference, ...] = ()
    """`accuracy` and `auc` minus those of the reference row on the same images, means over seeds; empty if one of the
    two is not `done`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Table or figure of the paper, or a grid, with the state of each cell."""

    name: str
    """`table1`, …"""
    title: str
    scale: str
    """`paper`, or `tiny`: small models and few images, whose numbers cannot be compared with those of the paper."""
    command: str
    """Command line, without folders."""
    rows: tuple[StudyLine, ...]
    columns: tuple[StudyLine, ...]
    cells: tuple[StudyCell, ...]
    reference: str = ""
    """Key of the row that the others are compared with; empty if there is none."""
    notes: tuple[str, ...] = ()


SCHEMA = 1
"""Version of the file format; files of another version are refused."""

Stored = TypeVar("Stored")

_hints = functools.cache(get_type_hints)
"""Resolved annotations of a dataclass, cached: resolving them takes longer than all else in reading a result."""


def to_json(value: Any, *, schema: int = SCHEMA) -> str:
    """Returns a frozen dataclass as JSON text, its schema first.

    Args:
        value: The dataclass.
        schema: Version of its format, if that is not the version of results.

    Raises:
        ValueError: If it holds a number that is NaN or infinite; use None for what could not be measured.
    """
    return json.dumps({"schema": schema, **dataclasses.asdict(value)}, indent=1, ensure_ascii=False, allow_nan=False)


def from_json(
    text: str | bytes, kind: type[Stored], *, where: str, schema: int = SCHEMA, remedy: str = "evaluate again"
) -> Stored:
    """Reads a dataclass from the text that `to_json` returned.

    Args:
        text: JSON text.
        kind: The dataclass.
        where: Name of the file, for messages.
        schema: Version to accept.
        remedy: How to fix another version.

    Raises:
        DataError: If the text is not strict JSON, has another schema, lacks a field, has an unknown one, or holds a
            value of another type.
    """
    tree = parse_json(text, where, remedy=remedy)
    written = tree.pop("schema", None)
    if type(written) is not int or written != schema:
        raise DataError(f"{where} has schema {written!r}, this version reads {schema}; {remedy}", reason="schema")
    return cast("Stored", _dataclass(tree, kind, where))


def _dataclass(tree: Any, kind: type, where: str) -> Any:
    if not isinstance(tree, dict):
        raise _mismatch(where, tree, kind.__name__)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    former = _former_names(kind)
    names = [former.get(name, name) for name in cast("dict[str, Any]", tree)]
    repeated = sorted({name for name in names if names.count(name) > 1}) if former else []
    if repeated:
        raise DataError(f"{where} holds {repeated} twice, under a former name too", reason="schema")
    tree = dict(zip(names, tree.values(), strict=True))
    needed = {name for name, field in fields.items() if _has_no_default(field)}
    if not needed <= set(tree) <= set(fields):
        missing, unknown = sorted(needed - set(tree)), sorted(set(tree) - set(fields))
        raise DataError(f"{where}: missing fields {missing}, unknown fields {unknown}", reason="schema")
    for name in [name for name in tree if "old_values" in fields[name].metadata]:
        tree[name] = fields[name].metadata["old_values"].get(tree[name], tree[name])
    hints = _hints(kind)
    return kind(**{name: _value(value, hints[name], f"{where}: {name}") for name, value in tree.items()})


@functools.cache
def _former_names(kind: Any) -> dict[str, str]:
    """Returns former names of fields, in files of earlier versions (metadata `formerly`), to their present names."""
    former: dict[str, str] = {}
    for entry in dataclasses.fields(kind):
        names = entry.metadata.get("formerly", ())
        former |= dict.fromkeys((names,) if isinstance(names, str) else names, entry.name)
    return former


def _value(value: Any, hint: Any, where: str) -> Any:
    """Converts a value to its annotated type: lists to tuples, whole numbers to floats, nothing else."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _dataclass(value, cast("type", hint), where)
    if origin in (types.UnionType, Union):
        options = [option for option in arguments if option is not types.NoneType]
        return None if value is None else _value(value, options[0], where)
    if origin in (tuple, Sequence):
        return _items(value, arguments, where)
    if origin is Mapping and isinstance(value, dict):
        return {str(name): _value(item, arguments[1], f"{where}.{name}") for name, item in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise _mismatch(where, value, getattr(hint, "__name__", str(hint)))


def _items(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _mismatch(where, value, "list")
    items = cast("list[Any]", value)
    repeated = len(arguments) == 1 or arguments[-1] is Ellipsis
    if not repeated and len(items) != len(arguments):
        raise _mismatch(where, items, f"list of {len(arguments)}")
    hints = [arguments[0]] * len(items) if repeated else list(arguments)
    if all(type(item) is hint and hint in _PLAIN_TYPES for item, hint in zip(items, hints, strict=True)) and all(
        math.isfinite(item) for item in items if type(item) is float
    ):
        return tuple(items)  # most of a result file is points of curves
    return tuple(_value(item, hints[index], f"{where}[{index}]") for index, item in enumerate(items))


_PLAIN_TYPES = (float, int, str)
"""Types whose values need no conversion."""


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _mismatch(where: str, value: Any, wanted: str) -> DataError:
    return DataError(f"{where} holds {type(value).__name__} {str(value)[:40]!r}, not {wanted}", reason="schema")


LEVEL = 0.05
"""Significance level of corrected p-values."""


class Corrected(NamedTuple):
    """Corrected p-values of a family of comparisons."""

    p_values: list[float | None]
    """In the given order; None where there was none."""
    family: int
    """Number of comparisons."""


def holm(p_values: Sequence[float | None]) -> Corrected:
    """Corrects p-values by Holm's step-down procedure, which controls the family-wise error rate.

    The smallest of `m` is multiplied by `m`, the next by `m - 1` and so on; none is smaller than the one before it.

    Args:
        p_values: Of all comparisons that are shown together; None for those without a test, which do not count.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005]).p_values]
        [0.03, 0.06, 0.06, 0.02]

    Source:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(tested):
        largest = min(1.0, max(largest, (len(tested) - rank) * p))
        corrected[place] = largest
    return Corrected(corrected, len(tested))


def resamples_for(family: int, fewest: int = 1_000) -> int:
    """Returns the number of bootstrap resamples that a family of comparisons needs.

    The smallest p-value of `n` resamples is 2 / (n + 1); multiplied by the number of comparisons it must be below the
    significance level.

    Example:
        >>> resamples_for(12), resamples_for(168)
        (1000, 7000)
    """
    needed = 2 * family / LEVEL
    return max(fewest, -(-int(needed) // 1_000) * 1_000)
