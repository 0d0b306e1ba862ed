"""The tree of settings: frozen dataclasses whose docstrings are the manual.

The YAML of a preset has the same tree and nothing more: no class paths, no environment variables, no
arithmetic. This module imports nothing heavy, so that `cleft --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cleft.errors import ConfigError
from cleft.text_rules import RuleName


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images and labels, and how they are told apart."""

    dataset: Literal["chexpert", "rsna", "embed", "nih", "mimic", "iu-xray", "manifest"] = "chexpert"
    """Which layout the folder has. `manifest` is your own table (`cleft data template` writes an example)."""
    root: Path | None = None
    """Folder that holds the unpacked download, or your own table and images."""
    table: str | None = None
    """Label table inside `root`; by default the dataset's own (`train.csv`, `manifest.csv`)."""
    labels: Literal["table", "chexbert", "visualchexbert", "negbio"] = "table"
    """Where CheXpert's labels come from: the table itself, or `train_cheXbert.csv` or `train_visualCheXbert.csv`, whose
    rows are matched by path. Images, projections, sex and age are the table's in every case. MIMIC-CXR's are those of
    CheXpert's labeller (`table`) or of NegBio's (`negbio`)."""
    views: tuple[str, ...] | None = None
    """Projections that are kept; by default AP and PA of CheXpert, NIH, MIMIC-CXR and IU X-ray, and all of every other
    dataset. A row whose projection is unknown stays."""
    opening: str | None = None
    """What every caption and class prompt begins with; by default the dataset's own, for your own table "this is a
    chest x ray of a patient with"."""
    uncertain: Literal["zeros", "ones", "mixed", "ignore"] = "zeros"
    """What a label of -1 counts as: absent; present; present for atelectasis, edema and pleural effusion and
    absent for cardiomegaly and consolidation; or not mentioned."""
    split: (
        Literal["patients", "5x200-strict", "5x200-paper", "5x200-images", "rsna-balanced", "embed", "given"] | None
    ) = None
    """How records are split; by default the dataset's own way: `rsna-balanced` for RSNA, `embed` for EMBED, `given` for
    NIH and MIMIC-CXR, `patients` otherwise. `patients`: by a hash of the patient. `5x200-strict`: CheXpert-5x200 is the
    test set and none of its patients stays in training. `5x200-paper`: only its images are removed, as the paper says.
    `5x200-images`: as before, and validation is drawn by image, so patients are shared. `rsna-balanced`: as many images
    with pneumonia as without on both sides, in the paper's sizes. `embed`: 70, 10 and 20 % of the patients. `given`: as
    official lists, or a column `split` of your table, say."""
    split_file: Path | None = None
    """A split as `cleft data split --out` wrote it, in place of `split` and its fractions."""
    test_list: Path | None = None
    """A list of images that are the test set, such as a published CheXpert-5x200: a table with a column `Path` and, as
    far as known, findings or a `class`; or one path a line. For `split: 5x200-…` and `patients`."""
    val_fraction: float = 0.05
    """Share of the images that remain after the test set, for choosing the best checkpoint."""
    test_fraction: float = 0.2
    """Share of the images held out for testing. Used by `split: patients` alone."""
    negatives: bool = False
    """Whether captions also name what was explicitly denied."""
    empty_caption: Literal["keep", "drop", "no-finding"] = "keep"
    """An image without any present finding: keep the bare opening, leave the image out, or say "no finding"."""
    caption: Literal["simple", "sided", "natural", "structured"] = "simple"
    """What EMBED's captions say. `simple`: density and BI-RADS. `sided`: side and view before them. `natural` and
    `structured`: a short report, in sentences or under headings; they need `text.max_tokens: 144`."""
    report: Literal["impression", "findings", "both", "as-written", "whole"] = "both"
    """What methods that read reports read of one. `both`: its impression, then its findings. `as-written`: these two in
    the order of the report. `whole`: every section. Where a report has neither, its last paragraph stands for them."""
    no_report: Literal["keep", "drop"] = "keep"
    """An image whose report is missing, or of fewer than two words: keep it, or leave it out. Methods that read reports
    leave it out in any case."""
    reports: Path | None = None
    """Where MIMIC-CXR's or IU X-ray's reports lie, if not in `root`: the folder of the text or XML files, or for
    MIMIC-CXR `mimic_cxr_sectioned.csv`."""
    texts: Literal["captions", "findings", "sentences", "whole", "gloria", "mgca", "medclip", "bank"] = "captions"
    """What stage one reads with an image. `captions`: its caption. `findings`: a short sentence about one of its
    findings, drawn anew each epoch. Of its report: `sentences`, one of them, drawn anew; `whole`, all of it; `gloria`,
    `mgca`, `medclip`: cut and cleaned as their released code does. `bank`: any sentence that shares a finding with it,
    as MedCLIP does; image and text then need not come from one table."""
    caption_templates: tuple[str, ...] = ()
    """Other wordings of a caption, for `texts: captions`: each a sentence with {} where the findings stand, such as "a
    radiograph that shows {}". One is drawn for each image and epoch; class prompts keep the opening, so let one of them
    be that. Captions that do not begin with the opening stay as they are. Two wordings of the same findings count as
    two captions. By default there is the opening alone."""
    bank: Path | None = None
    """Table of sentences with one column for each finding, for `texts: bank`; by default short sentences that name one
    finding each."""
    reword: bool = False
    """Whether each text is read a second time with words changed, as MedCLIP does; its loss alone uses it."""
    reduce: Literal["severity", "first", "highest"] = "severity"
    """Which of several findings speaks for a breast in EMBED. `severity`: the worst (in a screening exam BI-RADS 0
    comes before 3). `first`: the first in the table. `highest`: the highest score, but 0 before 1 and 2 where none is
    above 2."""
    mapping: Path | None = None
    """Which patient of NIH each image of RSNA shows: RSNA's `pneumonia-challenge-dataset-mappings_2018.json`, or a
    table with the columns `patientId` and `nih_patient`. Where it lies in `root` it is found by itself."""
    people: str | None = None
    """Whose patients the ids name, where several datasets show the same people: `nih` for images of ChestX-ray14 in
    another layout. Patients are recognised across datasets of the same people alone."""
    exclude: Path | None = None
    """Patients who stay out of every split, because they will be asked about elsewhere: a table with a column
    `patient`, `patient_id`, `Patient ID` or `nih_patient`."""
    max_bad: float = 0.01
    """Share of images that may be missing or unreadable before the run stops."""
    workers: int = 0
    """Processes that load batches, and before that decode what is not prepared yet; with 0 one decodes and none loads.
    Never changes a result."""
    timeout: int = 120
    """Seconds to wait for a batch of these processes before the run stops, e.g. where a network disk hangs."""
    cache: Path | None = None
    """Where prepared images are kept; by default `~/.cache/cleft`."""
    prepare: Literal["as-needed", "ahead"] = "as-needed"
    """What happens to images that are not prepared. `as-needed`: they are decoded before training or evaluation begins.
    `ahead`: the run is refused, naming what differs and the `cleft data prepare` to run first."""

    def __post_init__(self) -> None:
        _check_range("data.val_fraction", self.val_fraction, 0, 0.9)
        _check_range("data.test_fraction", self.test_fraction, 0, 0.9)
        _check_range("data.max_bad", self.max_bad, 0, 1)
        for template in self.caption_templates:
            if template.count("{}") != 1:
                raise ConfigError(
                    f"data.caption_templates holds {template!r}; write {{}} once, where the findings stand"
                )
        _check_range("data.timeout", self.timeout, 1, 10**6)
        _check_range("data.workers", self.workers, 0, 256)
        if self.mapping is not None and self.dataset != "rsna":
            raise ConfigError(f"data.mapping={self.mapping} is for data.dataset=rsna, not {self.dataset}; leave it out")
        owner = "mimic" if self.labels == "negbio" else "chexpert"
        if self.labels != "table" and self.dataset != owner:
            raise ConfigError(
                f"data.labels={self.labels} is for data.dataset={owner}, not {self.dataset}; leave it out"
            )
        if self.reports is not None and self.dataset not in ("mimic", "iu-xray"):
            raise ConfigError(
                f"data.reports={self.reports} is for data.dataset=mimic or iu-xray, not {self.dataset}; leave it out"
            )


