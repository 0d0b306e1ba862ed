"""Zero-shot classification: an image belongs to the class with the most similar prompt.

Prompts are handwritten sentences, or class names behind the prompt context learned in stage two. If a class has several
prompts, the most similar one counts. Each image is classified independently, unless scores are standardised.

Shapes: `N` images, `T` prompts, `W` words of a prompt, `C` classes, `E` joint dimension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cleft.config import load_run_settings
from cleft.data.text.prompts import ClassNames, absent_name, absent_prompt, class_prompts, require_phrases
from cleft.errors import ConfigError, DataError
from cleft.evaluation import Prompts, Scoring, Similarity, ZeroShotOptions
from cleft.evaluation.metrics import Floats, finite
from cleft.evaluation.predictions import (
    class_logits,
    classification_predictions,
    classification_results,
    rows_with_one_class,
)
from cleft.evaluation.result_files import add_classification, anonymise, base_evaluation, write_evaluation
from cleft.evaluation.task import (
    NO_VALIDATION_LABELS,
    PreparedTask,
    Selection,
    command_of,
    prepare,
    validation_images,
)
from cleft.files import as_path
from cleft.grammar import count
from cleft.models.dual_encoder import DualEncoder
from cleft.models.methods.gloria import Gloria, local_similarity
from cleft.results import EmbeddingMap
from cleft.text_rules import refuse_duplicates
from cleft.training.provenance import read_summary
from cleft.types import Embeddings

SIMILARITY_NOTES = {
    "local": "Similarity: the best word of a prompt and the image regions it attends to.",
    "both": "Similarity: mean of image with prompt, and of the prompt's best word with the regions it attends to, as "
    "in GLoRIA.",
    "released": "Similarity: mean of image with prompt, and of the prompt's best word with the regions it attends to, "
    "as in GLoRIA's released code, where a prompt has as many words as characters.",
}


class ClassPrompts(NamedTuple):
    """Prompts of the classes."""

    written: list[str]
    """As shown in the report, `T`."""
    embeds: Tensor
    """Unit length, `[T, E]`."""
    class_of: NDArray[np.intp]
    """Class of each prompt, `[T]`."""


def evaluate_zero_shot(run: Path | str, options: ZeroShotOptions = ZeroShotOptions(), *, progress: bool = True) -> Path:
    """Evaluates zero-shot classification of a run and writes the result into its `results` folder.

    Args:
        run: Run folder of stage one or two.
        options: Images, classes, prompts and similarity.
        progress: Whether to show progress bars.

    Returns:
        The result file.

    Raises:
        ConfigError: If the run, the data, a class or the class names are unknown, or the run lacks a prompt context.
        DataError: If no image can be evaluated, a class has too few, or the model was trained on their patients.
        CheckpointError: If the weights are damaged or do not fit the settings of the run.
        NumericsError: If an embedding or a score is not finite.
    """
    run = as_path(run, "run")
    check_similarity(run, options.similarity)
    needs_phrases = "--scoring present-absent" if options.scoring == "present-absent" else None
    task = prepare(run, options, needs_phrases=needs_phrases, progress=progress)
    classes, scoring, blank = task.classes, options.scoring, options.blank
    prompts = choose_prompts(task.model, options.prompts)
    if prompts == "context":
        _check_context(task.words, options.similarity)
    encoded = encode_class_prompts(task, scoring, prompts)
    standardised = options.standardise or options.similarity == "released"

    def logits_of(images: Selection) -> tuple[Embeddings, Floats]:
        embeddings, logits = prompt_logits(task, encoded, images, options.similarity, progress=progress)
        if standardised:
            multi_class = scoring == "multi-class"
            rows = rows_with_one_class(embeddings, classes) if multi_class else range(len(embeddings.ids))
            logits = standardise_logits(logits, rows)
        return embeddings, logits

    embeddings, logits = logits_of(task.images)
    classified = classification_results(logits, embeddings, classes, scoring, blank=blank, bootstrap=options.bootstrap)
    validation = validation_images(run, task.settings, options, progress=progress)
    if not isinstance(validation, str):
        others, other_logits = logits_of(validation)
        try:
            validation = classification_predictions(other_logits, others, classes, scoring, blank=blank)[1]
        except DataError:
            validation = NO_VALIDATION_LABELS
    base = base_evaluation(
        "zero-shot", command_of(run, "zero-shot", options), task.images, classified.rows, options, task.weights
    )
    evaluation = add_classification(
        base, classified, task.images, classes, validation, options.bootstrap, examples=options.examples
    )
    embedding_map = None
    if scoring == "multi-class" and options.similarity == "global" and len(encoded.written) == len(classes):
        truth = [classes.index(name) for name in classified.truths]
        embedding_map = map_embeddings(embeddings.image_embeds[classified.rows], encoded.embeds, truth)
    notes = [
        *_context_notes(run, prompts, scoring, classes),
        *_score_notes(encoded, classes, options.similarity, standardised=standardised),
    ]
    evaluation = replace(
        evaluation,
        scoring=scoring,
        prompts=prompts,
        class_prompts=tuple(encoded.written),
        class_names=task.words.name,
        similarity=options.similarity,
        standardised=standardised,
        notes=(*evaluation.notes, *notes),
        embedding_map=embedding_map,
    )
    stored = anonymise(classified.predictions, [embeddings.ids[row] for row in classified.rows])
    return write_evaluation(evaluation, run / "results", stored)


def check_similarity(run: Path, similarity: Similarity) -> None:
    """Raises if a run was not trained with the word-level similarity that is requested.

    Raises:
        ConfigError: If the run is not of the method GLoRIA.
    """
    method = load_run_settings(run).method
    if similarity != "global" and method != "gloria":
        raise ConfigError(
            f"--similarity {similarity} compares words with image regions as GLoRIA learns to; {run} is of "
            f"method={method}, which has not learned it; leave it out, and images are compared with prompts"
        )


def choose_prompts(model: DualEncoder, prompts: Prompts) -> Literal["context", "handwritten"]:
    """Returns whether class names are read behind the learned context or in a handwritten prompt.

    Raises:
        ConfigError: If the learned context is requested and the run has none.
    """
    if prompts == "context" and model.context is None:
        raise ConfigError(
            "prompts=context, but this run has learned no prompt context; run cleft learn-context first, or take "
            "prompts=handwritten"
        )
    if prompts == "auto":
        return "handwritten" if model.context is None else "context"
    return prompts


def encode_class_prompts(
    task: PreparedTask, scoring: Scoring, prompts: Literal["context", "handwritten"], template: str | None = None
) -> ClassPrompts:
    """Encodes the prompts of the classes; for present-absent scoring those for absence follow, as further classes.

    Args:
        task: Model, classes and class names.
        scoring: How images are classified.
        prompts: Learned context or handwritten prompts.
        template: Prompt template; by default that of the images.

    Raises:
        DataError: If two classes have the same prompt after normalisation, or a prompt cannot be read.
    """
    model, classes, words = task.model, task.classes, task.words
    template = task.images.template if template is None else template
    names = [words.phrase(name) for name in classes]
    written = [class_prompts(name, template, words) for name in classes]
    if scoring == "present-absent":
        names += [absent_name(name, words) for name in classes]
        written += [(absent_prompt(name, template, words),) for name in classes]
    written = [tuple(model.text_tower.normalise(group)) for group in written]
    for start in range(0, len(written), len(classes)):  # prompts for presence, then for absence
        first = [group[0] for group in written[start : start + len(classes)]]
        refuse_duplicates(first, f"prompts of the classes {', '.join(classes)}")
    with torch.no_grad():
        if prompts == "context":
            shown = [f"[learned context] {name}" for name in names]
            return ClassPrompts(shown, model.encode_class_names(names), np.arange(len(names)))
        every = [sentence for group in written for sentence in group]
        class_of = np.repeat(np.arange(len(written)), list(map(len, written)))
        return ClassPrompts(every, model.encode_text(every), class_of)


def prompt_logits(
    task: PreparedTask, prompts: ClassPrompts, images: Selection, similarity: Similarity, *, progress: bool = True
) -> tuple[Embeddings, Floats]:
    """Embeddings of images, and logits `[N, C]`: similarity times the model's inverse temperature.

    Args:
        task: Model and settings.
        prompts: Prompts of the classes.
        images: Images to classify.
        similarity: How images and prompts are compared.
        progress: Whether to show progress bars.

    Raises:
        NumericsError: If an embedding or a logit is not finite.

    Source:
        GLoRIA's released code takes the mean of both similarities and the best of the prompts; of the words it takes
        the best, not their sum as in training.
    """
    embeddings = task.embed(images, progress=progress)
    logits = class_logits(embeddings.image_embeds, prompts.embeds, task.model.logit_scale)
    if similarity != "global":
        scale = float(task.model.logit_scale.detach().exp())
        local = _local_similarity(task, prompts, images, by_characters=similarity == "released", progress=progress)
        local_logits = finite(scale * local.numpy())
        logits = local_logits if similarity == "local" else (logits + local_logits) / 2
    return embeddings, best_prompt_logits(logits, prompts.class_of)


def best_prompt_logits(logits: Floats, class_of: NDArray[np.intp]) -> Floats:
    """Logits of classes, `[N, C]`: that of the best prompt of each class.

    Args:
        logits: Logits of prompts, `[N, T]`.
        class_of: Class of each prompt, from 0 without gaps, `[T]`.
    """
    return np.stack([logits[:, class_of == number].max(axis=1) for number in range(class_of.max() + 1)], axis=1)


def standardise_logits(logits: Floats, rows: Sequence[int]) -> Floats:
    """Logits with mean 0 and standard deviation 1 in each class over some images, `[N, C]`.

    Args:
        logits: Logits of classes, `[N, C]`.
        rows: Images that define mean and deviation; with fewer than two, logits are returned unchanged.

    Returns:
        Standardised logits of all images. A class with equal logits for all of them is 0.

    Source:
        GLoRIA's released code, for more than one image.
    """
    if len(rows) < 2:
        return logits
    reference = logits[np.asarray(rows)]
    deviation = reference.std(axis=0)
    # Equal logits have a mean that is off by rounding, and a deviation of that size.
    flat = deviation <= np.finfo(logits.dtype).eps * np.abs(reference).max(axis=0)
    return np.where(flat, 0, (logits - reference.mean(axis=0)) / np.where(flat, 1, deviation))


def _local_similarity(
    task: PreparedTask, prompts: ClassPrompts, images: Selection, *, by_characters: bool, progress: bool
) -> Tensor:
    """Word-level similarities, `[N, T]`, from the run's `embeddings` folder if they are stored there."""
    model = task.model
    assert isinstance(model, Gloria)
    with torch.no_grad():
        read = model.encode_words(prompts.written, pad_to_max=by_characters)
    words = read.words[:, 1:]  # without the class token
    lengths = read.lengths
    if by_characters:  # the released code takes the length of the string; padding behind the words holds zeros
        lengths = torch.tensor([len(prompt) for prompt in prompts.written], device=words.device)
    mask = torch.arange(words.shape[1], device=words.device) < lengths[:, None]
    digest = hashlib.sha256("\n".join(prompts.written).encode()).hexdigest()[:16]
    key = {"prompts": digest, "counted": "letters" if by_characters else "words"}
    return task.compare(
        images, lambda pixels: local_similarity(model.encode_regions(pixels), words, mask), key, progress=progress
    )


