"""Declaration of settings, and the settings of data and images.

One dataclass field declares all of a setting: the annotation is the type, the docstring below the field is the help
text, and `setting` adds what Python cannot express: the effect of a change on a run that is resumed, and when the
setting has no effect.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from cleft.errors import ConfigError

Stage: TypeAlias = Literal["pretrain", "context", "classify"]
"""`pretrain` is stage one, `context` stage two, `classify` a linear probe or fine-tuning."""
Changes: TypeAlias = tuple[Stage, ...] | Literal["rounding"]
"""Stages in which a change of a setting gives another result, or `rounding`: the same result up to rounding."""
ALL_STAGES: tuple[Stage, ...] = ("pretrain", "context", "classify")
"""Most settings of the data and images."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """All that is declared of one setting."""

    key: str
    """Dotted name, such as `text.rank`."""
    kind: Any
    """Type annotation."""
    default: Any
    changes: Changes
    """Effect of a change on a run that is resumed."""
    used_with: tuple[Mapping[str, tuple[Any, ...]], ...]
    """Conditions under which it has an effect: of each mapping, one setting must have one of the values."""
    overruled_by: tuple[str, ...]
    """Settings that decide in its place where they are set."""
    prepares: bool
    """Whether it decides which images are prepared, or how."""
    formerly: str | None
    """Dotted name in earlier versions."""
    old_values: Mapping[str, str]
    """Former name of a choice to its present one."""


def setting(
    default: _T,
    *,
    changes: Changes | None = None,
    used_with: Mapping[str, tuple[Any, ...]] | None = None,
    overruled_by: tuple[str, ...] = (),
    prepares: bool | None = None,
    formerly: str | None = None,
    old_values: Mapping[str, str] | None = None,
) -> _T:
    """Declares a setting; the arguments are those of `Declaration`.

    Args:
        default: Its default value.
        changes: By default as its group.
        used_with: Other setting, `.name` for one of the same group, to the values with which this one has an effect;
            of several, one is enough. None, which leaves the choice to the dataset, always counts.
        overruled_by: Settings that decide in its place.
        prepares: Whether it decides which images are prepared, or how.
        formerly: Dotted name in earlier versions: read in the settings of old runs, refused where it is typed.
        old_values: The same for choices.
    """
    return field(
        default=default,
        metadata={
            "changes": changes,
            "used_with": used_with,
            "overruled_by": overruled_by,
            "prepares": prepares,
            "formerly": formerly,
            "old_values": old_values or {},
        },
    )


def group(
    make: Callable[[], _T],
    *,
    changes: Changes | None = None,
    used_with: Mapping[str, tuple[Any, ...]] | None = None,
    prepares: bool | None = None,
) -> _T:
    """Declares a group of settings; what it declares holds for each of them that declares nothing else.

    Args:
        make: Returns the group with its defaults.
        changes: As in `setting`.
        used_with: As in `setting`; holds in addition to that of each setting.
        prepares: As in `setting`.
    """
    metadata = {"changes": changes, "used_with": used_with, "prepares": prepares}
    return field(default_factory=make, metadata=metadata)


def declarations(default: Any) -> Iterator[Declaration]:
    """Yields the declaration of every setting in a tree of groups, given with its defaults."""
    yield from _declarations(default, "", {"prepares": True}, ())


def _declarations(
    default: Any, prefix: str, inherited: Mapping[str, Any], used_with: tuple[Mapping[str, tuple[Any, ...]], ...]
) -> Iterator[Declaration]:
    kinds = field_types(type(default))
    for entry in dataclasses.fields(default):
        key, value = f"{prefix}{entry.name}", getattr(default, entry.name)
        own = {name: item for name, item in entry.metadata.items() if item is not None}
        conditions = used_with
        if "used_with" in own:
            named = {
                f"{prefix}{other[1:]}" if other[0] == "." else other: own["used_with"][other]
                for other in own["used_with"]
            }
            conditions = (*used_with, named)
        effects: dict[str, Any] = {name: own.get(name, inherited.get(name)) for name in ("changes", "prepares")}
        if dataclasses.is_dataclass(value):
            yield from _declarations(value, f"{key}.", effects, conditions)
            continue
        assert effects["changes"] is not None, f"{key}: neither it nor its group declares `changes`"
        yield Declaration(
            key=key,
            kind=kinds[entry.name],
            default=value,
            changes=effects["changes"],
            used_with=conditions,
            overruled_by=own.get("overruled_by", ()),
            prepares=effects["prepares"],
            formerly=own.get("formerly"),
            old_values=own.get("old_values", {}),
        )


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """Returns the annotations of a dataclass, resolved once: that takes longer than reading them."""
    return typing.get_type_hints(kind)


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """Returns the docstring below each field of a dataclass, on one line; fields without one are missing."""
    docs: dict[str, str] = {}
    name = ""
    for entry in _classes(kind.__module__)[kind.__name__].body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            name = entry.target.id
        elif isinstance(entry, ast.Expr) and isinstance(entry.value, ast.Constant) and name:
            docs[name], name = " ".join(str(entry.value.value).split()), ""
    return docs


def options_of(kind: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the type itself."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def choices_of(kind: Any) -> list[str]:
    """Returns the words that a setting of a type may be, or nothing where it is no choice among words."""
    return [
        str(word) for option in options_of(kind) if typing.get_origin(option) is Literal for word in option.__args__
    ]


def describe_kind(kind: Any) -> str:
    """Returns what a value of a type is, in words.

    Example:
        >>> describe_kind(float | None), describe_kind(tuple[str, ...]), describe_kind(int | Literal["auto"])
        ('a number or null', 'a list of texts', 'a whole number or auto')
    """
    words: list[str] = []
    for option in options_of(kind):
        items = typing.get_args(option)
        if typing.get_origin(option) is Literal:
            words += map(str, items)
        elif typing.get_origin(option) is tuple:
            many = "" if items[-1] is Ellipsis else f"{len(items)} "
            words.append(f"a list of {many}{_PLURALS[items[0]]}")
        else:
            words.append(_KINDS.get(option, "a mapping"))
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]


_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    Path: "a path",
    types.NoneType: "null",
}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuses a value outside of [low, high].

    Raises:
        ConfigError: If it is.
    """
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} must be between {low} and {high}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Dataset, labels, captions and splits."""

    dataset: Literal["chexpert", "rsna", "embed", "nih", "mimic", "iu-xray", "manifest"] = "chexpert"
    """Layout of the folder. `manifest` is your own table (`cleft data template` writes an example)."""
    root: Path | None = setting(None, changes=())  # what a folder holds is compared by digest, so it may be moved
    """Folder of the unpacked download, or of your own table and images."""
    table: str | None = None
    """Label table inside `root`; by default the dataset's own (`train.csv`, `manifest.csv`)."""
    label_source: Literal["table", "chexbert", "visualchexbert", "negbio"] = setting("table", formerly="data.labels")
    """Source of the labels. CheXpert: the table itself, or `train_cheXbert.csv` or `train_visualCheXbert.csv`, matched
    by path (images, views, sex and age always come from the table). MIMIC-CXR: the CheXpert labeller (`table`) or
    NegBio (`negbio`)."""
    views: tuple[str, ...] | None = None
    """Views to keep; by default AP and PA for CheXpert, NIH, MIMIC-CXR and IU X-ray, and all views for other datasets.
    Images of unknown view are kept."""
    prompt_prefix: str | None = setting(None, formerly="data.opening")
    """First words of every caption and class prompt, before the findings; by default those of the dataset, for your own
    table "this is a chest x ray of a patient with"."""
    uncertain: Literal["zeros", "ones", "mixed", "ignore"] = "zeros"
    """Value of uncertain labels (-1). `zeros`: absent. `ones`: present. `mixed`: present for atelectasis, edema and
    pleural effusion, absent for cardiomegaly and consolidation. `ignore`: not mentioned."""
    split: (
        Literal["patients", "5x200-strict", "5x200-paper", "5x200-images", "rsna-balanced", "embed", "given"] | None
    ) = setting(None, overruled_by=("data.split_file",), prepares=False)
    """How images are split into train, validation and test; by default `rsna-balanced` for RSNA, `embed` for EMBED,
    `given` for NIH and MIMIC-CXR, `patients` otherwise. `patients`: by a hash of the patient. `5x200-strict`:
    CheXpert-5x200 is the test set and none of its patients is in training. `5x200-paper`: only its images are removed
    from training, as the paper says. `5x200-images`: the same, with validation drawn by image, so that splits share
    patients. `rsna-balanced`: as many images with pneumonia as without, in the sizes of the paper. `embed`: 70, 10 and
    20 % of the patients. `given`: by the official lists, or by the column `split` of your table."""
    split_file: Path | None = setting(None, changes=())  # its split is compared by digest
    """Split written by `cleft data split --out`, in place of `split` and its fractions."""
    test_list: Path | None = setting(None, changes=())  # the images it names are compared by digest
    """List of the images of the test set, such as a published CheXpert-5x200: a table with a column `Path` and
    optionally findings or a `class`, or one path a line. For `split: 5x200-…` and `patients`."""
    val_fraction: float = setting(
        0.05,
        used_with={"data.split": ("patients", "5x200-strict", "5x200-paper", "5x200-images", "rsna-balanced", "given")},
        overruled_by=("data.split_file",),
        prepares=False,
    )
    """Share of the images outside the test set that is used for validation."""
    test_fraction: float = setting(
        0.2,
        used_with={"data.split": ("patients",)},
        overruled_by=("data.split_file", "data.test_list"),
        prepares=False,
    )
    """Share of the images in the test set, for the split `patients`."""
    mention_absent: bool = setting(False, formerly="data.negatives")
    """Mention in captions also findings that are labelled absent."""
    empty_caption: Literal["keep", "drop", "no-finding"] = "keep"
    """Caption of an image without any positive finding: only the first words (`keep`), "no finding" (`no-finding`), or
    leave the image out (`drop`)."""
    caption: Literal["simple", "sided", "natural", "structured"] = setting(
        "simple", used_with={"data.dataset": ("embed",)}
    )
    """Content of the captions of EMBED. `simple`: density and BI-RADS. `sided`: also side and view. `natural`,
    `structured`: a short report, in sentences or under headings; they need `text.max_tokens: 144`."""
    report_sections: Literal["impression", "findings", "both", "as-written", "whole"] = setting(
        "both", formerly="data.report"
    )
    """Sections of a report to read. `both`: impression, then findings. `as-written`: these two in the order of the
    report. `whole`: all sections. A report without these sections is represented by its last paragraph."""
    missing_report: Literal["keep", "drop"] = setting("keep", formerly="data.no_report")
    """Images with no report, or one of fewer than two words: keep them or leave them out. Methods that train on reports
    always leave them out."""
    reports: Path | None = setting(None, changes=())  # texts are compared by digest
    """Reports of MIMIC-CXR or IU X-ray, if they are not in `root`: folder of the text or XML files, or for MIMIC-CXR
    `mimic_cxr_sectioned.csv`."""
    texts: Literal["captions", "findings", "sentences", "whole", "gloria", "mgca", "medclip", "bank"] = setting(
        "captions", changes=("pretrain",)
    )
    """Text that is paired with an image in stage one. `captions`: its caption. `findings`: a short sentence about one
    of its findings, drawn in each epoch. `sentences`: one sentence of its report, drawn in each epoch. `whole`: its
    report. `gloria`, `mgca`, `medclip`: its report, cut and cleaned as in their released code. `bank`: any sentence of
    the sentence bank that shares a finding with the image, as in MedCLIP; images and texts may come from different
    tables."""
    caption_templates: tuple[str, ...] = setting((), changes=("pretrain",), used_with={"data.texts": ("captions",)})
    """Caption templates with {} in place of the findings, such as "a radiograph that shows {}"; one is drawn for each
    image and epoch. Class prompts use `prompt_prefix`, so include it as one of the templates. Captions that
    do not begin with `prompt_prefix` are not changed. By default only `prompt_prefix`."""
    sentence_bank: Path | None = setting(
        None, changes=(), used_with={"data.texts": ("bank",)}, formerly="data.bank"
    )  # compared by digest
    """Sentence bank for `texts: bank`: a table of sentences with one column for each finding; by default short
    sentences that name one finding each."""
    augment_texts: bool = setting(False, changes=("pretrain",), formerly="data.reword")
    """Encode each text a second time with words changed (text augmentation), for the loss of MedCLIP."""
    breast_label: Literal["severity", "first", "highest"] = setting(
        "severity", used_with={"data.dataset": ("embed",)}, formerly="data.reduce"
    )
    """Which of several findings gives the label of a breast in EMBED. `severity`: the most severe (in a screening exam
    BI-RADS 0 ranks above 3). `first`: the first of the table. `highest`: the highest score, with 0 above 1 and 2."""
    patient_mapping: Path | None = setting(None, changes=(), formerly="data.mapping")  # patients are compared by digest
    """Table of the NIH patient of each RSNA image: RSNA's `pneumonia-challenge-dataset-mappings_2018.json`, or a table
    with the columns `patientId` and `nih_patient`. A file of that name in `root` is used without this setting."""
    patient_dataset: str | None = setting(None, prepares=False, formerly="data.people")
    """Dataset whose patient ids these are, if several datasets share patients: `nih` for images of ChestX-ray14 in
    another layout. Overlap between train and test patients is detected only among datasets with the same value."""
    exclude_patients: Path | None = setting(
        None, changes=(), formerly="data.exclude"
    )  # patients are compared by digest
    """Patients to leave out of all splits, for example the test patients of another dataset: a table with a column
    `patient`, `patient_id`, `Patient ID` or `nih_patient`."""
    max_invalid: float = setting(0.01, changes=(), formerly="data.max_bad")
    """Largest share of images that may be missing or unreadable; above it the run stops."""
    workers: int = setting(0, changes=(), prepares=False)
    """Processes that load batches and decode images; 0 loads in the main process. Does not change results."""
    timeout: int = setting(120, changes=())
    """Seconds to wait for a batch before the run stops, for example when a network disk hangs."""
    cache: Path | None = setting(None, changes=())
    """Folder of preprocessed images; by default `~/.cache/cleft`."""
    prepare: Literal["auto", "required"] = setting(
        "auto", changes=(), prepares=False, old_values={"as-needed": "auto", "ahead": "required"}
    )
    """Images that are not preprocessed yet: decode them before training or evaluation (`auto`), or stop and print
    the `cleft data prepare` command to run first (`required`)."""

    def __post_init__(self) -> None:
        check_range("data.val_fraction", self.val_fraction, 0, 0.9)
        check_range("data.test_fraction", self.test_fraction, 0, 0.9)
        check_range("data.max_invalid", self.max_invalid, 0, 1)
        for template in self.caption_templates:
            if template.count("{}") != 1:
                raise ConfigError(
                    f"data.caption_templates holds {template!r}; write {{}} once, in place of the findings"
                )
        check_range("data.timeout", self.timeout, 1, 10**6)
        check_range("data.workers", self.workers, 0, 256)
        if self.patient_mapping is not None and self.dataset != "rsna":
            raise ConfigError(
                f"data.patient_mapping={self.patient_mapping} is for data.dataset=rsna, not {self.dataset}; leave it "
                f"out"
            )
        owner = "mimic" if self.label_source == "negbio" else "chexpert"
        if self.label_source != "table" and self.dataset != owner:
            raise ConfigError(
                f"data.label_source={self.label_source} is for data.dataset={owner}, not {self.dataset}; leave it out"
            )
        if self.reports is not None and self.dataset not in ("mimic", "iu-xray"):
            raise ConfigError(
                f"data.reports={self.reports} is for data.dataset=mimic or iu-xray, not {self.dataset}; leave it out"
            )


