"""Where the learned prompt context of stage two starts: at the handwritten opening it replaces, or at random."""

from __future__ import annotations

import torch
from torch import Tensor

from cleft.config import ContextConfig
from cleft.models.text import TextTower


def build_context(text_tower: TextTower, opening: str, config: ContextConfig, seed: int) -> Tensor:
    """Returns the context vectors that stage two starts from.

    With `init: opening` the token embeddings of the opening come last, next to the class name, and further vectors
    are random in front. Of an opening longer than the context the last tokens are kept. With `init: random` all
    are random. Random vectors are uniform in ±√3 times the standard deviation of the opening's embeddings, and so
    spread as far as those do.

    Args:
        text_tower: Whose token embeddings to start from.
        opening: The sentence's beginning, such as `data.captions.OPENING`.
        config: `length` L and `init`.
        seed: Of the random vectors.

    Returns:
        `[L, D]` float32 on the CPU, without gradient.

    Source:
        CLEFT, section 2.2, which names no range (docs/decisions/0034).
    """
    written = text_tower.embed_opening(opening).cpu()[-config.length :]
    spread = float(written.std()) * 3**0.5
    generator = torch.Generator().manual_seed(seed)
    random = (torch.rand(config.length, written.shape[1], generator=generator) * 2 - 1) * spread
    if config.init == "opening":
        random[config.length - len(written) :] = written
    return random
