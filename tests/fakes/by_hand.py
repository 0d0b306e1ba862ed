"""Towers computed step by step from the weights of a published checkpoint, under its own names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))


def layer_norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    spread = x.var(dim=-1, unbiased=False, keepdim=True)
    return (x - x.mean(dim=-1, keepdim=True)) / (spread + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Of `[N, L, D]`; head by head."""
    parts: list[Tensor] = []
    for head, (q, k, v) in enumerate(zip(*(x.chunk(heads, dim=-1) for x in (query, key, value)), strict=True)):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        parts.append((scores if bias is None else scores + bias[head]).softmax(dim=-1) @ v)
    return torch.cat(parts, dim=-1)


def vit_block(x: Tensor, w: Weights, at: str, heads: int) -> Tensor:
    query, key, value = linear(layer_norm(x, w, f"{at}norm1", 1e-6), w, f"{at}attn.qkv").chunk(3, dim=-1)
    one = torch.ones(())
    x = x + linear(attend(query, key, value, heads), w, f"{at}attn.proj") * w.get(f"{at}ls1.gamma", one)
    hidden = functional.gelu(linear(layer_norm(x, w, f"{at}norm2", 1e-6), w, f"{at}mlp.fc1"))
    return x + linear(hidden, w, f"{at}mlp.fc2") * w.get(f"{at}ls2.gamma", one)


def vit_tokens(pixels: Tensor, w: Weights, at: str, *, heads: int = 2, norm: bool = True) -> Tensor:
    filters = w[f"{at}patch_embed.proj.weight"]
    patches = functional.unfold(pixels, filters.shape[-1], stride=filters.shape[-1]).mT  # [B, M, values of a patch]
    x = patches @ filters.flatten(1).T + w[f"{at}patch_embed.proj.bias"]
    x = torch.cat([w[f"{at}cls_token"].expand(len(x), -1, -1), x], dim=1) + w[f"{at}pos_embed"]
    if f"{at}register_tokens" in w:
        x = torch.cat([x[:, :1], w[f"{at}register_tokens"].expand(len(x), -1, -1), x[:, 1:]], dim=1)
    block = 0
    while f"{at}blocks.{block}.norm1.weight" in w:
        x = vit_block(x, w, f"{at}blocks.{block}.", heads)
        block += 1
    return layer_norm(x, w, f"{at}norm", 1e-6) if norm else x


