"""Import of published checkpoints as model folders.

A file is loaded without running code (`safe_load.py`), recognised by the names of its weights, renamed (`key_maps.py`)
and loaded into towers whose sizes follow from its shapes. `layouts.py`, `clip.py` and `cleft.py` describe the known
checkpoints. Every weight must have a target or be listed as dropped; anything left over is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from cleft.config import Settings, dump_settings
from cleft.config.loading import nearest
from cleft.errors import CheckpointError, ConfigError
from cleft.files import write_whole
from cleft.grammar import count
from cleft.models.adapters import adapt
from cleft.models.checkpoint import save_model, saved_weights
from cleft.models.hub import config_from_dict, skip_weight_init
from cleft.models.image_classifier import ImageClassifier, save_image_classifier
from cleft.models.image_tower import build_image_tower
from cleft.models.importing.cleft import check_out, import_authors
from cleft.models.importing.clip import BIOMEDCLIP, NATIVE_CLIP, OPENAI_CLIP, load_merges
from cleft.models.importing.key_maps import IMAGE, rename
from cleft.models.importing.layouts import (
    AUTHORS_CLIP,
    CONVIRT,
    CONVIRT_EDREISMD,
    CONVIRT_MGCA,
    DINOV2,
    DINOV2_PLAIN,
    GLORIA,
    MEDCLIP,
    MGCA,
    MRM,
    MRM_ENCODER,
    Layout,
    SideFiles,
    Weights,
)
from cleft.models.importing.safe_load import find_weights, read_weights
from cleft.models.language_model import build_language_model, is_causal
from cleft.models.methods import METHODS, MethodModel
from cleft.models.model_folder import digest_of
from cleft.models.state_dict import assign_weights, describe_mismatch, format_names, match_forms, to_current_names
from cleft.models.text_tower import TextTower
from cleft.models.tokenizer import TOKENIZER_FILES, TextTokenizer, eos_token_of, load_tokenizer
from cleft.strict_json import read_json

log = logging.getLogger(__name__)

LAYOUTS: tuple[Layout, ...] = (
    MGCA,
    AUTHORS_CLIP,
    GLORIA,
    MEDCLIP,
    CONVIRT,
    CONVIRT_EDREISMD,
    CONVIRT_MGCA,
    OPENAI_CLIP,
    *NATIVE_CLIP,
    BIOMEDCLIP,
    DINOV2,
    DINOV2_PLAIN,
    MRM,
    MRM_ENCODER,
)
"""Every known layout besides the authors' own."""
_UNSUPPORTED = {
    "visual.attnpool.": "a CLIP with a ResNet (such as RN50: three convolutions as stem, attention as pooling), "
    "which is not supported; give one with a ViT, such as ViT-B-16"
}
"""Name prefix to the kind of an unsupported checkpoint."""
_LARGEST_JSON = 2**20
_OWN = ("img_encoder_q.model.blocks.0.ls1.gamma", "text_encoder_q.")
"""Name prefixes of the authors' own checkpoints; see `cleft.py`."""


def import_checkpoint(
    path: Path | str,
    out: Path | str,
    *,
    method: str | None = None,
    tokenizer: Path | str | None = None,
    text_model: str | None = None,
    size: int | None = None,
) -> Path:
    """Converts a published checkpoint to a model folder: the CLEFT authors', or another system's.

    Args:
        path: The file, or its folder.
        out: The model folder to write.
        method: Method of the checkpoint, such as `gloria`; recognised by default.
        tokenizer: Folder or hub name of the tokenizer its language model was trained with; for CLIP also its merges
            file. Image-only models need none, folders may contain it, and the authors' checkpoints work without.
        text_model: Hub name or folder of the language model, if an authors' checkpoint lacks it.
        size: Input size of the image tower in pixels; by default 224, or from files of the folder.

    Returns:
        `out`.

    Raises:
        CheckpointError: If the file is damaged, may run code, is unknown or of another method, or has weights without a
            target.
        ConfigError: If `out` contains anything but an earlier import, there is no tokenizer, or no such method.
        ResourceError: If the folder cannot be written.
    """
    path, out = Path(path), Path(out)
    check_out(out)
    method = None if method is None else _known(method)
    path = find_weights(path)
    read = read_weights(path)
    layout = _recognise(read.weights, method, path)
    if layout is None:
        return import_authors(path, out, tokenizer=tokenizer, text_model=text_model, size=size or 224, read=read)
    if text_model is not None:
        raise ConfigError(
            f"--text-model {text_model} is for the authors' own checkpoints, but this is one of {layout.title}; leave "
            f"it out"
        )
    facts = read_facts(path, layout, named=method is not None)
    try:
        weights, settings = _take_apart(read.weights, layout, size, facts)
        model = _build(settings, layout, tokenizer or tokenizer_beside(path, layout))
        _fill(model, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}, read as a checkpoint of {layout.title}: {error}") from error
    origin = {"file": path.name, "sha256": digest_of(path), "method": layout.title}
    if isinstance(model, ImageClassifier):
        save_image_classifier(model, settings, out, extra={"imported": origin})
    else:
        save_model(model, settings, out, extra={"imported": origin})
    write_whole(out / "config.yaml", dump_settings(settings), mode=None)
    return out


