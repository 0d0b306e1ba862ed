"""Searching with a run: the sentence that belongs to an image, the image that belongs to a sentence, images alike.

Captions made from labels repeat themselves, so equal captions are one sentence, and every image that carries it is a
right answer to it. Between images, those with the same findings present are right; images of the same patient are never
answers. Precision counts answers that share a finding with the query (docs/decisions/0107).

Shapes: `N` images, `T` distinct captions, `C` findings, `E` joint dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cleft.config import Settings
from cleft.data.batches import eval_loader
from cleft.data.splits.subsets import ids_digest, order_key
from cleft.errors import CheckpointError, ConfigError, DataError
from cleft.evaluation.metrics import Statistic
from cleft.evaluation.result_files import as_png, write_evaluation
from cleft.evaluation.retrieval_metrics import (
    CUTOFFS,
    Items,
    SearchResult,
    chance,
    mean_rank,
    median_rank,
    precision,
    recall,
    search,
    select_queries,
    sets_share_finding,
)
from cleft.evaluation.scoring import USUAL_DRAWS, Bootstrap, Measure, estimate
from cleft.evaluation.task import BATCH, Question, Selection, check_image_spec, embed_images
from cleft.grammar import count, share, verb
from cleft.models.checkpoint import has_joint_space, load_model, weights_digest
from cleft.models.dual_encoder import DualEncoder
from cleft.models.image_classifier import load_image_classifier
from cleft.models.model_folder import peek_description
from cleft.privacy import MIN_PATIENTS
from cleft.results import Evaluation, Exhibit, Result, Retrieval, RetrievalExample
from cleft.training.features import device_of, encode_features, label_images
from cleft.types import Record

Direction = Literal["image-to-text", "text-to-image", "image-to-image"]
DIRECTIONS: tuple[Direction, ...] = ("image-to-text", "text-to-image", "image-to-image")
SALT = "cleft-retrieval-examples-v1"
SHOWN = 5
"""Answers of an example."""
_TEXTS = 256


class _Corpus(NamedTuple):
    """Images and their sentences, marked for searching."""

    images: Items
    """Keys are captions."""
    texts: Items | None
    """Distinct captions in the order in which they come up; keys are their own numbers."""
    captions: list[str]
    shared: NDArray[np.bool_]


class _Search(NamedTuple):
    """One direction, searched."""

    direction: Direction
    asked: NDArray[np.intp]
    """The queries that have a right answer."""
    found: SearchResult
    """Of these queries alone."""
    query_of: NDArray[np.int64]
    """Query among `asked` that each image stands behind, -1 for none, `[N]`."""
    queries: int
    """All of them."""


def parse_directions(names: str | None) -> tuple[Direction, ...]:
    """Reads directions with commas between them; all of them where none is named.

    Raises:
        ConfigError: If one is unknown.
    """
    if names is None:
        return DIRECTIONS
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in DIRECTIONS]
    if unknown:
        raise ConfigError(f"--direction {unknown[0]!r} is none of {', '.join(DIRECTIONS)}")
    return tuple(direction for direction in DIRECTIONS if direction in wanted)


def evaluate_retrieval(
    run: Path,
    question: Question,
    *,
    directions: Sequence[Direction] = DIRECTIONS,
    examples: int = 4,
    draws: Bootstrap = USUAL_DRAWS,
    progress: bool = True,
) -> Path:
    """Searches among a run's images and captions, and writes what was found into its `results`.

    Args:
        run: Run folder.
        question: Which images; their captions are those that training would see.
        directions: What is searched with what.
        examples: Queries of each direction to keep for the page, picked by a hash; 0 keeps none.
        draws: How intervals are drawn.
        progress: Whether to show bars.

    Returns:
        The result file.

    Raises:
        ConfigError: If the run or the data is unknown.
        DataError: If there are no two images, patients were trained on, or no query has a right answer.
        CheckpointError: If sentences are asked of a run that reads none, or the weights are damaged.
        NumericsError: If an embedding is not finite.
    """
    settings = question.run_settings(run)
    texts, blind = set(directions) != {"image-to-image"}, not has_joint_space(peek_description(run))
    if texts and blind:
        raise CheckpointError(
            f"{run} holds a model that brings no sentence into the space of its images; search images with images "
            f"alone: --direction image-to-image"
        )
    images = question.images(run, settings, progress=progress)
    if len(images.records) < 2:
        raise DataError(f"{len(images.records)} image: a search needs two; take another split", reason="no-image")
    weights = weights_digest(run)
    corpus = _embed(run, images, settings, weights, texts=texts, progress=progress)
    searches = [found for each in directions if (found := _ask(each, corpus, images.records)) is not None]
    if not searches:
        raise DataError(
            "image-to-image: no two images of different patients show the same findings, so that no image has a right "
            "answer; take more images",
            reason="no-image",
        )
    parts = [_measure(each, images.records, draws) for each in searches]
    return write_evaluation(
        Evaluation(
            task="retrieval",
            dataset=images.dataset,
            split=question.split,
            split_recipe=images.recipe,
            split_digest=images.split_digest,
            ids_digest=ids_digest(record.id for record in images.records),
            checkpoint=weights,
            scoring="nearest",
            prompts="captions" if texts else "none",
            classes=(),
            class_prompts=(),
            results=tuple(result for results, _ in parts for result in results),
            floors=tuple(floor for _, floors in parts for floor in floors),
            synthetic=images.synthetic,
            overlap_left_out=images.left_out,
            command=question.command(run, "retrieval", {"--scoring": None, "--direction": _named(directions)}),
            seed=draws.seed,
            notes=(*images.notes, *_notes(searches, corpus, directions)),
            retrieval=tuple(
                Retrieval(
                    direction=each.direction,
                    queries=len(each.asked),
                    unanswerable=each.queries - len(each.asked),
                    candidates=len(corpus.captions) if each.direction == "image-to-text" else len(images.records),
                    right=float(each.found.matches.mean()),
                    examples=_examples(each, corpus, images, examples),
                )
                for each in searches
            ),
        ),
        run / "results",
    )


def _embed(run: Path, images: Selection, settings: Settings, weights: str, *, texts: bool, progress: bool) -> _Corpus:
    """Images, and their distinct captions where the run reads them."""
    captions = list(dict.fromkeys(record.caption or "" for record in images.records))
    number = {caption: place for place, caption in enumerate(captions)}
    key = np.array([number[record.caption or ""] for record in images.records], dtype=np.int64)
    patients: dict[str, int] = {}
    owner = np.array([patients.setdefault(record.patient, len(patients)) for record in images.records], dtype=np.int64)
    present = (label_images(images.records, images.findings).labels == 1).numpy()
    told = _of_captions(present, key, len(captions))
    sets, numbers = np.unique(np.concatenate([present, told]), axis=0, return_inverse=True)
    numbers = numbers.reshape(-1).astype(np.int64)
    model, embeds = _image_embeds(run, images, settings, weights, progress=progress)
    device = device_of(settings)
    own = Items(embeds.to(device), key, numbers[: len(key)], owner)
    sentences = None
    if texts:
        assert model is not None
        places = np.arange(len(captions), dtype=np.int64)
        sentences = Items(_encode_texts(model, captions).to(device), places, numbers[len(key) :], -1 - places)
    return _Corpus(own, sentences, captions, sets_share_finding(sets))


def _image_embeds(
    run: Path, images: Selection, settings: Settings, weights: str, *, progress: bool
) -> tuple[DualEncoder | None, Tensor]:
    """Unit-length embeddings `[N, E]`: projected, or the features of a model that compares no texts."""
    if not has_joint_space(peek_description(run)):
        tower = load_image_classifier(run).to(device_of(settings)).eval()
        check_image_spec(run, tower, settings)
        features = encode_features(
            tower,
            eval_loader(images.records, images.prepared, images.findings, settings, batch_size=BATCH),
            images.records,
            folder=run / "embeddings",
            key={"weights": weights, "pixels": images.prepared.digest, "size": str(settings.images.size)},
            progress=progress,
        )
        return None, F.normalize(features.float(), dim=-1)
    model = load_model(run).to(device_of(settings)).eval()
    check_image_spec(run, model, settings)
    return model, embed_images(run, model, images, settings, weights, progress=progress).image_embeds


@torch.no_grad()
def _encode_texts(model: DualEncoder, texts: Sequence[str]) -> Tensor:
    parts = [model.encode_text(texts[start : start + _TEXTS]).cpu() for start in range(0, len(texts), _TEXTS)]
    return torch.cat(parts)


def _of_captions(present: NDArray[np.bool_], caption: NDArray[np.int64], captions: int) -> NDArray[np.bool_]:
    """Findings of each sentence: those that most of its images show, `[T, C]`."""
    shown = np.zeros((captions, present.shape[1]))
    np.add.at(shown, caption, present)
    return 2 * shown > np.bincount(caption, minlength=captions)[:, None]


def _ask(direction: Direction, corpus: _Corpus, records: Sequence[Record]) -> _Search | None:
    """Searches in one direction; None where no query has a right answer."""
    images, texts = corpus.images, corpus.texts
    if direction == "image-to-image":
        alike = images._replace(key=images.findings)
        found = search(alike, alike, corpus.shared)
    elif direction == "image-to-text":
        assert texts is not None
        found = search(images, texts, corpus.shared)
    else:
        assert texts is not None
        found = search(texts, images, corpus.shared)
    asked = np.flatnonzero(found.matches > 0)
    if not len(asked):
        return None
    place = np.full(len(found.first_match), -1, dtype=np.int64)
    place[asked] = np.arange(len(asked))
    behind = images.key if direction == "text-to-image" else np.arange(len(records))
    return _Search(direction, asked, select_queries(found, asked), place[behind], len(found.first_match))


def _measure(searched: _Search, records: Sequence[Record], draws: Bootstrap) -> tuple[list[Result], list[Result]]:
    """What was found, and what guessing finds."""
    rows = searched.query_of >= 0
    behind, found = searched.query_of[rows], searched.found
    fewest = int(found.candidates.min())
    makers: dict[str, tuple[int, Statistic]] = {
        **{f"recall@{k}": (k, recall(found, k, behind)) for k in CUTOFFS},
        **{f"precision@{k}": (k, precision(found, k, behind)) for k in CUTOFFS},
        "mean-rank": (1, mean_rank(found, behind)),
        "median-rank": (1, median_rank(found, behind)),
    }
    measures = [
        Measure(
            f"{searched.direction}/{metric}",
            statistic if k <= fewest else None,
            rows,
            None if k <= fewest else f"there {verb(fewest, 'is', 'are')} only {count(fewest, 'candidate')}",
        )
        for metric, (k, statistic) in makers.items()
    ]
    results = estimate(measures, [record.patient for record in records], draws)
    guessed = chance(found)
    floors = [
        Result(
            metric=f"chance/{result.metric}",
            value=None if result.value is None else guessed[result.metric.partition("/")[2]],
            images=result.images,
            patients=result.patients,
            reason=result.reason if result.value is None else None,
        )
        for result in results
    ]
    return list(results), floors


def _examples(searched: _Search, corpus: _Corpus, images: Selection, count: int) -> tuple[RetrievalExample, ...]:
    """Queries in the order of a hash, with their first answers."""
    show_image, show_text = _showing(corpus, images)
    asks_text, finds_text = searched.direction == "text-to-image", searched.direction == "image-to-text"
    own = [corpus.captions[place] if asks_text else images.records[place].id for place in searched.asked]
    order = sorted(range(len(own)), key=lambda place: order_key(SALT, own[place]))
    key = corpus.images.findings if searched.direction == "image-to-image" else corpus.images.key
    found: list[RetrievalExample] = []
    for place in order[:count]:
        query = int(searched.asked[place])
        wanted = query if asks_text else int(key[query])
        answers: list[Exhibit] = []
        for answer in searched.found.top[place, :SHOWN].tolist():
            if answer < 0:
                continue
            right = (answer if finds_text else int(key[answer])) == wanted
            answers.append(show_text(answer, right) if finds_text else show_image(answer, right))
        shown = show_text(query, True) if asks_text else show_image(query, True)
        found.append(RetrievalExample(query=shown, answers=tuple(answers), rank=int(searched.found.first_match[place])))
    return tuple(found)


def _showing(
    corpus: _Corpus, images: Selection
) -> tuple[Callable[[int, bool], Exhibit], Callable[[int, bool], Exhibit]]:
    """How an image and a sentence are shown; a sentence of few patients may be a report, and is not."""
    patients: list[set[str]] = [set() for _ in corpus.captions]
    for record, caption in zip(images.records, corpus.images.key.tolist(), strict=True):
        patients[caption].add(record.patient)

    def image(place: int, right: bool) -> Exhibit:
        record = images.records[place]
        present = ", ".join(name for name in images.findings if record.labels.get(name) == 1)
        return Exhibit(image=as_png(images.prepared.pixels(record.id)), text=present, right=right)

    def text(place: int, right: bool) -> Exhibit:
        told = images.synthetic or len(patients[place]) >= MIN_PATIENTS
        return Exhibit(text=corpus.captions[place] if told else "", right=right)

    return image, text


def _notes(searches: Sequence[_Search], corpus: _Corpus, directions: Sequence[Direction]) -> list[str]:
    asked = [each.direction for each in searches]
    notes = [
        f"{direction}: no two images of different patients show the same findings; it was not asked."
        for direction in directions
        if direction not in asked
    ]
    if corpus.texts is not None:
        notes.append(
            f"The images carry {count(len(corpus.captions), 'distinct caption')}; equal captions are right answers for "
            f"each other."
        )
    notes += [
        f"{each.direction}: {share(lost, each.queries, 'query', 'queries')} {verb(lost, 'has', 'have')} no right "
        f"answer and {verb(lost, 'was', 'were')} not scored."
        for each in searches
        if (lost := each.queries - len(each.asked))
    ]
    return notes


def _named(directions: Sequence[Direction]) -> str | None:
    return None if tuple(directions) == DIRECTIONS else ",".join(directions)
