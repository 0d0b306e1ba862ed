"""A map of the joint space: images and class prompts in a plane.

Shapes: `N` images, `C` classes, `E` joint dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cleft.results import SpaceMap


def map_space(image_embeds: Tensor, prompt_embeds: Tensor, truth: Sequence[int], *, most: int = 400) -> SpaceMap:
    """Places images and class prompts by the two principal directions of the images.

    Each kind is centred by itself: the distance between the two kinds is larger than any difference within one and
    would be all that is seen. Moving all prompts by one vector changes no answer (docs/decisions/0064).

    Args:
        image_embeds: Unit-length image embeddings, `[N, E]`, at least one.
        prompt_embeds: Unit-length embeddings of the class prompts, `[C, E]`, at least one.
        truth: Class index of each image.
        most: Images that are drawn; more are thinned out evenly within their order, as many of each class as its share.

    Returns:
        The map. The side of a direction is arbitrary, so that its largest coordinate is made positive.
    """
    images, prompts = image_embeds.detach().cpu().double(), prompt_embeds.detach().cpu().double()
    middle, other = images.mean(0), prompts.mean(0)
    centred = images - middle
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    plane = torch.zeros(2, images.shape[1], dtype=torch.float64)
    plane[: min(2, len(directions))] = directions[:2]
    farthest = plane.abs().argmax(1, keepdim=True)
    plane *= plane.gather(1, farthest).sign()
    total = singular.square().sum().clamp_min(1e-12)
    shares = [*(singular.square() / total).tolist(), 0.0, 0.0][:2]
    rows = sorted(range(len(truth)), key=lambda row: truth[row])  # each class keeps its share
    kept = rows if len(rows) <= most else [rows[index * len(rows) // most] for index in range(most)]
    places = (centred @ plane.T).tolist()
    return SpaceMap(
        images=tuple((truth[row], *_rounded(places[row])) for row in sorted(kept)),
        prompts=tuple(_rounded(place) for place in ((prompts - other) @ plane.T).tolist()),
        shares=(round(shares[0], 4), round(shares[1], 4)),
        gap=round((middle - other).norm().item(), 4),
        left_out=len(rows) - len(kept),
    )


def _rounded(place: Sequence[float]) -> tuple[float, float]:
    return round(place[0], 4), round(place[1], 4)