def batch_norm(x: Tensor, w: Weights, name: str) -> Tensor:
    """In evaluation; the channels are the second axis."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    x = (x - w[f"{name}.running_mean"].view(shape)) / (w[f"{name}.running_var"].view(shape) + 1e-5).sqrt()
    return x * w[f"{name}.weight"].view(shape) + w[f"{name}.bias"].view(shape) if f"{name}.weight" in w else x


def resnet_maps(pixels: Tensor, w: Weights, at: str) -> list[Tensor]:
    """The map of every stage."""
    x = functional.conv2d(pixels, w[f"{at}conv1.weight"], stride=2, padding=3)
    x = functional.max_pool2d(batch_norm(x, w, f"{at}bn1").relu(), 3, stride=2, padding=1)
    maps: list[Tensor] = []
    stage = 1
    while f"{at}layer{stage}.0.conv1.weight" in w:
        block = 0
        while f"{at}layer{stage}.{block}.conv1.weight" in w:
            read = _bottleneck if f"{at}layer{stage}.{block}.conv3.weight" in w else _basic
            x = read(x, w, f"{at}layer{stage}.{block}.", 2 if block == 0 and stage > 1 else 1)
            block += 1
        maps.append(x)
        stage += 1
    return maps


def _bottleneck(x: Tensor, w: Weights, at: str, stride: int) -> Tensor:
    y = batch_norm(functional.conv2d(x, w[f"{at}conv1.weight"]), w, f"{at}bn1").relu()
    y = functional.conv2d(y, w[f"{at}conv2.weight"], stride=stride, padding=1)
    y = batch_norm(y, w, f"{at}bn2").relu()
    y = batch_norm(functional.conv2d(y, w[f"{at}conv3.weight"]), w, f"{at}bn3")
    return _add(x, y, w, at, stride)


def _basic(x: Tensor, w: Weights, at: str, stride: int) -> Tensor:
    y = functional.conv2d(x, w[f"{at}conv1.weight"], stride=stride, padding=1)
    y = batch_norm(y, w, f"{at}bn1").relu()
    y = batch_norm(functional.conv2d(y, w[f"{at}conv2.weight"], padding=1), w, f"{at}bn2")
    return _add(x, y, w, at, stride)


def _add(x: Tensor, y: Tensor, w: Weights, at: str, stride: int) -> Tensor:
    if f"{at}downsample.0.weight" in w:
        x = functional.conv2d(x, w[f"{at}downsample.0.weight"], stride=stride)
        x = batch_norm(x, w, f"{at}downsample.1")
    return (x + y).relu()


def bert_layers(
    ids: list[int], w: Weights, at: str, *, heads: int = 2, ordered: bool = True, padding: int = 0
) -> list[Tensor]:
    """States `[L, D]` of one text behind the embedding and every block, its `padding` last tokens not seen."""
    places = torch.arange(len(ids)) if ordered else torch.zeros(len(ids), dtype=torch.int64)
    x = w[f"{at}embeddings.word_embeddings.weight"][ids] + w[f"{at}embeddings.position_embeddings.weight"][places]
    types = w.get(f"{at}embeddings.token_type_embeddings.weight")
    x = layer_norm(x if types is None else x + types[0], w, f"{at}embeddings.LayerNorm", 1e-12)
    bias = torch.zeros(heads, 1, len(ids))
    bias[..., len(ids) - padding :] = -torch.inf
    layers = [x]
    while f"{at}encoder.layer.{len(layers) - 1}.output.dense.weight" in w:
        block = f"{at}encoder.layer.{len(layers) - 1}."
        query, key, value = (linear(x, w, f"{block}attention.self.{kind}")[None] for kind in ("query", "key", "value"))
        mixed = linear(attend(query, key, value, heads, bias)[0], w, f"{block}attention.output.dense")
        x = layer_norm(x + mixed, w, f"{block}attention.output.LayerNorm", 1e-12)
        hidden = functional.gelu(linear(x, w, f"{block}intermediate.dense"))
        x = layer_norm(x + linear(hidden, w, f"{block}output.dense"), w, f"{block}output.LayerNorm", 1e-12)
        layers.append(x)
    return layers


def norm_head(x: Tensor, w: Weights, at: str) -> Tensor:
    """MGCA's head on `[N, D]`; its local twins are convolutions of one tap."""
    first, second = (w[f"{at}head.{layer}.weight"].flatten(1) for layer in (0, 3))
    hidden = batch_norm(x @ first.T + w[f"{at}head.0.bias"], w, f"{at}head.1").relu()
    return batch_norm(hidden @ second.T + w[f"{at}head.3.bias"], w, f"{at}head.4")


def swin_tokens(pixels: Tensor, w: Weights, at: str, *, window: int = 7) -> Tensor:
    """Tokens behind the last norm, `[B, L, D]`."""
    filters = w[f"{at}embeddings.patch_embeddings.projection.weight"]
    x = functional.conv2d(pixels, filters, w[f"{at}embeddings.patch_embeddings.projection.bias"], stride=4)
    x = layer_norm(x.permute(0, 2, 3, 1), w, f"{at}embeddings.norm", 1e-5)  # [B, h, w, D]
    stage = 0
    while f"{at}encoder.layers.{stage}.blocks.0.output.dense.weight" in w:
        here = f"{at}encoder.layers.{stage}."
        block = 0
        while f"{here}blocks.{block}.output.dense.weight" in w:
            shift = window // 2 if block % 2 and x.shape[1] > window else 0
            x = _swin_block(x, w, f"{here}blocks.{block}.", window, shift)
            block += 1
        if f"{here}downsample.reduction.weight" in w:
            x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
            x = linear(layer_norm(x, w, f"{here}downsample.norm", 1e-5), w, f"{here}downsample.reduction")
        stage += 1
    return layer_norm(x.flatten(1, 2), w, f"{at}layernorm", 1e-5)


