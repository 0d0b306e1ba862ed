"""Weights of 16 bits in a model that computes in float32.

A layer's weight stays as the file holds it and becomes float32 for the moment it is used, so that a model takes the
memory of its file and gives the values of its float32 copy. All other parameters become float32 at once: biases,
norms, positions, adapters, and patch embeddings, whose type vision models bring their pixels to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D


class HalfLinear(nn.Linear):
    """A linear layer whose weight is stored in 16 bits."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns `[..., out]` in the type of the input."""
        return functional.linear(input, self.weight.to(input.dtype), self.bias)


class HalfConv1D(Conv1D):
    """GPT-2's linear layer, whose matrix is inputs x outputs, stored in 16 bits."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns `[..., out]` in the type of the input."""
        rows = x.reshape(-1, x.shape[-1])
        return torch.addmm(self.bias, rows, self.weight.to(x.dtype)).view(*x.shape[:-1], self.nf)


class HalfEmbedding(nn.Embedding):
    """A table stored in 16 bits; rows that are looked up are float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns the rows of indices, one axis more, float32."""
        return super().forward(input).float()


class HalfConv2d(nn.Conv2d):
    """A convolution whose weight is stored in 16 bits."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns `[B, out, H, W]` in the type of the input."""
        return self._conv_forward(input, self.weight.to(input.dtype), self.bias)


_LAYERS: Mapping[type[nn.Module], type[nn.Module]] = MappingProxyType(
    {nn.Linear: HalfLinear, Conv1D: HalfConv1D, nn.Embedding: HalfEmbedding, nn.Conv2d: HalfConv2d}
)


def compute_in_float32(model: nn.Module, halves: Collection[str], *, stored: bool = True) -> None:
    """Makes a model whose weights were read in 16 bits compute as if they were float32.

    Args:
        model: Changed in place.
        halves: Names of its weights and buffers of 16 bits to compute with as float32.
        stored: Whether weights of layers stay 16 bits; otherwise all become float32, as training needs.
    """
    names = frozenset(halves)
    for place, module in model.named_modules():
        owned = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        held = {name: tensor for name, tensor in owned if f"{place}.{name}".removeprefix(".") in names}
        layer = (
            _LAYERS.get(type(module)) if stored and "weight" in held and not _must_be_float32(place, module) else None
        )
        if layer is not None:
            module.__class__ = layer
        _widen({name: tensor for name, tensor in held.items() if layer is None or name != "weight"})


def _must_be_float32(place: str, module: nn.Module) -> bool:
    patches = isinstance(module, nn.Conv2d) and module.kernel_size == module.stride != (1, 1)
    return patches or ".lora_" in place


def _widen(tensors: Mapping[str, Tensor]) -> None:
    for tensor in tensors.values():
        tensor.data = tensor.data.float()
