"""Weight names of published checkpoints, mapped to the names in this library, and model sizes from weight shapes.

The number of attention heads cannot be read from shapes. It is known for published widths, and 16-wide heads are
assumed for test models below any published width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from cleft.config import TextTowerConfig
from cleft.errors import CheckpointError
from cleft.grammar import count

IMAGE = "image_tower.model."
TEXT = "text_tower.lm.model."
Target: TypeAlias = "str | Callable[[re.Match[str]], str] | None"
"""New name: a template, in which `{}` stands for query, key and value of a fused weight (`{0[0]}` for q, k and v); or
None for a weight that is dropped."""


class Section(NamedTuple):
    """A group of weight names with a common prefix."""

    prefix: str
    place: str
    """Replacement of the prefix."""
    names: Mapping[str, Target]
    """Pattern of the rest of a name to its target."""


def rename(state: Mapping[str, Tensor], sections: Sequence[Section]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the weights under their names here, without dropped ones, and the names without a target."""
    named: dict[str, Tensor] = {}
    left_over: list[str] = []
    for name, tensor in state.items():
        found = _find(name, tensor, sections)
        if found is None:
            left_over.append(name)
        else:
            named.update(found)
    return named, left_over


def _find(name: str, tensor: Tensor, sections: Sequence[Section]) -> dict[str, Tensor] | None:
    for section in sections:
        if not name.startswith(section.prefix):
            continue
        for pattern, target in section.names.items():
            match = re.fullmatch(pattern, name.removeprefix(section.prefix))
            if match is None:
                continue
            if target is None:
                return {}
            place = section.place + (match.expand(target) if isinstance(target, str) else target(match))
            if "{" not in place:
                return {place: tensor}
            if tensor.ndim and len(tensor) % 3 == 0:
                kinds = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
                return {place.format(kind): third for kind, third in kinds}
    return None


VIT: Mapping[str, Target] = {
    r"cls_token": r"embeddings.cls_token",
    r"pos_embed": r"embeddings.position_embeddings",
    r"patch_embed\.proj\.(weight|bias)": r"embeddings.patch_embeddings.projection.\1",
    r"blocks\.(\d+)\.norm1\.(weight|bias)": r"encoder.layer.\1.layernorm_before.\2",
    r"blocks\.(\d+)\.norm2\.(weight|bias)": r"encoder.layer.\1.layernorm_after.\2",
    r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)": r"encoder.layer.\1.attention.attention.{}.\2",
    r"blocks\.(\d+)\.attn\.proj\.(weight|bias)": r"encoder.layer.\1.attention.output.dense.\2",
    r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)": r"encoder.layer.\1.intermediate.dense.\2",
    r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)": r"encoder.layer.\1.output.dense.\2",
    r"norm\.(weight|bias)": r"layernorm.\1",
}
"""timm's ViT (DeiT, MAE, MGCA, MRM, the authors' CLIP) -> files of `ViTModel`."""

BERT: Mapping[str, Target] = {
    r"embeddings\.((word|position|token_type)_embeddings\.weight|LayerNorm\.(weight|bias))": r"\g<0>",
    r"encoder\.layer\.\d+\.(attention\.(self\.(query|key|value)|output\.(dense|LayerNorm))|intermediate\.dense"
    r"|output\.(dense|LayerNorm))\.(weight|bias)": r"\g<0>",
    r"embeddings\.position_ids": None,  # a buffer: 0, 1, …
}
"""`BertModel` without its pooler."""
NO_POOLER: Mapping[str, Target] = {r"pooler\.dense\.(weight|bias)": None}
"""Pooler of the class token; dropped by methods that do not use it."""
POOLER: Mapping[str, Target] = {r"pooler\.dense\.(weight|bias)": r"\g<0>"}
VENDORED_BERT: Mapping[str, Target] = {**BERT, **NO_POOLER, r"encoder\.layer\.\d+\.crossattention\..*": None}
"""BLIP's copy of BERT, in MGCA and the authors' CLIP: its cross-attention is not used."""

SWIN: Mapping[str, Target] = {
    r".*\.attention\.self\.relative_position_index": None,  # a buffer, computed from the window size
    r"(embeddings|encoder|layernorm)\..*": r"\g<0>",
}
"""`SwinModel` as transformers 4 called its weights; version 5 knows these names."""

_NORM = "weight|bias|running_mean|running_var|num_batches_tracked"


def _stem(match: re.Match[str]) -> str:
    return f"embedder.embedder.{'convolution' if match[1] in ('conv', '0') else 'normalization'}.{match[2]}"


def _block(first: int) -> Callable[[re.Match[str]], str]:
    """Returns the renaming of blocks, where the first stage has number `first`."""

    def name(match: re.Match[str]) -> str:
        stage, layer, kind, number, part = match.groups()
        what = "convolution" if kind == "conv" else "normalization"
        return f"encoder.stages.{int(stage) - first}.layers.{layer}.layer.{int(number) - 1}.{what}.{part}"

    return name


