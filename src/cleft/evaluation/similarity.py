"""How near images are to the prompts of classes: as wholes, word by word in their regions, or both.

Where several prompts stand for a class, the nearest counts. Every image is compared by itself; only `standardised`
looks at the others.

Shapes: `N` images, `B` images of a batch, `T` prompts, `W` slots of words, `C` classes, `E` joint dimension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cleft.config import load_run_settings
from cleft.errors import ConfigError
from cleft.evaluation.metrics import Floats, finite
from cleft.evaluation.predictions import class_logits
from cleft.evaluation.selection import Selection
from cleft.evaluation.task import Posed
from cleft.models.methods.gloria import Gloria
from cleft.training.objectives.gloria import local_similarity
from cleft.types import Embeddings

Similarity = Literal["global", "local", "both", "released"]
"""`global`: whole images with whole prompts. `local`: the best word of a prompt with what it attends to. `both`: their
mean. `released`: the same as GLoRIA's release counts words, one for each letter, and standardised over the images."""


class ClassPrompts(NamedTuple):
    """What stands for the classes."""

    written: list[str]
    """As the page prints them, `T`."""
    embeds: Tensor
    """Unit length, `[T, E]`."""
    class_of: NDArray[np.intp]
    """Which class each prompt stands for, `[T]`."""


def check_similarity(run: Path, similarity: Similarity) -> None:
    """Refuses to ask for words and regions where none were learned.

    Raises:
        ConfigError: If the run is of a method that did not learn to hold them against each other in this way.
    """
    method = load_run_settings(run).method
    if similarity != "global" and method != "gloria":
        raise ConfigError(
            f"--similarity {similarity} holds words against regions as GLoRIA learns to; {run} is of method={method}, "
            f"which has not learned it; leave it out, and whole images are compared with whole prompts"
        )


def prompt_logits(
    posed: Posed, prompts: ClassPrompts, images: Selection, similarity: Similarity, *, progress: bool = True
) -> tuple[Embeddings, Floats]:
    """Encodes images and holds them against the prompts of each class.

    Args:
        posed: The question and the model.
        prompts: Of the classes.
        images: What is asked about, or held out to fit a temperature on.
        similarity: Of what with what.
        progress: Whether to show bars.

    Returns:
        Embeddings, and logits `[N, C]`: similarity times the model's inverse temperature.

    Raises:
        NumericsError: If an embedding or a logit is not finite.

    Source:
        GLoRIA's released code takes the mean of both similarities and the best of the prompts; of words it takes the
        best, not their sum as in training.
    """
    known = posed.embed(images, progress=progress)
    logits = class_logits(known.image_embeds, prompts.embeds, posed.model.logit_scale)
    if similarity != "global":
        scale = float(posed.model.logit_scale.detach().exp())
        local = _compare(posed, prompts, images, by_letters=similarity == "released", progress=progress)
        parts = finite(scale * local.numpy())
        logits = parts if similarity == "local" else (logits + parts) / 2
    return known, nearest_prompt(logits, prompts.class_of)


def nearest_prompt(logits: Floats, class_of: NDArray[np.intp]) -> Floats:
    """Logits of classes, `[N, C]`: of each class that of its best prompt.

    Args:
        logits: Of prompts, `[N, T]`.
        class_of: Class of each prompt, each from 0 on at least once, `[T]`.
    """
    return np.stack([logits[:, class_of == number].max(axis=1) for number in range(class_of.max() + 1)], axis=1)


def standardised(logits: Floats, rows: Sequence[int]) -> Floats:
    """Brings each class to mean 0 and deviation 1 over some images; an answer then depends on the others of the set.

    Args:
        logits: Of classes, `[N, C]`.
        rows: The images that are asked about; a single one has nothing to be compared with and stays as it is.

    Returns:
        The same for all images, `[N, C]`. A class that is equally likely for all of them is 0 for all.

    Source:
        GLoRIA's released code, where it is given more than one image.
    """
    if len(rows) < 2:
        return logits
    asked = logits[np.asarray(rows)]
    deviation = asked.std(axis=0)
    # Equal logits have a mean that is off by rounding, and no deviation but that.
    flat = deviation <= np.finfo(logits.dtype).eps * np.abs(asked).max(axis=0)
    return np.where(flat, 0, (logits - asked.mean(axis=0)) / np.where(flat, 1, deviation))


def _compare(posed: Posed, prompts: ClassPrompts, images: Selection, *, by_letters: bool, progress: bool) -> Tensor:
    """Similarity of words and regions, `[N, T]`, from the run's store where it was computed before."""
    model = posed.model
    assert isinstance(model, Gloria)
    with torch.no_grad():
        read = model.read_words(prompts.written, whole=by_letters)
    words = read.words[:, 1:]  # without the class token
    count = read.lengths
    if by_letters:  # the release takes the length of a string for its words; slots behind them hold zeros
        count = torch.tensor([len(prompt) for prompt in prompts.written], device=words.device)
    mask = torch.arange(words.shape[1], device=words.device) < count[:, None]
    asked = hashlib.sha256("\n".join(prompts.written).encode()).hexdigest()[:16]
    key = {"prompts": asked, "counted": "letters" if by_letters else "words"}
    return posed.compare(
        images, lambda pixels: local_similarity(model.encode_regions(pixels), words, mask), key, progress=progress
    )