def read_facts(weights: Path, layout: Layout, *, named: bool) -> SideFiles:
    """Reads the JSON files next to a layout's weights; all but the first may be missing.

    Args:
        weights: The weights file.
        layout: Its layout.
        named: Whether the method was named, which may replace the first of these files.

    Raises:
        CheckpointError: If the first is missing, or one cannot be read.
    """
    places = {name: weights.parent / name for name in layout.side_files}
    if places and not places[layout.side_files[0]].is_file() and not (named and layout.missing_file_hint):
        raise CheckpointError(
            f"{weights} must be next to {layout.side_files[0]}, which defines the preprocessing of {layout.title}; "
            f"download the complete folder{layout.missing_file_hint and f', or {layout.missing_file_hint}'}"
        )
    return {name: _read_json(place) for name, place in places.items() if place.is_file()}


def tokenizer_beside(weights: Path, layout: Layout) -> Path | None:
    """Returns the folder of the weights if it also has their tokenizer."""
    has = layout.side_files and any((weights.parent / name).is_file() for name in TOKENIZER_FILES)
    return weights.parent if has else None


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, error=CheckpointError, limit=_LARGEST_JSON)


def describe_reading(settings: Settings) -> str:
    """Returns how an imported model preprocesses its inputs: from files next to its weights, or its authors' code."""
    images, image = settings.images, settings.image
    size = f"{images.size} pixels{f', brought to {image.resize}' if image.resize else ''}"
    parts = [f"images of {size} (mean {_numbers(images.mean)}, deviation {_numbers(images.std)})"]
    if settings.method != "image-only":
        parts += [
            f"texts of up to {count(settings.text.max_tokens, 'token')}",
            f"temperature {settings.loss.temperature:.3g}",
        ]
    shape = image.scratch or {}
    if shape.get("model_type") == "clip_vision_model":
        parts.append(f"activation {shape['hidden_act']}")
    return f"reads {'; '.join(parts)}"


def _numbers(channels: Sequence[float]) -> str:
    return " ".join(f"{number:.3g}" for number in dict.fromkeys(channels))


def _known(method: str) -> str:
    """The name of a method that is known; in whatever case it was typed."""
    known = list(dict.fromkeys(["cleft", *(layout.method for layout in LAYOUTS)]))
    if method.casefold() not in known:
        raise ConfigError(
            f"--method {method!r} is unknown{nearest(method.casefold(), known)}; known are {', '.join(known)}"
        )
    return method.casefold()


def _recognise(state: Mapping[str, Tensor], method: str | None, path: Path) -> Layout | None:
    """Returns the layout of a file; None for the authors' own."""
    unread = next((what for mark, what in _UNSUPPORTED.items() if _holds(state, (mark,))), None)
    if unread is not None:
        raise CheckpointError(f"{path} is {unread}")
    found = next(
        (it for it in LAYOUTS if _holds(state, it.key_prefixes) and (not it.only_if_named or method == it.method)),
        None,
    )
    own = found is None and _holds(state, _OWN)
    if method == "cleft" and found is None:
        return None  # its importer reports the error
    if found is None and not own:
        known = ", ".join(dict.fromkeys(layout.title for layout in LAYOUTS))
        raise CheckpointError(
            f"{path} is not a known checkpoint (the authors', {known}); its weights are named "
            f"{', '.join(sorted(state)[:3])}"
        )
    name, title = ("cleft", "the authors' CLEFT") if found is None else (found.method, found.title)
    if method not in (None, name):
        raise CheckpointError(
            f"{path} is a checkpoint of {title}, not of {method}: it has {_first(state, found)}; leave --method "
            f"out, or give the other file"
        )
    return found


