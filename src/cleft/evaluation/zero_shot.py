"""Zero-shot classification of a run: no image of the question was ever labelled for the model.

A class is a sentence, or a few of them, and an image belongs to the sentence it lies nearest to. The sentences are the
handwritten ones, or the class names behind the prompt context that stage two learned.
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
from cleft.errors import ConfigError
from cleft.evaluation.metrics import Floats, finite
from cleft.evaluation.predictions import Blank, class_logits
from cleft.evaluation.result_files import anonymise, write_down, write_evaluation
from cleft.evaluation.scoring import USUAL_DRAWS, Bootstrap
from cleft.evaluation.task import CANNOT_BE_ASKED, PreparedTask, Question, Scoring, Selection, Split, class_names
from cleft.files import as_path
from cleft.grammar import count
from cleft.models.dual_encoder import DualEncoder
from cleft.models.methods.gloria import Gloria, local_similarity
from cleft.results import SpaceMap
from cleft.text_rules import refuse_duplicates
from cleft.training.provenance import read_summary
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
    posed: PreparedTask, prompts: ClassPrompts, images: Selection, similarity: Similarity, *, progress: bool = True
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
    return known, best_prompt_logits(logits, prompts.class_of)


def best_prompt_logits(logits: Floats, class_of: NDArray[np.intp]) -> Floats:
    """Logits of classes, `[N, C]`: of each class that of its best prompt.

    Args:
        logits: Of prompts, `[N, T]`.
        class_of: Class of each prompt, each from 0 on at least once, `[T]`.
    """
    return np.stack([logits[:, class_of == number].max(axis=1) for number in range(class_of.max() + 1)], axis=1)


def standardise_logits(logits: Floats, rows: Sequence[int]) -> Floats:
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


def _compare(
    posed: PreparedTask, prompts: ClassPrompts, images: Selection, *, by_letters: bool, progress: bool
) -> Tensor:
    """Similarity of words and regions, `[N, T]`, from the run's store where it was computed before."""
    model = posed.model
    assert isinstance(model, Gloria)
    with torch.no_grad():
        read = model.encode_words(prompts.written, pad_to_max=by_letters)
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


Prompts = Literal["auto", "context", "handwritten"]


