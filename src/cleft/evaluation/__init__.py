"""Evaluation of trained models: the tasks, and the options of each.

`zero_shot`, `classifier`, `retrieval` and `prompt_sensitivity` evaluate a run and write a result file; `compare`
compares two result files. The command line takes the options of `cleft evaluate`, their defaults and their help from
these classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Literal, NamedTuple

Split = Literal["train", "val", "test", "all"]
Scoring = Literal["multi-class", "present-absent"]
Blank = Literal["unknown", "absent"]
Prompts = Literal["auto", "context", "handwritten"]
Similarity = Literal["global", "local", "both", "released"]
Direction = Literal["image-to-text", "text-to-image", "image-to-image"]
DIRECTIONS: tuple[Direction, ...] = ("image-to-text", "text-to-image", "image-to-image")


class Bootstrap(NamedTuple):
    """Patient bootstrap from which intervals are estimated."""

    resamples: int = 1_000
    seed: int = 0


@dataclass(frozen=True, kw_only=True, repr=False)
class EvaluationOptions:
    """Images to evaluate on, and how intervals are estimated: the options that all tasks share."""

    data: str | None = field(default=None, metadata={"metavar": "DATASET:FOLDER"})
    """Dataset and folder or table, such as chexpert:/data/CheXpert; by default the data of the run. Settings of the
    data can be given too, such as --data.root <folder> for images that were moved."""
    split: Split = "test"
    """Images to evaluate on; all: without splitting."""
    per_class: int | None = field(default=None, metadata={"metavar": "N"})
    """Evaluate on N images of each class only, selected by a hash of their ids."""
    per_patient: int | None = field(default=None, metadata={"metavar": "N"})
    """With --per-class: at most N images of a patient in a class (default: 4)."""
    allow_overlap: bool = False
    """Evaluate also on patients the model was trained on, and report it."""
    drop_overlap: bool = False
    """Evaluate only on patients the model was not trained on, and count the images left out."""
    overrides: tuple[str, ...] = field(default=(), metadata={"option": False})
    """Data settings that replace those of the run, as typed: `("--data.root", "/data/moved")`."""
    bootstrap: Bootstrap = field(default=Bootstrap(), metadata={"option": False})
    """Number of bootstrap resamples, and their seed."""

    def __repr__(self) -> str:
        """Returns the call that makes these options, without those that have their defaults."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        given = [f"{each.name}={values[each.name]!r}" for each in fields(self) if values[each.name] != each.default]
        return f"{type(self).__name__}({', '.join(given)})"


@dataclass(frozen=True, kw_only=True, repr=False)
class PromptOptions(EvaluationOptions):
    """Options of the tasks in which text prompts represent the classes."""

    classes: str | Sequence[str] | None = None
    """Name of a class set, or findings separated by commas; by default those of the run."""
    scoring: Scoring = "multi-class"
    """multi-class: one of several classes, on images that show exactly one. present-absent: presence of each finding,
    on images labelled for it. A classifier is scored as it was trained."""
    blank: Blank = "unknown"
    """Value of blank and uncertain labels in present-absent scoring; for a classifier as in training."""
    class_names: str | None = None
    """Class names in prompts: default, released, gloria, or a YAML file; by default those of the run."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ZeroShotOptions(PromptOptions):
    """Options of zero-shot classification."""

    prompts: Prompts = "auto"
    """Learned context or handwritten prompts; auto: the context if there is one."""
    similarity: Similarity = "global"
    """Image and prompt embeddings (global). For GLoRIA also: prompt words and image regions (local), the mean of both,
    or both with the word count of its released code, standardised (released)."""
    standardise: bool = False
    """Standardise the scores of each class over the images; predictions then depend on each other."""
    examples: int = field(default=10, metadata={"option": False})
    """Example images to store with the result for the report; 0 stores none."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PromptSensitivityOptions(PromptOptions):
    """Options of the prompt sensitivity analysis."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ClassifierOptions(EvaluationOptions):
    """Options of the evaluation of a trained classifier."""

    mode: Literal["linear-probe", "fine-tune"] | None = field(default=None, metadata={"option": False})
    """Raise an error unless the classifier was trained in this mode."""
    scoring: Scoring | None = None
    """Raise an error unless the classifier was trained for this scoring."""
    blank: Blank | None = None
    """Value of blank and uncertain labels in present-absent scoring; by default as in training."""
    examples: int = field(default=10, metadata={"option": False})
    """Example images to store with the result for the report; 0 stores none."""


@dataclass(frozen=True, kw_only=True, repr=False)
class RetrievalOptions(EvaluationOptions):
    """Options of retrieval between images and captions."""

    classes: str | Sequence[str] | None = None
    """With --per-class: name of a class set, or findings separated by commas; by default those of the run."""
    directions: str | Sequence[str] | None = None
    """image-to-text, text-to-image, image-to-image, or several separated by commas; by default all."""
    examples: int = field(default=4, metadata={"option": False})
    """Example queries of each direction to store with the result for the report; 0 stores none."""


TASKS: Mapping[str, type[EvaluationOptions]] = MappingProxyType(
    {
        "zero-shot": ZeroShotOptions,
        "linear-probe": ClassifierOptions,
        "fine-tune": ClassifierOptions,
        "retrieval": RetrievalOptions,
        "prompts": PromptSensitivityOptions,
    }
)
"""Tasks of `cleft evaluate` and the options of each."""
