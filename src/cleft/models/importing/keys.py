"""From names in published checkpoints to names here: a few families of towers, each under any prefix."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor

IMAGE = "image_tower.model."
TEXT = "text_tower.lm.model."
Target: TypeAlias = "str | Callable[[re.Match[str]], str] | None"
"""What a name becomes: a template, in which `{}` stands for query, key and value that lie in one (`{0[0]}` for q, k and
v); or None where a weight is dropped on purpose."""


class Section(NamedTuple):
    """Names that begin alike."""

    prefix: str
    place: str
    """What takes the place of the prefix."""
    names: Mapping[str, Target]
    """Pattern of the rest of a name to what it becomes."""


def rename(state: Mapping[str, Tensor], sections: Sequence[Section]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the weights under their names here, without those that are dropped, and the names nobody knows."""
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
"""timm's ViT, which DeiT, MAE, MGCA, MRM and the authors' CLIP have -> files of `ViTModel`."""

BERT: Mapping[str, Target] = {
    r"embeddings\.((word|position|token_type)_embeddings\.weight|LayerNorm\.(weight|bias))": r"\g<0>",
    r"encoder\.layer\.\d+\.(attention\.(self\.(query|key|value)|output\.(dense|LayerNorm))|intermediate\.dense"
    r"|output\.(dense|LayerNorm))\.(weight|bias)": r"\g<0>",
    r"embeddings\.position_ids": None,  # a buffer: 0, 1, …
}
"""`BertModel` without its pooler."""
NO_POOLER: Mapping[str, Target] = {r"pooler\.dense\.(weight|bias)": None}
"""What follows the class token's state; methods that do not read it drop it."""
POOLER: Mapping[str, Target] = {r"pooler\.dense\.(weight|bias)": r"\g<0>"}
VENDORED_BERT: Mapping[str, Target] = {**BERT, **NO_POOLER, r"encoder\.layer\.\d+\.crossattention\..*": None}
"""BLIP's copy of BERT, in MGCA and the authors' CLIP: its cross-attention is never called."""

SWIN: Mapping[str, Target] = {
    r".*\.attention\.self\.relative_position_index": None,  # a buffer, which follows from the window
    r"(embeddings|encoder|layernorm)\..*": r"\g<0>",
}
"""`SwinModel` as transformers 4 called its weights; version 5 knows these names."""

_NORM = "weight|bias|running_mean|running_var|num_batches_tracked"


def _stem(match: re.Match[str]) -> str:
    return f"embedder.embedder.{'convolution' if match[1] in ('conv', '0') else 'normalization'}.{match[2]}"


def _block(first: int) -> Callable[[re.Match[str]], str]:
    """Names in a block of a stage, where the first stage has the number `first`."""

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
    """MGCA's head: a layer, a batch norm, a ReLU, a layer, a batch norm without weights."""
    return Section(prefix, place, {rf"head\.(\d+)\.({_NORM})": r"\1.\2"})
