"""MRM: what is hidden of an image is painted, what is hidden of its report is said; nothing meets in one space.

Shapes: `B` pairs, `P` patches, `V` of them that are seen, `N` tokens that are asked for, `D` width of a tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleft.config import MrmConfig
from cleft.errors import ConfigError
from cleft.models.bases import still_weights
from cleft.models.image_tower import ImageTower, grid_of
from cleft.models.layers import PatchDecoder
from cleft.models.methods.gloria import refuse_causal
from cleft.models.text_tower import TextTower
from cleft.types import ImageSpec


class Masked(NamedTuple):
    """What was made of hidden patches and tokens."""

    pixel_values: Tensor
    """The normalised images at their full size, `[B, 1 or 3, H, W]`."""
    painted: Tensor
    """`[B, P, values of a patch]`."""
    patch_hidden: Tensor
    """`[B, P]` bool."""
    logits: Tensor
    """Of each entry of the vocabulary, for the tokens that are asked for, `[1, N, vocabulary]`."""
    ids: Tensor
    """What these tokens are, `[1, N]`."""


class Mrm(nn.Module):
    """MRM's model: an image tower, a decoder that paints, and a masked language model that is told of the image.

    Args:
        image_tower: A model that embeds patch by patch, such as a ViT.
        text_tower: A masked model, from scratch in the paper; it says what is hidden of a report.
        config: How much is hidden, and the decoder.

    Raises:
        ConfigError: If the image tower keeps no token of each patch, or the text tower is causal.

    Source:
        Zhou et al. 2023, and the released code.
    """

    context: None = None

    def __init__(self, image_tower: ImageTower, text_tower: TextTower, config: MrmConfig) -> None:
        super().__init__()
        refuse_causal(text_tower, "mrm")
        side = image_tower.config.resize or image_tower.spec.size[0]
        grid = grid_of(image_tower.model.config, (side, side))
        family = image_tower.model.config.model_type
        if grid is None or not image_tower.keeps_patches or not hasattr(image_tower.model, "embeddings"):
            raise ConfigError(
                f"method=mrm hides patches, and a {family} keeps no token of each; image.model must be a ViT or one of "
                f"its relatives"
            )
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.config = config
        self.patch_size = image_tower.spec.size[0] // grid[0]
        width = image_tower.region_width if config.decoder_width is None else config.decoder_width
        self.painter = PatchDecoder(
            image_tower.region_width, width, grid, config.decoder_blocks, config.decoder_positions
        )
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.paint = nn.Linear(width, 3 * self.patch_size**2)
        # Tokens are scored by their embedding, which may be narrower than a state (ELECTRA, ALBERT).
        embedding_width = text_tower.lm.embedding_width
        self.report_condition = nn.Linear(image_tower.region_width, text_tower.lm.entry_width)
        self.report_dense = nn.Linear(text_tower.width, embedding_width)
        self.report_norm = nn.LayerNorm(embedding_width, eps=1e-12)
        self.report_bias = nn.Parameter(torch.zeros(len(self._table)))
        self.base_weights = frozenset(f"text_tower.{name}" for name in still_weights(text_tower))

    @property
    def _table(self) -> Tensor:
        """The embedding of every token, which also says how likely each is, as in BERT."""
        return cast("Tensor", self.text_tower.lm.model.get_input_embeddings().weight)

    @property
    def image_spec(self) -> ImageSpec:
        """How images must be prepared."""
        return self.image_tower.spec

    def encode_image_features(self, images: Tensor) -> Tensor:
        """Returns features `[B, D]` float32 of gray images `[B, 1, H, W]` uint8."""
        return self.image_tower.encode(images).float()

    def read(self, images: Tensor, texts: Sequence[str]) -> Masked:
        """Hides and restores a part of each image and of its text, drawn from torch's generator."""
        pixel_values = self.image_tower.normalise(images)
        patches = self.painter.positions.shape[0]
        order = torch.rand(len(images), patches, device=images.device).argsort(dim=1)
        kept = order[:, : max(1, round(patches * (1 - self.config.mask_ratio)))]
        hidden = torch.ones(len(images), patches, dtype=torch.bool, device=images.device).scatter(1, kept, value=False)
        seen = self.image_tower.read_visible(self.image_tower.resize(pixel_values), kept)  # [B, V, D]
        logits, ids = self._say(seen.mean(dim=1), texts)
        return Masked(pixel_values, self._paint(seen, kept, hidden), hidden, logits, ids)

    def settle_(self) -> None:
        """Nothing must hold of the weights but what the optimiser leaves."""

    def _paint(self, seen: Tensor, kept: Tensor, hidden: Tensor) -> Tensor:
        embedded = self.painter.embed(seen)
        every = self.mask_token.to(embedded.dtype).expand(*hidden.shape, -1)
        every = every.scatter(1, kept[..., None].expand_as(embedded), embedded)
        return self.paint(self.painter(every[:, :0], every))

    def _say(self, image: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Logits of the tokens that are asked for, and what they are."""
        tokens = self.text_tower.read_masked(
            texts,
            share=self.config.word_ratio,
            condition=self.report_condition(image),
            whole=self.config.score == "all",
        )
        asked = torch.ones_like(tokens.hidden) if self.config.score == "all" else tokens.hidden
        states = self.report_norm(functional.gelu(self.report_dense(tokens.states[asked])))
        return (states @ self._table.T.to(states.dtype) + self.report_bias)[None], tokens.ids[asked][None]
