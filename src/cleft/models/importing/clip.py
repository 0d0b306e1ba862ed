"""Layouts of CLIP checkpoints: transformers' folders, OpenAI's archives, open_clip, fine-tuned models, BiomedCLIP.

Transformers' CLIP: a folder with a `CLIPModel`, its tokenizer and preprocessing. Images are resized to 224 pixels
bicubically like CLIP's processor does, but complete and padded to a square, where it crops. A text is the state of its
EOS token, which attends to itself. Heads, activation and normalisation come from `config.json` and
`preprocessor_config.json`.

Source: Radford et al. 2021; `CLIPModel` of transformers.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from cleft.config import ImagesConfig, ImageTowerConfig, LossConfig, Settings, TextTowerConfig
from cleft.errors import CheckpointError
from cleft.grammar import count
from cleft.models.importing.key_maps import (
    BERT,
    IMAGE,
    NO_POOLER,
    TEXT,
    VIT,
    Section,
    Target,
    bert_tower,
    blocks_of,
    shape_of,
    side_of,
    vit_config,
)
from cleft.models.importing.layouts import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Layout,
    SideFiles,
    Weights,
    number_in,
    part_of,
    scale_of,
    side_in,
    uncropped_images,
    width_of,
)

_HUB_CONFIG, _PIXELS = "config.json", "preprocessor_config.json"
_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)


def _hub_clip_settings(weights: Weights, size: int, facts: SideFiles) -> Settings:
    family = facts[_HUB_CONFIG].get("model_type")
    if family != "clip":
        raise CheckpointError(f"{_HUB_CONFIG} is of a {family!r} model, not of CLIP")
    return clip_settings(
        weights,
        uncropped_images(size, facts.get(_PIXELS, {}), "image_mean", "image_std"),
        size=size,
        vision=_hub_shape(facts, "vision", "num_channels", "image_size", "patch_size"),
        text=_hub_shape(facts, "text"),
    )


def clip_settings(
    weights: Weights, images: ImagesConfig, *, size: int, vision: Mapping[str, Any], text: Mapping[str, Any]
) -> Settings:
    """Returns the settings CLIP was trained with.

    Args:
        weights: Under their names here.
        images: Image preparation.
        size: Input size of the image tower in pixels.
        vision: Configuration of a `CLIPVisionModel`, without its type.
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


def _hub_shape(facts: SideFiles, tower: str, *more: str) -> dict[str, Any]:
    """Returns the configuration of a tower as for `scratch`. Older files have it twice; the second one counts."""
    said = {**part_of(facts[_HUB_CONFIG], f"{tower}_config"), **part_of(facts[_HUB_CONFIG], f"{tower}_config_dict")}
    return {name: said[name] for name in (*_SHAPE, *more) if name in said}


def _hub_side(_weights: Weights, facts: SideFiles) -> int:
    return side_in(_hub_shape(facts, "vision", "image_size"))


_BLOCK = r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|layer_norm[12]|mlp\.fc[12])\.(weight|bias)"

OPENAI_CLIP = Layout(
    method="openai-clip",
    title="OpenAI's CLIP",
    key_prefixes=(
        "vision_model.embeddings.class_embedding",
        "text_model.embeddings.token_embedding.",
        "visual_projection.",
    ),
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
    settings=_hub_clip_settings,
    side_files=(_HUB_CONFIG, _PIXELS),
    default_size=_hub_side,
    tokenizer="openai/clip-vit-base-patch16",
)


# CLIP with the weight names of the original code: OpenAI's archives, open_clip and models fine-tuned from them. Shapes
# give every size but the heads, which are 64 wide in OpenAI's code and in open_clip's models up to width 1024. They
# give neither activation nor normalisation: OpenAI's archives and models fine-tuned from them use `quick_gelu`;
# open_clip's own models use `gelu` or the activation in their configuration. Without an archive or a configuration
# the method must be given. Source: openai/CLIP, `clip/model.py`; open_clip, `model.py`; CheXzero, `train.py`;
# PubMedCLIP, `lib/`.
_CONFIG = "open_clip_config.json"
_HEAD_WIDTH, _WIDEST = 64, 1024
_TEXT_HEADS = 8
"""Default heads of open_clip's text tower, where its configuration has only the width."""
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
"""Numbers among the weights of OpenAI's archives; the shapes give the same."""


class _Preprocessing(NamedTuple):
    """Activation and normalisation, which weights do not give."""

    activation: str
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


def _named(way: _Preprocessing) -> Callable[[Weights, int, SideFiles], Settings]:
    """Returns settings for a named method; a configuration next to the weights must agree."""

    def settings(weights: Weights, size: int, facts: SideFiles) -> Settings:
        if _CONFIG in facts and _activation(facts) != way.activation:
            raise CheckpointError(
                f"{_CONFIG} has the activation {_activation(facts)}, but this method {way.activation}; "
                f"leave --method out, or remove the file from its folder"
            )
        images = uncropped_images(size, {"mean": way.mean, "std": way.std}, "mean", "std")
        return _clip(weights, images, size, way.activation, _heads(weights, IMAGE), _heads(weights, TEXT))

    return settings


