"""Result files: what evaluations, comparisons and studies hold, and their strict JSON form."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from cleft.errors import DataError
from cleft.strict_json import parse_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One cell of one table, and how sure it is."""

    metric: str
    """`accuracy`, `auc`, `auprc`, `sensitivity@0.90` (at that specificity), …; with the class behind a slash where it
    speaks of one class: `auc/Edema`."""
    value: float | None
    """In [0, 1], but for the ranks of retrieval, which count from 1. Only a printed table speaks percent. None where it
    could not be measured."""
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval over patients."""
    images: int = 0
    """Images the number rests on."""
    patients: int = 0
    reason: str | None = None
    """Why `value` or `interval` is None, or what they leave out: `mean over 4 of 5 classes: no image shows Edema`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityBin:
    """Answers of about the same confidence, and how often they were right: one point of a reliability curve."""

    predicted: float
    """Mean probability that was given, in [0, 1]."""
    observed: float
    """Share that came true, in [0, 1]. Above `predicted` the model is too modest, below it too sure."""
    images: int
    """Answers in the bin: images, or pairs of image and finding for `present-absent`."""
    patients: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Whether probabilities mean what they say.

    `multi-class`: the probability of the answer that was given, against whether it is right. `present-absent`: the
    probability of presence, against whether the finding is there, over all pairs of image and finding that are known.
    """

    bins: tuple[ReliabilityBin, ...]
    """Up to ten bins of equally many answers, from the least to the most confident; equal probabilities share a bin."""
    ece: Result
    """`ece`, the expected calibration error: mean |predicted - observed| over these bins, weighed by their answers; 0
    is best. Its floor is not 0 for few images."""
    temperature: float | None = None
    """What logits are divided by so that validation images are least surprising; above 1 the model was too sure. None
    where it was not fitted: see `reason`."""
    fitted_on: int = 0
    """Validation images it was fitted on."""
    bins_after: tuple[ReliabilityBin, ...] = ()
    """As `bins`, of the same test images after the temperature; empty where there is none."""
    ece_after: Result | None = None
    """`ece-after-temperature`; None where there is no temperature."""
    reason: str | None = None
    """Why there is no temperature: `the data have no validation part`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subgroup:
    """The numbers of the images of one group of patients."""

    name: str
    """`F`, `40-60`, `AP`, …, as the table spells it."""
    images: int
    patients: int
    results: tuple[Result, ...]
    """`accuracy` and `auc` on these images alone, as they stand in the evaluation for all images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subgroups:
    """Numbers by sex, age, view or scanner, and how far they lie apart."""

    by: str
    """`sex`, `age`, `view` or `scanner`."""
    groups: tuple[Subgroup, ...]
    """Two or more, the largest first; ages in their order. None of fewer than five patients, phantoms apart."""
    gaps: tuple[Result, ...]
    """`accuracy` and `auc` of the best group minus that of the worst, among the groups of at least twenty patients; the
    interval is that of the difference of these two groups. `reason` names them: `best F, worst M`. Where there are not
    two such groups, `value` is None and `reason` says so."""
    left_out: int = 0
    """Images in groups that are too small to be told."""
    unknown: int = 0
    """Images of which the table does not say it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exhibit:
    """An image or a sentence, as it is shown."""

    image: str = ""
    """PNG as base64; empty for a sentence."""
    text: str = ""
    """The sentence; of an image its findings that are present. A sentence of a real dataset that fewer than five
    patients share is empty."""
    right: bool = True
    """Whether it is a right answer to the query; true for the query itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalExample:
    """One query and what was found first. No id."""

    query: Exhibit
    answers: tuple[Exhibit, ...]
    """The nearest first."""
    rank: int
    """Place of the first right answer, from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """One direction of searching, beside the numbers in the evaluation's `results`.

    These are called `<direction>/recall@1`, `@5` and `@10` (share of queries with a right answer among the first k),
    `<direction>/precision@1`, `@5` and `@10` (mean share of the first k that are relevant), `<direction>/mean-rank` and
    `<direction>/median-rank` (place of the first right answer, counted from 1: lower is better, and not in [0, 1]).
    What guessing reaches stands in `floors` as `chance/<direction>/recall@1`, ….
    """

    direction: str
    """`image-to-text`, `text-to-image` or `image-to-image`."""
    queries: int
    """Queries that have a right answer; the numbers rest on these."""
    unanswerable: int
    """Queries that have none and were not asked."""
    candidates: int
    """What is searched: images, or distinct sentences."""
    right: float
    """Mean number of right answers of a query."""
    examples: tuple[RetrievalExample, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """One way to word a class prompt, and what it reaches."""

    opening: str
    """What stands in front of the class name."""
    usual: bool
    """Whether this is the opening that captions and class prompts have."""
    results: tuple[Result, ...]
    """`accuracy` and `auc`, as zero-shot classification measures them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How far a number depends on the wording."""

    metric: str
    """`accuracy` or `auc`."""
    lowest: float
    highest: float
    mean: float
    deviation: float
    """Standard deviation over the templates, with n - 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Denial:
    """Whether a model hears the word "no": a finding's prompt beside the prompt of its absence."""

    finding: str
    present: str
    """The sentence that names it."""
    absent: str
    """The sentence that denies it."""
    cosine: float
    """Of the two sentences' embeddings; 1 if the model does not tell them apart."""
    said_present: float
    """Share of the images that lie nearer to `present` than to `absent`."""
    shown: float | None
    """Share of the images that show it, among those of which it is known; None where it is known of none."""
    results: tuple[Result, ...]
    """`auc/present` ranks images by the first sentence alone, `auc/absent` by the second alone, turned round, and
    `auc/pair` by their difference, as present-absent scoring does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextVector:
    """One learned context vector, and which words it lies near to."""

    place: int
    """From 1, in the order in which they are read."""
    norm: float
    moved: float | None
    """Distance from where it started, or None where that is not known."""
    nearest: tuple[tuple[str, float], ...]
    """Tokens of the vocabulary and their cosines, the nearest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptAudit:
    """What a model's answers owe to the wording of its prompts."""

    templates: tuple[Template, ...]
    spread: tuple[Spread, ...]
    denials: tuple[Denial, ...]
    context: tuple[ContextVector, ...] = ()
    """Empty where the run has learned no context."""
    token_norm: float | None = None
    """Mean norm of the language model's token embeddings, to hold the context's norms against."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceMap:
    """Images and class prompts of one question in the plane in which the images differ most.

    Images and prompts lie in two places of the joint space, far from each other; each kind is drawn around its own
    middle, and `gap` says how far apart these are.
    """

    images: tuple[tuple[int, float, float], ...]
    """Of each image the index of its class, across, and up."""
    prompts: tuple[tuple[float, float], ...]
    """Of each class prompt, in the order of the classes."""
    shares: tuple[float, float]
    """How much of the images' variance each direction shows, in [0, 1]."""
    gap: float
    """Distance between the middle of the images and the middle of the prompts; vectors have unit length."""
    left_out: int = 0
    """Images that are not drawn, so that the picture stays readable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The answers to one question put to one model on one set of images: one file in `results/`."""

    task: str
    """`zero-shot`, `linear-probe`, `fine-tune`, `retrieval`, `prompts`, …"""
    dataset: str
    split: str
    """`train`, `val`, `test`, or `all` where the data were not split."""
    split_recipe: str
    split_digest: str
    ids_digest: str
    """SHA-256 over the sorted ids that were scored, first 16 hex digits."""
    checkpoint: str
    """SHA-256 of the weights that were scored, first 16 hex digits."""
    scoring: str
    """`multi-class` or `present-absent`; `nearest` for retrieval."""
    prompts: str
    """`context` (learned in stage two) or `handwritten`; `captions` for retrieval, and `none` where no text is read."""
    classes: tuple[str, ...]
    class_prompts: tuple[str, ...]
    results: tuple[Result, ...]
    floors: tuple[Result, ...]
    """What rules without a model reach on the same images: `majority-class/accuracy`, `ap-view/auc/Edema`, …"""
    confusion: tuple[tuple[int, ...], ...] | None = None
    """Images of each class (row) answered as each class (column)."""
    roc: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict[str, Sequence[tuple[float, float]]])
    """Class to points (false positive rate, true positive rate)."""
    examples: Sequence[Mapping[str, Any]] = ()
    """A few images with their answers: `image` (PNG as base64), `truth`, `answers` (class, probability)."""
    synthetic: bool = False
    """Whether the images are phantoms, which may be shown to anybody."""
    wording: str = "default"
    """Which words stood for the classes: `default`, `released`, or the name of a file of phrases."""
    similarity: str = "global"
    """Of zero-shot classification: whole images with whole prompts, or `local`, `both`, `released`: words with regions
    as well."""
    standardised: bool = False
    """Whether each class was brought to mean 0 and deviation 1 over the images: no answer stands by itself then."""
    overlap_left_out: int = 0
    """Images that were not scored because the run had seen their patient."""
    command: str = ""
    """What was typed, without folders."""
    seed: int = 0
    """Of the draws that intervals rest on."""
    notes: tuple[str, ...] = ()
    protocol: str = field(default="", metadata={"old_values": {"usual": "standard"}})
    """By which a head was trained: `standard` or `paper`; empty where none was, and the four below say nothing."""
    fraction: float = 1.0
    """Share of the training patients it learned from."""
    training_seed: int = 0
    """Decides which patients those are, the order of images and the first weights of the head."""
    training_images: int = 0
    training_patients: int = 0
    calibration: Calibration | None = None
    """None for retrieval, and in results of an earlier version."""
    subgroups: tuple[Subgroups, ...] = ()
    """By sex, age, view and scanner, each where the table knows two groups or more."""
    retrieval: tuple[Retrieval, ...] = ()
    """What was searched, direction by direction, where the task is `retrieval`."""
    audit: PromptAudit | None = None
    """Where the task is `prompts`."""
    space: SpaceMap | None = None
    """Of zero-shot classification, where an image has one class, a class one prompt, and wholes are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One number of two models on the same images."""

    metric: str
    """`accuracy`, `auc`, `auc/Edema`, …"""
    first: float | None
    second: float | None
    difference: float | None
    """First minus second; None where one of them is not defined."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the difference: each resample of patients is given to both models."""
    p_value: float | None
    """Two-sided: how often resamples would lie on the other side of no difference. None where there is no interval."""
    images: int
    patients: int
    reason: str | None = None
    """Why something is None, or what it leaves out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two results on the same images, held against each other: one file in `comparisons/` of the first run."""

    first: str
    """Name of the first run's folder."""
    second: str
    first_result: str
    """Name of the first result's file, without a folder."""
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
    """Of the images that both answered."""
    scoring: str
    classes: tuple[str, ...]
    differences: tuple[Difference, ...]
    """`accuracy`, `auc`, then each class's."""
    synthetic: bool = False
    """Whether the images are phantoms."""
    command: str = ""
    """What was typed, without folders."""
    seed: int = 0
    resamples: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyLine:
    """A row or a column of the table that a study fills."""

    key: str
    """Its name in files and folders: `cleft-lora`, `chexpert/zero-shot`."""
    label: str
    """As the table prints it."""
    heading: str = ""
    """Of a row: what stands above it and those like it, where a table has such parts."""
    metrics: tuple[str, ...] = ()
    """Of a column: what is printed of each result, `accuracy` and `auc` say."""
    facts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of a row, where they are known: `moving` and `frozen` weights, `seconds` of training, context `length`, …"""
    origin: str = ""
    """Of a row that is a model somebody gave: where it comes from. Where it draws nothing it is asked once, whatever
    the number of seeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyCell:
    """Where one number of a study comes from, or why there is none."""

    row: str
    column: str
    state: str
    """`done`; `planned`; `missing`: its data or weights were not given; `failed`; `impossible`: the method cannot be
    asked this."""
    results: tuple[str, ...] = ()
    """Result files, one per seed, relative to the study's folder."""
    reason: str | None = None
    """Why it is not done."""
    differences: tuple[Difference, ...] = ()
    """`accuracy` and `auc` minus those of the study's reference on the same images, means over seeds; empty where one
    of the two is not done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A table or a figure of the paper as runs: what was planned, what is there, and what is missing."""

    name: str
    """`table1`, …"""
    title: str
    scale: str
    """`paper`, or `tiny`: small towers and few images, whose numbers say nothing of the paper's."""
    command: str
    """What was typed, without folders."""
    rows: tuple[StudyLine, ...]
    columns: tuple[StudyLine, ...]
    cells: tuple[StudyCell, ...]
    reference: str = ""
    """Key of the row that the others are held against; empty where there is none."""
    notes: tuple[str, ...] = ()


