"""How many weights each part of a model has, and how many of them move."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn


class WeightCount(NamedTuple):
    """Weights of one part of a model."""

    moving: int
    frozen: int


PARTS: dict[str, Callable[[str], bool]] = {
    "image tower": lambda name: name.startswith("image_tower."),
    "embedding rows": lambda name: name.startswith("text_tower.") and name.endswith(".rows"),
    "adapters": lambda name: name.startswith("text_tower.") and any(mark in name for mark in _ADAPTERS),
    "language model": lambda name: name.startswith("text_tower."),
    "projections": lambda name: "_projection." in name,
    "temperature": lambda name: name in ("logit_scale", "logit_bias"),
    "prototypes": lambda name: name == "prototypes",
    "decoders": lambda name: name.startswith(("painter.", "paint.", "mask_token", "report_")),
    "context": lambda name: name == "context",
    "head": lambda name: name.startswith("head."),
}
"""Part of a model to whether a weight of some name belongs to it; the first that says yes counts."""
TEXT_PARTS = ("embedding rows", "adapters", "language model")
"""Parts of the text tower."""
_ADAPTERS = (".lora_", ".ia3_", ".prefix.")


def count_weights(model: nn.Module) -> dict[str, WeightCount]:
    """Counts a model's weights, part by part; parts it does not have are left out.

    Works on meta tensors too. Running statistics of batch norms are no weights.
    """
    counts: dict[str, WeightCount] = {}
    for name, weight in model.named_parameters():
        part = next(part for part, holds in PARTS.items() if holds(name))
        moving, frozen = counts.get(part, WeightCount(0, 0))
        size = weight.numel()
        counts[part] = (
            WeightCount(moving + size, frozen) if weight.requires_grad else WeightCount(moving, frozen + size)
        )
    return {part: counts[part] for part in PARTS if part in counts}