def evaluate_zero_shot(
    run: Path | str,
    *,
    data: str | None = None,
    split: Split = "test",
    classes: str | Sequence[str] | None = None,
    scoring: Scoring = "multi-class",
    prompts: Prompts = "auto",
    wording: str | None = None,
    similarity: Similarity = "global",
    standardise: bool = False,
    blank: Blank = "unknown",
    per_class: int | None = None,
    per_patient: int | None = None,
    allow_overlap: bool = False,
    drop_overlap: bool = False,
    overrides: Sequence[str] = (),
    examples: int = 10,
    draws: Bootstrap = USUAL_DRAWS,
    progress: bool = True,
) -> Path:
    """Asks a run one question and writes the answer into its `results`.

    Args:
        run: Run folder of either stage.
        data: `dataset:folder` to ask about other images than the run's own, e.g. `chexpert:/data/CheXpert`.
        split: Which part of the data; `all` does not split it.
        classes: Name of a set, or findings; several with commas between them. By default the run's own.
        scoring: `multi-class`: which one of the classes, asked of images that show exactly one. `present-absent`:
            whether each finding is there, asked of every image where that is known.
        prompts: `handwritten`, `context`, or `auto`: the learned context where there is one.
        wording: Which words stand for the classes, as the setting of that name; by default the run's own.
        similarity: `global`: whole images with whole prompts, as every model can be asked. Of a run of GLoRIA too
            `local`: the best word of a prompt with the regions it attends to; `both`: their mean; `released`: the same
            with the release's count of words, and standardised.
        standardise: Whether each class is brought to mean 0 and deviation 1 over the images that are asked about. An
            answer then depends on the other images, and the result says so.
        blank: For `present-absent`: whether a finding nobody mentioned is not known, or absent.
        per_class: Ask about as many images of each class, drawn by the hash of their ids, in place of all.
        per_patient: Most images of a patient in a class, where `per_class` is given; by default 4.
        allow_overlap: Whether to score patients the run was trained on. The result then says so.
        drop_overlap: Whether to score only patients the run has not seen. The result counts the images left out.
        overrides: Data settings in place of the run's, such as `["--data.root", "/data/moved"]`.
        examples: Images with their answers to keep for the page; 0 keeps none.
        draws: How intervals are drawn.
        progress: Whether to show bars.

    Returns:
        The result file.

    Raises:
        ConfigError: If the run, the data, a class or the wording is unknown, or the run has not learned to be asked so:
            with a context, or word by word.
        DataError: If nothing can be asked of the images, a class has too few of them, or patients were trained on.
        CheckpointError: If the weights are damaged or do not fit the run's settings.
        NumericsError: If an embedding or a score is not finite.
    """
    run = as_path(run, "run")
    question = Question(
        data=data,
        split=split,
        classes=class_names(classes),
        scoring=scoring,
        blank=blank,
        per_class=per_class,
        per_patient=per_patient,
        allow_overlap=allow_overlap,
        drop_overlap=drop_overlap,
        overrides=tuple(overrides),
    )
    check_similarity(run, similarity)
    denied = "--scoring present-absent" if scoring == "present-absent" else None
    posed = question.pose(run, wording, phrases=denied, progress=progress)
    asked, images = posed.classes, posed.images
    behind = choose_prompts(posed.model, prompts)
    if behind == "context":
        _check_context(posed.words, similarity)
    sentences = encode_class_prompts(posed.model, asked, images.opening, scoring, behind, posed.words)
    alone = not standardise and similarity != "released"

    def compare(selected: Selection) -> tuple[Embeddings, Floats]:
        known, logits = prompt_logits(posed, sentences, selected, similarity, progress=progress)
        return known, logits if alone else standardise_logits(logits, question.rows(known, asked))

    embeddings, logits = compare(images)
    answers = question.answer(logits, embeddings, asked, draws)
    held, unvalidated = question.validation(run, posed.settings, progress=progress)
    validation = None
    if held is not None:
        known, logits = compare(held)
        validation = question.score(logits, known, asked)
        unvalidated = None if validation else CANNOT_BE_ASKED
    evaluation = write_down(
        question,
        run,
        images,
        answers,
        task="zero-shot",
        checkpoint=posed.weights,
        classes=asked,
        draws=draws,
        examples=examples,
        prompts=behind,
        class_prompts=sentences.written,
        options={
            "--prompts": prompts,
            "--wording": None if wording is None else Path(wording).name,
            "--similarity": None if similarity == "global" else similarity,
            "--standardise": standardise or None,
        },
        notes=[*_notes_of(run, behind, scoring, asked), *_notes_of_scores(sentences, asked, similarity, alone=alone)],
        validation=validation,
        unvalidated=unvalidated,
    )
    space = None
    if scoring == "multi-class" and similarity == "global" and len(sentences.written) == len(asked):
        truth = [asked.index(shown) for shown in answers.truths]
        space = embedding_map(embeddings.image_embeds[answers.rows], sentences.embeds, truth)
    kept = anonymise(answers.scored, [embeddings.ids[row] for row in answers.rows])
    evaluation = replace(
        evaluation, wording=posed.words.name, similarity=similarity, standardised=not alone, space=space
    )
    return write_evaluation(evaluation, run / "results", kept)


