"""CLIP under the names its own code gives, which OpenAI's archives, open_clip and fine-tuned models share.

Shapes tell every size but the heads, which are 64 wide in OpenAI's code and in open_clip's models up to width 1024.
They tell neither the activation nor the pixels: OpenAI's archive is `quick_gelu`, and so is what grew out of it;
open_clip's own models are `gelu`, or what their configuration says. Where there is neither an archive nor a
configuration, the method has to be named: it is never guessed.

Source: openai/CLIP, `clip/model.py`; open_clip, `model.py`; CheXzero, `train.py`; PubMedCLIP, `lib/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cleft.config import ImagesConfig, Settings
from cleft.errors import CheckpointError
from cleft.models.importing.keys import IMAGE, TEXT, Section, Target
from cleft.models.importing.layout import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Facts,
    Layout,
    Weights,
    number_in,
    part_of,
    whole_images,
)
from cleft.models.importing.openai_clip import clip_settings
from cleft.models.official_sizes import blocks_of, shape_of, side_of

_CONFIG = "open_clip_config.json"
_HEAD_WIDTH, _WIDEST = 64, 1024
_TEXT_HEADS = 8
"""Of open_clip's text tower, where its configuration tells the width alone."""
_PROJECTIONS = ("image_projection.weight", "text_projection.weight")

_BLOCKS: Mapping[str, Target] = {
    r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)": r"encoder.layers.\1.self_attn.{0[0]}_proj.\2",
    r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(weight|bias)": r"encoder.layers.\1.self_attn.out_proj.\2",
    r"transformer\.resblocks\.(\d+)\.ln_([12])\.(weight|bias)": r"encoder.layers.\1.layer_norm\2.\3",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(weight|bias)": r"encoder.layers.\1.mlp.fc1.\2",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(weight|bias)": r"encoder.layers.\1.mlp.fc2.\2",
}
_VISION: Mapping[str, Target] = {
    **_BLOCKS,
    r"class_embedding": r"embeddings.class_embedding",
    r"conv1\.weight": r"embeddings.patch_embedding.weight",
    r"positional_embedding": r"embeddings.position_embedding.weight",
    r"ln_pre\.(weight|bias)": r"pre_layrnorm.\1",
    r"ln_post\.(weight|bias)": r"post_layernorm.\1",
}
_TEXT: Mapping[str, Target] = {
    **_BLOCKS,
    r"token_embedding\.weight": r"embeddings.token_embedding.weight",
    r"positional_embedding": r"embeddings.position_embedding.weight",
    r"ln_final\.(weight|bias)": r"final_layer_norm.\1",
}
_SIZES: Mapping[str, Target] = {r"input_resolution|context_length|vocab_size": None}
"""Numbers that OpenAI's archives hold among the weights; the shapes say the same."""


class _Way(NamedTuple):
    """What weights do not tell."""

    activation: str
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


def _named(way: _Way) -> Callable[[Weights, int, Facts], Settings]:
    """Settings of a method that says how it reads; a configuration beside it must not say otherwise."""

    def settings(weights: Weights, size: int, facts: Facts) -> Settings:
        if _CONFIG in facts and _activation(facts) != way.activation:
            raise CheckpointError(
                f"{_CONFIG} says that its activation is {_activation(facts)}, where this method has {way.activation}; "
                f"leave --method out, or take the file out of its folder"
            )
        images = whole_images(size, {"mean": way.mean, "std": way.std}, "mean", "std")
        return _clip(weights, images, size, way.activation, _heads(weights, IMAGE), _heads(weights, TEXT))

    return settings


def _open_clip(weights: Weights, size: int, facts: Facts) -> Settings:
    if _CONFIG not in facts:
        return _named(_Way("gelu"))(weights, size, facts)
    model = part_of(facts[_CONFIG], "model_cfg")
    vision, text = part_of(model, "vision_cfg"), part_of(model, "text_cfg")
    for part, read in ((model, _MODEL), (vision, _READ), (text, _READ)):
        _refuse_other_ways(part, read)
    for part, tower in ((vision, IMAGE), (text, TEXT)):
        if number_in(part, "width", _width(weights, tower)) != _width(weights, tower):
            raise CheckpointError(
                f"{_CONFIG} says width: {part['width']}, and its weights are {_width(weights, tower)} wide; is it of "
                f"another model?"
            )
    images = whole_images(size, part_of(facts[_CONFIG], "preprocess_cfg"), "mean", "std")
    image_heads = _width(weights, IMAGE) // max(number_in(vision, "head_width", _HEAD_WIDTH), 1)
    text_heads = number_in(text, "heads", _TEXT_HEADS) if text.keys() & {"heads", "width"} else _heads(weights, TEXT)
    return _clip(weights, images, size, _activation(facts), image_heads, text_heads)


_MODEL = ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text", "init_logit_scale", "output_dict")
_READ = (
    *("image_size", "patch_size", "layers", "width", "head_width", "heads", "mlp_ratio", "context_length"),
    *("vocab_size", "patch_dropout", "output_tokens", "eos_id"),
    *("attn_pooler_queries", "attn_pooler_heads", "timm_pool", "timm_proj", "hf_proj_type", "hf_pooler_type"),
    *("hf_model_pretrained", "timm_model_pretrained"),
)
"""What shapes say as well, what counts in training alone, and what counts beside options that are refused."""
_USUAL = {"pos_embed_type": ("learnable",), "pool_type": ("tok", "argmax"), "proj_type": ("linear",)}