SCHEMA = 1
"""Rises when a noun changes its form; files of another schema are refused."""

Noun = TypeVar("Noun")

_hints = functools.cache(get_type_hints)
"""The annotations of a noun: working them out took longer than all else in reading a result."""


def to_json(noun: Any, *, schema: int = SCHEMA) -> str:
    """Writes a frozen dataclass as JSON text, its schema first.

    Args:
        noun: What to write.
        schema: Of the noun's own form, where that lives longer than the forms of results.

    Raises:
        ValueError: If a number in it is NaN or infinite; what could not be measured is None.
    """
    return json.dumps({"schema": schema, **dataclasses.asdict(noun)}, indent=1, ensure_ascii=False, allow_nan=False)


def from_json(
    text: str | bytes, kind: type[Noun], *, where: str, schema: int = SCHEMA, remedy: str = "evaluate again"
) -> Noun:
    """Reads a noun back from `to_json`'s text.

    Args:
        text: JSON text.
        kind: The dataclass it must hold.
        where: Name of the file, for messages.
        schema: The one that is read.
        remedy: What to do about another.

    Raises:
        DataError: If the text is no JSON, of another schema, lacks a field, has one too many, or holds a value of
            another type than the field's.
    """
    tree = parse_json(text, where, remedy=remedy)
    written = tree.pop("schema", None)
    if type(written) is not int or written != schema:
        raise DataError(f"{where} has schema {written!r}, this version reads {schema}; {remedy}", reason="schema")
    return cast("Noun", _noun(tree, kind, where))


def _noun(tree: Any, kind: type, where: str) -> Any:
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
    """Maps each name that a field had in files of earlier versions (metadata `formerly`) to the field's name."""
    former: dict[str, str] = {}
    for entry in dataclasses.fields(kind):
        names = entry.metadata.get("formerly", ())
        former |= dict.fromkeys((names,) if isinstance(names, str) else names, entry.name)
    return former


def _value(value: Any, hint: Any, where: str) -> Any:
    """The value as the annotation wants it: lists become tuples, whole numbers become floats, nothing else changes."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _noun(value, cast("type", hint), where)
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
    if all(type(item) is hint and hint in _AS_THEY_ARE for item, hint in zip(items, hints, strict=True)) and all(
        math.isfinite(item) for item in items if type(item) is float
    ):
        return tuple(items)  # most of a result file is points of curves
    return tuple(_value(item, hints[index], f"{where}[{index}]") for index, item in enumerate(items))


_AS_THEY_ARE = (float, int, str)
"""Plain types; a value of exactly one of them is what its annotation wants."""


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _mismatch(where: str, value: Any, wanted: str) -> DataError:
    return DataError(f"{where} holds {type(value).__name__} {str(value)[:40]!r}, not {wanted}", reason="schema")