def _shortcut(first: int) -> Callable[[re.Match[str]], str]:
    def name(match: re.Match[str]) -> str:
        stage, layer, number, part = match.groups()
        what = "convolution" if number == "0" else "normalization"
        return f"encoder.stages.{int(stage) - first}.layers.{layer}.shortcut.{what}.{part}"

    return name


RESNET: Mapping[str, Target] = {
    rf"(conv|bn)1\.({_NORM})": _stem,
    rf"layer([1-9])\.(\d+)\.(conv|bn)([123])\.({_NORM})": _block(1),
    rf"layer([1-9])\.(\d+)\.downsample\.([01])\.({_NORM})": _shortcut(1),
}
"""torchvision's and timm's ResNet -> files of `ResNetModel`."""
NUMBERED_RESNET: Mapping[str, Target] = {
    rf"([01])\.({_NORM})": _stem,
    rf"([4-9])\.(\d+)\.(conv|bn)([123])\.({_NORM})": _block(4),
    rf"([4-9])\.(\d+)\.downsample\.([01])\.({_NORM})": _shortcut(4),
}
"""The same as a list of torchvision's layers: 0 and 1 are the stem, 4 the first stage."""


def norm_head(prefix: str, place: str) -> Section:
    """Returns the section of MGCA's head: linear, batch norm, ReLU, linear, batch norm without weights."""
    return Section(prefix, place, {rf"head\.(\d+)\.({_NORM})": r"\1.\2"})


HUB_VISION = {
    r"(cls_token|mask_token|register_tokens)": r"embeddings.\1",
    r"pos_embed": r"embeddings.position_embeddings",
    r"patch_embed\.proj\.(weight|bias)": r"embeddings.patch_embeddings.projection.\1",
    r"blocks\.(\d+)\.(norm1|norm2|mlp\.fc1|mlp\.fc2)\.(weight|bias)": r"encoder.layer.\1.\2.\3",
    r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)": r"encoder.layer.\1.attention.attention.{}.\2",
    r"blocks\.(\d+)\.attn\.proj\.(weight|bias)": r"encoder.layer.\1.attention.output.dense.\2",
    r"blocks\.(\d+)\.ls([12])\.gamma": r"encoder.layer.\1.layer_scale\2.lambda1",
    r"norm\.(weight|bias)": r"layernorm.\1",
}
"""Hub name of a DINOv2's weight -> name in files of `Dinov2WithRegistersModel`, which transformers renames;
`{}` stands for query, key and value, which are fused on the hub."""


_DINOV2_HEADS = {384: 6, 768: 12, 1024: 16}
_VIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
_TINY_HEAD = 16
_MAX_BLOCKS = 1000
_BERT_HEADS = {384: 6, 768: 12, 1024: 16}


def vit_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the configuration of a ViT as for `image.scratch`."""
    patches = shape_of(weights, f"{IMAGE}embeddings.patch_embeddings.projection.weight", 4)
    positions = shape_of(weights, f"{IMAGE}embeddings.position_embeddings", 3)[1] - 1
    side = side_of(positions, "a ViT")
    return {
        "model_type": "vit",
        "hidden_size": patches[0],
        "num_hidden_layers": blocks_of(weights, re.escape(IMAGE) + r"encoder\.layer\.(\d+)\."),
        "num_attention_heads": heads_of(patches[0], _VIT_HEADS, "a model of a published width"),
        "intermediate_size": shape_of(weights, f"{IMAGE}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "num_channels": patches[1],
        "patch_size": patches[3],
        "image_size": side * patches[3],
        "layer_norm_eps": 1e-6,
    }


def resnet_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the configuration of a torchvision ResNet as for `image.scratch`."""
    stem = shape_of(weights, f"{IMAGE}embedder.embedder.convolution.weight", 4)
    stages = blocks_of(weights, re.escape(IMAGE) + r"encoder\.stages\.(\d+)\.")
    first = [f"{IMAGE}encoder.stages.{stage}.layers." for stage in range(stages)]
    deep = f"{first[0]}0.layer.2.convolution.weight" in weights
    return {
        "model_type": "resnet",
        "num_channels": stem[1],
        "embedding_size": stem[0],
        "hidden_sizes": [shape_of(weights, f"{at}0.layer.{1 + deep}.convolution.weight", 4)[0] for at in first],
        "depths": [blocks_of(weights, re.escape(at) + r"(\d+)\.") for at in first],
        "layer_type": "bottleneck" if deep else "basic",
    }


def swin_config(weights: Mapping[str, Tensor], size: int) -> dict[str, Any]:
    """Returns the configuration of a Swin for images of this size as for `image.scratch`."""
    patches = shape_of(weights, f"{IMAGE}embeddings.patch_embeddings.projection.weight", 4)
    stages = blocks_of(weights, re.escape(IMAGE) + r"encoder\.layers\.(\d+)\.")
    first = [f"{IMAGE}encoder.layers.{stage}.blocks." for stage in range(stages)]
    tables = [shape_of(weights, f"{at}0.attention.self.relative_position_bias_table", 2) for at in first]
    width = shape_of(weights, f"{first[0]}0.intermediate.dense.weight", 2)
    return {
        "model_type": "swin",
        "embed_dim": patches[0],
        "depths": [blocks_of(weights, re.escape(at) + r"(\d+)\.") for at in first],
        "num_heads": [heads for _, heads in tables],
        "window_size": (math.isqrt(tables[0][0]) + 1) // 2,
        "mlp_ratio": width[0] / width[1],
        "num_channels": patches[1],
        "patch_size": patches[3],
        "image_size": size,
    }


