"""Virtual tokens in front of every text: keys and values that all tokens attend to (prefix tuning)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache


class Prefix(nn.Module):
    """Learned keys and values for each block of a language model.

    In a prefix tree they are ancestors of every node, so a whole batch shares one copy. PEFT would repeat them for
    each text and rewrite a two-dimensional mask, which cannot say who sees whom in a tree; so we hand them to the
    model ourselves.

    Args:
        encoder: Gives `[length, 2 * blocks * heads * size]` for the indices 0 to length - 1, keys before values
            in each block.
        length: Number of virtual tokens.
        heads: Key-value heads of a block.
        size: Width of a head.
    """

    def __init__(self, encoder: nn.Module, *, length: int, heads: int, size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.length = length
        self.heads = heads
        self.size = size

    def forward(self, batch: int, *, dtype: torch.dtype) -> DynamicCache:
        """Returns the keys and values for a batch of sequences, as if the model had read them before."""
        weight = next(self.encoder.parameters())
        states: Tensor = self.encoder(torch.arange(self.length, device=weight.device)).to(dtype)
        blocks = states.view(self.length, -1, 2, self.heads, self.size).permute(1, 2, 3, 0, 4)
        blocks = blocks[:, :, None].expand(-1, -1, batch, -1, -1, -1)  # [blocks, 2, B, heads, length, size]
        return DynamicCache([(keys, values) for keys, values in blocks])
