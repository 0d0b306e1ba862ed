"""What Hugging Face vision models make of images, and how one feature vector is pooled from it.

What a pooling needs (a class token, a pooler, the weights behind its features) is found by sending one image of no
memory through a copy of the model of no memory.

Shapes: `B` images, `L` tokens, `D` width of the tower, `H` and `W` pixels.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from cleft.errors import ConfigError
from cleft.models.hub import meta_model
from cleft.types import ImageSpec

_LAST_NORMS = ("layernorm", "post_layernorm", "norm")
"""What the families call the norm behind their last block."""


class States(NamedTuple):
    """What a vision model made of its images."""

    tokens: Tensor
    """The model's last hidden state, `[B, L, D]`; grids are flattened row by row."""
    before_norm: Tensor
    """The same before the last norm. Where the norm sees only a pooled state (CLIP, ConvNeXt) or there is none
    (ResNet), `tokens` have met no norm and this is `tokens`."""
    extra: int
    """Class and register tokens in front of the patches."""
    pooled: Tensor | None
    """The model's own pooling, `[B, D]`."""
    regions: Tensor
    """What local losses compare with words, `[B, M, D']`: the patches; of a model of grids (ResNet, ConvNeXt) the grid
    of its last stage but one, which is finer and has a width of its own."""


def _cls(states: States) -> Tensor:
    if states.extra == 0:
        raise ConfigError("the model has no class token")
    return states.tokens[:, 0]


def _pooler(states: States) -> Tensor:
    if states.pooled is None:
        raise ConfigError("the model has no pooler")
    return states.pooled


POOLINGS: dict[str, Callable[[States], Tensor]] = {
    "mean-before-norm": lambda states: states.before_norm.mean(dim=1),
    "mean": lambda states: states.tokens.mean(dim=1),
    "patches": lambda states: states.tokens[:, states.extra :].mean(dim=1),
    "cls": _cls,
    "pooler": _pooler,
}
"""Name in the settings to the function that makes features `[B, D]` of a model's states."""


def read_states(model: nn.Module, config: PreTrainedConfig, pixel_values: Tensor, *, regions: bool = False) -> States:
    """Sends normalised images `[B, C, H, W]` through a vision model.

    Positions are interpolated where the images differ in size from what the model was made for.

    Args:
        model: The vision model.
        config: Its configuration.
        pixel_values: The images.
        regions: Whether a model of grids shall keep the grid of its last stage but one; otherwise `regions` are those
            of the last.
    """
    seen: list[Tensor] = []
    norm = next((child for name, child in model.named_children() if name in _LAST_NORMS), None)
    options = _position_options(model)
    if regions:
        options["output_hidden_states"] = True
    if norm is None:
        output: Any = model(pixel_values=pixel_values, **options)
    else:
        with norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            output = model(pixel_values=pixel_values, **options)
    tokens = _flat(output.last_hidden_state)
    pooled: Any = getattr(output, "pooler_output", None)
    extra = _extra_tokens(output.last_hidden_state, config, pixel_values)
    grids: Any = output.hidden_states if regions and output.last_hidden_state.ndim == 4 else None
    return States(
        tokens=tokens,
        before_norm=seen[0] if seen and seen[0].shape == tokens.shape else tokens,
        extra=extra,
        pooled=None if pooled is None else pooled.flatten(1),
        regions=tokens[:, extra:] if grids is None else _flat(grids[-2]),
    )


def _position_options(model: nn.Module) -> dict[str, bool]:
    """Asks models with a fixed table of positions to stretch it; at the table's own size they leave it as it is."""
    takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return {"interpolate_pos_encoding": True} if takes else {}


def _flat(hidden: Tensor) -> Tensor:
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden  # [B, D, h, w] -> [B, L, D]


