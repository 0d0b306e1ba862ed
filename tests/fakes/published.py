"""Checkpoints in the layouts that other systems were published in, with tiny random weights."""

from __future__ import annotations

import gzip
import json
import math
import sys
import warnings
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tests.fakes.official import official_state
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, PreTrainedTokenizerFast

from cleft.models.tokenizer import train_tokenizer

SIZE, WIDTH, JOINT = 56, 32, 8
TEXTS = ["a chest x ray with edema", "edema", "fracture of a rib"]
Shapes = dict[str, tuple[int, ...]]


def write_tokenizer(folder: Path) -> Path:
    train_tokenizer(TEXTS, causal=False).save_pretrained(folder)
    return folder


def token_count() -> int:
    tokenizer: PreTrainedTokenizerFast = train_tokenizer(TEXTS, causal=False)
    return len(tokenizer)


def noise(shapes: Shapes) -> dict[str, Tensor]:
    """Random weights, not so small that a wrong one would not show."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            state[name] = 0.2 * torch.randn(shape, generator=generator)
    return state


def vit(prefix: str, *, blocks: int = 2, patch: int = 14) -> Shapes:
    """timm's names."""
    shapes: Shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + (SIZE // patch) ** 2, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, patch, patch),
        "patch_embed.proj.bias": (WIDTH,),
        **_norm("norm"),
    }
    for block in range(blocks):
        shapes |= vit_block(f"blocks.{block}.")
    return _under(prefix, shapes)


def vit_block(prefix: str, width: int = WIDTH) -> Shapes:
    shapes = {**_norm("norm1", width), **_norm("norm2", width)}
    shapes |= {**_linear("attn.qkv", width, 3 * width), **_linear("attn.proj", width, width)}
    shapes |= {**_linear("mlp.fc1", width, 4 * width), **_linear("mlp.fc2", 4 * width, width)}
    return _under(prefix, shapes)


def resnet(prefix: str, *, deep: bool = True) -> Shapes:
    """torchvision's names: two stages, the first of two blocks; bottlenecks as in a ResNet-50, or as in a ResNet-18."""
    shapes: Shapes = {"conv1.weight": (8, 3, 7, 7), **_batch_norm("bn1", 8)}
    given = 8
    for stage, (width, blocks) in enumerate([(8, 2), (16, 1)], start=1):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            out = 4 * width if deep else width
            sizes = [(width, given, 1), (width, width, 3), (out, width, 1)]
            if not deep:
                sizes = [(width, given, 3), (width, width, 3)]
            for number, (wide, into, side) in enumerate(sizes, start=1):
                shapes |= {f"{at}.conv{number}.weight": (wide, into, side, side)}
                shapes |= _batch_norm(f"{at}.bn{number}", wide)
            if block == 0 and out != given:
                shapes |= {f"{at}.downsample.0.weight": (out, given, 1, 1)}
                shapes |= _batch_norm(f"{at}.downsample.1", out)
            given = out
    return _under(prefix, shapes)


def bert(prefix: str, *, blocks: int = 2, types: bool = True, pooler: bool = True) -> Shapes:
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (token_count(), WIDTH),
        "embeddings.position_embeddings.weight": (64, WIDTH),
        **_norm("embeddings.LayerNorm"),
    }
    if types:
        shapes["embeddings.token_type_embeddings.weight"] = (2, WIDTH)
    if pooler:
        shapes |= _linear("pooler.dense", WIDTH, WIDTH)
    for at in (f"encoder.layer.{block}." for block in range(blocks)):
        for kind in ("query", "key", "value"):
            shapes |= _linear(f"{at}attention.self.{kind}", WIDTH, WIDTH)
        shapes |= {**_linear(f"{at}attention.output.dense", WIDTH, WIDTH), **_norm(f"{at}attention.output.LayerNorm")}
        shapes |= {**_linear(f"{at}intermediate.dense", WIDTH, 48), **_linear(f"{at}output.dense", 48, WIDTH)}
        shapes |= _norm(f"{at}output.LayerNorm")
    return _under(prefix, shapes)