def usual_split(dataset: str) -> str:
    """Returns how the images of a dataset are split where `data.split` is not set."""
    return _USUAL_SPLITS.get(dataset, "patients")


_USUAL_SPLITS = {"rsna": "rsna-balanced", "embed": "embed", "nih": "given", "mimic": "given"}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random image augmentation in training: the recipe of the authors' released code, on grayscale images."""

    jitter: float = 0.4
    """Probability of a change of brightness and contrast."""
    brightness: float = 0.2
    """Brightness factor is drawn from [1 - this, 1 + this]."""
    contrast: float = 0.2
    """Contrast factor is drawn from [1 - this, 1 + this]."""
    blur: float = 0.4
    """Probability of a Gaussian blur, 7 x 7 pixels."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the standard deviation of the blur in pixels."""
    degrees: float = 10.0
    """Rotation is drawn from [-this, this]."""
    scale: tuple[float, float] = (0.8, 1.1)
    """Range of the scale factor."""
    translate: float = 0.0625
    """Largest shift as a fraction of the image side."""
    horizontal_flip: float = 0.0
    """Probability of mirroring. The authors use 0.5; a mirrored chest has its heart on the wrong side."""


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Preprocessing of images."""

    recipe: Literal["pad", "released"] = "pad"
    """Resizing of images. `pad`: resize the long side to `stored_size` and pad with black, aspect ratio kept.
    `released`: then also crop by Otsu's threshold and stretch to a square, as the authors' code does, which undoes the
    padding and distorts."""
    intensity: Literal["full-range", "min-max", "percentile"] = "min-max"
    """How more than 8 bits are scaled to 8: by the bit depth of the file, its extremes, or its 0.5 and 99.5
    percentiles. Does not apply to a DICOM file that declares a window or lookup table."""
    dicom: Literal["voi", "percentile", "released"] = "voi"
    """Grayscale of DICOM files. `voi`: the window or lookup table of the file; `intensity` where it has none.
    `percentile`: between the 0.5 and 99.5 percentiles. `released`: scaled by the largest value, as the authors' code
    does, whatever the file declares."""
    window: int = 0
    """Index of the window or lookup table of a DICOM file that declares several; the first where it has fewer."""
    frame: Literal["reject", "first", "middle"] = "reject"
    """Which frame of a multi-frame DICOM file, such as tomosynthesis."""
    stored_size: int = 256
    """Side of a preprocessed image in pixels."""
    size: int = 224
    """Side of the model input in pixels: a random crop in training, the centre crop otherwise."""
    mean: tuple[float, float, float] = setting((0.5, 0.5, 0.5), prepares=False)
    """Mean of each channel for normalisation."""
    std: tuple[float, float, float] = setting((0.5, 0.5, 0.5), prepares=False)
    """Standard deviation of each channel for normalisation."""
    augment: AugmentConfig = group(AugmentConfig, changes=("pretrain", "classify"), prepares=False)

    def __post_init__(self) -> None:
        if not 8 <= self.size <= self.stored_size:
            raise ConfigError(f"images.size={self.size} must be between 8 and images.stored_size={self.stored_size}")
        check_range("images.window", self.window, 0, 255)
        if any(value <= 0 for value in self.std):
            raise ConfigError(f"images.std={self.std} must be positive in every channel")
