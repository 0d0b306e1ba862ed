"""Types that subpackages exchange: records, splits, batches, models, embeddings, and the summary of a dataset.

Shapes: `B` images of a batch, `N` images of a dataset, `T` texts, `C` classes or findings, `D` image feature
dimension, `E` joint embedding dimension, `H` and `W` height and width in pixels.
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
    """Image on disk with its labels and metadata; pixels are not read."""

    id: str
    """Unique within the dataset, the same on every machine: `train/patient00001/study1/view1_frontal.jpg`."""
    image: Path
    """Image file."""
    labels: Mapping[str, float]
    """Finding to 1 present, 0 absent or -1 uncertain; unlabelled findings are missing."""
    patient: str
    """Patient id; all images of a patient are in one split."""
    study: str | None = None
    """Study id: images of one visit, which often share labels."""
    view: str | None = None
    """Projection: AP, PA, lateral; CC, MLO."""
    sex: str | None = None
    laterality: str | None = None
    """L or R for images of one side, such as mammograms."""
    age: float | None = None
    """In years."""
    scanner: str | None = None
    """Manufacturer of the scanner."""
    split: str | None = None
    """`train`, `val` or `test` of an official split or the table."""
    caption: str | None = None
    """Caption of the table, or one generated from the labels."""
    report: str | None = None
    """Radiology report of the study: the sections that `data.report_sections` selects, with punctuation and case, each
    run of white space replaced by a blank. Never empty; None where there is none."""
    uncertain: tuple[str, ...] = ()
    """Findings labelled uncertain (-1), before `data.uncertain` is applied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Result of reading a dataset: the records, and the reasons for which other rows were rejected."""

    dataset: str
    records: list[Record]
    findings: tuple[str, ...]
    """Findings with a column in the table, in its order."""
    rejected: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Reason code to the rejected rows, by line number or id. For local output only."""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name of each table to the SHA-256 of its bytes."""
    notes: tuple[str, ...] = ()
    """Messages for the user: counts compared with the published ones, checks that were not possible."""
    listed_ids: frozenset[str] = frozenset()
    """Ids in `data.test_list`, usable or not; empty without a list."""
    patient_dataset: str = ""
    """Dataset that the patient ids belong to, if several datasets share patients; empty for the dataset itself."""
    cautions: tuple[str, ...] = ()
    """Those of the notes to show with every metric on these images."""


class Splits(NamedTuple):
    """Train, validation and test records."""

    train: list[Record]
    val: list[Record]
    test: list[Record]
    recipe: str
    """Name of the split rule, such as `patients` or `5x200-strict`."""
    digest: str
    """First 16 hex digits of the SHA-256 of the sorted ids of each split."""
    shared_patients: int
    """Patients in more than one split; 0 except for `5x200-paper` and `5x200-images`."""
    notes: tuple[str, ...] = ()
    """Messages for the user: entries of a list or split file without an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSpec:
    """Image input of a model: size and normalisation; saved with its weights."""

    size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, float, float]
    """Mean of intensities in [0, 1], per channel."""
    std: tuple[float, float, float]
    """Standard deviation, per channel."""


class Batch(NamedTuple):
    """Batch of a training step."""

    images: Tensor
    """Grayscale images, `[B, 1, H, W]` uint8; the model scales, normalises and expands them."""
    captions: list[str]
    """Text of each image."""
    labels: Tensor
    """One column per finding, `[B, C]` float: 1, 0, -1, or NaN if unlabelled."""
    rows: Tensor
    """Row of each image in its split, `[B]` int64."""
    text_labels: Tensor | None = None
    """Findings of each text, as `labels`, if the texts do not belong to the images; otherwise None."""
    reworded: list[str] | None = None
    """Augmented texts, for methods that use them."""


class ImageModel(Protocol):
    """Image encoder: what linear probes and fine-tuning need."""

    @property
    def image_spec(self) -> ImageSpec:
        """Input size and normalisation."""
        ...

    def encode_image_features(self, images: Tensor) -> Tensor:
        """Returns image features `[B, D]`, not projected, of grayscale images `[B, 1, H, W]` uint8."""
        ...


class ImageTextModel(ImageModel, Protocol):
    """Model with an image and a text encoder in a joint embedding space."""

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the inverse temperature, a scalar."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """Returns L2-normalised image embeddings `[B, E]` of grayscale images `[B, 1, H, W]` uint8."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Returns L2-normalised text embeddings `[T, E]`."""
        ...

    def encode_class_names(self, names: Sequence[str]) -> Tensor:
        """Returns L2-normalised embeddings `[C, E]` of class names preceded by the learned prompt context."""
        ...