def choose_prompts(model: DualEncoder, prompts: Prompts) -> Literal["context", "handwritten"]:
    """What class names are read behind.

    Raises:
        ConfigError: If a learned context is asked for and the run has none.
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
    model: DualEncoder,
    classes: Sequence[str],
    opening: str,
    scoring: Scoring,
    behind: Literal["context", "handwritten"],
    words: ClassNames,
) -> ClassPrompts:
    """The sentences that stand for the classes.

    To say whether findings are there, those that deny them come behind, as further classes.

    Raises:
        DataError: If two classes have the same prompt once it is normalised, or a prompt cannot be read.
    """
    names = [words.phrase(name) for name in classes]
    written = [class_prompts(name, opening, words) for name in classes]
    if scoring == "present-absent":
        names += [absent_name(name, words) for name in classes]
        written += [(absent_prompt(name, opening, words),) for name in classes]
    written = [tuple(model.text_tower.normalise(group)) for group in written]
    for start in range(0, len(written), len(classes)):  # present ones, absent ones
        first = [group[0] for group in written[start : start + len(classes)]]
        refuse_duplicates(first, f"prompts of the classes {', '.join(classes)}")
    with torch.no_grad():
        if behind == "context":
            shown = [f"[learned context] {name}" for name in names]
            return ClassPrompts(shown, model.encode_class_names(names), np.arange(len(names)))
        every = [sentence for group in written for sentence in group]
        return ClassPrompts(
            every, model.encode_text(every), np.repeat(np.arange(len(written)), list(map(len, written)))
        )


def _check_context(words: ClassNames, similarity: Similarity) -> None:
    """Refuses what cannot be asked behind a learned context."""
    require_phrases(words, "a learned context")
    if similarity != "global":
        raise ConfigError(
            f"--similarity {similarity} holds the words of a prompt against regions, and a learned context has none; "
            f"take --prompts handwritten"
        )


def _notes_of_scores(
    sentences: ClassPrompts, classes: Sequence[str], similarity: Similarity, *, alone: bool
) -> list[str]:
    """What a reader must know of how images were held against prompts."""
    notes: list[str] = []
    if len(sentences.written) > sentences.class_of.max() + 1:
        notes.append(
            f"{count(len(sentences.written), 'sentence')} for {count(len(classes), 'class', 'classes')}; the nearest "
            f"of a class counts."
        )
    if similarity != "global":
        notes.append(f"{_TOLD[similarity]} No other method can be asked so.")
    if not alone:
        notes.append(
            "Standardised over the images: each class was brought to mean 0 and deviation 1 over those that are asked "
            "about, so that an answer depends on the other images of the set."
        )
    return notes


_TOLD = {
    "local": "Words with regions: of a prompt its best word counts, with what it attends to in the image.",
    "both": "Wholes, and words with regions, as GLoRIA asks: the mean of whole image with whole prompt, and of the "
    "prompt's best word with what it attends to.",
    "released": "Wholes, and words with regions, as GLoRIA's released code asks: the mean of both, where a prompt has "
    "as many words as letters.",
}
"""What stands behind a similarity, in a sentence."""


def _notes_of(run: Path, behind: str, scoring: Scoring, classes: Sequence[str]) -> list[str]:
    """What a reader must know of a learned context."""
    if behind != "context":
        return []
    learned = (read_summary(run) or {}).get("classes") or classes
    others = [name for name in classes if name not in learned]
    notes = [f"The context was learned for {', '.join(learned)}; it never saw {', '.join(others)}."] if others else []
    if scoring == "present-absent":
        notes.append("The context was learned in front of class names alone; it never saw a denied one.")
    return notes


def embedding_map(image_embeds: Tensor, prompt_embeds: Tensor, truth: Sequence[int], *, most: int = 400) -> SpaceMap:
    """Places images and class prompts by the two principal directions of the images.

    Each kind is centred by itself: the distance between the two kinds is larger than any difference within one and
    would be all that is seen. Moving all prompts by one vector changes no answer (docs/decisions/0064).

    Args:
        image_embeds: Unit-length image embeddings, `[N, E]`, at least one.
        prompt_embeds: Unit-length embeddings of the class prompts, `[C, E]`, at least one.
        truth: Class index of each image.
        most: Images that are drawn; more are thinned out evenly within their order, as many of each class as its share.

    Returns:
        The map. The side of a direction is arbitrary, so that its largest coordinate is made positive.
    """
    images, prompts = image_embeds.detach().cpu().double(), prompt_embeds.detach().cpu().double()
    middle, other = images.mean(0), prompts.mean(0)
    centred = images - middle
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    plane = torch.zeros(2, images.shape[1], dtype=torch.float64)
    plane[: min(2, len(directions))] = directions[:2]
    farthest = plane.abs().argmax(1, keepdim=True)
    plane *= plane.gather(1, farthest).sign()
    total = singular.square().sum().clamp_min(1e-12)
    shares = [*(singular.square() / total).tolist(), 0.0, 0.0][:2]
    rows = sorted(range(len(truth)), key=lambda row: truth[row])  # each class keeps its share
    kept = rows if len(rows) <= most else [rows[index * len(rows) // most] for index in range(most)]
    places = (centred @ plane.T).tolist()
    return SpaceMap(
        images=tuple((truth[row], *_rounded(places[row])) for row in sorted(kept)),
        prompts=tuple(_rounded(place) for place in ((prompts - other) @ plane.T).tolist()),
        shares=(round(shares[0], 4), round(shares[1], 4)),
        gap=round((middle - other).norm().item(), 4),
        left_out=len(rows) - len(kept),
    )


def _rounded(place: Sequence[float]) -> tuple[float, float]:
    return round(place[0], 4), round(place[1], 4)
