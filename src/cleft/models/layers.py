"""Layers and helpers for Hugging Face transformers: patch decoder, 16-bit layers, layer depth, attention, hooks.

Shapes: `B` sequences or images, `L` tokens, `M` patches, `K` heads or decoder width, `W` head width, `D` model width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from cleft.errors import ConfigError

Frequencies = Literal["standard", "released"]
"""`released`: the exponents of the authors' code of MRM and CLIP, a quarter of the intended ones."""

_HEAD = 128
"""Width of an attention head: 6 heads of 768."""
_EPS = 1e-6


class PatchDecoder(nn.Module):
    """Transformer blocks on the patches of a vision model, as in masked autoencoders.

    Two in the authors' CLIP, four in MRM: linear layer to the decoder's width, fixed positions, blocks, final norm.
    Names and order of the weights are those of timm's blocks, with `qkv` called `self_attn.in_proj`.

    Args:
        given: Input width, `D`.
        width: Width of the blocks, `K`.
        grid: Rows and columns of patches.
        blocks: Number of blocks.
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
        """Returns the decoded patches, `[B, M, K]`.

        Args:
            first: Embedded class token, `[B, 1, K]`, or none, `[B, 0, K]`. Attended to, not returned.
            patches: Embedded patches, `[B, M, K]`.
        """
        tokens = torch.cat([first, patches + self.positions.to(patches.dtype)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, first.shape[1] :])


def sine_positions(width: int, grid: tuple[int, int], frequencies: Frequencies = "standard") -> Tensor:
    """Returns fixed sine-cosine positions of patches, `[M, K]`: the first half encodes the column, the second the row.

    Args:
        width: A multiple of 4.
        grid: Rows and columns.
        frequencies: From 1 down to about 1e-4, or to 0.1 with `released`.

    Raises:
        ValueError: If the width is not a multiple of 4.

    Source:
        He et al. 2022 (masked autoencoders), released code.
    """
    if width % 4:
        raise ValueError(f"a decoder of width {width} has no sine positions; use a multiple of 4")
    step = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    rates = 10_000.0 ** -(step / 4 if frequencies == "released" else step)
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [place.flatten()[:, None] * rates for place in (column, row)]  # [M, K/4]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


class HalfLinear(nn.Linear):
    """A linear layer with a weight stored in 16 bits and cast to the input's dtype when used."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns `[..., out]` in the type of the input."""
        return functional.linear(input, self.weight.to(input.dtype), self.bias)


class HalfConv1D(Conv1D):
    """GPT-2's linear layer (matrix of inputs x outputs) with a weight stored in 16 bits."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns `[..., out]` in the type of the input."""
        rows = x.reshape(-1, x.shape[-1])
        return torch.addmm(self.bias, rows, self.weight.to(x.dtype)).view(*x.shape[:-1], self.nf)


class HalfEmbedding(nn.Embedding):
    """An embedding stored in 16 bits; looked-up rows are float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns the rows of indices, one axis more, float32."""
        return super().forward(input).float()


class HalfConv2d(nn.Conv2d):
    """A convolution with a weight stored in 16 bits."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns `[B, out, H, W]` in the type of the input."""
        return self._conv_forward(input, self.weight.to(input.dtype), self.bias)


_LAYERS: Mapping[type[nn.Module], type[nn.Module]] = MappingProxyType(
    {nn.Linear: HalfLinear, Conv1D: HalfConv1D, nn.Embedding: HalfEmbedding, nn.Conv2d: HalfConv2d}
)


def compute_in_float32(model: nn.Module, halves: Collection[str], *, stored: bool = True) -> None:
    """Makes a model with weights loaded in 16 bits compute as in float32.

    The weight of a layer stays in 16 bits and is cast to float32 when used, so that the model needs the memory of its
    file and gives the values of its float32 copy. All other parameters are cast at once: biases, norms, positions,
    adapters, and patch embeddings, to whose dtype vision models cast their pixels.

    Args:
        model: Changed in place.
        halves: Names of its 16-bit weights and buffers to compute with as float32.
        stored: Whether weights of layers stay in 16 bits; otherwise all become float32, as training needs.
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


def layer_depths(model: nn.Module) -> tuple[dict[str, int], int]:
    """Returns the depth of each weight: the number of blocks or stages between it and the input.

    The outermost list of blocks defines them: the blocks of a ViT, the stages of a ResNet, Swin or ConvNeXt.

    Args:
        model: A Hugging Face model.

    Returns:
        Name to depth: 0 for embeddings and anything before the blocks, 1 for the first block or stage, and so on; and
        the depth of anything after the last one, which is also that of a head on top. A model without a list of blocks
        has depth 0 throughout.

    Example:
        >>> blocks = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(3)])
        >>> layer_depths(nn.ModuleDict({"stem": nn.Linear(2, 2, bias=False), "blocks": blocks}))
        ({'stem.weight': 0, 'blocks.0.weight': 1, 'blocks.1.weight': 2, 'blocks.2.weight': 3}, 4)
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = main_block_list(model)
    if blocks is None:
        return dict.fromkeys(names, 0), 0
    place, units = blocks
    depths: dict[str, int] = {}
    reached = False
    for name in names:
        inside = name.startswith(f"{place}.")
        reached = reached or inside
        unit = int(name.removeprefix(f"{place}.").partition(".")[0]) + 1 if inside else units + 1
        depths[name] = unit if reached else 0
    return depths, units + 1