def usual_split(dataset: str) -> str:
    """Returns how the records of a dataset are split where `data.split` is not set."""
    return _USUAL_SPLITS.get(dataset, "patients")


_USUAL_SPLITS = {"rsna": "rsna-balanced", "embed": "embed", "nih": "given", "mimic": "given"}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random views for training: the authors' recipe (released code), on gray pixels."""

    jitter: float = 0.4
    """Probability of a change of brightness and contrast."""
    brightness: float = 0.2
    """Factor drawn from [1 - this, 1 + this]."""
    contrast: float = 0.2
    """Factor drawn from [1 - this, 1 + this]."""
    blur: float = 0.4
    """Probability of a Gaussian blur, 7 x 7 pixels."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels."""
    degrees: float = 10.0
    """Rotation drawn from [-this, this]."""
    scale: tuple[float, float] = (0.8, 1.1)
    translate: float = 0.0625
    """Largest shift as a share of the image's side."""
    horizontal_flip: float = 0.0
    """Probability of mirroring. The authors use 0.5; it moves the heart to the other side."""


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """From files to pixels."""

    recipe: Literal["pad", "released"] = "pad"
    """`pad`: long side to `stored_size`, the rest black, shape kept. `released`: what the authors' code does after
    that too, an Otsu crop and a stretch to a square, which undoes the padding and distorts."""
    intensity: Literal["full-range", "min-max", "percentile"] = "min-max"
    """How more than 8 bits become 8: by the file's bit depth, its extremes, or its 0.5 and 99.5 percentiles. A DICOM
    file that declares a window or table is shown by that instead."""
    dicom: Literal["voi", "percentile", "released"] = "voi"
    """How a DICOM file's values become gray. `voi`: as the file declares, by its window or table; by `intensity` where
    it declares none. `percentile`: between its 0.5 and 99.5 percentiles. `released`: as the authors' code scales, by
    the largest value alone, whatever the file declares."""
    window: int = 0
    """Which window or table of a DICOM file that declares several; where it has fewer, its first."""
    frame: Literal["reject", "first", "middle"] = "reject"
    """Which picture of a DICOM file that holds several, as tomosynthesis does."""
    stored_size: int = 256
    """Side of a prepared image in pixels."""
    size: int = 224
    """Side of what a tower sees: a random crop in training, the centre otherwise."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if not 8 <= self.size <= self.stored_size:
            raise ConfigError(f"images.size={self.size} must lie between 8 and images.stored_size={self.stored_size}")
        _check_range("images.window", self.window, 0, 255)
        if any(value <= 0 for value in self.std):
            raise ConfigError(f"images.std={self.std} must be positive in every channel")


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """The vision model that reads images (paper, section 2.1)."""

    model: str | None = "facebook/dinov2-with-registers-base"
    """Hub name or folder of any Hugging Face vision model; null where `scratch` describes one."""
    scratch: Mapping[str, Any] | None = None
    """A configuration built with random weights in place of `model`: `model_type` and its own options."""
    random_weights: bool = False
    """Take only the configuration of `model`, not its weights."""
    pooling: Literal["mean-before-norm", "mean", "patches", "cls", "pooler"] = "mean-before-norm"
    """`mean-before-norm`: mean of all tokens before the last layer norm, as the paper's code. `mean`: after it.
    `patches`: mean without class and register tokens. `cls`: the class token. `pooler`: the model's own.
    `cleft classify` may take another than stage one did."""
    decoder_blocks: int = 0
    """Transformer blocks between the patches and their mean, which is then the feature in place of `pooling`: 2 in the
    authors' CLIP, left over from the masked autoencoder it was made of."""
    decoder_positions: Literal["standard", "slipped"] = "standard"
    """Frequencies of the positions in these blocks: as masked autoencoders have them, or with a quarter of the
    exponents, by a slip of the authors' code."""
    resize: int | None = None
    """Side to which the model brings its images before it reads them: GLoRIA's reads 224 pixels at 299, MRM's reads 448
    at 224 and paints them at 448. `cleft classify` may take another."""
    train: bool = True
    """Whether its weights move."""
    gradient_checkpointing: bool = False
    """Less memory, a third more work."""

    def __post_init__(self) -> None:
        _check_source("image", self.model, self.scratch)
        _check_range("image.decoder_blocks", self.decoder_blocks, 0, 64)
        if self.resize is not None:
            _check_range("image.resize", self.resize, 8, 4096)


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """The language model that reads captions (paper, section 2.1)."""

    model: str | None = "stanford-crfm/BioMedLM"
    """Hub name or folder of any causal or masked language model; null where `scratch` describes one."""
    scratch: Mapping[str, Any] | None = None
    """A configuration built with random weights in place of `model`: `model_type` and its own options. Its
    tokenizer is learned from the training captions."""
    random_weights: bool = False
    """Take only the configuration of `model`, not its weights."""
    adapt: Literal["lora", "ia3", "prefix", "full", "frozen"] = "lora"
    """Which weights may move. Table 1 compares `lora`, `ia3`, `prefix`; Table 3 the others."""
    rank: int = 8
    """Rank of the LoRA update. Used by `adapt: lora` alone."""
    alpha: int = 32
    """The LoRA update is scaled by alpha / rank."""
    dropout: float = 0.1
    """Dropout in front of the LoRA update."""
    lora_targets: tuple[str, ...] | None = None
    """Linear layers that get a LoRA update, by the end of their names, such as `q_proj,v_proj`; by default those PEFT
    lists for the family, or else the query and value projections. Used by `adapt: lora` alone."""
    ia3_targets: tuple[str, ...] | None = None
    """Linear layers that IA3 scales; by default those PEFT lists for the family, or else the key and value projections
    and the last layer of each feed-forward block. Used by `adapt: ia3` alone."""
    ia3_feedforward: tuple[str, ...] | None = None
    """Those of `ia3_targets` whose input is scaled in place of their output; by default the last layer of each
    feed-forward block. Used by `adapt: ia3` alone."""
    prefix_length: int = 20
    """Virtual tokens of `adapt: prefix`."""
    train_embeddings: bool = True
    """Whether the token embedding moves too, as section 2.1 describes; only the tokens that occur are stored."""
    base_dropout: float = 0.0
    """Dropout of the language model itself. With the prefix tree one draw is shared by all captions of a node."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """How frozen weights are held. Trained weights are always float32. With `bfloat16` they need half the memory, and
    features differ slightly from those of `bf16-mixed` with float32 weights, which the paper trained with."""
    depth: int | None = None
    """Blocks of the language model that are kept, counted from below; by default all. The authors' CLIP and MGCA keep 6
    of 12."""
    frozen_layers: int = 0
    """Blocks, counted from below, that stand still together with the embeddings under them: 6 in ConVIRT's paper. Used
    by `adapt: full` alone."""
    positions: Literal["counted", "zero"] = "counted"
    """`zero`: every token has position 0, so that a masked model knows no order of words; what the authors' CLIP and
    MGCA do by a slip of their code."""
    layers: tuple[int, ...] = (-1,)
    """Layers whose states are averaged before pooling: 0 is the embedding, -1 the last. MedCLIP takes 1, 2 and -1,
    GLoRIA the last four."""
    pooling: Literal["auto", "end-token", "mean", "mean-padded", "max", "cls", "pooler"] = "auto"
    """`end-token`: state of the first end-of-text token (`auto` for causal models). `mean`: of the visible tokens
    (`auto` for masked models). `mean-padded`: the same with padding counted in, up to the longest text of the batch, as
    MedCLIP's release; a text then depends on its companions. `max`: largest value of the visible tokens. `cls`: the
    first token. `pooler`: the model's own."""
    end_token_attends_itself: bool = False
    """The authors mask the end-of-text token as padding: it reads the caption but not itself."""
    max_tokens: int = 64
    """Longest text in tokens, its end-of-text token included; what is longer is cut before that token."""
    normalisation: Literal["auto"] | RuleName = "auto"
    """How every text is normalised before it is tokenised, from tables, the command line and Python alike. `words`:
    small letters, words and numbers alone, as captions are written. `release`: the cleaning of the releases of CLEFT,
    GLoRIA and MGCA, ASCII alone. `lower`: small letters, punctuation kept. `nfc`: as it is, but for white space. The
    number is the rule's version. `auto`: what fits `data.texts`; it is saved with the model."""
    packing: Literal["auto", "tree", "distinct", "padded"] = "auto"
    """How a batch of texts is computed: shared beginnings once (causal models), equal texts once, or every text
    padded. Changes speed, never values. `auto` takes the fastest that is exact."""
    graphs: bool = True
    """Whether a graphics card plays trees back from CUDA graphs, recorded once for every 32 nodes more: a tree is so
    little work that the card would wait for Python. Values stay; set it to false where recording fails."""
    gradient_checkpointing: bool = False
    """Less memory, a third more work. Not worth it with the prefix tree."""

    def __post_init__(self) -> None:
        _check_source("text", self.model, self.scratch)
        _check_range("text.rank", self.rank, 1, 4096)
        _check_range("text.dropout", self.dropout, 0, 0.99)
        _check_range("text.base_dropout", self.base_dropout, 0, 0.99)
        _check_range("text.max_tokens", self.max_tokens, 2, 131_072)
        _check_range("text.prefix_length", self.prefix_length, 1, 1024)
        for name, modules in (("lora_targets", self.lora_targets), ("ia3_targets", self.ia3_targets)):
            if modules is not None and not all(modules or ("",)):
                raise ConfigError(f"text.{name} names no layer; name at least one, or leave it out for the default")
        if self.depth is not None:
            _check_range("text.depth", self.depth, 1, 1024)
        _check_range("text.frozen_layers", self.frozen_layers, 0, 1024)
        if not self.layers:
            raise ConfigError("text.layers=[] names no layer; give at least one, such as -1 for the last")
        if self.pooling == "mean-padded" and self.packing == "padded":
            raise ConfigError(
                "text.pooling=mean-padded counts padding up to the longest text of a batch, and text.packing=padded "
                "adds more; leave text.packing out"
            )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The joint space, and what pulls images to captions in it."""

    name: Literal["info_nce", "label_aware_nce", "soft_overlap_nce", "sigmoid"] = "info_nce"
    """What training minimises. `info_nce`: Eq. 1; equal captions count as negatives. `label_aware_nce`: equal captions
    are positives. `soft_overlap_nce`: targets grow with the overlap of the positive findings. `sigmoid`: every pair of
    an image and a caption is a binary classification of its own (SigLIP, which begins at `temperature: 0.1`). Used by
    the methods `cleft` and `clip`; the others have a loss of their own."""
    embed_dim: int = 512
    """Width of the joint space."""
    projection: Literal["linear", "linear-no-bias", "mlp", "mlp-norm", "mlp-gelu", "to-text"] = "linear"
    """What leads from each tower into the joint space. `linear`, or `linear-no-bias` (MedCLIP, OpenAI's CLIP): one
    layer. `mlp` (ConVIRT): two with a ReLU between. `mlp-norm` (MGCA, the authors' CLIP): two, a batch norm behind
    each. `mlp-gelu` (BiomedCLIP, for texts): two without bias and a GELU between. `to-text` (GLoRIA): one layer for
    images into the space of the text tower, which `embed_dim` must be as wide as."""
    text_projection: Literal["same", "linear", "linear-no-bias", "mlp", "mlp-norm", "mlp-gelu"] = "same"
    """What leads from the text tower, where it is not the `same` as `projection`: BiomedCLIP has `linear-no-bias` for
    images and `mlp-gelu` for texts."""
    hidden_width: int | None = None
    """Width between the two layers of `mlp`, `mlp-norm` and `mlp-gelu`; by default that of the tower. MGCA has 2048."""
    temperature: float = 0.07
    """Where the learnable temperature starts."""
    train_temperature: bool = True
    """Whether it moves. ConVIRT's (0.1) and MGCA's (0.07) do not."""
    max_logit_scale: float = 100.0
    """The inverse temperature is kept in [1, this]."""
    bias: float = -10.0
    """Where the learnable bias of `sigmoid` starts: most pairs of a batch do not belong together."""

    def __post_init__(self) -> None:
        _check_range("loss.embed_dim", self.embed_dim, 1, 10**9)
        if self.hidden_width is not None:
            _check_range("loss.hidden_width", self.hidden_width, 1, 10**9)
        if self.projection == "to-text" and self.text_projection != "same":
            raise ConfigError(
                f"loss.projection=to-text leaves texts in the space of their tower, but loss.text_projection="
                f"{self.text_projection} leads them out of it; leave one of them out"
            )


@dataclass(frozen=True, kw_only=True)
class ConvirtConfig:
    """ConVIRT's loss. Used by `method: convirt` alone."""

    image_to_text: float = 0.75
    """Share of the direction from image to text; the other has the rest."""

    def __post_init__(self) -> None:
        _check_range("convirt.image_to_text", self.image_to_text, 0, 1)


@dataclass(frozen=True, kw_only=True)
class MedclipConfig:
    """MedCLIP's loss. Used by `method: medclip` alone."""

    similarity: Literal["dot", "cosine"] = "dot"
    """What an image and a text have in common: their findings counted, as the released code, or divided by the lengths
    of both, as the paper."""


@dataclass(frozen=True, kw_only=True)
class GloriaConfig:
    """GLoRIA's loss. Used by `method: gloria` alone."""

    global_weight: float = 1.0
    """Of whole images against whole texts."""
    local_weight: float = 1.0
    """Of regions against words."""


@dataclass(frozen=True, kw_only=True)
class MgcaConfig:
    """MGCA's loss. Used by `method: mgca` alone."""

    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of whole pairs, of words and regions, and of prototypes. The released command has these, the released class by
    itself 1, 0.7 and 0.5."""
    prototypes: int = 500
    """Vectors that stand for groups of pairs."""
    still_steps: int = 0
    """Steps for which prototypes do not move; the released code waits an epoch."""
    padding: Literal["masked", "released"] = "masked"
    """`released`: padding up to `text.max_tokens` is projected, enters the norms' statistics, and is what words are
    told from too."""
    word_weights: Literal["aligned", "shifted"] = "aligned"
    """`shifted`: each word weighs what the next one should, by a slip of the released code."""

    def __post_init__(self) -> None:
        _check_range("mgca.prototypes", self.prototypes, 1, 10**6)
        _check_range("mgca.still_steps", self.still_steps, 0, 10**9)


@dataclass(frozen=True, kw_only=True)
class MrmConfig:
    """MRM's decoders and loss. Used by `method: mrm` alone."""

    mask_ratio: float = 0.75
    """Share of the patches that are hidden."""
    word_ratio: float = 0.5
    """Probability with which a word is hidden."""
    decoder_blocks: int = 4
    """Of the decoder that paints."""
    decoder_width: int | None = None
    """Its width; by default that of the image tower. A multiple of 4."""
    decoder_positions: Literal["standard", "slipped"] = "standard"
    """As `image.decoder_positions`."""
    score: Literal["masked", "all"] = "masked"
    """Which tokens of a report count: those that were hidden, as the paper says, or every position up to
    `text.max_tokens`, padding too, as the released code does."""
    standardise: bool = True
    """Whether each patch is brought to mean 0 and deviation 1 before it is compared."""
    weights: tuple[float, float] = (1.0, 1.0)
    """Of the image and of the report."""

    def __post_init__(self) -> None:
        _check_range("mrm.mask_ratio", self.mask_ratio, 0.01, 0.99)
        _check_range("mrm.word_ratio", self.word_ratio, 0.01, 1)
        _check_range("mrm.decoder_blocks", self.decoder_blocks, 1, 64)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and learning-rate schedule (paper, section 3.3)."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 4e-5
    """Peak learning rate, reached after warm-up."""
    weight_decay: float = 0.2
    """Not applied to biases, norms and the temperature."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Used by `adamw` alone."""
    momentum: float = 0.9
    """Used by `sgd` alone."""
    steps: int = 40_000
    """Optimiser steps."""
    warmup_steps: int = 4_000
    """Steps of linear warm-up from zero; a half cosine down to `min_lr` follows."""
    min_lr: float = 0.0
    """Where the learning rate ends."""
    clip_norm: float | None = None
    """Largest norm of all gradients together."""

    def __post_init__(self) -> None:
        _check_range("optim.steps", self.steps, 1, 10**9)
        _check_range("optim.warmup_steps", self.warmup_steps, 0, 10**9)
        if not self.lr > 0:
            raise ConfigError(f"optim.lr={self.lr} must be above zero")
        if self.warmup_steps >= self.steps:
            raise ConfigError(
                f"optim.warmup_steps={self.warmup_steps} leaves no step to decay in: "
                f"optim.steps={self.steps}; lower the first or raise the second"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How stage one is run: batches, devices, intervals."""

    batch_size: int = 72
    """Image-caption pairs of one step, over all devices together."""
    distinct: Literal["nothing", "patients", "captions"] = "nothing"
    """What a batch holds once where that is possible: no two images of a patient, or no two of a caption. Every image
    still comes once an epoch."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Trained weights keep float32 masters in every case."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """What computes; `auto` is a graphics card where there is one."""
    devices: int | Literal["auto"] = "auto"
    """Cards, or on a CPU processes, per machine. `auto`: as many as the launcher (torchrun, srun, mpirun) started, or
    one without a launcher."""
    nodes: int | Literal["auto"] = "auto"
    """Machines. `auto`: as many as the launcher started processes on, or one without a launcher."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices work together. `ddp`: each holds the whole model. `fsdp`: weights are shared out over cards;
    experimental. `auto`: `ddp` for several devices."""
    timeout: int = 1800
    """Seconds after which a process that waits for the others gives up."""
    patience: int | None = None
    """Validations in a row without a lower validation loss after which training stops early; by default, and for 0, it
    never does."""
    val_every: int = 500
    """Steps between two looks at the validation loss."""
    save_every: int = 500
    """Steps between two training states on disk."""
    log_every: int = 10
    """Steps between two lines of the log."""

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConfigError(
                f"train.batch_size={self.batch_size}: images are told apart, which needs at least 2 pairs; set it to 2 "
                f"or more"
            )
        for name in ("devices", "nodes", "timeout", "val_every", "save_every", "log_every"):
            value = getattr(self, name)
            if value != "auto":
                _check_range(f"train.{name}", value, 1, 10**9)
        if self.patience is not None:
            _check_range("train.patience", self.patience, 0, 10**9)


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Stage two: a prompt context learned with both towers frozen (paper, section 2.2)."""

    length: int = 30
    """Learned vectors in front of the class name, shared by all classes. Figure 3 varies it."""
    init: Literal["opening", "random"] = "opening"
    """Start from the handwritten opening's token embeddings, further vectors random in front; or all random."""
    batch_size: int = 36
    several_positives: Literal["drop", "soft"] = "drop"
    """Images with several of the classes present: left out, or kept with their target shared out equally."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="sgd", lr=1e-3, weight_decay=0.0, steps=4_000, warmup_steps=1_000)
    )
    val_every: int = 100
    """Steps between two looks at the validation loss."""

    def __post_init__(self) -> None:
        _check_range("context.length", self.length, 1, 1024)
        _check_range("context.batch_size", self.batch_size, 1, 10**9)


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Telling classes apart by labels: a linear probe of the image tower, or all of it fine-tuned (paper, section 3.3).

    What is null follows from mode and protocol; a run keeps what it became.
    """

    mode: Literal["linear-probe", "fine-tune"] = "linear-probe"
    """`linear-probe`: the image tower stands still under a linear head. `fine-tune`: both move."""
    protocol: Literal["usual", "paper"] = "usual"
    """`paper`: batches of 36, a rate of 5e-4, 8,000 steps, weight decay 1e-3, the last weights. `usual`: a probe is
    solved exactly, its regularisation chosen by validation; fine-tuning moves lower layers less and keeps the best."""
    fraction: float = 1.0
    """Share of the training patients that is learned from. Validation and test stay whole."""
    scoring: Literal["multi-class", "present-absent"] = "multi-class"
    """`multi-class`: which one of the classes, learned from images that show exactly one. `present-absent`: whether
    each finding is there, learned from every image where that is known."""
    blank: Literal["unknown", "absent"] = "unknown"
    """For `present-absent`: whether a finding nobody mentioned is not known, or absent."""
    choose: Literal["loss", "auc", "last"] | None = None
    """Which weights or which regularisation is kept: that of the lowest validation cross-entropy, of the highest
    validation AUC, or the last weights. By default `loss`; `last` in the paper's protocol."""
    batch_size: int | None = None
    """Images of one step; by default 36. Fewer training images than that are one batch."""
    steps: int | None = None
    """Optimiser steps; by default 8,000 in the paper's protocol, 2,000 in the usual one."""
    warmup_steps: int | None = None
    """Steps of linear warm-up, in front of half a cosine; by default a tenth of all steps."""
    lr: float | None = None
    """Peak learning rate of AdamW; by default 5e-4 in the paper's protocol, 2e-4 in the usual one."""
    weight_decay: float | None = None
    """By default 1e-3 in the paper's protocol, 0.05 in the usual one."""
    layer_decay: float | None = None
    """Each block below the head learns at this share of the rate of the block above; by default 0.75 in usual
    fine-tuning and 1 in the paper's."""
    augment: bool | None = None
    """Whether training sees the random views of stage one; by default in fine-tuning alone. A probe without them reads
    each image once."""
    logits: Literal["plain", "unit"] = "plain"
    """`unit`: the logits of an image are divided by their length, as in the authors' CLIP; of five classes the loss
    cannot fall below 0.836 then. For heads that are trained in steps."""
    val_every: int = 100
    """Steps between two looks at the validation images."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """Of fine-tuning; `auto` is `bf16-mixed` where the device computes in it, otherwise `32-true`."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"classify.fraction={self.fraction} must lie above 0 and not above 1")
        if self.logits == "unit" and self.scoring == "present-absent":
            raise ConfigError(
                "classify.logits=unit ties the logits of an image to each other, and classify.scoring=present-absent "
                "asks each by itself; leave one of them out"
            )
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"classify.lr={self.lr} must be above zero")
        for name, low, high in _CLASSIFY_RANGES:
            value = getattr(self, name)
            if value is not None:
                _check_range(f"classify.{name}", value, low, high)


_CLASSIFY_RANGES = (
    ("batch_size", 1, 10**9),
    ("steps", 1, 10**9),
    ("warmup_steps", 0, 10**9),
    ("weight_decay", 0, 10**6),
    ("layer_decay", 0.01, 1),
    ("val_every", 1, 10**9),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a run."""

    method: Literal["cleft", "image-only", "clip", "convirt", "medclip", "gloria", "mgca", "mrm"] = "cleft"
    """What is trained before classification, and by which loss; which towers, the other settings say. `cleft`, `clip`:
    both towers, pulled together by captions. `convirt`: the same, by its own weights. `medclip`: as far as findings
    agree. `gloria`: regions and words too. `mgca`: these and prototypes. `mrm`: what is hidden of image and text is
    restored; no zero-shot classification follows. Each has a preset, `baseline-<method>`. `image-only`: nothing; the
    image tower stays as it is, random or as it was published, for linear probes and fine-tuning to start from."""
    seed: int = 0
    """Random seed of the initial weights, the order of images and their augmentation."""
    classes: tuple[str, ...] = ("chexpert-5",)
    """Classes that stage two and zero-shot classification tell apart: the name of a set, or findings."""
    wording: str = "default"
    """Which words stand for these classes in prompts: `default`; `released`, those of the authors' code, which says
    "pneumothorax" for RSNA's pneumonia; `gloria`, five sentences for each of CheXpert's five classes, the nearest of
    which counts (stage two cannot take them); or a YAML file of class: phrase. Stage one does not need it."""
    data: DataConfig = field(default_factory=DataConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    convirt: ConvirtConfig = field(default_factory=ConvirtConfig)
    medclip: MedclipConfig = field(default_factory=MedclipConfig)
    gloria: GloriaConfig = field(default_factory=GloriaConfig)
    mgca: MgcaConfig = field(default_factory=MgcaConfig)
    mrm: MrmConfig = field(default_factory=MrmConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)

    def __post_init__(self) -> None:
        if self.data.dataset == "embed" and self.data.caption != "simple" and self.images.augment.horizontal_flip > 0:
            raise ConfigError(
                f"images.augment.horizontal_flip={self.images.augment.horizontal_flip} turns left breasts into right "
                f"ones, but data.caption={self.data.caption} says which side it is; set the first to 0, or "
                f"data.caption=simple"
            )
        fewest = _FEWEST_WORDS.get(self.data.caption, 0)
        if self.data.dataset == "embed" and self.text.max_tokens <= fewest:
            raise ConfigError(
                f"text.max_tokens={self.text.max_tokens} cuts data.caption={self.data.caption}, whose sentences have "
                f"{fewest} words and more and end in their BI-RADS score; set text.max_tokens=144"
            )


_FEWEST_WORDS = {"natural": 58, "structured": 70}
"""Of captions of EMBED of which everything is known."""


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} must lie between {low} and {high}")


def _check_source(tower: str, model: str | None, scratch: Mapping[str, Any] | None) -> None:
    if (model is None) == (scratch is None):
        raise ConfigError(
            f"{tower}.model={model!r} and {tower}.scratch={scratch!r}: give exactly one; "
            f"set {tower}.model=null to build a tower from scratch"
        )
    if scratch is not None and "model_type" not in scratch:
        raise ConfigError(f"{tower}.scratch={dict(scratch)!r} names no model_type, such as gpt2, vit or resnet")