def _swin_block(x: Tensor, w: Weights, at: str, window: int, shift: int) -> Tensor:
    """Window by window. Windows are shifted around the edge, and what came around does not see the rest."""
    side = x.shape[1]
    y = layer_norm(x, w, f"{at}layernorm_before", 1e-5).roll((-shift, -shift), dims=(1, 2))
    came_round = torch.arange(side) >= side - shift
    table = w[f"{at}attention.self.relative_position_bias_table"]
    inside = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    apart = inside[:, None] - inside[None] + window - 1  # [window², window², 2]
    bias = table[apart[..., 0] * (2 * window - 1) + apart[..., 1]].permute(2, 0, 1)
    mixed = torch.empty_like(y)
    for top in range(0, side, window):
        for left in range(0, side, window):
            rows, columns = slice(top, top + window), slice(left, left + window)
            tokens = y[:, rows, columns].flatten(1, 2)
            group = torch.stack([came_round[rows][inside[:, 0]], came_round[columns][inside[:, 1]]], dim=1)
            seen = (group[:, None] == group[None]).all(dim=-1)
            query, key, value = (linear(tokens, w, f"{at}attention.self.{kind}") for kind in ("query", "key", "value"))
            out = attend(query, key, value, len(bias), bias.masked_fill(~seen, -torch.inf))
            mixed[:, rows, columns] = linear(out, w, f"{at}attention.output.dense").unflatten(1, (window, window))
    x = x + mixed.roll((shift, shift), dims=(1, 2))
    hidden = functional.gelu(linear(layer_norm(x, w, f"{at}layernorm_after", 1e-5), w, f"{at}intermediate.dense"))
    return x + linear(hidden, w, f"{at}output.dense")


def clip_image(pixels: Tensor, w: Weights, *, quick: bool, heads: int) -> Tensor:
    """CLIP's image features behind their projection, `[B, E]`, by the names of CLIP's own code."""
    filters = w["visual.conv1.weight"]
    patches = functional.unfold(pixels, filters.shape[-1], stride=filters.shape[-1]).mT
    x = patches @ filters.flatten(1).T
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1) + w["visual.positional_embedding"]
    x = _clip_blocks(layer_norm(x, w, "visual.ln_pre", 1e-5), w, "visual.", heads, quick=quick)
    return layer_norm(x[:, 0], w, "visual.ln_post", 1e-5) @ w["visual.proj"]


def clip_text(ids: list[int], w: Weights, *, quick: bool, heads: int, at: str = "") -> Tensor:
    """CLIP's features of one text behind their projection, `[E]`: padded with 0 and read off its highest token."""
    positions = w[f"{at}positional_embedding"]
    padded = torch.tensor(ids + [0] * (len(positions) - len(ids)))
    future = torch.full((len(padded), len(padded)), -torch.inf).triu(1)
    x = (w[f"{at}token_embedding.weight"][padded] + positions)[None]
    x = _clip_blocks(x, w, at, heads, quick=quick, bias=future.expand(heads, -1, -1))
    return layer_norm(x[0], w, f"{at}ln_final", 1e-5)[padded.argmax()] @ w[f"{at}text_projection"]


def _clip_blocks(x: Tensor, w: Weights, at: str, heads: int, *, quick: bool, bias: Tensor | None = None) -> Tensor:
    block = 0
    while f"{at}transformer.resblocks.{block}.ln_1.weight" in w:
        here = f"{at}transformer.resblocks.{block}."
        inside = layer_norm(x, w, f"{here}ln_1", 1e-5) @ w[f"{here}attn.in_proj_weight"].T
        query, key, value = (inside + w[f"{here}attn.in_proj_bias"]).chunk(3, dim=-1)
        x = x + linear(attend(query, key, value, heads, bias), w, f"{here}attn.out_proj")
        hidden = linear(layer_norm(x, w, f"{here}ln_2", 1e-5), w, f"{here}mlp.c_fc")
        hidden = hidden * (1.702 * hidden).sigmoid() if quick else functional.gelu(hidden)
        x = x + linear(hidden, w, f"{here}mlp.c_proj")
        block += 1
    return x
