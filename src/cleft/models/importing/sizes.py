"""Sizes of published towers, read off the shapes of their weights; heads are known for published widths."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cleft.config import TextTowerConfig
from cleft.models.importing.keys import IMAGE, TEXT
from cleft.models.official_sizes import blocks_of, heads_of, shape_of, side_of

_VIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
_BERT_HEADS = {384: 6, 768: 12, 1024: 16}


def vit_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the description of a ViT, as `image.scratch` wants it."""
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
    """Returns the description of a ResNet of torchvision's kind, as `image.scratch` wants it."""
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
    """Returns the description of a Swin for images of some size, as `image.scratch` wants it."""
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
    """Returns the description of a BERT, as `text.scratch` wants it."""
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
    """Returns a BERT that was trained whole, as every baseline's is; how a text is read off it is the method's.

    Args:
        weights: Of the model.
        most_tokens: Longest text the method reads, where the BERT could read longer ones.
    """
    shape = bert_config(weights)
    positions = int(shape["max_position_embeddings"])
    tokens = positions if most_tokens is None else min(most_tokens, positions)
    return TextTowerConfig(model=None, scratch=shape, adapt="full", base_dropout=0.1, max_tokens=tokens)
