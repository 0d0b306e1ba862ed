"""Transformer blocks behind the patches of a vision model, as masked autoencoders have them.

The authors' CLIP pools its feature from two such blocks, MRM paints hidden patches with four. Names and order of the
weights are those of timm's blocks, with `qkv` called `self_attn.in_proj`.

Shapes: `B` images, `M` patches, `D` width of the vision model, `K` width of the decoder.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Frequencies = Literal["standard", "slipped"]
"""`slipped`: the exponents of the authors' code of MRM and CLIP, a quarter of what was meant."""

_HEAD = 128
"""Width of an attention head: 6 heads of 768."""
_EPS = 1e-6


class PatchDecoder(nn.Module):
    """A layer into the decoder's width, fixed positions, blocks, and a last norm.

    Args:
        given: Width of what is read, `D`.
        width: Of the blocks, `K`.
        grid: Rows and columns of the patches.
        blocks: How many.
        frequencies: Of the positions.
    """

    positions: Tensor

    def __init__(
        self, given: int, width: int, grid: tuple[int, int], blocks: int, frequencies: Frequencies = "standard"
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(given, width)
        self.register_buffer("positions", sine_positions(width, grid, frequencies), persistent=False)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                max(1, width // _HEAD),
                dim_feedforward=4 * width,
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=_EPS,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, first: Tensor, patches: Tensor) -> Tensor:
        """Returns what the blocks make of all patches, `[B, M, K]`.

        Args:
            first: Embedded class token, `[B, 1, K]`, or none of them, `[B, 0, K]`. It is read and not returned.
            patches: Embedded patches, `[B, M, K]`.
        """
        tokens = torch.cat([first, patches + self.positions.to(patches.dtype)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, first.shape[1] :])


def sine_positions(width: int, grid: tuple[int, int], frequencies: Frequencies = "standard") -> Tensor:
    """Returns fixed positions of patches, `[M, K]`: the first half tells the column, the second the row.

    Args:
        width: A multiple of 4.
        grid: Rows and columns.
        frequencies: From 1 down to about 1e-4, or to 0.1 where they are `slipped`.

    Raises:
        ValueError: If the width is no multiple of 4.

    Source:
        He et al. 2022 (masked autoencoders), released code.
    """
    if width % 4:
        raise ValueError(f"a decoder of width {width} has no sine positions; take a multiple of 4")
    step = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    rates = 10_000.0 ** -(step / 4 if frequencies == "slipped" else step)
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [place.flatten()[:, None] * rates for place in (column, row)]  # [M, K/4]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