def map_embeddings(
    image_embeds: Tensor, prompt_embeds: Tensor, truth: Sequence[int], *, most: int = 400
) -> EmbeddingMap:
    """Projects images and class prompts onto the first two principal components of the images.

    Each kind is centred separately: the modality gap exceeds all differences within a kind. Shifting all prompts by one
    vector changes no prediction (docs/decisions/0064).

    Args:
        image_embeds: Unit-length image embeddings, `[N, E]`, at least one.
        prompt_embeds: Unit-length embeddings of the class prompts, `[C, E]`, at least one.
        truth: Class index of each image.
        most: Maximum number of images; more are thinned evenly, with the same share of each class.

    Returns:
        The map. The sign of a component is arbitrary; its largest coordinate is made positive.
    """
    images, prompts = image_embeds.detach().cpu().double(), prompt_embeds.detach().cpu().double()
    image_mean, prompt_mean = images.mean(0), prompts.mean(0)
    centred = images - image_mean
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    components = torch.zeros(2, images.shape[1], dtype=torch.float64)
    components[: min(2, len(directions))] = directions[:2]
    largest = components.abs().argmax(1, keepdim=True)
    components *= components.gather(1, largest).sign()
    total = singular.square().sum().clamp_min(1e-12)
    variance = [*(singular.square() / total).tolist(), 0.0, 0.0][:2]
    rows = sorted(range(len(truth)), key=lambda row: truth[row])  # thinning keeps the share of each class
    kept = rows if len(rows) <= most else [rows[index * len(rows) // most] for index in range(most)]
    places = (centred @ components.T).tolist()
    return EmbeddingMap(
        images=tuple((truth[row], *_rounded(places[row])) for row in sorted(kept)),
        prompts=tuple(_rounded(place) for place in ((prompts - prompt_mean) @ components.T).tolist()),
        explained_variance=(round(variance[0], 4), round(variance[1], 4)),
        modality_gap=round((image_mean - prompt_mean).norm().item(), 4),
        omitted=len(rows) - len(kept),
    )


def _rounded(place: Sequence[float]) -> tuple[float, float]:
    return round(place[0], 4), round(place[1], 4)


def _check_context(words: ClassNames, similarity: Similarity) -> None:
    """Raises if an evaluation cannot use a learned context."""
    require_phrases(words, "a learned context")
    if similarity != "global":
        raise ConfigError(
            f"--similarity {similarity} compares the words of a prompt with image regions, and a learned context has "
            f"no words; take --prompts handwritten"
        )


def _score_notes(
    prompts: ClassPrompts, classes: Sequence[str], similarity: Similarity, *, standardised: bool
) -> list[str]:
    notes: list[str] = []
    if len(prompts.written) > prompts.class_of.max() + 1:
        notes.append(
            f"{count(len(prompts.written), 'prompt')} for {count(len(classes), 'class', 'classes')}; the most similar "
            f"one of a class counts."
        )
    if similarity != "global":
        notes.append(f"{SIMILARITY_NOTES[similarity]} Only GLoRIA can be evaluated in this way.")
    if standardised:
        notes.append(
            "Standardised: the scores of each class have mean 0 and standard deviation 1 over the evaluated images, so "
            "that a prediction depends on the other images."
        )
    return notes


def _context_notes(run: Path, prompts: str, scoring: Scoring, classes: Sequence[str]) -> list[str]:
    if prompts != "context":
        return []
    learned = (read_summary(run) or {}).get("classes") or classes
    others = [name for name in classes if name not in learned]
    notes: list[str] = []
    if others:
        notes.append(f"The context was learned for {', '.join(learned)}, but not for {', '.join(others)}.")
    if scoring == "present-absent":
        notes.append("The context was learned with class names only, never with their negation.")
    return notes
