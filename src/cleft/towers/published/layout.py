"""What is known of a published checkpoint: how it is recognised, what its weights are, how it was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from cleft.config import Settings
from cleft.errors import CheckpointError
from cleft.towers.published.keys import IMAGE, TEXT, Section

Weights: TypeAlias = dict[str, Tensor]
"""Name here to weight; those of an image tower are called as in files of its family."""


class Layout(NamedTuple):
    """One published form of a method's weights."""

    method: str
    """As `--method` names it."""
    title: str
    marks: tuple[str, ...]
    """Beginnings of names that a file of this kind has, all of them; the first file kind that fits is taken."""
    sections: tuple[Section, ...]
    """Where every weight goes, and which are dropped on purpose."""
    settings: Callable[[Weights, int], Settings]
    """From weights and image size to the settings the weights were trained with."""
    complete: Callable[[Weights], Weights] = lambda weights: weights
    """Adds what a model here has and the file has not."""
    asked: bool = False
    """Whether its names could be anybody's, so that it is taken only where the method is named."""


MIMIC_MEAN = (0.58628, 0.58628, 0.58628)
MIMIC_STD = (0.2795, 0.2795, 0.2795)
"""Of the pixels MedCLIP and its ConVIRT were trained on."""


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


def without_types(weights: Weights) -> Weights:
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
