"""OpenAI's CLIP as transformers publishes it: a folder with a `CLIPModel`, its tokenizer and how it reads images.

Images are brought to 224 pixels bicubically, as CLIP's processor brings them, but whole, padded to a square, where it
crops. A text is the state of its end token, which sees itself. What shapes do not tell, heads, activation and pixels,
stands in `config.json` and `preprocessor_config.json`.

Source: Radford et al. 2021; `CLIPModel` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cleft.config import ImagesConfig, ImageTowerConfig, LossConfig, Settings, TextTowerConfig
from cleft.errors import CheckpointError
from cleft.models.importing.keys import IMAGE, TEXT, Section
from cleft.models.importing.layout import (
    Facts,
    Layout,
    Weights,
    part_of,
    scale_of,
    side_in,
    whole_images,
    width_of,
)

_CONFIG, _PIXELS = "config.json", "preprocessor_config.json"
_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)


def _settings(weights: Weights, size: int, facts: Facts) -> Settings:
    family = facts[_CONFIG].get("model_type")
    if family != "clip":
        raise CheckpointError(f"{_CONFIG} says it is a {family!r} model, whose towers are not CLIP's")
    return clip_settings(
        weights,
        whole_images(size, facts.get(_PIXELS, {}), "image_mean", "image_std"),
        size=size,
        vision=_shape(facts, "vision", "num_channels", "image_size", "patch_size"),
        text=_shape(facts, "text"),
    )


def clip_settings(
    weights: Weights, images: ImagesConfig, *, size: int, vision: Mapping[str, Any], text: Mapping[str, Any]
) -> Settings:
    """Returns the settings CLIP was trained with.

    Args:
        weights: Under their names here.
        images: How images are prepared.
        size: Pixels at which the image tower reads.
        vision: The description of a `CLIPVisionModel`, without its type.
        text: Of a `CLIPTextModel`, without its type, vocabulary and positions.
    """
    longest = width_of(weights, f"{TEXT}embeddings.position_embedding.weight")
    return Settings(
        method="clip",
        images=images,
        image=ImageTowerConfig(
            model=None, scratch={"model_type": "clip_vision_model", **vision}, pooling="pooler", resize=size
        ),
        text=TextTowerConfig(
            model=None,
            scratch={
                "model_type": "clip_text_model",
                **text,
                "vocab_size": width_of(weights, f"{TEXT}embeddings.token_embedding.weight"),
                "max_position_embeddings": longest,
            },
            adapt="full",
            pooling="end-token",
            end_token_attends_itself=True,
            max_tokens=longest,
            packing="distinct",
        ),
        loss=LossConfig(
            projection="linear-no-bias",
            embed_dim=width_of(weights, "image_projection.weight"),
            temperature=math.exp(-scale_of(weights)),
        ),
    )


def _shape(facts: Facts, tower: str, *more: str) -> dict[str, Any]:
    """The description of a tower, as `scratch` wants it. Older files say it twice, and then the second counts."""
    said = {**part_of(facts[_CONFIG], f"{tower}_config"), **part_of(facts[_CONFIG], f"{tower}_config_dict")}
    return {name: said[name] for name in (*_SHAPE, *more) if name in said}


def _side(_weights: Weights, facts: Facts) -> int:
    return side_in(_shape(facts, "vision", "image_size"))


_BLOCK = r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|layer_norm[12]|mlp\.fc[12])\.(weight|bias)"

OPENAI_CLIP = Layout(
    method="openai-clip",
    title="OpenAI's CLIP",
    marks=("vision_model.embeddings.class_embedding", "text_model.embeddings.token_embedding.", "visual_projection."),
    sections=(
        Section(
            "vision_model.",
            IMAGE,
            {
                r"embeddings\.(class_embedding|(patch|position)_embedding\.weight)": r"\g<0>",
                rf"{_BLOCK}|(pre_layrnorm|post_layernorm)\.(weight|bias)": r"\g<0>",
                r"embeddings\.position_ids": None,  # a buffer: 0, 1, …
            },
        ),
        Section(
            "text_model.",
            TEXT,
            {
                rf"embeddings\.(token|position)_embedding\.weight|{_BLOCK}|final_layer_norm\.(weight|bias)": r"\g<0>",
                r"embeddings\.position_ids": None,
            },
        ),
        Section("visual_projection.", "image_projection.", {"weight": r"\g<0>"}),
        Section("text_projection.", "text_projection.", {"weight": r"\g<0>"}),
        Section("", "", {"logit_scale": "logit_scale"}),
    ),
    settings=_settings,
    beside=(_CONFIG, _PIXELS),
    side=_side,
    tokenizer="openai/clip-vit-base-patch16",
)
