"""What is known of a published checkpoint: how it is recognised, what its weights are, how it was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

from torch import Tensor

from cleft.config import ImagesConfig, Settings
from cleft.errors import CheckpointError
from cleft.models.importing.keys import IMAGE, TEXT, Section
from cleft.text_rules import RuleName

Weights: TypeAlias = dict[str, Tensor]
"""Name here to weight; those of an image tower are called as in files of its family."""
Facts: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Name of a JSON file beside the weights to what it says."""


class Layout(NamedTuple):
    """One published form of a method's weights."""

    method: str
    """As `--method` names it."""
    title: str
    marks: tuple[str, ...]
    """Beginnings of names that a file of this kind has, all of them; the first file kind that fits is taken."""
    sections: tuple[Section, ...]
    """Where every weight goes, and which are dropped on purpose."""
    settings: Callable[[Weights, int, Facts], Settings]
    """From weights, image size and what stands beside them to the settings the weights were trained with."""
    complete: Callable[[Weights, int], Weights] = lambda weights, _size: weights
    """Adds what a model here has and the file has not, or has otherwise, for an image tower that reads at some size."""
    asked: bool = False
    """Whether its names could be anybody's, so that it is taken only where the method is named."""
    beside: tuple[str, ...] = ()
    """JSON files that are published beside the weights; the first must be there, and a tokenizer may."""
    alone: str = ""
    """What else to do where the first is missing, if naming the method says as much."""
    side: Callable[[Weights, Facts], int] = lambda _weights, _facts: 224
    """Pixels at which its image tower reads by default."""
    tokenizer: str = "emilyalsentzer/Bio_ClinicalBERT"
    """Where the tokenizer it was trained with is published."""
    rule: RuleName = "nfc-2"
    """How its release normalises texts before its tokenizer."""


MIMIC_MEAN = (0.58628, 0.58628, 0.58628)
MIMIC_STD = (0.2795, 0.2795, 0.2795)
"""Of the pixels MedCLIP and its ConVIRT were trained on."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels CLIP was trained on."""


def width_of(weights: Mapping[str, Tensor], name: str) -> int:
    """Returns the first axis of a weight.

    Raises:
        CheckpointError: If there is none.
    """
    if name not in weights or weights[name].ndim == 0:
        raise CheckpointError(f"it should hold what is called {name} here; there is none")
    return len(weights[name])


def scale_of(weights: Weights) -> float:
    """Returns the logarithm of the inverse temperature in a file.

    Raises:
        CheckpointError: If there is none, or it is no number.
    """
    scale = weights.get("logit_scale")
    if scale is None or scale.numel() != 1:
        raise CheckpointError("it should hold logit_scale, one number")
    return float(scale)


def part_of(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns a part of a JSON file; nothing where there is none.

    Raises:
        CheckpointError: If it is not made of names and values.
    """
    part = facts.get(name) or {}
    if not isinstance(part, dict):
        raise CheckpointError(f"what is beside it says {name}: {str(part)[:40]!r}, which should be names and values")
    return cast("dict[str, Any]", part)


def cropped_images(size: int) -> ImagesConfig:
    """Returns images that are cut to `size` pixels out of larger ones, CLEFT's mean and deviation."""
    return ImagesConfig(size=size, stored_size=max(size, ImagesConfig.stored_size))


def whole_images(size: int, said: Mapping[str, Any], mean: str, std: str) -> ImagesConfig:
    """Returns images for a tower that brings them to `size` bicubically, none of them cropped.

    Args:
        size: Pixels at which the tower reads; images are prepared at twice as many.
        said: What a JSON file says of their pixels; CLIP's where it is silent.
        mean: What it calls the mean.
        std: What it calls the standard deviation.

    Raises:
        CheckpointError: If it does not say three numbers of each.
    """
    middle, spread = _channels(said, mean, CLIP_MEAN), _channels(said, std, CLIP_STD)
    return ImagesConfig(size=2 * size, stored_size=2 * size, mean=middle, std=spread)


def _channels(said: Mapping[str, Any], name: str, silent: tuple[float, float, float]) -> tuple[float, float, float]:
    values: Any = said.get(name, silent)
    if not isinstance(values, list | tuple) or not all(isinstance(value, int | float) for value in values):
        values = ()
    if len(values) != 3:
        raise CheckpointError(f"what is beside it says {name}: {said[name]!r:.40}, which should be three numbers")
    return cast("tuple[float, float, float]", tuple(values))


def side_in(said: Mapping[str, Any]) -> int:
    """Returns the pixels at which an image tower reads, by what a JSON file says; 224 where it is silent."""
    return number_in(said, "image_size", 224)


def number_in(said: Mapping[str, Any], name: str, silent: int) -> int:
    """Returns a whole number in a JSON file, or `silent` where there is none.

    Raises:
        CheckpointError: If it says something else.
    """
    number = said.get(name, silent)
    if not isinstance(number, int):
        raise CheckpointError(f"what is beside it says {name}: {number!r:.40}, which should be a whole number")
    return number


def without_types(weights: Weights, _size: int) -> Weights:
    """Adds a row of zeros for token types, which the BERT of MGCA and the authors' CLIP does not have."""
    table = f"{TEXT}embeddings.word_embeddings.weight"
    if table not in weights or weights[table].ndim != 2:
        return weights
    return {
        **weights,
        f"{TEXT}embeddings.token_type_embeddings.weight": weights[table].new_zeros(1, weights[table].shape[1]),
    }


def norm_head_options(weights: Weights, temperature: float = 0.07) -> dict[str, Any]:
    """Returns the settings of the joint space behind MGCA's heads."""
    return {
        "projection": "mlp-norm",
        "hidden_width": width_of(weights, "image_projection.0.weight"),
        "embed_dim": width_of(weights, "image_projection.3.weight"),
        "temperature": temperature,
    }


def is_vit(weights: Weights) -> bool:
    """Whether the image tower is a ViT; else it is a ResNet."""
    return f"{IMAGE}embeddings.cls_token" in weights