def _open_clip(weights: Weights, size: int, facts: SideFiles) -> Settings:
    if _CONFIG not in facts:
        return _named(_Preprocessing("gelu"))(weights, size, facts)
    model = part_of(facts[_CONFIG], "model_cfg")
    vision, text = part_of(model, "vision_cfg"), part_of(model, "text_cfg")
    for part, read in ((model, _MODEL), (vision, _READ), (text, _READ)):
        _check_options(part, read)
    for part, tower in ((vision, IMAGE), (text, TEXT)):
        if number_in(part, "width", _width(weights, tower)) != _width(weights, tower):
            raise CheckpointError(
                f"{_CONFIG} has width: {part['width']}, but its weights are {_width(weights, tower)} wide; is it of "
                f"another model?"
            )
    images = uncropped_images(size, part_of(facts[_CONFIG], "preprocess_cfg"), "mean", "std")
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
"""Options given by shapes, used only in training, or used only with refused options."""
_DEFAULTS = {"pos_embed_type": ("learnable",), "pool_type": ("tok", "argmax"), "proj_type": ("linear",)}


def _check_options(said: Mapping[str, Any], read: tuple[str, ...]) -> None:
    """Refuses options of open_clip other than its usual ViT and text tower; most are off by default."""
    for name, value in said.items():
        if name not in read and value and value not in _DEFAULTS.get(name, ()):
            raise CheckpointError(
                f"{_CONFIG} has {name}: {value!r:.40}, but only open_clip's usual ViT and text tower are supported"
            )


def _activation(facts: SideFiles) -> str:
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
        raise CheckpointError(f"{_CONFIG} has {heads} heads, which do not divide the width {width}")
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
            f"its number of attention heads is unknown for width {width}; put its {_CONFIG} next to it and give "
            f"--method open-clip"
        )
    return width // _HEAD_WIDTH


def _side(weights: Weights, _facts: SideFiles) -> int:
    patch = shape_of(weights, f"{IMAGE}embeddings.patch_embedding.weight", 4)[3]
    positions = shape_of(weights, f"{IMAGE}embeddings.position_embedding.weight", 2)[0] - 1
    return side_of(positions, "a ViT") * patch


def _transpose_projections(weights: Weights, _size: int) -> Weights:
    """Transposes the projections, which are applied to the right of a state in CLIP's code."""
    turned = {name: weights[name].mT for name in _PROJECTIONS if name in weights and weights[name].ndim == 2}
    return {**weights, **turned}


def _text_sections(prefix: str) -> tuple[Section, ...]:
    return Section(prefix, TEXT, _TEXT), Section(prefix, "text_projection.", {"text_projection": "weight"})


OPENAI_ARCHIVE = Layout(
    method="openai-clip",
    title="OpenAI's CLIP",
    key_prefixes=("input_resolution", "visual.class_embedding", "token_embedding."),
    sections=(
        Section("visual.", IMAGE, _VISION),
        Section("visual.", "image_projection.", {"proj": "weight"}),
        *_text_sections(""),
        Section("", "", {"logit_scale": "logit_scale", **_SIZES}),
    ),
    settings=_named(_Preprocessing("quick_gelu")),
    complete_weights=_transpose_projections,
    default_size=_side,
    tokenizer="openai/clip-vit-base-patch16, or CLIP's bpe_simple_vocab_16e6.txt.gz",
)
"""Files such as `ViT-B-32.pt`; also their state dicts with the three numbers."""
_FINE_TUNED = OPENAI_ARCHIVE._replace(
    key_prefixes=("visual.class_embedding", "token_embedding."),
    only_if_named=True,
    side_files=(_CONFIG,),
    missing_file_hint="name the method: --method openai-clip, chexzero or pubmedclip (quick_gelu, as in OpenAI's "
    "weights and models fine-tuned from them), or --method open-clip (gelu)",
)
_CHEXZERO_MEAN = (101.48761 / 255, 101.48761 / 255, 101.48761 / 255)
_CHEXZERO_STD = (83.43944 / 255, 83.43944 / 255, 83.43944 / 255)
"""Of MIMIC-CXR, from CheXzero's code."""
OPEN_CLIP = _FINE_TUNED._replace(method="open-clip", title="open_clip", only_if_named=False, settings=_open_clip)
OPEN_CLIP_CUSTOM = OPEN_CLIP._replace(
    key_prefixes=("visual.class_embedding", "text.token_embedding."),
    sections=(*OPENAI_ARCHIVE.sections, *_text_sections("text.")),
)
NATIVE_CLIP = (
    OPENAI_ARCHIVE,
    _FINE_TUNED,
    _FINE_TUNED._replace(
        method="chexzero",
        title="CheXzero",
        settings=_named(_Preprocessing("quick_gelu", _CHEXZERO_MEAN, _CHEXZERO_STD)),
    ),
    _FINE_TUNED._replace(
        method="pubmedclip",
        title="PubMedCLIP",
        settings=_named(_Preprocessing("quick_gelu", IMAGENET_MEAN, IMAGENET_STD)),
    ),
    OPEN_CLIP,
    OPEN_CLIP_CUSTOM,
)
"""Named methods before recognised ones."""


