"""The nouns that pass from room to room. Whoever knows these knows the system.

Shapes: `B` images of a batch, `N` images of a dataset, `T` texts, `C` classes or findings, `D` width of an image
tower, `E` joint dimension, `H` and `W` height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One image on disk and what is known about it. No pixel has been read yet."""

    id: str
    """Unique within the dataset and the same on every machine, e.g. `train/patient00001/study1/view1_frontal.jpg`."""
    image: Path
    labels: Mapping[str, float]
    """Finding to 1 present, 0 absent, -1 uncertain. A finding nobody mentioned is missing."""
    patient: str
    """Never shared between two splits."""
    study: str | None = None
    """Images of one visit. Labels are often written per study."""
    view: str | None = None
    """Projection: AP, PA, lateral; CC, MLO."""
    sex: str | None = None
    laterality: str | None = None
    """L or R, where the image shows one side, as a mammogram does."""
    age: float | None = None
    """In years."""
    scanner: str | None = None
    """Manufacturer of the machine."""
    split: str | None = None
    """`train`, `val` or `test`, where the dataset's owner or the table says so."""
    caption: str | None = None
    """The sentence that belongs to the image; `data.captions` writes it from the labels where the table has none."""
    report: str | None = None
    """What the radiologist wrote about the study: the sections that `data.report` chooses, with punctuation and case,
    every run of white space one blank. Never empty; None where there is none. Methods read it by `data.reports`."""
    uncertain: tuple[str, ...] = ()
    """Findings the table was unsure about (-1), whatever `data.uncertain` then made of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A table after a reader has seen it: the records, and what became of every other row."""

    dataset: str
    records: list[Record]
    findings: tuple[str, ...]
    """Every finding the table has a column for, in the table's order."""
    rejected: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Reason code to the rows it took out, each told apart by line number or id. Local output only."""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name of each table read to the SHA-256 of its bytes."""
    notes: tuple[str, ...] = ()
    """Sentences the user should read: counts beside the published ones, what could not be checked."""
    listed: frozenset[str] = frozenset()
    """Ids that `data.test_list` names, whether they can be used or not; empty where no list was given."""
    people: str = ""
    """Whose patients these are, where several datasets show the same people; empty means the dataset's own."""
    cautions: tuple[str, ...] = ()
    """Those of the notes that belong beside every number measured on these images."""


class Splits(NamedTuple):
    """Records apart for training, choosing and testing."""

    train: list[Record]
    val: list[Record]
    test: list[Record]
    recipe: str
    """Name of the rule that made them, e.g. `patients` or `5x200-strict`."""
    digest: str
    """First 16 hex digits of a SHA-256 over every split's sorted ids; equal digests mean equal splits."""
    shared_patients: int
    """Patients who stand in more than one split. 0 unless the recipe's name says otherwise."""
    notes: tuple[str, ...] = ()
    """Sentences the user should read: what a list or a split file names and the images lack."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSpec:
    """How a tower wants its images: `data` obeys it, `towers` keeps it with the weights."""

    size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, float, float]
    """Subtracted from intensities in [0, 1], per channel."""
    std: tuple[float, float, float]
    """Divides what is left, per channel."""


class Batch(NamedTuple):
    """What one training step sees."""

    images: Tensor
    """Gray images at the tower's size, `[B, 1, H, W]` uint8. The tower scales, normalises and expands them."""
    captions: list[str]
    """One sentence per image."""
    labels: Tensor
    """One column per finding, `[B, C]` float: 1, 0, -1, or NaN where nobody mentioned it."""
    rows: Tensor
    """Row of each image in its split, `[B]` int64."""
    text_labels: Tensor | None = None
    """What each text says, as `labels`, where it was not written of its image; None where `labels` say it."""
    reworded: list[str] | None = None
    """The same texts with words changed, where a method wants them."""


class ImageModel(Protocol):
    """What reads images: all that linear probes and fine-tuning need from a model."""

    @property
    def image_spec(self) -> ImageSpec:
        """How images must be prepared."""
        ...

    def encode_image_features(self, images: Tensor) -> Tensor:
        """Returns features `[B, D]` of gray images `[B, 1, H, W]` uint8: what the image tower says, not projected."""
        ...


class ImageTextModel(ImageModel, Protocol):
    """What learning, evaluation and the demo need from a model that reads texts too."""

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the inverse temperature, a scalar."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """Returns unit-length image embeddings `[B, E]` of gray images `[B, 1, H, W]` uint8."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Returns unit-length text embeddings `[T, E]`."""
        ...

    def encode_class_names(self, names: Sequence[str]) -> Tensor:
        """Returns unit-length embeddings `[C, E]` of class names behind the learned prompt context."""
        ...


