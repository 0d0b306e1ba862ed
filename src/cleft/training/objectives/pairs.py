"""What the methods have in common: cosines of pairs, and cross-entropy along both of their directions.

Shapes: `B` pairs, `E` joint dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def precise(values: Tensor) -> Tensor:
    """Returns half precision as float32 and leaves the rest: similarities are compared in float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cosines(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Cosine of every image with every text, `[B, T]`, images in rows; a zero vector has the cosine 0.

    Args:
        image_embeds: Of any length, `[B, E]`.
        text_embeds: Of any length, `[T, E]`.

    Raises:
        ValueError: If the two are not of one width, or one of them is empty.
    """
    if image_embeds.dim() != 2 or text_embeds.dim() != 2 or image_embeds.shape[1] != text_embeds.shape[1]:
        raise ValueError(
            f"image_embeds {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)} "
            f"must be rows of the same width"
        )
    if not image_embeds.numel() or not text_embeds.numel():
        raise ValueError("a loss needs at least one image and one text; there is none")
    with torch.autocast(image_embeds.device.type, enabled=False):
        return F.normalize(precise(image_embeds), dim=-1) @ F.normalize(precise(text_embeds), dim=-1).T


def both_directions(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row and of each column against the diagonal.

    Args:
        logits: Images in rows, texts in columns, `[B, B]`; row i belongs to column i.

    Returns:
        Mean over images of finding their text, and mean over texts of finding their image, in nats. Both are log(B)
        when all logits are equal and 0 for a single pair, which has nothing to be told apart from.

    Raises:
        ValueError: If there are not as many texts as images.
    """
    if logits.dim() != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"logits {tuple(logits.shape)} must have one text per image")
    pair = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, pair), F.cross_entropy(logits.T, pair)
