"""Retrieval: captions for an image, images for a caption, and similar images for an image.

Captions made from labels repeat, so equal captions are one candidate and match every image that carries them. Between
images, those with the same findings match; images of the query's own patient are not candidates. Precision counts
candidates that share a finding with the query (docs/decisions/0107).

Shapes: `N` images, `T` distinct captions, `C` findings, `E` joint dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cleft.config import Settings
from cleft.data.batches import eval_loader
from cleft.data.splits.subsets import order_key
from cleft.errors import CheckpointError, ConfigError, DataError
from cleft.evaluation import DIRECTIONS, Bootstrap, Direction, RetrievalOptions
from cleft.evaluation.metrics import Statistic
from cleft.evaluation.result_files import as_png, base_evaluation, write_evaluation
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
from cleft.evaluation.scoring import Measure, estimate
from cleft.evaluation.task import (
    BATCH_SIZE,
    Selection,
    check_image_spec,
    command_of,
    embed_images,
    evaluation_settings,
    parse_classes,
    select_images,
)
from cleft.files import as_path
from cleft.grammar import count, share, verb
from cleft.models.checkpoint import has_joint_space, load_model, weights_digest
from cleft.models.dual_encoder import DualEncoder
from cleft.models.image_classifier import load_image_classifier
from cleft.models.model_folder import peek_description
from cleft.privacy import MIN_PATIENTS
from cleft.results import Result, Retrieval, RetrievalExample, RetrievalItem
from cleft.training.features import encode_features, inference_device, label_images
from cleft.types import Record

EXAMPLE_SALT = "cleft-retrieval-examples-v1"
EXAMPLE_RESULTS = 5
"""Results stored with an example query."""
_TEXT_BATCH = 256


class _Corpus(NamedTuple):
    """Images and captions to search."""

    images: Items
    """Their keys are captions."""
    texts: Items | None
    """Distinct captions in order of first appearance; their keys are their own numbers."""
    captions: list[str]
    share_finding: NDArray[np.bool_]


class _Search(NamedTuple):
    """Search results in one direction."""

    direction: Direction
    queries: NDArray[np.intp]
    """Queries with a match."""
    found: SearchResult
    """Results of these queries."""
    query_of: NDArray[np.int64]
    """Position among `queries` of the query that each image belongs to, -1 for none, `[N]`."""
    total: int
    """Number of queries, with those that have no match."""


def parse_directions(names: str | Sequence[str] | None) -> tuple[Direction, ...]:
    """Returns retrieval directions in their usual order.

    Args:
        names: Directions; in a string they are separated by commas; None for all.

    Raises:
        ConfigError: If one is unknown.
    """
    if names is None:
        return DIRECTIONS
    wanted = parse_classes(names) or ()
    unknown = [name for name in wanted if name not in DIRECTIONS]
    if unknown or not wanted:
        raise ConfigError(f"--directions {unknown[0] if unknown else names}: choose from {', '.join(DIRECTIONS)}")
    return tuple(direction for direction in DIRECTIONS if direction in wanted)


def evaluate_retrieval(
    run: Path | str, options: RetrievalOptions = RetrievalOptions(), *, progress: bool = True
) -> Path:
    """Evaluates retrieval among the images and captions of a dataset and writes the result into the run's `results`.

    Args:
        run: Run folder.
        options: Images and directions; captions are those of training.
        progress: Whether to show progress bars.

    Returns:
        The result file.

    Raises:
        ConfigError: If the run, the data or a direction is unknown.
        DataError: If there are fewer than two images, the model was trained on their patients, or no query has a match.
        CheckpointError: If the model cannot compare texts and a direction needs it, or the weights are damaged.
        NumericsError: If an embedding is not finite.
    """
    run = as_path(run, "run")
    directions = parse_directions(options.directions)
    settings = evaluation_settings(run, options)
    with_texts = set(directions) != {"image-to-image"}
    if with_texts and not has_joint_space(peek_description(run)):
        raise CheckpointError(
            f"{run} holds a model without text embeddings; retrieve images by images only: --directions image-to-image"
        )
    images = select_images(run, settings, options, classes=options.classes, progress=progress)
    if len(images.records) < 2:
        raise DataError(f"{len(images.records)} image: retrieval needs two; take another split", reason="no-image")
    weights = weights_digest(run)
    corpus = _encode_corpus(run, images, settings, weights, with_texts=with_texts, progress=progress)
    searches = [found for each in directions if (found := _search(each, corpus, images.records)) is not None]
    if not searches:
        raise DataError(
            "image-to-image: no two images of different patients show the same findings, so that no image has a match; "
            "take more images",
            reason="no-image",
        )
    measured = [_results(each, images.records, options.bootstrap) for each in searches]
    rows = range(len(images.records))
    evaluation = base_evaluation("retrieval", command_of(run, "retrieval", options), images, rows, options, weights)
    evaluation = replace(
        evaluation,
        scoring="nearest",
        prompts="captions" if with_texts else "none",
        results=tuple(result for results, _ in measured for result in results),
        baselines=tuple(baseline for _, baselines in measured for baseline in baselines),
        notes=(*images.notes, *_notes(searches, corpus, directions)),
        retrieval=tuple(
            Retrieval(
                direction=each.direction,
                queries=len(each.queries),
                without_match=each.total - len(each.queries),
                candidates=len(corpus.captions) if each.direction == "image-to-text" else len(images.records),
                relevant_per_query=float(each.found.matches.mean()),
                examples=_examples(each, corpus, images, options.examples),
            )
            for each in searches
        ),
    )
    return write_evaluation(evaluation, run / "results")


def _encode_corpus(
    run: Path, images: Selection, settings: Settings, weights: str, *, with_texts: bool, progress: bool
) -> _Corpus:
    """Encodes images, and their distinct captions if they are searched."""
    captions = list(dict.fromkeys(record.caption or "" for record in images.records))
    number = {caption: place for place, caption in enumerate(captions)}
    key = np.array([number[record.caption or ""] for record in images.records], dtype=np.int64)
    numbers: dict[str, int] = {}
    patient = np.array([numbers.setdefault(record.patient, len(numbers)) for record in images.records], dtype=np.int64)
    present = (label_images(images.records, images.findings).labels == 1).numpy()
    of_captions = _caption_findings(present, key, len(captions))
    sets, set_of = np.unique(np.concatenate([present, of_captions]), axis=0, return_inverse=True)
    set_of = set_of.reshape(-1).astype(np.int64)
    model, embeds = _image_embeds(run, images, settings, weights, progress=progress)
    device = inference_device(settings)
    texts = None
    if with_texts:
        assert model is not None
        places = np.arange(len(captions), dtype=np.int64)
        texts = Items(_encode_texts(model, captions).to(device), places, set_of[len(key) :], -1 - places)
    return _Corpus(
        Items(embeds.to(device), key, set_of[: len(key)], patient), texts, captions, sets_share_finding(sets)
    )


def _image_embeds(
    run: Path, images: Selection, settings: Settings, weights: str, *, progress: bool
) -> tuple[DualEncoder | None, Tensor]:
    """Model and unit-length embeddings `[N, E]`; image features if the model has no text embeddings."""
    if has_joint_space(peek_description(run)):
        model = load_model(run).to(inference_device(settings)).eval()
        check_image_spec(run, model, settings)
        return model, embed_images(run, model, images, settings, weights, progress=progress).image_embeds
    tower = load_image_classifier(run).to(inference_device(settings)).eval()
    check_image_spec(run, tower, settings)
    features = encode_features(
        tower,
        eval_loader(images.records, images.prepared, images.findings, settings, batch_size=BATCH_SIZE),
        images.records,
        folder=run / "embeddings",
        key={"weights": weights, "pixels": images.prepared.digest, "size": str(settings.images.size)},
        progress=progress,
    )
    return None, F.normalize(features.float(), dim=-1)


@torch.no_grad()
def _encode_texts(model: DualEncoder, texts: Sequence[str]) -> Tensor:
    batches = [texts[start : start + _TEXT_BATCH] for start in range(0, len(texts), _TEXT_BATCH)]
    return torch.cat([model.encode_text(batch).cpu() for batch in batches])


def _caption_findings(present: NDArray[np.bool_], caption: NDArray[np.int64], captions: int) -> NDArray[np.bool_]:
    """Findings of each caption: those that most of its images show, `[T, C]`."""
    shown = np.zeros((captions, present.shape[1]))
    np.add.at(shown, caption, present)
    return 2 * shown > np.bincount(caption, minlength=captions)[:, None]


def _search(direction: Direction, corpus: _Corpus, records: Sequence[Record]) -> _Search | None:
    """Searches in one direction; None if no query has a match."""
    images = corpus.images
    if direction == "image-to-image":
        by_findings = images._replace(key=images.findings)
        found = search(by_findings, by_findings, corpus.share_finding)
    else:
        texts = cast("Items", corpus.texts)
        queries, candidates = (images, texts) if direction == "image-to-text" else (texts, images)
        found = search(queries, candidates, corpus.share_finding)
    with_match = np.flatnonzero(found.matches > 0)
    if not len(with_match):
        return None
    place = np.full(len(found.first_match), -1, dtype=np.int64)
    place[with_match] = np.arange(len(with_match))
    query_of_image = images.key if direction == "text-to-image" else np.arange(len(records))
    return _Search(
        direction, with_match, select_queries(found, with_match), place[query_of_image], len(found.first_match)
    )


def _results(searched: _Search, records: Sequence[Record], bootstrap: Bootstrap) -> tuple[list[Result], list[Result]]:
    """Metrics of one direction, and chance level."""
    rows = searched.query_of >= 0
    query_of, found = searched.query_of[rows], searched.found
    fewest = int(found.candidates.min())
    statistics: dict[str, tuple[int, Statistic]] = {
        **{f"recall@{k}": (k, recall(found, k, query_of)) for k in CUTOFFS},
        **{f"precision@{k}": (k, precision(found, k, query_of)) for k in CUTOFFS},
        "mean-rank": (1, mean_rank(found, query_of)),
        "median-rank": (1, median_rank(found, query_of)),
    }
    measures = [
        Measure(
            f"{searched.direction}/{metric}",
            statistic if k <= fewest else None,
            rows,
            None if k <= fewest else f"there {verb(fewest, 'is', 'are')} only {count(fewest, 'candidate')}",
        )
        for metric, (k, statistic) in statistics.items()
    ]
    results = estimate(measures, [record.patient for record in records], bootstrap)
    by_chance = chance(found)
    baselines = [
        Result(
            metric=f"chance/{result.metric}",
            value=None if result.value is None else by_chance[result.metric.partition("/")[2]],
            images=result.images,
            patients=result.patients,
            reason=result.reason if result.value is None else None,
        )
        for result in results
    ]
    return list(results), baselines


def _examples(searched: _Search, corpus: _Corpus, images: Selection, number: int) -> tuple[RetrievalExample, ...]:
    """Queries in the order of a hash, with their first results."""
    show_image, show_text = _renderers(corpus, images)
    text_queries, text_candidates = searched.direction == "text-to-image", searched.direction == "image-to-text"
    names = [corpus.captions[query] if text_queries else images.records[query].id for query in searched.queries]
    order = sorted(range(len(names)), key=lambda place: order_key(EXAMPLE_SALT, names[place]))
    key = corpus.images.findings if searched.direction == "image-to-image" else corpus.images.key
    examples: list[RetrievalExample] = []
    for place in order[:number]:
        query = int(searched.queries[place])
        wanted = query if text_queries else int(key[query])
        retrieved: list[RetrievalItem] = []
        for candidate in searched.found.top[place, :EXAMPLE_RESULTS].tolist():
            if candidate < 0:
                continue
            relevant = (candidate if text_candidates else int(key[candidate])) == wanted
            retrieved.append((show_text if text_candidates else show_image)(candidate, relevant))
        shown = (show_text if text_queries else show_image)(query, True)
        rank = int(searched.found.first_match[place])
        examples.append(RetrievalExample(query=shown, retrieved=tuple(retrieved), rank=rank))
    return tuple(examples)


def _renderers(
    corpus: _Corpus, images: Selection
) -> tuple[Callable[[int, bool], RetrievalItem], Callable[[int, bool], RetrievalItem]]:
    """How an image and a caption are shown; a caption of few patients may be a report, and is left empty."""
    patients: list[set[str]] = [set() for _ in corpus.captions]
    for record, caption in zip(images.records, corpus.images.key.tolist(), strict=True):
        patients[caption].add(record.patient)

    def image(place: int, relevant: bool) -> RetrievalItem:
        record = images.records[place]
        present = ", ".join(name for name in images.findings if record.labels.get(name) == 1)
        return RetrievalItem(image=as_png(images.prepared.pixels(record.id)), text=present, relevant=relevant)

    def text(place: int, relevant: bool) -> RetrievalItem:
        common = images.synthetic or len(patients[place]) >= MIN_PATIENTS
        return RetrievalItem(text=corpus.captions[place] if common else "", relevant=relevant)

    return image, text


def _notes(searches: Sequence[_Search], corpus: _Corpus, directions: Sequence[Direction]) -> list[str]:
    searched = [each.direction for each in searches]
    notes = [
        f"{direction}: not evaluated, as no two images of different patients show the same findings."
        for direction in directions
        if direction not in searched
    ]
    if corpus.texts is not None:
        notes.append(
            f"The images have {count(len(corpus.captions), 'distinct caption')}; an image matches every equal caption."
        )
    notes += [
        f"{each.direction}: {share(lost, each.total, 'query', 'queries')} {verb(lost, 'has', 'have')} no match and "
        f"{verb(lost, 'was', 'were')} not scored."
        for each in searches
        if (lost := each.total - len(each.queries))
    ]
    return notes
