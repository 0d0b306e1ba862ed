"""The nouns that pass from room to room. Whoever knows these knows the system.

Shapes: `B` images of a batch, `N` images of a dataset, `T` texts, `C` classes or findings, `D` width of an image
tower, `E` joint dimension, `H` and `W` height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

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
    """Radiology report of the study: the sections that `data.report_sections` selects, with punctuation and case, each
    run of white space replaced by a blank. Never empty; None where there is none."""
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