def bert_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the configuration of a BERT as for `text.scratch`."""
    tokens, width = shape_of(weights, f"{TEXT}embeddings.word_embeddings.weight", 2)
    return {
        "model_type": "bert",
        "vocab_size": tokens,
        "hidden_size": width,
        "num_hidden_layers": blocks_of(weights, re.escape(TEXT) + r"encoder\.layer\.(\d+)\."),
        "num_attention_heads": heads_of(width, _BERT_HEADS, "a model of a published width"),
        "intermediate_size": shape_of(weights, f"{TEXT}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "max_position_embeddings": shape_of(weights, f"{TEXT}embeddings.position_embeddings.weight", 2)[0],
        "type_vocab_size": shape_of(weights, f"{TEXT}embeddings.token_type_embeddings.weight", 2)[0],
    }


def bert_tower(weights: Mapping[str, Tensor], *, most_tokens: int | None = None) -> TextTowerConfig:
    """Returns settings of a fully trainable BERT, as in every baseline; pooling depends on the method.

    Args:
        weights: Of the model.
        most_tokens: Maximum number of tokens in the method, where the BERT supports more.
    """
    shape = bert_config(weights)
    positions = int(shape["max_position_embeddings"])
    tokens = positions if most_tokens is None else min(most_tokens, positions)
    return TextTowerConfig(model=None, scratch=shape, adapt="full", base_dropout=0.1, max_tokens=tokens)


def dinov2_config(vision: Mapping[str, Tensor], heads: int | None = None, *, registers: bool = True) -> dict[str, Any]:
    """Returns the configuration of a DINOv2 as for `image.scratch`.

    Args:
        vision: Its weights, named as in files of transformers.
        heads: Attention heads; known for published widths.
        registers: Whether it has register tokens.

    Raises:
        CheckpointError: If its shapes contradict each other, or the number of heads must be given.
    """
    patches = shape_of(vision, "embeddings.patch_embeddings.projection.weight", 4)
    positions = shape_of(vision, "embeddings.position_embeddings", 3)[1] - 1
    width, side = patches[0], side_of(positions, "a DINOv2")
    more = {"num_register_tokens": shape_of(vision, "embeddings.register_tokens", 3)[1]} if registers else {}
    return {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "hidden_size": width,
        "num_hidden_layers": blocks_of(vision, r"encoder\.layer\.(\d+)\."),
        "num_attention_heads": heads or heads_of(width, _DINOV2_HEADS, "image_heads"),
        "mlp_ratio": shape_of(vision, "encoder.layer.0.mlp.fc1.weight", 2)[0] // width,
        "num_channels": patches[1],
        "patch_size": patches[3],
        "image_size": side * patches[3],
        **more,
    }


def heads_of(width: int, known: Mapping[int, int], keyword: str) -> int:
    """Returns the number of attention heads for a width.

    Raises:
        CheckpointError: If it is neither a published width nor that of a test model.
    """
    if width in known:
        return known[width]
    if width < min(known) and width % _TINY_HEAD == 0:
        return width // _TINY_HEAD
    raise CheckpointError(f"its number of attention heads is unknown for width {width}; give {keyword}")


def side_of(positions: int, what: str) -> int:
    """Returns the number of patches per row of an image from the number of positions.

    Args:
        positions: Without class token.
        what: Expected model, for the message.

    Raises:
        CheckpointError: If they are not a square.
    """
    side = math.isqrt(max(positions, 0))
    if side * side != positions:
        raise CheckpointError(f"its {positions} image positions are not a square; is it {what}?")
    return side


def blocks_of(weights: Mapping[str, Tensor], pattern: str) -> int:
    """Returns the number of blocks from the block numbers at the start of weight names.

    Raises:
        CheckpointError: If they are not numbered 0, 1, ….
    """
    numbers = {int(match[1]) for name in weights if (match := re.match(pattern, name))}
    if not numbers or max(numbers) >= _MAX_BLOCKS or len(numbers) != max(numbers) + 1:
        raise CheckpointError(f"its blocks are not numbered 0, 1, …: found {sorted(numbers)[:5]}")
    return len(numbers)


def shape_of(weights: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """Returns the shape of a weight.

    Raises:
        CheckpointError: If it is missing or has another number of axes.
    """
    if name not in weights or weights[name].ndim != axes or 0 in weights[name].shape:
        found = tuple(weights[name].shape) if name in weights else "nothing"
        raise CheckpointError(f"it needs {name} with {count(axes, 'axis', 'axes')}; found {found}")
    return tuple(weights[name].shape)