def crossattention(prefix: str, blocks: int = 2) -> Shapes:
    names = (
        f"encoder.layer.{block}.crossattention.self.{kind}" for block in range(blocks) for kind in ("query", "key")
    )
    return _under(prefix, {name: shape for at in names for name, shape in _linear(at, WIDTH, WIDTH).items()})


def norm_head(prefix: str, given: int = WIDTH, *, taps: tuple[int, ...] = ()) -> Shapes:
    shapes: Shapes = {"head.0.weight": (24, given, *taps), "head.0.bias": (24,), **_batch_norm("head.1", 24)}
    shapes |= {"head.3.weight": (JOINT, 24, *taps), "head.3.bias": (JOINT,)}
    return _under(prefix, {**shapes, **_batch_norm("head.4", JOINT, weights=False)})


def mgca_state(tower: str = "vit") -> dict[str, Tensor]:
    image, text = "img_encoder_q.", "text_encoder_q."
    shapes = {
        **(vit(f"{image}model.") if tower == "vit" else resnet(f"{image}model.")),
        **norm_head(f"{image}global_embed.", WIDTH if tower == "vit" else 64),
        **norm_head(f"{image}local_embed.", taps=(1,)),
        **bert(f"{text}model.", types=False, pooler=False),
        **crossattention(f"{text}model."),
        **norm_head(f"{text}global_embed."),
        **norm_head(f"{text}local_embed.", taps=(1,)),
        "patch_local_atten_layer.in_proj_weight": (3 * JOINT, JOINT),
        "word_local_atten_layer.in_proj_weight": (3 * JOINT, JOINT),
        "prototype_layer.weight": (5, JOINT),
    }
    return {**noise(shapes), f"{text}model.embeddings.position_ids": torch.arange(64)[None]}


def gloria_state(*, deep: bool = True) -> dict[str, Tensor]:
    shapes = {
        **resnet("gloria.img_encoder.model.", deep=deep),
        **_linear("gloria.img_encoder.global_embedder", 64 if deep else 16, WIDTH),
        "gloria.img_encoder.local_embedder.weight": (WIDTH, 32 if deep else 8, 1, 1),
        **bert("gloria.text_encoder.model.", blocks=4),
    }
    return {**noise(shapes), "gloria.text_encoder.model.embeddings.position_ids": torch.arange(64)[None]}


def medclip_state(image: str = "swin") -> dict[str, Tensor]:
    shapes = {**bert("text_model.model.", blocks=3), "text_model.projection_head.weight": (JOINT, WIDTH)}
    if image == "swin":
        shapes |= {**swin("vision_model.model."), "vision_model.projection_head.weight": (JOINT, 32)}
    else:
        shapes |= {**resnet("vision_model.model."), "vision_model.model.fc.weight": (JOINT, 64)}
    return {
        **noise(shapes),
        "logit_scale": torch.tensor(3.1),
        "text_model.model.embeddings.position_ids": torch.arange(64)[None],
        **({} if image != "swin" else {_INDEX: torch.zeros(49, 49, dtype=torch.int64)}),
    }


_INDEX = "vision_model.model.encoder.layers.0.blocks.0.attention.self.relative_position_index"