def main_block_list(model: nn.Module) -> tuple[str, int] | None:
    """Returns name and length of the outermost list of blocks with most weights; None if there is none."""
    found: dict[str, tuple[int, int]] = {}
    for name, child in model.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(child, nn.ModuleList | nn.Sequential) and name and not inner:
            found[name] = (sum(weight.numel() for weight in child.parameters()), len(child))
    if not found:
        return None
    place = max(found, key=lambda name: found[name][0])
    return place, found[place][1]


_PAIRS = (("q_proj", "k_proj"), ("query", "key"))
"""Names of query and key layers in different model families."""


class AttentionCapture:
    """Queries and keys of the last forward pass through an attention module.

    Fast attention kernels return no weights, and the slow one keeps those of all blocks and tokens. Here queries and
    keys of the last block are captured, and one row of weights is recomputed.
    """

    def __init__(self, heads: int) -> None:
        self._heads = heads
        self._seen: dict[str, Tensor] = {}

    def keep(self, what: str, output: Tensor) -> None:
        """Stores queries or keys `[B, L, K * W]`."""
        self._seen[what] = output.detach()

    @torch.no_grad()
    def first_row(self, visible: Tensor | None = None) -> Tensor:
        """Returns the attention of the first token to each token, mean over heads, `[B, L]` float32.

        Args:
            visible: Attention mask `[B, L]` bool; by default all tokens are visible.
        """
        query, key = (
            self._seen[what].float().unflatten(-1, (self._heads, -1)).transpose(1, 2) for what in ("query", "key")
        )  # [B, K, L, W]
        scores = (key @ query[:, :, :1].transpose(2, 3))[..., 0] * query.shape[-1] ** -0.5  # [B, K, L]
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1).mean(dim=1)


@contextmanager
def capture_attention(model: nn.Module, what: str) -> Generator[AttentionCapture]:
    """Captures queries and keys of the last block of a transformer.

    Args:
        model: Any Hugging Face transformer.
        what: Tower for messages: `image` or `text`.

    Raises:
        ConfigError: If it has no attention module of a known form.
    """
    found: list[tuple[Any, nn.Module, nn.Module]] = [
        (module, getattr(module, query), getattr(module, key))
        for module in model.modules()
        for query, key in _PAIRS
        if isinstance(getattr(module, query, None), nn.Module) and isinstance(getattr(module, key, None), nn.Module)
    ]
    if not found:
        raise ConfigError(
            f"{what}: a {type(model).__name__} has no attention module of a known form; choose another model"
        )
    module, query, key = found[-1]
    capture = AttentionCapture(_heads(module))

    def kept_as(what: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: capture.keep(what, output)

    with query.register_forward_hook(kept_as("query")), key.register_forward_hook(kept_as("key")):
        yield capture


def _heads(module: Any) -> int:
    names = ("num_attention_heads", "num_heads", "n_heads")
    return int(next(value for name in names if (value := getattr(module, name, None)) is not None))


_INSTALLED = "_output_capturing_hooks_installed"


def make_hooks_picklable(model: nn.Module) -> None:
    """Replaces hooks of transformers that are local functions, which cannot be pickled.

    Hooks that capture hidden states are removed; transformers installs them again when needed. Hooks that let gradients
    reach checkpointed blocks are replaced by an equal function.
    """
    for module in model.modules():
        hooks = vars(module)["_forward_hooks"]
        for key, hook in list(hooks.items()):
            name = getattr(hook, "__name__", "")
            if name == "output_capturing_hook":
                del hooks[key]
            elif name == "make_inputs_require_grads":
                hooks[key] = _require_gradients
        module.__dict__.pop(_INSTALLED, None)


def _require_gradients(_module: nn.Module, _inputs: object, output: Tensor) -> None:
    output.requires_grad_()
