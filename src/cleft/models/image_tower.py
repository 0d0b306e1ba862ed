"""Image encoder from any Hugging Face vision model: gray pixels in, one feature vector per image out.

What a pooling needs (a class token, a pooler, the weights of its features) is determined by a forward pass of the
model on the meta device, so unsuitable sizes and poolings are refused before weights are loaded. Weights that no
feature depends on (a mask token, an unused final norm) are frozen: an optimiser would decay them, and distributed
training would wait for their gradients forever.

Shapes: `B` images, `C` channels, `L` tokens, `M` regions, `D` width of the tower, `H` and `W` pixels.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel, ViTConfig

from cleft.config import ImagesConfig, ImageTowerConfig
from cleft.errors import CheckpointError, ConfigError
from cleft.models.hub import config_from_dict, meta_model, pretrained_model, random_model, read_config
from cleft.models.layers import PatchDecoder, capture_attention, make_hooks_picklable
from cleft.types import ImageSpec

_LAST_NORMS = ("layernorm", "post_layernorm", "norm")
"""Names of the final norm in different model families."""


class VisionStates(NamedTuple):
    """Hidden states of a vision model."""

    tokens: Tensor
    """Last hidden state, `[B, L, D]`; grids are flattened row by row."""
    before_norm: Tensor
    """The same before the final norm. Where the norm is applied only to a pooled state (CLIP, ConvNeXt) or missing
    (ResNet), this equals `tokens`."""
    prefix_tokens: int
    """Number of class and register tokens before the patches."""
    pooled: Tensor | None
    """Pooler output, `[B, D]`."""
    regions: Tensor
    """Local features `[B, M, D']`: the patches; for CNNs (ResNet, ConvNeXt) the grid of the second to last stage, which
    is finer and has another width."""


def _cls(states: VisionStates) -> Tensor:
    if states.prefix_tokens == 0:
        raise ConfigError("the model has no class token")
    return states.tokens[:, 0]


def _pooler(states: VisionStates) -> Tensor:
    if states.pooled is None:
        raise ConfigError("the model has no pooler")
    return states.pooled


POOLINGS: dict[str, Callable[[VisionStates], Tensor]] = {
    "mean-before-norm": lambda states: states.before_norm.mean(dim=1),
    "mean": lambda states: states.tokens.mean(dim=1),
    "patches": lambda states: states.tokens[:, states.prefix_tokens :].mean(dim=1),
    "cls": _cls,
    "pooler": _pooler,
}
"""Pooling in the settings to the function from hidden states to features `[B, D]`."""


def vision_states(
    model: nn.Module, config: PreTrainedConfig, pixel_values: Tensor, *, regions: bool = False
) -> VisionStates:
    """Runs normalised images `[B, C, H, W]` through a vision model.

    Positions are interpolated where the images differ in size from the pretraining size.

    Args:
        model: The vision model.
        config: Its configuration.
        pixel_values: The images.
        regions: Whether `regions` of a CNN are the grid of the second to last stage; otherwise of the last.
    """
    norm_inputs: list[Tensor] = []
    norm = next((child for name, child in model.named_children() if name in _LAST_NORMS), None)
    options = _position_options(model)
    if regions:
        options["output_hidden_states"] = True
    if norm is None:
        output: Any = model(pixel_values=pixel_values, **options)
    else:
        with norm.register_forward_pre_hook(lambda _, inputs: norm_inputs.append(inputs[0])):
            output = model(pixel_values=pixel_values, **options)
    tokens = _flat(output.last_hidden_state)
    pooled: Any = getattr(output, "pooler_output", None)
    prefix_tokens = _count_prefix_tokens(output.last_hidden_state, config, pixel_values)
    grids: Any = output.hidden_states if regions and output.last_hidden_state.ndim == 4 else None
    return VisionStates(
        tokens=tokens,
        before_norm=norm_inputs[0] if norm_inputs and norm_inputs[0].shape == tokens.shape else tokens,
        prefix_tokens=prefix_tokens,
        pooled=None if pooled is None else pooled.flatten(1),
        regions=tokens[:, prefix_tokens:] if grids is None else _flat(grids[-2]),
    )


def _position_options(model: nn.Module) -> dict[str, bool]:
    """Enables interpolation of a fixed position table; at the table's own size it has no effect."""
    takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return {"interpolate_pos_encoding": True} if takes else {}


def _flat(hidden: Tensor) -> Tensor:
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden  # [B, D, h, w] -> [B, L, D]