def _extra_tokens(hidden: Tensor, config: PreTrainedConfig, pixel_values: Tensor) -> int:
    patch = patch_of(config)
    if hidden.ndim == 4 or patch is None:
        return 0
    patches = (pixel_values.shape[-2] // patch[0]) * (pixel_values.shape[-1] // patch[1])
    return max(0, hidden.shape[1] - patches)  # towers that merge patches (Swin) end with fewer


class Probed(NamedTuple):
    """What a vision model makes of images, found without memory."""

    width: int
    """Of the features, `D`."""
    needed: frozenset[str]
    """Names of the weights that the features, and the regions where they are asked for, depend on."""
    extra: int
    """Class and register tokens."""
    regions: tuple[int, int]
    """How many, and their width."""
    patches: int
    """Patches of an image; 0 for models without."""


def probe(config: PreTrainedConfig, pooling: str, spec: ImageSpec, *, regions: bool = False) -> Probed:
    """Finds out about a model of the given configuration.

    Args:
        config: Of the model.
        pooling: Key of `POOLINGS`.
        spec: Images as the model reads them.
        regions: Whether regions are needed beside the features.

    Raises:
        ConfigError: If the model takes no images of this size, or lacks what the pooling needs.
    """
    return _probed(_Question(config.to_json_string(use_diff=False), pooling, spec, regions, config))


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of a model; equal configurations answer alike."""

    content: str
    """All that the configuration says."""
    pooling: str
    spec: ImageSpec
    regions: bool
    config: PreTrainedConfig = field(compare=False)


@functools.lru_cache(maxsize=256)
def _probed(question: _Question) -> Probed:
    """Kept, because a model is asked before and after its weights are read, and a study loads the same ones again."""
    config, pooling, spec, regions = question.config, question.pooling, question.spec, question.regions
    kind = config.model_type
    _check_size(config, spec)
    if getattr(config, "mask_ratio", 0):
        raise ConfigError(f"image: a {kind} hides a random part of each image; choose an encoder that sees all of it")
    try:
        model = meta_model(config).eval()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"image: transformers has no model for {kind!r} by itself ({error})") from error
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    pixel_values = torch.empty(1, channels_of(config), *spec.size, device="meta")
    try:
        states = read_states(model, config, pixel_values, regions=regions)
        features = POOLINGS[pooling](states)
    except ConfigError as error:
        raise ConfigError(f"image.pooling={pooling}: a {kind} cannot give it, {error}; use mean") from error
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"image: a {kind} does not turn images of {spec.size} into features ({error}); "
            f"is it a vision model, and does it take this size?"
        ) from error
    asked = features.sum() + states.regions.sum() if regions else features.sum()
    gradients: tuple[Any, ...] = torch.autograd.grad(asked, list(weights.values()), allow_unused=True)
    return Probed(
        width=features.shape[1],
        needed=frozenset(name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None),
        extra=states.extra,
        regions=(states.regions.shape[1], states.regions.shape[2]),
        patches=math.prod(grid_of(config, spec.size) or (0,)),
    )


def _check_size(config: PreTrainedConfig, spec: ImageSpec) -> None:
    patch = patch_of(config)
    for side, step in zip(spec.size, patch or (), strict=False):
        if side % step:
            below, above = side // step * step, -(-side // step) * step
            sizes = f"{below} and {above}" if below else str(above)
            raise ConfigError(
                f"images.size={side} is not a multiple of the patch size {step} of {config.model_type}; "
                f"nearest sizes are {sizes}"
            )


def patch_of(config: PreTrainedConfig) -> tuple[int, int] | None:
    """Returns height and width of a patch in pixels, or None for models without patches."""
    patch: Any = getattr(config, "patch_size", None)
    if patch is None:
        return None
    return (int(patch), int(patch)) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))


def grid_of(config: PreTrainedConfig, size: tuple[int, int]) -> tuple[int, int] | None:
    """Returns rows and columns of the patches of an image of some size, or None for models without patches."""
    patch = patch_of(config)
    return None if patch is None else (size[0] // patch[0], size[1] // patch[1])


def channels_of(config: PreTrainedConfig) -> int:
    """Returns how many channels the model's images have: 1 or 3."""
    channels = int(getattr(config, "num_channels", 3))
    if channels not in (1, 3):
        raise ConfigError(f"image: {config.model_type} takes {channels} channels; gray images fit 1 or 3")
    return channels