def swin(prefix: str) -> Shapes:
    """As transformers 4 called its weights: two stages of two blocks, windows of seven patches."""
    shapes: Shapes = {
        "embeddings.patch_embeddings.projection.weight": (16, 3, 4, 4),
        "embeddings.patch_embeddings.projection.bias": (16,),
        **_norm("embeddings.norm", 16),
        **_norm("layernorm", 32),
        "encoder.layers.0.downsample.reduction.weight": (32, 64),
        **_norm("encoder.layers.0.downsample.norm", 64),
    }
    for stage, width in enumerate((16, 32)):
        for at in (f"encoder.layers.{stage}.blocks.{block}." for block in range(2)):
            for kind in ("query", "key", "value"):
                shapes |= _linear(f"{at}attention.self.{kind}", width, width)
            shapes[f"{at}attention.self.relative_position_bias_table"] = (13 * 13, 2)
            shapes |= _linear(f"{at}attention.output.dense", width, width)
            shapes |= {**_norm(f"{at}layernorm_before", width), **_norm(f"{at}layernorm_after", width)}
            shapes |= _linear(f"{at}intermediate.dense", width, 4 * width)
            shapes |= _linear(f"{at}output.dense", 4 * width, width)
    return _under(prefix, shapes)


def clip_state() -> dict[str, Tensor]:
    image, text = "img_encoder_q.", "text_encoder_q."
    shapes = {
        **vit(f"{image}model."),
        **_linear(f"{image}model.decoder_embed", WIDTH, WIDTH),
        **vit_block(f"{image}model.decoder_blocks_feature.0."),
        **vit_block(f"{image}model.decoder_blocks_feature.1."),
        **_norm(f"{image}model.decoder_norm_feat"),
        **_painter(f"{image}model."),
        **norm_head(f"{image}global_embed."),
        **norm_head(f"{image}local_embed.", taps=(1,)),
        **bert(f"{text}model.", types=False, pooler=False),
        **crossattention(f"{text}model."),
        **norm_head(f"{text}global_embed."),
        **norm_head(f"{text}local_embed.", taps=(1,)),
    }
    positions = {f"{image}model.decoder_pos_embed": slipped_positions(WIDTH, SIZE // 14)}
    return {**noise(shapes), **positions, "logit_scale": torch.tensor(2.9)}


def slipped_positions(width: int, side: int) -> Tensor:
    """`[1, 1 + side², width]`: zeros for the class token, then sines and cosines of column and row."""
    rows = [[0.0] * width]
    rates = [10_000 ** -(index / (width / 2) / 2) for index in range(width // 4)]
    for row in range(side):
        for column in range(side):
            angles = [[place * rate for rate in rates] for place in (column, row)]
            rows.append([turn(angle) for axis in angles for turn in (math.sin, math.cos) for angle in axis])
    return torch.tensor(rows)[None]


def convirt_state() -> dict[str, Tensor]:
    shapes = {**resnet("image_model."), **_linear("image_model.fc", 64, JOINT)}
    return noise({**shapes, **bert("text_model."), **_linear("text_projection_head", WIDTH, JOINT)})


def convirt_edreismd_state() -> dict[str, Tensor]:
    """Its ResNet is a list of torchvision's layers, so that stages are called 4, 5, …."""
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5"}
    stages = {}
    for name, shape in resnet("").items():
        first, _, rest = name.partition(".")
        stages[f"res_features.{numbers[first]}.{rest}"] = shape
    heads = {**_linear("res_l1", 64, 64), **_linear("res_l2", 64, JOINT)}
    heads |= {**_linear("bert_l1", WIDTH, WIDTH), **_linear("bert_l2", WIDTH, JOINT)}
    return noise({**stages, **heads, **bert("bert_model.")})


def convirt_mgca_state(tower: str = "vit") -> dict[str, Tensor]:
    kept = {name: tensor for name, tensor in mgca_state(tower).items() if "encoder_q." in name}
    return {name.replace("encoder_q.", "encoder."): tensor for name, tensor in kept.items()}


def biomedclip_state() -> dict[str, Tensor]:
    shapes = {
        **vit("visual.trunk."),
        "visual.head.proj.weight": (JOINT, WIDTH),
        **bert("text.transformer.", pooler=False),
        "text.proj.0.weight": (20, WIDTH),
        "text.proj.2.weight": (JOINT, 20),
    }
    positions = {"text.transformer.embeddings.position_ids": torch.arange(64)[None]}
    return {**noise(shapes), **positions, "logit_scale": torch.tensor(4.4)}


def write_biomedclip(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """As open_clip publishes it: weights, their configuration and a tokenizer in one folder."""
    write_tokenizer(folder)
    config = {
        "model_cfg": {
            "embed_dim": JOINT,
            "vision_cfg": {
                "timm_model_name": "vit_base_patch16_224",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": SIZE,
            },
            "text_cfg": {
                "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": 40,
            },
        },
        "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(biomedclip_state() if state is None else state, folder / "open_clip_pytorch_model.bin")
    return folder


MERGES = ["e d", "ed e", "ede m", "r i", "c h", "ch e", "che s", "x r", "a</w> c", "m a</w>", "edem a</w>"]
CLIP_VISION, CLIP_TEXT = 128, 192
"""Widths of two and of three heads."""


def native_clip_state(text: str = "") -> dict[str, Tensor]:
    """CLIP by the names of its own code; `text` is what open_clip's later models put before names of texts."""
    shapes: Shapes = {
        "visual.conv1.weight": (CLIP_VISION, 3, 14, 14),
        "visual.class_embedding": (CLIP_VISION,),
        "visual.positional_embedding": (1 + (SIZE // 14) ** 2, CLIP_VISION),
        "visual.proj": (CLIP_VISION, JOINT),
        **_norm("visual.ln_pre", CLIP_VISION),
        **_norm("visual.ln_post", CLIP_VISION),
        f"{text}token_embedding.weight": (512 + len(MERGES) + 2, CLIP_TEXT),
        f"{text}positional_embedding": (24, CLIP_TEXT),
        **_norm(f"{text}ln_final", CLIP_TEXT),
        f"{text}text_projection": (CLIP_TEXT, JOINT),
    }
    for at, width in (("visual.", CLIP_VISION), (text, CLIP_TEXT)):
        for here in (f"{at}transformer.resblocks.{block}." for block in range(2)):
            shapes |= {f"{here}attn.in_proj_weight": (3 * width, width), f"{here}attn.in_proj_bias": (3 * width,)}
            shapes |= {**_linear(f"{here}attn.out_proj", width, width), **_norm(f"{here}ln_1", width)}
            shapes |= {**_linear(f"{here}mlp.c_fc", width, 4 * width), **_linear(f"{here}mlp.c_proj", 4 * width, width)}
            shapes |= _norm(f"{here}ln_2", width)
    return {**noise(shapes), "logit_scale": torch.tensor(4.25)}


def write_merges(path: Path) -> Path:
    """CLIP's file of merges: a line that tells its version, merges, and more of them than count."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(["#version: 0.2", *MERGES, "z z", "z z</w>", ""]))
    return path


def write_jit_archive(path: Path, state: dict[str, Tensor]) -> Path:
    """As OpenAI published CLIP: modules in half precision, three numbers and code, written by TorchScript."""
    root = nn.Module()
    for name, tensor in {**state, **jit_numbers()}.items():
        *modules, last = name.split(".")
        at = root
        for module in modules:
            if module not in dict(at.named_children()):
                at.add_module(module, nn.Module())
            at = at.get_submodule(module)
        if tensor.is_floating_point():
            at.register_parameter(last, nn.Parameter(tensor.half()))
        else:
            at.register_buffer(last, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own of TorchScript
        torch.jit.script(root).save(str(path))
    return path


def jit_numbers() -> dict[str, Tensor]:
    numbers = {"input_resolution": SIZE, "context_length": 24, "vocab_size": 512 + len(MERGES) + 2}
    return {name: torch.tensor(number) for name, number in numbers.items()}


def write_open_clip(folder: Path, *, text: str = "", **model: Any) -> Path:
    """As open_clip publishes its own models: weights and their configuration in one folder."""
    folder.mkdir()
    vision = {"image_size": SIZE, "layers": 2, "width": CLIP_VISION, "head_width": 32, "patch_size": 14}
    texts = {"context_length": 24, "vocab_size": 525, "width": CLIP_TEXT, "heads": 6, "layers": 2}
    config = {
        "model_cfg": {"embed_dim": JOINT, "vision_cfg": vision, "text_cfg": texts, **model},
        "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(native_clip_state(text), folder / "open_clip_pytorch_model.bin")
    return folder


def mrm_state(*, whole: bool = True) -> dict[str, Tensor]:
    """The encoder, and if `whole` both decoders."""
    shapes = vit("")
    if whole:
        shapes |= {**_painter(""), **_linear("decoder_embed", WIDTH, WIDTH), "decoder_pos_embed": (1, 17, WIDTH)}
        shapes |= {**_linear("bert_mlp", WIDTH, 16), "bert_encoder.model.cls.predictions.decoder.weight": (30, 16)}
    return noise(shapes)


def dinov2_state(*, registers: bool = True) -> dict[str, Tensor]:
    """For images of 70 pixels."""
    prefix = "img_encoder_q.model."
    state = {name.removeprefix(prefix): tensor for name, tensor in official_state().items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in state.items() if registers or name != "register_tokens"}


def _painter(prefix: str) -> Shapes:
    shapes = {**vit_block("decoder_blocks.0."), **_norm("decoder_norm"), **_linear("decoder_pred", WIDTH, 48)}
    return _under(prefix, {**shapes, "mask_token": (1, 1, WIDTH)})


def write_lightning(path: Path, state: dict[str, Tensor], **more: Any) -> Path:
    torch.save({"epoch": 3, "pytorch-lightning_version": "1.5.0", "state_dict": state, **more}, path)
    return path


def write_gloria(path: Path, state: dict[str, Tensor] | None = None) -> Path:
    """As Lightning 1.1 wrote it: settings are objects of a library that need not be there when it is read."""
    module = ModuleType("omegaconf_of_old")
    config = type("DictConfig", (), {"__module__": module.__name__})
    attributes = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.DictConfig, module.AttributeDict = config, attributes  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules[module.__name__] = module
    try:
        settings: Any = config()
        settings.content = {"model": {"name": "gloria"}, "kept": attributes(lr=5e-5)}
        write_lightning(
            path,
            gloria_state() if state is None else state,
            hyper_parameters=settings,
            callbacks={config: attributes(best=0.5)},
        )
    finally:
        del sys.modules[module.__name__]
    return path


def write_zip(path: Path, state: dict[str, Tensor]) -> Path:
    """A bare dictionary of weights, in a zip, as MedCLIP's."""
    inner = path.with_name("pytorch_model.bin")
    torch.save(state, inner)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(inner, inner.name)
    inner.unlink()
    return path


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def _norm(name: str, width: int = WIDTH) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, given: int, out: int) -> Shapes:
    return {f"{name}.weight": (out, given), f"{name}.bias": (out,)}


def _batch_norm(name: str, width: int, *, weights: bool = True) -> Shapes:
    statistics: Shapes = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return {**(_norm(name, width) if weights else {}), **statistics, f"{name}.num_batches_tracked": ()}


def write_openai_clip(folder: Path, *, tokenizer: bool = True, pixels: bool = True) -> CLIPModel:
    """As transformers publishes CLIP: a folder of weights, configuration, tokenizer and how images are read."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["<|startoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "<|endoftext|>"]
    words = CLIPTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[])
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": len(words), "max_position_embeddings": 24, "eos_token_id": words.eos_token_id}
    config = CLIPConfig(
        text_config={**shape, **text, "hidden_size": 24},
        vision_config={**shape, "image_size": SIZE, "patch_size": 14},
        projection_dim=JOINT,
    )
    model = CLIPModel(config).eval()
    model.load_state_dict(noise({name: tuple(weight.shape) for name, weight in model.state_dict().items()}))
    model.save_pretrained(folder)
    if tokenizer:
        words.save_pretrained(folder)
    if pixels:
        CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(
            folder
        )
    return model