def _count_prefix_tokens(hidden: Tensor, config: PreTrainedConfig, pixel_values: Tensor) -> int:
    patch = patch_of(config)
    if hidden.ndim == 4 or patch is None:
        return 0
    patches = (pixel_values.shape[-2] // patch[0]) * (pixel_values.shape[-1] // patch[1])
    return max(0, hidden.shape[1] - patches)  # models that merge patches (Swin) have fewer tokens


class VisionProperties(NamedTuple):
    """Properties of a vision model, determined on the meta device."""

    width: int
    """Width of the features, `D`."""
    needed: frozenset[str]
    """Names of the weights that the features, and the regions if needed, depend on."""
    prefix_tokens: int
    """Number of class and register tokens."""
    regions: tuple[int, int]
    """Number and width of the regions."""
    patches: int
    """Number of patches of an image; 0 for models without patches."""


def probe(config: PreTrainedConfig, pooling: str, spec: ImageSpec, *, regions: bool = False) -> VisionProperties:
    """Determines properties of the model of a configuration.

    Args:
        config: Of the model.
        pooling: Key of `POOLINGS`.
        spec: Images as the model gets them.
        regions: Whether regions are needed besides the features.

    Raises:
        ConfigError: If the model does not support images of this size, or lacks what the pooling needs.
    """
    return _cached_probe(_ProbeKey(config.to_json_string(use_diff=False), pooling, spec, regions, config))


@dataclass(frozen=True, slots=True)
class _ProbeKey:
    """Cache key of a probe; equal configurations give equal results."""

    content: str
    """The configuration as JSON."""
    pooling: str
    spec: ImageSpec
    regions: bool
    config: PreTrainedConfig = field(compare=False)


@functools.lru_cache(maxsize=256)
def _cached_probe(key: _ProbeKey) -> VisionProperties:
    """Cached: a model is probed before and after its weights are loaded, and a study loads the same ones repeatedly."""
    config, pooling, spec, regions = key.config, key.pooling, key.spec, key.regions
    kind = config.model_type
    _check_size(config, spec)
    if getattr(config, "mask_ratio", 0):
        raise ConfigError(f"image: a {kind} masks a random part of each image; choose an encoder without masking")
    try:
        model = meta_model(config).eval()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"image: transformers cannot build a {kind!r} model alone ({error})") from error
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    pixel_values = torch.empty(1, channels_of(config), *spec.size, device="meta")
    try:
        states = vision_states(model, config, pixel_values, regions=regions)
        features = POOLINGS[pooling](states)
    except ConfigError as error:
        raise ConfigError(f"image.pooling={pooling}: a {kind} does not support it, {error}; use mean") from error
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"image: a {kind} gives no features for images of {spec.size} ({error}); "
            f"is it a vision model, and does it support this size?"
        ) from error
    output = features.sum() + states.regions.sum() if regions else features.sum()
    gradients: tuple[Any, ...] = torch.autograd.grad(output, list(weights.values()), allow_unused=True)
    return VisionProperties(
        width=features.shape[1],
        needed=frozenset(name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None),
        prefix_tokens=states.prefix_tokens,
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
    """Returns height and width of a patch in pixels; None for models without patches."""
    patch: Any = getattr(config, "patch_size", None)
    if patch is None:
        return None
    return (int(patch), int(patch)) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))