class LabelledImages(NamedTuple):
    """What is known of the images of a question, besides what a model makes of them."""

    labels: Tensor
    """One column per finding, `[N, C]` float: 1, 0, -1, or NaN where nobody mentioned it."""
    findings: tuple[str, ...]
    """What the columns of `labels` stand for."""
    ids: list[str]
    """Record id of each image."""
    patients: list[str]
    """Patient of each image; confidence intervals resample these, not images."""
    views: list[str | None]
    """Projection of each image, for the floors."""


class Embeddings(NamedTuple):
    """A dataset after the image tower has read it: all that evaluation needs."""

    image_embeds: Tensor
    """Unit-length rows, `[N, E]`."""
    labels: Tensor
    """One column per finding, `[N, C]` float: 1, 0, -1, or NaN where nobody mentioned it."""
    findings: tuple[str, ...]
    """What the columns of `labels` stand for."""
    ids: list[str]
    """Record id of each image."""
    patients: list[str]
    """Patient of each image; confidence intervals resample these, not images."""
    views: list[str | None]
    """Projection of each image, for the floors."""


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
    protocol: str = ""
    """By which a head was trained: `usual` or `paper`; empty where none was, and the four below say nothing."""
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
class Tally:
    """How often each of several things was counted."""

    name: str
    """What was counted by: `view`, `age`, `transfer syntax`."""
    counts: tuple[tuple[str, int], ...]
    """Thing and count, in the order in which they are told."""
    ordered: bool = False
    """Whether the things have an order of their own, as ages have; otherwise the most frequent comes first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """Rows, images or files that are not used, for one reason."""

    reason: str
    count: int
    examples: tuple[str, ...] = ()
    """A few of them by id, line or path. For local eyes alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """How often each finding is present among groups of images."""

    name: str
    """What the groups are told apart by: `view`, `sex`, `scanner`, `split`."""
    groups: tuple[str, ...]
    images: tuple[int, ...]
    patients: tuple[int, ...]
    shares: Mapping[str, tuple[float | None, ...]]
    """Finding to its share of the images of each group; None where fewer than five patients stand behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """The sentences of a dataset, as training would see them."""

    distinct: int
    written: int
    """Images whose sentence stands in the table; the others' are made from labels."""
    longest: int
    """In words."""
    common: tuple[tuple[str, int], ...]
    """The most frequent ones and their images. A sentence that fewer than five patients share is never among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image as a model would see it, made smaller."""

    image: str
    """PNG as base64."""
    view: str
    """Empty where nobody knows."""
    labels: tuple[str, ...]
    """Findings that are present."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """What a check learned of a dataset. Names of files and cells of tables stand in it: for local eyes alone."""

    dataset: str
    table: str
    """Name of the label table."""
    faults: tuple[str, ...]
    """One sentence per kind of fault: where, what, and what to do. None means that training can begin."""
    notes: tuple[str, ...] = ()
    images: int = 0
    """That can be used, as far as is known without decoding all."""
    patients: int = 0
    studies: int = 0
    """0 where no image says to which visit it belongs."""
    labels: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict[str, tuple[int, int, int, int]])
    """Finding to images with 1, 0, -1 and nothing, as the table has them."""
    tallies: tuple[Tally, ...] = ()
    """Images by view, sex, age, …: each that the table knows."""
    groups: tuple[Groups, ...] = ()
    """By view, sex and scanner, where there are two groups or more."""
    captions: Captions | None = None
    splits: Groups | None = None
    """None where the images cannot be split."""
    split_recipe: str = ""
    split_digest: str = ""
    shared_patients: int = 0
    """Patients who stand in more than one split."""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name of each table read to the SHA-256 of its bytes."""
    left_out: tuple[Leftover, ...] = ()
    """Rows that are not used."""
    looked_at: int = 0
    """Files whose beginning was read, for `looks`."""
    looks: tuple[Tally, ...] = ()
    """Files by format, kind of pixels, bits, size, transfer syntax."""
    decoded: int = 0
    """Images that were decoded to see whether they can be."""
    undecodable: tuple[Leftover, ...] = ()
    """Those of them that could not."""
    unlisted: tuple[Leftover, ...] = ()
    """Files beside the images that no row names, by the ending of their names."""
    junk: int = 0
    """Files that file managers and broken downloads leave; not counted among the others."""
    pictures: tuple[Picture, ...] = ()
    synthetic: bool = False
    """Whether the images are phantoms, which may be shown to anybody."""


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
