"""What a model's answers owe to the wording of its prompts, and what its learned context is near to.

Three questions: does it hear the word "no", how far do its numbers depend on the opening of a class prompt, and do the
context vectors that stage two learned still lie near words?

Shapes: `N` images, `C` classes, `E` joint dimension, `L` context vectors, `V` tokens of the vocabulary, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cleft.config import Settings
from cleft.data import prompt_template
from cleft.data.splits.subsets import ids_digest
from cleft.data.text.prompts import ClassNames, absent_prompt, class_prompt, prompt_templates
from cleft.evaluation.metrics import auc
from cleft.evaluation.predictions import (
    class_logits,
    label_columns,
    multi_class_predictions,
    present_absent_predictions,
)
from cleft.evaluation.result_files import write_evaluation
from cleft.evaluation.scoring import (
    HEADLINE_METRICS,
    USUAL_DRAWS,
    Bootstrap,
    Measure,
    Predictions,
    classification_measures,
    estimate,
)
from cleft.evaluation.task import Question, Selection, halves
from cleft.evaluation.zero_shot import encode_class_prompts
from cleft.models.dual_encoder import DualEncoder, initial_context
from cleft.results import ContextVector, Denial, Evaluation, PromptAudit, Spread, Template
from cleft.types import Embeddings

NEAREST = 5
"""Tokens that are named for each context vector."""
_TOKENS = 8192


class _Asked(NamedTuple):
    """What every part of the audit asks about."""

    model: DualEncoder
    images: Embeddings
    classes: Sequence[str]
    question: Question
    words: ClassNames
    draws: Bootstrap

    def scored(self, opening: str) -> tuple[list[int], Predictions]:
        """Rows and answers of zero-shot classification behind an opening."""
        scoring = self.question.scoring
        embeds = encode_class_prompts(self.model, self.classes, opening, scoring, "handwritten", self.words).embeds
        logits = class_logits(self.images.image_embeds, embeds, self.model.logit_scale)
        if scoring == "multi-class":
            return multi_class_predictions(logits, self.images, self.classes)
        scored = present_absent_predictions(*halves(logits), self.images, self.classes, blank=self.question.blank)
        return list(range(len(scored.truth))), scored


def evaluate_prompts(
    run: Path,
    question: Question,
    *,
    wording: str | None = None,
    draws: Bootstrap = USUAL_DRAWS,
    progress: bool = True,
) -> Path:
    """Audits the prompts of a run, and writes what was found into its `results`.

    Args:
        run: Run folder of either stage.
        question: Which images, and which classes.
        wording: Which words stand for the classes; by default the run's own.
        draws: How intervals are drawn.
        progress: Whether to show bars.

    Returns:
        The result file; its results are those of the usual opening.

    Raises:
        ConfigError: If the run, the data, a class or the wording is unknown.
        DataError: If nothing can be asked of the images, or patients were trained on.
        CheckpointError: If the run reads no texts, or its weights are damaged.
        NumericsError: If an embedding or a score is not finite.
    """
    posed = question.pose(run, wording, phrases="--task prompts", progress=progress)
    images, classes, words = posed.images, posed.classes, posed.words
    embeddings = posed.embed(images, progress=progress)
    asked = _Asked(posed.model, embeddings, classes, question, words, draws)
    openings = prompt_templates(images.opening)
    rows, _ = asked.scored(openings[0])
    compared = [_template(asked, opening, usual=opening == images.opening) for opening in openings]
    vectors, norm = _context(posed.model, posed.settings)
    return write_evaluation(
        Evaluation(
            task="prompts",
            dataset=images.dataset,
            split=question.split,
            split_recipe=images.recipe,
            split_digest=images.split_digest,
            ids_digest=ids_digest(embeddings.ids[row] for row in rows),
            checkpoint=posed.weights,
            scoring=question.scoring,
            prompts="handwritten",
            classes=classes,
            class_prompts=tuple(
                posed.model.text_tower.normalise([class_prompt(name, openings[0], words) for name in classes])
            ),
            results=compared[0].results,
            floors=(),
            synthetic=images.synthetic,
            wording=words.name,
            overlap_left_out=images.left_out,
            command=question.command(run, "prompts", {"--wording": None if wording is None else Path(wording).name}),
            seed=draws.seed,
            notes=tuple(images.notes),
            audit=PromptAudit(
                templates=tuple(compared),
                spread=template_spread(compared),
                denials=_denials(asked, images),
                context=vectors,
                token_norm=norm,
            ),
        ),
        run / "results",
    )


def template_spread(templates: Sequence[Template]) -> tuple[Spread, ...]:
    """How far accuracy and AUC differ among templates; what is not measured for all of them is left out."""
    found: list[Spread] = []
    for metric in HEADLINE_METRICS:
        values = [result.value for each in templates for result in each.results if result.metric == metric]
        known = [value for value in values if value is not None]
        if len(known) == len(templates) > 1:
            deviation = float(np.std(known, ddof=1))
            found.append(
                Spread(
                    metric=metric,
                    lowest=min(known),
                    highest=max(known),
                    mean=float(np.mean(known)),
                    deviation=deviation,
                )
            )
    return tuple(found)


def nearest_tokens(vectors: Tensor, table: Tensor, count: int = NEAREST) -> tuple[Tensor, Tensor]:
    """The tokens whose embeddings point most nearly where each vector points.

    Args:
        vectors: `[L, D]`.
        table: Embedding of each token, `[V, D]`.
        count: How many to name.

    Returns:
        Their ids and cosines, `[L, count]` each, the nearest first.
    """
    cosines = F.normalize(vectors.float(), dim=1) @ F.normalize(table.float(), dim=1).T
    values, places = cosines.topk(min(count, len(table)), dim=1)
    return places, values


def _template(asked: _Asked, opening: str, *, usual: bool) -> Template:
    _, scored = asked.scored(opening)
    measures = classification_measures(scored, asked.classes, rankings=("auc",))
    headlines = [each for each in measures if each.metric in HEADLINE_METRICS]
    return Template(opening=opening, usual=usual, results=estimate(headlines, scored.patients, asked.draws))


def _denials(asked: _Asked, images: Selection) -> tuple[Denial, ...]:
    """Each finding's prompt beside the prompt of its absence, behind the usual opening."""
    named = [class_prompt(name, images.opening, asked.words) for name in asked.classes]
    denied = [absent_prompt(name, images.opening, asked.words) for name in asked.classes]
    with torch.no_grad():
        embeds = asked.model.encode_text([*named, *denied]).float().cpu()
    cosines = F.cosine_similarity(embeds[: len(named)], embeds[len(named) :])
    present, absent = halves(class_logits(asked.images.image_embeds, embeds, asked.model.logit_scale))
    found: list[Denial] = []
    for column, name in enumerate(asked.classes):
        scores = {
            "auc/present": present[:, column],
            "auc/absent": -absent[:, column],
            "auc/pair": present[:, column] - absent[:, column],
        }
        labels = label_columns(asked.images, [name])[:, 0]
        labels[labels == -1] = np.nan
        if asked.question.blank == "absent":
            labels[np.isnan(labels)] = 0
        known = ~np.isnan(labels)
        shown = labels[known] == 1
        reason = None
        if not known.any():
            reason = f"no image says whether {name} is there"
        elif shown.all() or not shown.any():
            reason = f"{'every' if shown.all() else 'no'} image shows {name}"
        measures = [
            Measure(metric, None if reason else auc(values[known], shown), known, reason)
            for metric, values in scores.items()
        ]
        found.append(
            Denial(
                finding=name,
                present=named[column],
                absent=denied[column],
                cosine=float(cosines[column]),
                said_present=float((scores["auc/pair"] > 0).mean()),
                shown=float(shown.mean()) if known.any() else None,
                results=estimate(measures, asked.images.patients, asked.draws),
            )
        )
    return tuple(found)


@torch.no_grad()
def _context(model: DualEncoder, settings: Settings) -> tuple[tuple[ContextVector, ...], float]:
    """The learned vectors beside the vocabulary, and the mean norm of its tokens."""
    tower = model.text_tower
    ids = torch.arange(tower.tokenizer.vocabulary, device=model.logit_scale.device)
    table = torch.cat([tower.lm.embed(part).float().cpu() for part in ids.split(_TOKENS)])
    norm = float(table.norm(dim=1).mean())
    if model.context is None:
        return (), norm
    vectors = model.context.detach().float().cpu()
    start = initial_context(tower, prompt_template(settings.data), settings.context, settings.seed)
    moved = (vectors - start).norm(dim=1).tolist() if start.shape == vectors.shape else [None] * len(vectors)
    places, cosines = nearest_tokens(vectors, table)
    return tuple(
        ContextVector(
            place=place,
            norm=float(vector.norm()),
            moved=moved[place - 1],
            nearest=tuple(
                (tower.tokenizer.decode_token(token), round(cosine, 4))
                for token, cosine in zip(places[place - 1].tolist(), cosines[place - 1].tolist(), strict=True)
            ),
        )
        for place, vector in enumerate(vectors, start=1)
    ), norm