def grid_of(config: PreTrainedConfig, size: tuple[int, int]) -> tuple[int, int] | None:
    """Returns rows and columns of patches of an image of this size; None for models without patches."""
    patch = patch_of(config)
    return None if patch is None else (size[0] // patch[0], size[1] // patch[1])


def channels_of(config: PreTrainedConfig) -> int:
    """Returns the number of input channels of the model: 1 or 3."""
    channels = int(getattr(config, "num_channels", 3))
    if channels not in (1, 3):
        raise ConfigError(f"image: {config.model_type} takes {channels} channels; gray images fit 1 or 3")
    return channels


class ImageRegions(NamedTuple):
    """Global and local features of images."""

    features: Tensor
    """`[B, D]`, as from `ImageTower.encode`."""
    regions: Tensor
    """`[B, M, D']`."""
    attention: Tensor
    """Weight of each region, `[B, M]`, without gradient; rows sum to one. Attention of the class token in the last
    block; uniform without a class token."""


class ImageTower(nn.Module):
    """Image encoder: a vision model, its pooling, and the required image format.

    Args:
        model: The vision model.
        config: Pooling, and whether the tower is trainable.
        spec: Size and normalisation of its images.
        regions: Whether regions are used, so that their weights are trainable too.

    Attributes:
        width: Width `D` of a feature.
        region_width: Width of a region.
        has_patch_tokens: Whether its regions are the patches of the image, one for one.

    Raises:
        ConfigError: If the model cannot take images of this size, or lacks what the pooling needs.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: PreTrainedModel, config: ImageTowerConfig, spec: ImageSpec, *, regions: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.spec = spec
        self.trainable = config.train
        channels = channels_of(model.config)
        self.register_buffer("mean", _per_channel(spec.mean, channels), persistent=False)
        self.register_buffer("std", _per_channel(spec.std, channels), persistent=False)
        probed = _probe(model.config, config, spec, regions=regions)
        self.width = probed.width
        self.region_width = probed.regions[1]
        self.prefix_tokens = probed.prefix_tokens
        self.has_patch_tokens = probed.patches == probed.regions[0]
        for name, weight in model.named_parameters():
            weight.requires_grad_(config.train and name in probed.needed)
        self.decoder = _build_decoder(model, config, spec, probed) if config.decoder_blocks else None
        if config.gradient_checkpointing:
            _checkpoint_gradients(model)
        self.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state to pickle or copy."""
        make_hooks_picklable(self.model)
        return dict(self.__dict__)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns features `[B, D]` of normalised images `[B, C, H, W]`, `C` the model's channels.

        `H` and `W` may differ from the size in `spec` where the model can interpolate its positions.
        """
        return self._pool(vision_states(self.model, self.model.config, pixel_values))

    def encode(self, images: Tensor) -> Tensor:
        """Returns features `[B, D]` of gray images `[B, 1, H, W]` uint8 at the size in `spec`."""
        return self(self.resize(self.normalise(images)))

    def encode_regions(self, images: Tensor) -> ImageRegions:
        """Returns global features, regions and attention of gray images `[B, 1, H, W]` uint8 at the size in `spec`."""
        pixel_values = self.resize(self.normalise(images))
        if self.prefix_tokens == 0:
            states = vision_states(self.model, self.model.config, pixel_values, regions=True)
            count = states.regions.shape[1]
            weights = torch.full((len(images), count), 1 / count, device=images.device)
        else:
            with capture_attention(self.model, "image") as capture:
                states = vision_states(self.model, self.model.config, pixel_values, regions=True)
            weights = capture.first_row()[:, self.prefix_tokens :]
            weights = weights / weights.sum(dim=1, keepdim=True)
        return ImageRegions(self._pool(states), states.regions, weights)

    def encode_visible(self, pixel_values: Tensor, kept: Tensor) -> Tensor:
        """Returns final hidden states of the visible patches, `[B, V, D]`; other patches are removed from the input.

        Args:
            pixel_values: Normalised images at the model's size, `[B, C, H, W]`.
            kept: Indices of the visible patches, `[B, V]` int64.

        Raises:
            ConfigError: If the model has no patch embedding.
        """
        embeddings = getattr(self.model, "embeddings", None)
        if not isinstance(embeddings, nn.Module):
            raise ConfigError(f"image: a {self.model.config.model_type} has no patch embedding; use a ViT")

        def hide(_module: nn.Module, _inputs: object, tokens: Tensor) -> Tensor:
            patches = tokens[:, self.prefix_tokens :]
            return torch.cat([tokens[:, : self.prefix_tokens], select_tokens(patches, kept)], dim=1)

        with embeddings.register_forward_hook(hide):
            states = vision_states(self.model, self.model.config, pixel_values)
        return states.tokens[:, self.prefix_tokens :]

    def _pool(self, states: VisionStates) -> Tensor:
        if self.decoder is None:
            return POOLINGS[self.config.pooling](states)
        tokens = self.decoder.embed(states.tokens)
        return self.decoder(tokens[:, : states.prefix_tokens], tokens[:, states.prefix_tokens :]).mean(dim=1)

    def normalise(self, images: Tensor) -> Tensor:
        """Scales gray images to [0, 1], repeats them per channel, subtracts the mean and divides by the std.

        Raises:
            ValueError: If the images are not `[B, 1, H, W]` uint8 of the size in `spec`.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != (1, *self.spec.size):
            raise ValueError(
                f"images are {tuple(images.shape)} {images.dtype}; the tower takes [B, 1, H, W] torch.uint8 "
                f"with (H, W) = {self.spec.size}"
            )
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std

    def resize(self, pixel_values: Tensor) -> Tensor:
        """Resizes normalised images to the input size of the model."""
        side = self.config.resize
        if side is None or side == pixel_values.shape[-1]:
            return pixel_values
        if side > pixel_values.shape[-1]:
            return functional.interpolate(pixel_values, (side, side), mode="bilinear", align_corners=True)
        return functional.interpolate(pixel_values, (side, side), mode="bicubic", antialias=True)

    def train(self, mode: bool = True) -> ImageTower:
        """Sets training mode; a frozen tower stays in evaluation mode (no dropout, fixed batch-norm statistics)."""
        return super().train(mode and self.trainable)


def build_image_tower(config: ImageTowerConfig, images: ImagesConfig, *, regions: bool = False) -> ImageTower:
    """Builds the tower described by the settings; random weights come from torch's global generator.

    Args:
        config: Model and pooling.
        images: Size and normalisation of its images.
        regions: Whether regions are used.

    Raises:
        ConfigError: If the model cannot be found or built, or does not fit its images or pooling.
        CheckpointError: If its files lack weights that the features depend on.
    """
    spec = ImageSpec(size=(images.size, images.size), mean=images.mean, std=images.std)
    if config.scratch is not None:
        return ImageTower(
            random_model(config_from_dict(config.scratch, "image.scratch")), config, spec, regions=regions
        )
    source = str(config.model)
    hf_config = read_config(source, "image.model")
    hf_config = vision_config(hf_config)
    if config.random_weights:
        return ImageTower(random_model(hf_config), config, spec, regions=regions)
    probed = _probe(hf_config, config, spec, regions=regions)  # checks the settings before gigabytes are loaded
    model, missing = pretrained_model(source, hf_config, "image.model")
    _refuse_random(missing & probed.needed, source)
    return ImageTower(model, config, spec, regions=regions)


def _probe(model: PreTrainedConfig, config: ImageTowerConfig, spec: ImageSpec, *, regions: bool) -> VisionProperties:
    """Probes the model at the size at which it encodes images."""
    if config.resize is not None:
        spec = replace(spec, size=(config.resize, config.resize))
    pooling = "mean" if config.decoder_blocks else config.pooling  # a decoder uses every token
    return probe(model, pooling, spec, regions=regions)


def vision_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Returns the vision part of a configuration that may have other parts.

    CLIP and SigLIP have both towers in one folder. A masked autoencoder without masking is a ViT.
    """
    config = getattr(config, "vision_config", config)
    if config.model_type != "vit_mae":
        return config
    known = ViTConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    return ViTConfig(**{name: value for name, value in config.to_dict().items() if name in known})


def select_tokens(tokens: Tensor, rows: Tensor) -> Tensor:
    """Returns selected tokens of each image, `[B, V, D]`, from `[B, L, D]`."""
    return tokens.gather(1, rows[..., None].expand(-1, -1, tokens.shape[2]))


def _build_decoder(
    model: PreTrainedModel, config: ImageTowerConfig, spec: ImageSpec, probed: VisionProperties
) -> PatchDecoder:
    side = config.resize or spec.size[0]
    grid = grid_of(model.config, (side, side))
    if grid is None or probed.patches != probed.regions[0]:
        raise ConfigError(
            f"image.decoder_blocks={config.decoder_blocks}: a {model.config.model_type} has no token for each patch; "
            f"use a ViT, or set it to 0"
        )
    decoder = PatchDecoder(probed.width, probed.width, grid, config.decoder_blocks, config.decoder_positions)
    return decoder.requires_grad_(config.train)


def _per_channel(values: tuple[float, float, float], channels: int) -> Tensor:
    """Returns `[C, 1, 1]`; the average for a model with one channel."""
    tensor = torch.tensor(values) if channels == 3 else torch.tensor([sum(values) / 3])
    return tensor[:, None, None]


def _checkpoint_gradients(model: PreTrainedModel) -> None:
    if not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"image.gradient_checkpointing: a {model.config.model_type} does not support it; set it to false"
        )
    model.activation_checkpointing_enable()


def _refuse_random(missing: set[str], source: str) -> None:
    if missing:
        raise CheckpointError(
            f"image.model={source!r} lacks {len(missing)} of the weights its features depend on, first "
            f"{sorted(missing)[:5]}; choose another image.pooling, or image.random_weights=true for random weights"
        )
