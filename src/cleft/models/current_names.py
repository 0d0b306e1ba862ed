"""Weights under the names that this version of transformers uses in memory, which move between its versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from cleft.errors import CheckpointError
from cleft.models.hub import quiet_transformers
from cleft.models.weights import listed


def in_current_names(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a vision model's weights, given as in its published files, under the names it has in memory.

    Args:
        model: A vision model of the same shape, of which weights stand still that no feature depends on. Of these,
            those that are not given become zeros.
        weights: The weights.

    Raises:
        CheckpointError: If some are missing, have no place or another shape.
    """
    idle = {name: weight for name, weight in cast("nn.Module", model).named_parameters() if not weight.requires_grad}
    # Asked for a pooler that stands still and is not in the file, transformers would report aloud that it made one up.
    pooler = {name: torch.zeros_like(weight) for name, weight in idle.items() if name.startswith("pooler.")}
    if any(name.startswith("pooler.") for name in weights):
        pooler = {}
    # Each weight is replaced by its number, expanded without memory: only its name and shape may change.
    names = list(weights)
    marks = {name: torch.tensor(float(number)).expand(weights[name].shape) for number, name in enumerate(names)}
    loaded: Any
    with quiet_transformers():
        loaded, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=marks,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **({"add_pooling_layer": False} if pooler else {}),
        )
    missing = set(map(str, info["missing_keys"]))
    for what, found in (
        ("missing", missing - idle.keys()),
        ("unexpected", info["unexpected_keys"]),
        ("mismatched", {key[0] for key in info["mismatched_keys"]}),
    ):
        listing = sorted(map(str, found))
        if listing:
            raise CheckpointError(listed(f"{what} [weight|weights] of the image tower", listing))
    current = dict(pooler)
    for name, mark in cast("dict[str, Tensor]", loaded.state_dict()).items():
        if name in missing:
            current[name] = torch.zeros_like(mark)
        elif mark.numel() > 1 and any(mark.stride()):
            raise CheckpointError(
                f"this version of transformers joins weights to {name}; use the one cleft was made with"
            )
        else:
            current[name] = weights[names[int(mark.flatten()[0])]]
    return current
