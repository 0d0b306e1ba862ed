"""Settings of models, losses and training, and the tree of all settings.

The YAML of a preset has the same tree and nothing more: no class paths, no environment variables, no arithmetic.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from cleft.config.data_settings import (
    ALL_STAGES,
    Changes,
    DataConfig,
    Declaration,
    ImagesConfig,
    check_range,
    declarations,
    group,
    setting,
)
from cleft.errors import ConfigError
from cleft.text_rules import RuleName, rule_for


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """Image encoder: a vision model (paper, section 2.1)."""

    model: str | None = "facebook/dinov2-with-registers-base"
    """Hub name or folder of a Hugging Face vision model; null if `scratch` describes one."""
    scratch: Mapping[str, Any] | None = None
    """Configuration of a randomly initialised model, in place of `model`: `model_type` and its own options."""
    random_weights: bool = False
    """Use the configuration of `model`, but not its weights."""
    pooling: Literal["mean-before-norm", "mean", "patches", "cls", "pooler"] = setting(
        "mean-before-norm", changes=("pretrain", "classify")
    )
    """Pooling of tokens into an image feature. `mean-before-norm`: mean of all tokens before the last layer norm, as in
    the paper's code. `mean`: after it. `patches`: mean without class and register tokens. `cls`: class token. `pooler`:
    that of the model. `cleft classify` may use a different one than stage one."""
    decoder_blocks: int = 0
    """Transformer blocks between the patch tokens and their mean, which is then the image feature in place of
    `pooling`; 2 in the authors' CLIP, inherited from the masked autoencoder it is based on."""
    decoder_positions: Literal["standard", "released"] = setting("standard", old_values={"slipped": "released"})
    """Frequencies of the position embedding in these blocks: as in masked autoencoders, or with a quarter of the
    exponents, a bug of the authors' code."""
    resize: int | None = setting(None, changes=("pretrain", "classify"))
    """Side to which the model resizes its input: 299 from 224 for GLoRIA, 224 from 448 for MRM, which reconstructs 448.
    `cleft classify` may use a different one."""
    train: bool = True
    """Train the weights; false freezes them."""
    gradient_checkpointing: bool = setting(False, changes="rounding")
    """Recompute activations in the backward pass: less memory, a third more computation."""

    def __post_init__(self) -> None:
        _check_source("image", self.model, self.scratch)
        check_range("image.decoder_blocks", self.decoder_blocks, 0, 64)
        if self.resize is not None:
            check_range("image.resize", self.resize, 8, 4096)


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """Text encoder: a language model (paper, section 2.1)."""

    model: str | None = "stanford-crfm/BioMedLM"
    """Hub name or folder of a causal or masked language model; null if `scratch` describes one."""
    scratch: Mapping[str, Any] | None = None
    """Configuration of a randomly initialised model, in place of `model`: `model_type` and its own options. Its
    tokenizer is trained on the training captions."""
    random_weights: bool = False
    """Use the configuration of `model`, but not its weights."""
    adapt: Literal["lora", "ia3", "prefix", "full", "frozen"] = "lora"
    """Trained weights: those of a parameter-efficient method, all (`full`), or none (`frozen`). Table 1 of the paper
    compares `lora`, `ia3` and `prefix`, Table 3 the others."""
    rank: int = setting(8, used_with={"text.adapt": ("lora",)})
    """Rank of the LoRA update."""
    alpha: int = setting(32, used_with={"text.adapt": ("lora",)})
    """The LoRA update is scaled by alpha / rank."""
    dropout: float = setting(0.1, used_with={"text.adapt": ("lora",)})
    """Dropout before the LoRA update."""
    lora_targets: tuple[str, ...] | None = setting(None, used_with={"text.adapt": ("lora",)})
    """Linear layers with a LoRA update, by the end of their names, such as `q_proj,v_proj`; by default those of PEFT
    for the model family, or else the query and value projections."""
    ia3_targets: tuple[str, ...] | None = setting(None, used_with={"text.adapt": ("ia3",)})
    """Linear layers that IA3 scales; by default those of PEFT for the model family, or else the key and value
    projections and the last layer of each feed-forward block."""
    ia3_feedforward: tuple[str, ...] | None = setting(None, used_with={"text.adapt": ("ia3",)})
    """Those of `ia3_targets` whose input is scaled in place of their output; by default the last layer of each
    feed-forward block."""
    prefix_length: int = setting(20, used_with={"text.adapt": ("prefix",)})
    """Virtual tokens of prefix tuning."""
    train_embeddings: bool = setting(True, used_with={"text.adapt": ("lora", "ia3", "prefix", "frozen")})
    """Train the token embeddings too, as section 2.1 describes; only the tokens that occur are stored."""
    base_dropout: float = 0.0
    """Dropout of the language model itself. With `packing: tree`, all captions of a node share one dropout mask."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of frozen weights; trained weights are always float32. `bfloat16` halves their memory; features differ
    slightly from those of `bf16-mixed` with float32 weights, which the paper used."""
    depth: int | None = None
    """Number of transformer blocks to keep, from the first; by default all. The authors' CLIP and MGCA keep 6 of 12."""
    frozen_layers: int = setting(0, used_with={"text.adapt": ("full",)})
    """Number of transformer blocks to freeze, from the first, together with the embeddings: 6 in the ConVIRT paper."""
    positions: Literal["counted", "zero"] = "counted"
    """Positions of tokens. `zero`: every token has position 0, so that a masked model ignores word order, a bug of the
    authors' CLIP and MGCA."""
    pooled_layers: tuple[int, ...] = setting((-1,), formerly="text.layers")
    """Layers whose hidden states are averaged before pooling: 0 is the embedding, -1 the last layer. MedCLIP uses 1, 2
    and -1, GLoRIA the last four."""
    pooling: Literal["auto", "end-token", "mean", "mean-padded", "max", "cls", "pooler"] = "auto"
    """Pooling of tokens into a text feature. `end-token`: the first end-of-text token (`auto` for causal models).
    `mean`: mean of all tokens but padding (`auto` for masked models). `mean-padded`: mean including padding up to the
    longest text of the batch, as in the release of MedCLIP; a text feature then depends on the batch. `max`: maximum.
    `cls`: first token. `pooler`: that of the model."""
    end_token_attends_itself: bool = False
    """The authors mask the end-of-text token as padding, so that it attends to the caption but not to itself."""
    max_tokens: int = 64
    """Longest text in tokens, including the end-of-text token; longer texts are truncated."""
    normalisation: Literal["auto"] | RuleName = "auto"
    """Text normalisation before the tokenizer, for tables, command line and Python. `words`: lower case, words and
    numbers only, as captions are written. `release`: as in the releases of CLEFT, GLoRIA and MGCA, ASCII only. `lower`:
    lower case, punctuation kept. `nfc`: unchanged except for white space. The number is the version of the rule.
    `auto`: that for `data.texts`; it is saved with the model."""
    packing: Literal["auto", "tree", "distinct", "padded"] = setting("auto", changes="rounding")
    """How a batch of texts is computed: common prefixes once (`tree`, causal models), equal texts once (`distinct`), or
    every text with padding (`padded`). Changes speed, not results. `auto`: the fastest exact one."""
    cuda_graphs: bool = setting(True, changes="rounding", formerly="text.graphs")
    """Replay the prefix tree from CUDA graphs, captured once for every 32 more nodes; it is otherwise limited by kernel
    launches. Does not change results; set it to false if capture fails."""
    gradient_checkpointing: bool = setting(False, changes="rounding")
    """Recompute activations in the backward pass: less memory, a third more computation; rarely useful with
    `packing: tree`."""

    def __post_init__(self) -> None:
        _check_source("text", self.model, self.scratch)
        check_range("text.rank", self.rank, 1, 4096)
        check_range("text.dropout", self.dropout, 0, 0.99)
        check_range("text.base_dropout", self.base_dropout, 0, 0.99)
        check_range("text.max_tokens", self.max_tokens, 2, 131_072)
        check_range("text.prefix_length", self.prefix_length, 1, 1024)
        for name, modules in (("lora_targets", self.lora_targets), ("ia3_targets", self.ia3_targets)):
            if modules is not None and not all(modules or ("",)):
                raise ConfigError(f"text.{name} names no layer; name at least one, or leave it out for the default")
        if self.depth is not None:
            check_range("text.depth", self.depth, 1, 1024)
        check_range("text.frozen_layers", self.frozen_layers, 0, 1024)
        if not self.pooled_layers:
            raise ConfigError("text.pooled_layers=[] names no layer; give at least one, such as -1 for the last")
        if self.pooling == "mean-padded" and self.packing == "padded":
            raise ConfigError(
                "text.pooling=mean-padded includes the padding up to the longest text of a batch, and "
                "text.packing=padded adds more; leave text.packing out"
            )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Joint embedding space and contrastive loss."""

    name: Literal["info_nce", "label_aware_nce", "soft_overlap_nce", "sigmoid"] = setting(
        "info_nce", used_with={"method": ("cleft", "clip")}
    )
    """Loss of the methods `cleft` and `clip`; the other methods have their own. `info_nce`: Eq. 1 of the paper, equal
    captions count as negatives. `label_aware_nce`: equal captions are positives. `soft_overlap_nce`: soft targets by
    the overlap of positive findings. `sigmoid`: binary classification of every image-caption pair (SigLIP, which uses
    `temperature: 0.1`)."""
    embed_dim: int = 512
    """Dimension of the joint embedding space."""
    projection: Literal["linear", "linear-no-bias", "mlp", "mlp-norm", "mlp-gelu", "to-text"] = "linear"
    """Projection heads from both encoders into the joint space. `linear`; `linear-no-bias` (MedCLIP, OpenAI CLIP).
    `mlp`: two layers with ReLU (ConVIRT). `mlp-norm`: two layers with batch norm (MGCA, the authors' CLIP). `mlp-gelu`:
    two layers with GELU, no bias (texts of BiomedCLIP). `to-text`: a linear layer from images into the text feature
    space (GLoRIA); `embed_dim` must be its width."""
    text_projection: Literal["same", "linear", "linear-no-bias", "mlp", "mlp-norm", "mlp-gelu"] = "same"
    """Projection head of texts if it differs from `projection`: BiomedCLIP has `linear-no-bias` for images and
    `mlp-gelu` for texts."""
    hidden_dim: int | None = setting(
        None,
        used_with=dict.fromkeys(("loss.projection", "loss.text_projection"), ("mlp", "mlp-norm", "mlp-gelu")),
        formerly="loss.hidden_width",
    )
    """Hidden width of two-layer projection heads; by default that of the encoder. 2048 in MGCA."""
    temperature: float = 0.07
    """Initial value of the learnable temperature."""
    train_temperature: bool = True
    """Train the temperature. It is fixed in ConVIRT (0.1) and MGCA (0.07)."""
    max_logit_scale: float = 100.0
    """Upper limit of the inverse temperature; the lower one is 1."""
    bias: float = setting(-10.0, used_with={"loss.name": ("sigmoid",)})
    """Initial value of the learnable bias of `sigmoid`; negative because most pairs of a batch do not match."""

    def __post_init__(self) -> None:
        check_range("loss.embed_dim", self.embed_dim, 1, 10**9)
        if self.hidden_dim is not None:
            check_range("loss.hidden_dim", self.hidden_dim, 1, 10**9)
        if self.projection == "to-text" and self.text_projection != "same":
            raise ConfigError(
                f"loss.projection=to-text keeps texts in the feature space of their encoder, but "
                f"loss.text_projection={self.text_projection} projects them out of it; leave one of them out"
            )


@dataclass(frozen=True, kw_only=True)
class ConvirtConfig:
    """ConVIRT's loss, for `method: convirt`."""

    image_to_text: float = 0.75
    """Weight of the image-to-text direction; text-to-image has the rest."""

    def __post_init__(self) -> None:
        check_range("convirt.image_to_text", self.image_to_text, 0, 1)


@dataclass(frozen=True, kw_only=True)
class MedclipConfig:
    """MedCLIP's loss, for `method: medclip`."""

    similarity: Literal["dot", "cosine"] = "dot"
    """Similarity of the findings of an image and a text: dot product as in the released code, or cosine as in the
    paper."""


@dataclass(frozen=True, kw_only=True)
class GloriaConfig:
    """GLoRIA's loss, for `method: gloria`."""

    global_weight: float = 1.0
    """Weight of the global loss (image and text)."""
    local_weight: float = 1.0
    """Weight of the local loss (image regions and words)."""


@dataclass(frozen=True, kw_only=True)
class MgcaConfig:
    """MGCA's loss, for `method: mgca`."""

    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weights of the instance, token and prototype losses. The released command uses these, the defaults of the
    released class are 1, 0.7 and 0.5."""
    prototypes: int = 500
    """Number of prototypes."""
    frozen_steps: int = setting(0, formerly="mgca.still_steps")
    """Steps for which the prototypes are frozen; an epoch in the released code."""
    padding: Literal["masked", "released"] = "masked"
    """Padding tokens. `released`: padding up to `text.max_tokens` is projected, enters the batch-norm statistics, and
    serves as negatives of words."""
    word_weights: Literal["aligned", "released"] = setting("aligned", old_values={"shifted": "released"})
    """Weights of words. `released`: each word has the weight of the next one, a bug of the released code."""

    def __post_init__(self) -> None:
        check_range("mgca.prototypes", self.prototypes, 1, 10**6)
        check_range("mgca.frozen_steps", self.frozen_steps, 0, 10**9)


@dataclass(frozen=True, kw_only=True)
class MrmConfig:
    """MRM's decoders and loss, for `method: mrm`."""

    mask_ratio: float = 0.75
    """Share of the patches that are masked."""
    text_mask_ratio: float = setting(0.5, formerly="mrm.word_ratio")
    """Probability that a word is masked."""
    decoder_blocks: int = 4
    """Transformer blocks of the image decoder."""
    decoder_dim: int | None = setting(None, formerly="mrm.decoder_width")
    """Width of the image decoder, a multiple of 4; by default that of the image encoder."""
    decoder_positions: Literal["standard", "released"] = setting("standard", old_values={"slipped": "released"})
    """As `image.decoder_positions`."""
    text_loss: Literal["masked", "all"] = setting("masked", formerly="mrm.score")
    """Tokens of a report in the loss: the masked ones, as in the paper, or every position up to `text.max_tokens`
    including padding, as in the released code."""
    normalise_patches: bool = setting(True, formerly="mrm.standardise")
    """Standardise each target patch to mean 0 and standard deviation 1."""
    weights: tuple[float, float] = (1.0, 1.0)
    """Weights of the image loss and the text loss."""

    def __post_init__(self) -> None:
        check_range("mrm.mask_ratio", self.mask_ratio, 0.01, 0.99)
        check_range("mrm.text_mask_ratio", self.text_mask_ratio, 0.01, 1)
        check_range("mrm.decoder_blocks", self.decoder_blocks, 1, 64)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and learning-rate schedule (paper, section 3.3)."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimiser."""
    lr: float = 4e-5
    """Peak learning rate, after warm-up."""
    weight_decay: float = 0.2
    """Weight decay; not applied to biases, norms and the temperature."""
    betas: tuple[float, float] = setting((0.9, 0.999), used_with={".name": ("adamw",)})
    """Betas of AdamW."""
    momentum: float = setting(0.9, used_with={".name": ("sgd",)})
    """Momentum of SGD."""
    steps: int = 40_000
    """Optimiser steps."""
    warmup_steps: int = 4_000
    """Steps of linear warm-up from zero, followed by cosine decay to `min_lr`."""
    min_lr: float = 0.0
    """Learning rate at the end."""
    clip_norm: float | None = None
    """Gradient clipping: largest norm of all gradients together."""

    def __post_init__(self) -> None:
        check_range("optim.steps", self.steps, 1, 10**9)
        check_range("optim.warmup_steps", self.warmup_steps, 0, 10**9)
        if not self.lr > 0:
            raise ConfigError(f"optim.lr={self.lr} must be above zero")
        if self.warmup_steps >= self.steps:
            raise ConfigError(
                f"optim.warmup_steps={self.warmup_steps} leaves no step to decay in: "
                f"optim.steps={self.steps}; lower the first or raise the second"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training of stage one: batches, devices, intervals."""

    batch_size: int = 72
    """Image-caption pairs of a step, over all devices."""
    unique_in_batch: Literal["none", "patients", "captions"] = setting(
        "none", formerly="train.distinct", old_values={"nothing": "none"}
    )
    """Avoid two images of a patient, or two with the same caption, in a batch where possible. Every image still occurs
    once in an epoch."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = setting("32-true", changes="rounding")
    """Floating-point precision; trained weights are kept in float32 in every case."""
    accelerator: Literal["auto", "cpu", "gpu"] = setting("auto", changes="rounding")
    """Device; `auto` is a GPU if there is one."""
    devices: int | Literal["auto"] = setting(
        "auto", changes=()
    )  # environment.json has the processes, which are compared
    """GPUs, or processes on a CPU, per machine. `auto`: as many as the launcher (torchrun, srun, mpirun) started, or
    one."""
    nodes: int | Literal["auto"] = setting("auto", changes=())
    """Machines. `auto`: as many as the launcher started processes on, or one."""
    strategy: Literal["auto", "ddp", "fsdp"] = setting("auto", changes="rounding")
    """Parallel training on several devices. `ddp`: each holds the complete model. `fsdp`: weights are sharded over
    GPUs; experimental. `auto`: `ddp`."""
    timeout: int = setting(1800, changes=())
    """Seconds after which a process that waits for the others stops."""
    patience: int | None = None
    """Early stopping: number of successive validations without a lower validation loss after which training ends; by
    default, and for 0, never."""
    val_every: int = 500
    """Steps between two validations."""
    save_every: int = setting(500, changes=())
    """Steps between two training states on disk."""
    log_every: int = setting(10, changes=())
    """Steps between two lines of the log."""

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConfigError(
                f"train.batch_size={self.batch_size}: a contrastive loss needs at least 2 pairs; set it to 2 or more"
            )
        for name in ("devices", "nodes", "timeout", "val_every", "save_every", "log_every"):
            value = getattr(self, name)
            if value != "auto":
                check_range(f"train.{name}", value, 1, 10**9)
        if self.patience is not None:
            check_range("train.patience", self.patience, 0, 10**9)


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Stage two: prompt context learned with both encoders frozen (paper, section 2.2)."""

    length: int = 30
    """Learned vectors before the class name, shared by all classes. Figure 3 of the paper varies it."""
    init: Literal["prompt", "random"] = setting("prompt", old_values={"opening": "prompt"})
    """Initialisation. `prompt`: token embeddings of `data.prompt_prefix`, preceded by random vectors. `random`: random
    vectors."""
    batch_size: int = 36
    """Images of a step."""
    multi_label: Literal["drop", "soft"] = setting("drop", formerly="context.several_positives")
    """Images with more than one of the classes: leave them out, or use equal soft targets."""
    optim: OptimConfig = group(
        lambda: OptimConfig(name="sgd", lr=1e-3, weight_decay=0.0, steps=4_000, warmup_steps=1_000)
    )
    val_every: int = 100
    """Steps between two validations."""

    def __post_init__(self) -> None:
        check_range("context.length", self.length, 1, 1024)
        check_range("context.batch_size", self.batch_size, 1, 10**9)


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Supervised classification: linear probe of the image encoder, or fine-tuning (paper, section 3.3).

    Defaults that are null depend on mode and protocol; `config.yaml` of the run holds the values used.
    """

    mode: Literal["linear-probe", "fine-tune"] = "linear-probe"
    """Train a linear classifier on the frozen image encoder (`linear-probe`), or both (`fine-tune`)."""
    protocol: Literal["standard", "paper"] = setting("standard", old_values={"usual": "standard"})
    """Training protocol. `standard`: a linear probe is fitted by L-BFGS with its regularisation selected on the
    validation images; fine-tuning uses layer-wise learning-rate decay and keeps the best weights. `paper`: 8,000 steps
    with batches of 36, learning rate 5e-4 and weight decay 1e-3; keeps the last weights."""
    fraction: float = 1.0
    """Share of the training patients to train on. Validation and test images stay the same."""
    scoring: Literal["multi-class", "present-absent"] = "multi-class"
    """Kind of classification. `multi-class`: one of the classes, trained on images with exactly one of them.
    `present-absent`: a binary label for each finding, trained on every image whose label is known."""
    blank: Literal["unknown", "absent"] = "unknown"
    """Value of missing labels for `present-absent`."""
    select_by: Literal["loss", "auc", "last"] | None = setting(None, formerly="classify.choose")
    """Weights or regularisation to keep: those with the lowest validation cross-entropy (`loss`), the highest
    validation AUC (`auc`), or the last weights. By default `loss`, and `last` in the paper's protocol."""
    batch_size: int | None = None
    """Images of a step, by default 36; at most the number of training images."""
    steps: int | None = None
    """Optimiser steps; by default 2,000, and 8,000 in the paper's protocol."""
    warmup_steps: int | None = None
    """Steps of linear warm-up, followed by cosine decay; by default a tenth of all steps."""
    lr: float | None = None
    """Peak learning rate of AdamW; by default 2e-4, and 5e-4 in the paper's protocol."""
    weight_decay: float | None = None
    """Weight decay; by default 0.05, and 1e-3 in the paper's protocol."""
    layer_decay: float | None = None
    """Layer-wise learning-rate decay: ratio of the learning rate of a block to that of the block above; by default
    0.75, and 1 in the paper's protocol."""
    augment: bool | None = None
    """Use the image augmentation of stage one; by default only in fine-tuning. A probe without it encodes each image
    once."""
    logits: Literal["plain", "unit"] = "plain"
    """Logits in the loss. `unit`: divide the logits of an image by their norm, as in the authors' CLIP; with five
    classes the cross-entropy is then at least 0.836. Not for probes fitted by L-BFGS."""
    val_every: int = 100
    """Steps between two validations."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = setting("auto", changes="rounding")
    """Precision of fine-tuning. `auto`: `bf16-mixed` if the device supports it, otherwise `32-true`."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"classify.fraction={self.fraction} must be above 0 and at most 1")
        if self.logits == "unit" and self.scoring == "present-absent":
            raise ConfigError(
                "classify.logits=unit normalises the logits of an image together, and classify.scoring=present-absent "
                "needs them to be independent; leave one of them out"
            )
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"classify.lr={self.lr} must be above zero")
        for name, low, high in _CLASSIFY_RANGES:
            value = getattr(self, name)
            if value is not None:
                check_range(f"classify.{name}", value, low, high)


_CLASSIFY_RANGES = (
    ("batch_size", 1, 10**6),
    ("steps", 1, 10**9),
    ("warmup_steps", 0, 10**9),
    ("weight_decay", 0, 10**6),
    ("layer_decay", 0.01, 1),
    ("val_every", 1, 10**9),
)

_TRAINED: dict[str, tuple[Any, ...]] = {
    "method": ("cleft", "clip", "convirt", "medclip", "gloria", "mgca", "mrm"),
}
"""All methods but `image-only`."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings that determine a run."""

    method: Literal["cleft", "image-only", "clip", "convirt", "medclip", "gloria", "mgca", "mrm"] = setting(
        "cleft", changes=("pretrain",)
    )
    """Pretraining method; other settings say which encoders. `cleft`, `clip`: contrastive loss of images and captions.
    `convirt`: the same with its own weighting. `medclip`: targets by common findings. `gloria`: also image regions and
    words. `mgca`: also prototypes. `mrm`: masked modelling of image and report (no zero-shot classification). Each has
    a preset, `baseline-<method>`. `image-only`: no pretraining; a random or published image encoder for linear probes
    and fine-tuning."""
    seed: int = setting(0, changes=ALL_STAGES)
    """Random seed of initial weights, order of images and augmentation."""
    classes: tuple[str, ...] = setting(("chexpert-5",), changes=("context", "classify"))
    """Classes of stage two and zero-shot classification: name of a set, or findings."""
    class_names: str = setting("default", changes=("context",), formerly="wording")
    """Class names in prompts: `default`; `released`, those of the authors' code, with "pneumothorax" for RSNA's
    pneumonia; `gloria`, five prompts for each of CheXpert's five classes, of which the most similar counts (not for
    stage two); or a YAML file of class: name."""
    data: DataConfig = group(DataConfig, changes=ALL_STAGES)
    images: ImagesConfig = group(ImagesConfig, changes=ALL_STAGES)
    image: ImageTowerConfig = group(ImageTowerConfig, changes=("pretrain",))
    text: TextTowerConfig = group(TextTowerConfig, changes=("pretrain",), used_with=_TRAINED)
    loss: LossConfig = group(LossConfig, changes=("pretrain",), used_with=_TRAINED)
    convirt: ConvirtConfig = group(ConvirtConfig, changes=("pretrain",), used_with={"method": ("convirt",)})
    medclip: MedclipConfig = group(MedclipConfig, changes=("pretrain",), used_with={"method": ("medclip",)})
    gloria: GloriaConfig = group(GloriaConfig, changes=("pretrain",), used_with={"method": ("gloria",)})
    mgca: MgcaConfig = group(MgcaConfig, changes=("pretrain",), used_with={"method": ("mgca",)})
    mrm: MrmConfig = group(MrmConfig, changes=("pretrain",), used_with={"method": ("mrm",)})
    optim: OptimConfig = group(OptimConfig, changes=("pretrain",), used_with=_TRAINED)
    train: TrainConfig = group(TrainConfig, changes=("pretrain",))
    context: ContextConfig = group(ContextConfig, changes=("context",), used_with=_TRAINED)
    classify: ClassifyConfig = group(ClassifyConfig, changes=("classify",))

    def __post_init__(self) -> None:
        if self.data.dataset == "embed" and self.data.caption != "simple" and self.images.augment.horizontal_flip > 0:
            raise ConfigError(
                f"images.augment.horizontal_flip={self.images.augment.horizontal_flip} turns left breasts into right "
                f"ones, but captions with data.caption={self.data.caption} name the side; set the first to 0, or "
                f"data.caption=simple"
            )
        fewest = _FEWEST_WORDS.get(self.data.caption, 0)
        if self.data.dataset == "embed" and self.text.max_tokens <= fewest:
            raise ConfigError(
                f"text.max_tokens={self.text.max_tokens} truncates captions of data.caption={self.data.caption}, which "
                f"have at least {fewest} words and end with the BI-RADS score; set text.max_tokens=144"
            )


_FEWEST_WORDS = {"natural": 58, "structured": 70}
"""Words of the shortest caption of EMBED with all fields known."""


@functools.cache
def declared_settings() -> Mapping[str, Declaration]:
    """Returns the declaration of every setting by its dotted name."""
    return MappingProxyType({each.key: each for each in declarations(Settings())})


def setting_effect(key: str) -> Changes:
    """Returns the stages in which a change of a setting gives another result, or `rounding`.

    Raises:
        KeyError: If there is no such setting.
    """
    return declared_settings()[key].changes


def flat_settings(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Returns every setting of a group by its dotted name, e.g. `text.rank`."""
    flat: dict[str, Any] = {}
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        if dataclasses.is_dataclass(value):
            flat |= flat_settings(value, f"{prefix}{entry.name}.")
        else:
            flat[f"{prefix}{entry.name}"] = value
    return flat


def text_rule(settings: Settings) -> RuleName:
    """Returns the text rule of settings: `text.normalisation`, or where that is `auto` the one that fits the texts."""
    if settings.text.normalisation != "auto":
        return settings.text.normalisation
    texts = settings.data.texts
    return rule_for("captions" if texts == "bank" and settings.data.sentence_bank is None else texts)


def _check_source(encoder: str, model: str | None, scratch: Mapping[str, Any] | None) -> None:
    if (model is None) == (scratch is None):
        raise ConfigError(
            f"{encoder}.model={model!r} and {encoder}.scratch={scratch!r}: give exactly one; "
            f"set {encoder}.model=null to train a model from scratch"
        )
    if scratch is not None and "model_type" not in scratch:
        raise ConfigError(f"{encoder}.scratch={dict(scratch)!r} names no model_type, such as gpt2, vit or resnet")
