"""MGCA: two towers that meet three times, as wholes, in parts, and at prototypes.

Shapes: `B` pairs, `M` regions, `W` slots of words, `L` tokens, `K` prototypes, `E` joint dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleft.config import LossConfig, MgcaConfig
from cleft.models.dual_encoder import DualEncoder, build_projection, unit
from cleft.models.image_tower import ImageTower
from cleft.models.methods.gloria import refuse_causal
from cleft.models.text_tower import TextTower


class WeighedParts(NamedTuple):
    """Images and their texts, whole and in parts that do not weigh the same, row by row."""

    image_embeds: Tensor
    """Unit length, `[B, E]`."""
    text_embeds: Tensor
    """Unit length, `[B, E]`."""
    regions: Tensor
    """Of any length, `[B, M, E]`."""
    region_attention: Tensor
    """`[B, M]`, as `ImageRegions.attention`."""
    words: Tensor
    """Of any length, `[B, W, E]`: the words and the end."""
    word_mask: Tensor
    """Which slots hold one, `[B, W]` bool."""
    token_attention: Tensor
    """What the class token looks at, `[B, L]`."""
    slot_of_token: Tensor
    """From 1; 0 for the class token and padding, `[B, L]`."""


class Mgca(DualEncoder):
    """MGCA's model.

    Args:
        image_tower: Reads images; its regions are compared with words.
        text_tower: A masked model.
        config: The joint space.
        mgca: Prototypes, and what is done with padding.

    Raises:
        ConfigError: If the text tower is causal, or images cannot be led into the joint space by themselves.

    Source:
        Wang et al. 2022, and the released code.
    """

    def __init__(self, image_tower: ImageTower, text_tower: TextTower, config: LossConfig, mgca: MgcaConfig) -> None:
        refuse_causal(text_tower, "mgca")
        super().__init__(image_tower, text_tower, config)
        self.padding = mgca.padding
        self.region_projection = build_projection(image_tower.region_width, config)
        self.word_projection = build_projection(text_tower.width, config, text=True)
        self.prototypes = nn.Parameter(unit(torch.randn(mgca.prototypes, config.embed_dim)))

    def read(self, images: Tensor, texts: Sequence[str]) -> WeighedParts:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Reads images and the text of each."""
        seen = self.image_tower.encode_regions(images)
        read = self.text_tower.read_words(texts, attention=True, whole=self.padding == "released")
        words = read.words[:, 1:]  # without the class token
        mask = torch.arange(words.shape[1], device=words.device) <= read.lengths[:, None]
        # The release projects padding too, whose zeros become a constant vector and enter the norms' statistics.
        kept = torch.ones_like(mask) if self.padding == "released" else mask
        projected = self.word_projection(words[kept])
        return WeighedParts(
            image_embeds=unit(self.image_projection(seen.features)),
            text_embeds=unit(self.text_projection(read.features)),
            regions=self.region_projection(seen.regions.flatten(0, 1)).unflatten(0, seen.regions.shape[:2]),
            region_attention=seen.attention,
            words=projected.new_zeros(*mask.shape, projected.shape[1]).masked_scatter(kept[..., None], projected),
            word_mask=mask,
            token_attention=read.attention,
            slot_of_token=read.slot_of_token,
        )

    @torch.no_grad()
    def settle_(self) -> None:
        """Brings prototypes back to unit length, besides the temperature to its range."""
        super().settle_()
        self.prototypes.copy_(functional.normalize(self.prototypes, dim=-1))