def _holds(state: Mapping[str, Tensor], marks: tuple[str, ...]) -> bool:
    return all(any(name.startswith(mark) for name in state) for mark in marks)


def _first(state: Mapping[str, Tensor], layout: Layout | None) -> str:
    mark = (_OWN if layout is None else layout.key_prefixes)[0]
    return next(name for name in state if name.startswith(mark))


def _take_apart(
    state: Mapping[str, Tensor], layout: Layout, size: int | None, facts: SideFiles
) -> tuple[Weights, Settings]:
    weights, left_over = rename(state, layout.sections)
    if left_over:
        raise CheckpointError(format_names("[weight has|weights have] no target", sorted(left_over)))
    size = layout.default_size(weights, facts) if size is None else size
    weights = layout.complete_weights(weights, size)
    settings = layout.settings(weights, size, facts)
    return weights, replace(settings, text=replace(settings.text, normalisation=layout.text_rule))


def _build(settings: Settings, layout: Layout, tokenizer: Path | str | None) -> MethodModel | ImageClassifier:
    with torch.random.fork_rng(devices=[]), skip_weight_init():
        if settings.method == "image-only":
            return ImageClassifier(build_image_tower(settings.image, settings.images))
        method = METHODS[settings.method]
        image_tower = build_image_tower(settings.image, settings.images, regions=method.uses_regions)
        return method.build(image_tower, _build_text(settings, layout, tokenizer), settings)


def _build_text(settings: Settings, layout: Layout, tokenizer: Path | str | None) -> TextTower:
    if tokenizer is None:
        raise ConfigError(
            f"this checkpoint of {layout.title} has no tokenizer; name the one its language model was trained with: "
            f"--tokenizer <folder or hub name>, such as {layout.tokenizer}"
        )
    config = settings.text
    shape = config.scratch or {}
    vocabulary = int(shape["vocab_size"])
    merges = shape["model_type"] == "clip_text_model" and Path(tokenizer).is_file()
    learned = load_merges(Path(tokenizer), vocabulary) if merges else load_tokenizer(tokenizer)
    causal = is_causal(config_from_dict({"model_type": shape["model_type"]}, "text.scratch"))
    if causal and learned.eos_token_id is None:
        raise CheckpointError(_wrong_tokenizer(tokenizer, "has no EOS token", layout))
    end = eos_token_of(learned, PreTrainedConfig()) if causal else None  # from the tokenizer only
    tokens = TextTokenizer(learned, max_tokens=config.max_tokens, eos=end)
    if not tokens.prefix_ids:
        raise CheckpointError(_wrong_tokenizer(tokenizer, "adds no token before a text", layout))
    if tokens.vocabulary > vocabulary:
        raise CheckpointError(
            f"the tokenizer {str(tokenizer)!r} has {tokens.vocabulary} tokens and the language model {vocabulary}; "
            f"give the one it was trained with"
        )
    if tokens.vocabulary < vocabulary:
        log.warning(
            "the tokenizer %r has %d tokens and the language model %d; make sure that it was trained with this one",
            str(tokenizer),
            tokens.vocabulary,
            vocabulary,
        )
    lm = build_language_model(config, vocabulary=vocabulary, pad=tokens.pad, eos=end)
    return TextTower(adapt(lm, config), tokens, config)


def _wrong_tokenizer(tokenizer: Path | str, what: str, layout: Layout) -> str:
    return (
        f"the tokenizer {str(tokenizer)!r} {what}, unlike that of {layout.title}; give the one it was trained with, "
        f"such as {layout.tokenizer}"
    )


def _fill(model: MethodModel | ImageClassifier, weights: Weights) -> None:
    vision = {name.removeprefix(IMAGE): tensor for name, tensor in weights.items() if name.startswith(IMAGE)}
    expected = dict(model.state_dict()) if isinstance(model, ImageClassifier) else saved_weights(model)
    given = {
        **{name: tensor for name, tensor in weights.items() if not name.startswith(IMAGE)},
        **{f"{IMAGE}{name}": tensor for name, tensor in to_current_names(model.image_tower.model, vision).items()},
    }
    if "logit_scale" in expected and not model.get_parameter("logit_scale").requires_grad:
        given.setdefault("logit_scale", expected["logit_scale"])  # fixed, so no file contains it
    given = match_forms(given, expected)
    faults = describe_mismatch(given, expected)
    if faults:
        raise CheckpointError(f"its weights do not fit the towers inferred from their shapes: {faults}")
    assign_weights(model, given, expected)