def _refuse_other_ways(said: Mapping[str, Any], read: tuple[str, ...]) -> None:
    """Refuses options of open_clip that read otherwise than its usual ViT and text tower; most are off by default."""
    for name, value in said.items():
        if name not in read and value and value not in _USUAL.get(name, ()):
            raise CheckpointError(
                f"{_CONFIG} says {name}: {value!r:.40}, and only open_clip's usual ViT and text tower are read"
            )


def _activation(facts: Facts) -> str:
    return "quick_gelu" if part_of(facts[_CONFIG], "model_cfg").get("quick_gelu") else "gelu"


def _clip(
    weights: Weights, images: ImagesConfig, size: int, activation: str, image_heads: int, text_heads: int
) -> Settings:
    filters = shape_of(weights, f"{IMAGE}embeddings.patch_embedding.weight", 4)
    return clip_settings(
        weights,
        images,
        size=size,
        vision={
            **_tower(weights, IMAGE, activation, image_heads),
            "num_channels": filters[1],
            "image_size": _side(weights, {}),
            "patch_size": filters[3],
        },
        text=_tower(weights, TEXT, activation, text_heads),
    )


def _tower(weights: Weights, tower: str, activation: str, heads: int) -> dict[str, Any]:
    width = _width(weights, tower)
    if heads < 1 or width % heads:
        raise CheckpointError(f"{_CONFIG} says that {heads} heads share a width of {width}, which they cannot")
    return {
        "hidden_size": width,
        "intermediate_size": shape_of(weights, f"{tower}encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": blocks_of(weights, re.escape(tower) + r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": heads,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
    }


def _width(weights: Weights, tower: str) -> int:
    return shape_of(weights, f"{tower}embeddings.position_embedding.weight", 2)[1]


def _heads(weights: Weights, tower: str) -> int:
    width = _width(weights, tower)
    if width % _HEAD_WIDTH or width > _WIDEST:
        raise CheckpointError(
            f"how many heads share its width {width} is not written in it; put its {_CONFIG} beside it and give "
            f"--method open-clip"
        )
    return width // _HEAD_WIDTH


def _side(weights: Weights, _facts: Facts) -> int:
    patch = shape_of(weights, f"{IMAGE}embeddings.patch_embedding.weight", 4)[3]
    positions = shape_of(weights, f"{IMAGE}embeddings.position_embedding.weight", 2)[0] - 1
    return side_of(positions, "a ViT") * patch


def _turned(weights: Weights, _size: int) -> Weights:
    """The projections are matrices that stand to the right of a state; here they are layers."""
    turned = {name: weights[name].mT for name in _PROJECTIONS if name in weights and weights[name].ndim == 2}
    return {**weights, **turned}


def _text_sections(prefix: str) -> tuple[Section, ...]:
    return Section(prefix, TEXT, _TEXT), Section(prefix, "text_projection.", {"text_projection": "weight"})


OPENAI_ARCHIVE = Layout(
    method="openai-clip",
    title="OpenAI's CLIP",
    marks=("input_resolution", "visual.class_embedding", "token_embedding."),
    sections=(
        Section("visual.", IMAGE, _VISION),
        Section("visual.", "image_projection.", {"proj": "weight"}),
        *_text_sections(""),
        Section("", "", {"logit_scale": "logit_scale", **_SIZES}),
    ),
    settings=_named(_Way("quick_gelu")),
    complete=_turned,
    side=_side,
    tokenizer="openai/clip-vit-base-patch16, or CLIP's bpe_simple_vocab_16e6.txt.gz",
)
"""`ViT-B-32.pt` and its like; also their weights alone, with the three numbers still among them."""
_FINE_TUNED = OPENAI_ARCHIVE._replace(
    marks=("visual.class_embedding", "token_embedding."),
    asked=True,
    beside=(_CONFIG,),
    alone="name whose it is: --method openai-clip, chexzero or pubmedclip (quick_gelu, as OpenAI's weights and what "
    "grew out of them), or --method open-clip (gelu)",
)
_GRAY = (101.48761 / 255, 101.48761 / 255, 101.48761 / 255)
_SPREAD = (83.43944 / 255, 83.43944 / 255, 83.43944 / 255)
"""Of MIMIC-CXR, by CheXzero's code."""
OPEN_CLIP = _FINE_TUNED._replace(method="open-clip", title="open_clip", asked=False, settings=_open_clip)
OPEN_CLIP_CUSTOM = OPEN_CLIP._replace(
    marks=("visual.class_embedding", "text.token_embedding."),
    sections=(*OPENAI_ARCHIVE.sections, *_text_sections("text.")),
)
NATIVE_CLIP = (
    OPENAI_ARCHIVE,
    _FINE_TUNED,
    _FINE_TUNED._replace(method="chexzero", title="CheXzero", settings=_named(_Way("quick_gelu", _GRAY, _SPREAD))),
    _FINE_TUNED._replace(
        method="pubmedclip", title="PubMedCLIP", settings=_named(_Way("quick_gelu", IMAGENET_MEAN, IMAGENET_STD))
    ),
    OPEN_CLIP,
    OPEN_CLIP_CUSTOM,
)
"""Those that are named before those that are recognised."""
