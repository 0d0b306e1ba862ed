"""What each method learns by: from what its model read of a batch to one number.

`OBJECTIVES` has an entry for every method of `cleft.towers.methods`; whoever trains looks one up and is done.

Shapes: `B` pairs of a batch, `C` findings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from cleft.config import Settings
from cleft.learning.losses import LOSSES
from cleft.learning.objectives.convirt import convirt_loss
from cleft.towers.dual import Pairs
from cleft.towers.methods import MethodModel


class Facts(NamedTuple):
    """What is known of the pairs of a batch besides what a model read of them."""

    caption_ids: Tensor
    """The same number for the same caption, `[B]`."""
    labels: Tensor
    """One column per finding, `[B, C]`: 1, 0, -1, or NaN where nobody mentioned it."""


Objective = Callable[[Any, Any, Facts, Settings], Tensor]
"""From model, what it read, facts and settings to the mean loss of a pair, a scalar."""


class Learning(NamedTuple):
    """How a method learns."""

    objective: Objective
    compares: bool = True
    """Whether a pair is compared with the others of its batch, so that devices must show each other what they read."""
    reads_apart: bool = True
    """Whether a model reads a text without its image, and keeps one vector of it: validation then reads each once."""


def _contrast(model: MethodModel, read: Pairs, facts: Facts, settings: Settings) -> Tensor:
    compare = LOSSES[settings.loss.name]
    scale = model.logit_scale.exp()
    return compare(*read, scale, caption_ids=facts.caption_ids, labels=facts.labels, logit_bias=model.logit_bias)


def _convirt(model: MethodModel, read: Pairs, facts: Facts, settings: Settings) -> Tensor:
    temperature = (-model.logit_scale).exp()
    return convirt_loss(*read, temperature=temperature, image_to_text=settings.convirt.image_to_text)


OBJECTIVES: Mapping[str, Learning] = MappingProxyType(
    {
        "cleft": Learning(_contrast),
        "clip": Learning(_contrast),
        "convirt": Learning(_convirt),
    }
)
"""Name in the setting `method` to how it learns."""
