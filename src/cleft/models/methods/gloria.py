"""GLoRIA: two towers that meet twice, image with text and regions with words.

Shapes: `B` pairs, `M` regions, `W` slots of words, `E` joint dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cleft.config import LossConfig
from cleft.errors import ConfigError
from cleft.models.dual_encoder import DualEncoder, unit
from cleft.models.image_tower import ImageTower
from cleft.models.text_tower import TextTower, Words


class RegionsAndWords(NamedTuple):
    """Images and their texts, whole and in parts, row by row."""

    image_embeds: Tensor
    """Unit length, `[B, E]`."""
    text_embeds: Tensor
    """Unit length, `[B, E]`."""
    regions: Tensor
    """Of any length, `[B, M, E]`."""
    words: Tensor
    """Of any length, `[B, W, E]`."""
    word_mask: Tensor
    """Which slots take part, `[B, W]` bool: the class token and the words, not the end."""


class Gloria(DualEncoder):
    """GLoRIA's model.

    Args:
        image_tower: Reads images; its regions are compared with words.
        text_tower: A masked model. Its states are what words are, not projected.
        config: Width of the joint space, which is the text tower's.

    Raises:
        ConfigError: If the text tower is causal, or the joint space is not its own.

    Source:
        Huang et al. 2021, and the released code: words are sums of their pieces and of the last four layers.
    """

    def __init__(self, image_tower: ImageTower, text_tower: TextTower, config: LossConfig) -> None:
        refuse_causal(text_tower, "gloria")
        if config.projection != "to-text":
            raise ConfigError(
                f"method=gloria compares words as the text tower gives them; set loss.projection=to-text, not "
                f"{config.projection}"
            )
        super().__init__(image_tower, text_tower, config)
        self.region_projection = nn.Linear(image_tower.region_width, config.embed_dim, bias=False)

    def read(self, images: Tensor, texts: Sequence[str]) -> RegionsAndWords:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Reads images and the text of each."""
        seen = self.image_tower.encode_regions(images)
        read = self.read_words(texts)
        slot = torch.arange(read.words.shape[1], device=read.words.device)
        return RegionsAndWords(
            image_embeds=unit(self.image_projection(seen.features)),
            text_embeds=unit(self.text_projection(read.features)),
            regions=self.region_projection(seen.regions),
            words=read.words,
            word_mask=slot <= read.lengths[:, None],
        )

    def encode_regions(self, images: Tensor) -> Tensor:
        """Returns the regions of gray images `[B, 1, H, W]` uint8 as words are compared with them, `[B, M, E]`."""
        return self.region_projection(self.image_tower.encode_regions(images).regions)

    def read_words(self, texts: Sequence[str], *, whole: bool = False) -> Words:
        """Reads texts word by word, as `TextTower.read_words`; a word is the sum of its layers, not their mean."""
        read = self.text_tower.read_words(texts, whole=whole)
        return read._replace(words=read.words * len(self.text_tower.lm.layers))


def refuse_causal(text_tower: TextTower, method: str) -> None:
    """Raises a ConfigError if the words of a text tower know only what stands before them."""
    if text_tower.lm.causal:
        raise ConfigError(
            f"method={method} reads words in their whole text; text.model must be a masked model, such as a BERT"
        )