class LabelledImages(NamedTuple):
    """Labels and metadata of the images of an evaluation."""

    labels: Tensor
    """One column per finding, `[N, C]` float: 1, 0, -1, or NaN if unlabelled."""
    findings: tuple[str, ...]
    """Findings of the columns of `labels`."""
    ids: list[str]
    """Record id of each image."""
    patients: list[str]
    """Patient of each image; the unit of the bootstrap."""
    views: list[str | None]
    """View of each image, for the baseline by view."""


class Embeddings(NamedTuple):
    """Image embeddings of a dataset with labels and metadata."""

    image_embeds: Tensor
    """L2-normalised, `[N, E]`."""
    labels: Tensor
    """One column per finding, `[N, C]` float: 1, 0, -1, or NaN if unlabelled."""
    findings: tuple[str, ...]
    """Findings of the columns of `labels`."""
    ids: list[str]
    """Record id of each image."""
    patients: list[str]
    """Patient of each image; the unit of the bootstrap."""
    views: list[str | None]
    """View of each image, for the baseline by view."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """Frequency table."""

    name: str
    """Counted attribute: `view`, `age`, `transfer syntax`."""
    counts: tuple[tuple[str, int], ...]
    """Value and count, in the order of display."""
    ordered: bool = False
    """Whether the values are ordered, as ages are; otherwise the most frequent comes first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Excluded:
    """Rows, images or files that are not used for a certain reason."""

    reason: str
    count: int
    examples: tuple[str, ...] = ()
    """A few of them by id, line or path. For local output only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """Prevalence of each finding in groups of images."""

    name: str
    """Grouping attribute: `view`, `sex`, `scanner`, `split`."""
    groups: tuple[str, ...]
    images: tuple[int, ...]
    patients: tuple[int, ...]
    shares: Mapping[str, tuple[float | None, ...]]
    """Finding to its prevalence in each group; None for fewer than five patients."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """Captions of a dataset, as used in training."""

    distinct: int
    from_table: int
    """Images with a caption in the table; other captions are generated from labels."""
    longest: int
    """Words of the longest caption."""
    common: tuple[tuple[str, int], ...]
    """Most frequent captions with their number of images; only captions of at least five patients."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thumbnail:
    """Preprocessed image, downsized."""

    image: str
    """PNG as base64."""
    view: str
    """Empty if unknown."""
    labels: tuple[str, ...]
    """Positive findings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """Summary of a dataset. It contains file names and cells of tables: for local output only."""

    dataset: str
    table: str
    """Name of the label table."""
    faults: tuple[str, ...]
    """One message per kind of fault: where, what, and how to fix it; without faults training can start."""
    notes: tuple[str, ...] = ()
    images: int = 0
    """Usable images, as far as known without decoding all."""
    patients: int = 0
    studies: int = 0
    """0 if no image has a study id."""
    labels: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict[str, tuple[int, int, int, int]])
    """Finding to the number of images labelled 1, 0, -1, and unlabelled, as in the table."""
    tallies: tuple[Tally, ...] = ()
    """Images by view, sex, age, …, as far as the table has them."""
    groups: tuple[Groups, ...] = ()
    """By view, sex and scanner, if there are at least two groups."""
    captions: Captions | None = None
    splits: Groups | None = None
    """None if the images cannot be split."""
    split_recipe: str = ""
    split_digest: str = ""
    shared_patients: int = 0
    """Patients in more than one split."""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name of each table to the SHA-256 of its bytes."""
    excluded_rows: tuple[Excluded, ...] = ()
    """Rows that are not used."""
    files_inspected: int = 0
    """Files whose header was read, for `file_tallies`."""
    file_tallies: tuple[Tally, ...] = ()
    """Files by format, kind of pixels, bits, size, transfer syntax."""
    decoded: int = 0
    """Images that were decoded as a test."""
    undecodable: tuple[Excluded, ...] = ()
    """Images that could not be decoded."""
    unlisted: tuple[Excluded, ...] = ()
    """Files in the image folders that no row names, by file extension."""
    junk: int = 0
    """Files left by file managers and broken downloads; not in `unlisted`."""
    thumbnails: tuple[Thumbnail, ...] = ()
    synthetic: bool = False
    """Whether the images are synthetic."""