# BiomedCLIP as published by Microsoft: a folder of open_clip with weights, `open_clip_config.json` and a tokenizer.
# timm's ViT and PubMedBERT, both pooled by their class token, a linear layer without bias for images and two with a
# GELU for texts. The pooling is only in `open_clip_config.json`; other values are refused. Source: Zhang et al. 2025
# (NEJM AI); open_clip, `TimmModel` and `HFTextEncoder`.


def _biomedclip_settings(weights: Weights, size: int, facts: SideFiles) -> Settings:
    vision, text = _biomedclip_tower(facts, "vision_cfg"), _biomedclip_tower(facts, "text_cfg")
    _check(vision, "timm_pool", "avg", ("", "token"))
    _check(vision, "timm_proj", "linear", ("linear",))
    _check(text, "hf_pooler_type", "cls_pooler", ("cls_last_hidden_state_pooler",))
    _check(text, "hf_proj_type", "linear", ("mlp",))
    return Settings(
        method="clip",
        images=uncropped_images(size, part_of(facts[_CONFIG], "preprocess_cfg"), "mean", "std"),
        image=ImageTowerConfig(model=None, scratch=vit_config(weights), pooling="cls", resize=size),
        text=replace(bert_tower(weights, most_tokens=number_in(text, "context_length", 77)), pooling="cls"),
        loss=LossConfig(
            projection="linear-no-bias",
            text_projection="mlp-gelu",
            hidden_dim=width_of(weights, "text_projection.0.weight"),
            embed_dim=width_of(weights, "image_projection.weight"),
            temperature=math.exp(-scale_of(weights)),
        ),
    )


def _biomedclip_tower(facts: SideFiles, name: str) -> dict[str, Any]:
    return part_of(part_of(facts[_CONFIG], "model_cfg"), name)


def _check(said: Mapping[str, Any], name: str, silent: str, read: tuple[str, ...]) -> None:
    """Refuses other options of open_clip; `silent` is its default."""
    value = said.get(name, silent)
    if value not in read:
        raise CheckpointError(
            f"{_CONFIG} has {name}: {value!r:.40}, but only {' or '.join(map(repr, read))} is supported"
        )


BIOMEDCLIP = Layout(
    method="biomedclip",
    title="BiomedCLIP",
    key_prefixes=("visual.trunk.", "visual.head.proj.", "text.transformer.embeddings.", "text.proj."),
    sections=(
        Section("visual.trunk.", IMAGE, VIT),
        Section("visual.head.proj.", "image_projection.", {"weight": r"\g<0>"}),
        Section("text.transformer.", TEXT, {**BERT, **NO_POOLER}),
        Section("text.proj.", "text_projection.", {r"[02]\.weight": r"\g<0>"}),
        Section("", "", {"logit_scale": "logit_scale"}),
    ),
    settings=_biomedclip_settings,
    side_files=(_CONFIG,),
    default_size=lambda _weights, facts: side_in(_biomedclip_tower(facts, "vision_cfg")),
    tokenizer="microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
)


# CLIP's tokenizer from `bpe_simple_vocab_16e6.txt.gz`, its only file at OpenAI and open_clip. The file has a version
# line, then merges by frequency. The vocabulary follows: 256 bytes, 256 bytes that end a word, one token per merge,
# and two special tokens. Lower case and white space are as in transformers' CLIP; OpenAI's text repair (ftfy, HTML)
# is left out, as there. Source: openai/CLIP, `simple_tokenizer.py`.
_MARKS = ("<|startoftext|>", "<|endoftext|>")
_LARGEST = 16 * 2**20


def load_merges(path: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """Builds CLIP's tokenizer from a merges file.

    Args:
        path: The gzip-compressed file.
        vocabulary: Vocabulary size of the text tower, which decides the number of merges.

    Raises:
        CheckpointError: If it is not such a file, or has too few merges.
    """
    try:
        with gzip.open(path) as file:
            lines = file.read(_LARGEST).decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a gzip file of merges ({error}); give CLIP's bpe_simple_vocab_16e6.txt.gz or the "
            f"folder of a tokenizer"
        ) from error
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # by code point, as in the release
    wanted = vocabulary - 2 * len(letters) - len(_MARKS)
    merges = [(first, second) for line in lines[1:] for first, _, second in [line.partition(" ")] if second]
    if not 0 <= wanted <= len(merges):
        raise CheckpointError(
            f"{path} has {count(len(merges), 'merge')} but the text tower has {vocabulary} tokens, {wanted} of them "
            f"merges; give the file it was trained with"
        )
    counted: Any = merges[:wanted]  # pairs, which the library accepts but does not declare
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, counted), *_MARKS]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=counted)
