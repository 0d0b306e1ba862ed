"""Prompt sensitivity: zero-shot results by prompt template, negation, and the learned prompt context.

Three analyses: how far accuracy and AUC depend on the prompt template, whether the model distinguishes the prompt for a
finding from the prompt for its absence, and which vocabulary tokens the learned context vectors are near to.

Shapes: `N` images, `C` classes, `E` joint dimension, `L` context vectors, `V` vocabulary tokens, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cleft.config import Settings
from cleft.data import prompt_prefix
from cleft.data.text.prompts import absent_prompt, class_prompt, prompt_templates
from cleft.evaluation import PromptSensitivityOptions
from cleft.evaluation.metrics import auc
from cleft.evaluation.predictions import class_logits, classification_predictions, label_columns
from cleft.evaluation.result_files import base_evaluation, write_evaluation
from cleft.evaluation.scoring import HEADLINE_METRICS, Measure, Predictions, classification_measures, estimate
from cleft.evaluation.task import PreparedTask, command_of, prepare
from cleft.evaluation.zero_shot import encode_class_prompts
from cleft.files import as_path
from cleft.models.dual_encoder import DualEncoder, initial_context
from cleft.results import ContextVector, NegationTest, PromptSensitivity, PromptTemplate, TemplateSpread
from cleft.types import Embeddings

NEAREST_TOKENS = 5
"""Tokens stored for each context vector."""
_TOKEN_BATCH = 8192


class _Analysis(NamedTuple):
    """Model, images and options of all three analyses."""

    task: PreparedTask
    images: Embeddings
    options: PromptSensitivityOptions

    def predictions(self, template: str) -> tuple[list[int], Predictions]:
        """Scored rows, and zero-shot predictions with a prompt template."""
        options, task = self.options, self.task
        embeds = encode_class_prompts(task, options.scoring, "handwritten", template).embeds
        logits = class_logits(self.images.image_embeds, embeds, task.model.logit_scale)
        return classification_predictions(logits, self.images, task.classes, options.scoring, blank=options.blank)


def evaluate_prompts(
    run: Path | str, options: PromptSensitivityOptions = PromptSensitivityOptions(), *, progress: bool = True
) -> Path:
    """Evaluates the prompt sensitivity of a run and writes the result into its `results` folder.

    Args:
        run: Run folder of stage one or two.
        options: Images, classes and class names.
        progress: Whether to show progress bars.

    Returns:
        The result file; its `results` are those of the default template.

    Raises:
        ConfigError: If the run, the data, a class or the class names are unknown.
        DataError: If no image can be evaluated, or the model was trained on their patients.
        CheckpointError: If the model has no text tower, or its weights are damaged.
        NumericsError: If an embedding or a score is not finite.
    """
    run = as_path(run, "run")
    task = prepare(run, options, needs_phrases="--task prompts", progress=progress)
    images, words = task.images, task.words
    analysis = _Analysis(task, task.embed(images, progress=progress), options)
    names = prompt_templates(images.template)
    rows, _ = analysis.predictions(names[0])
    templates = [_template(analysis, name, default=name == images.template) for name in names]
    vectors, token_norm = _context(task.model, task.settings)
    prompts = [class_prompt(name, names[0], words) for name in task.classes]
    base = base_evaluation("prompts", command_of(run, "prompts", options), images, rows, options, task.weights)
    evaluation = replace(
        base,
        scoring=options.scoring,
        prompts="handwritten",
        classes=task.classes,
        class_prompts=tuple(task.model.text_tower.normalise(prompts)),
        results=templates[0].results,
        class_names=words.name,
        prompt_sensitivity=PromptSensitivity(
            templates=tuple(templates),
            spread=template_spread(templates),
            negation=_negation_tests(analysis),
            context=vectors,
            token_norm=token_norm,
        ),
    )
    return write_evaluation(evaluation, run / "results")


def template_spread(templates: Sequence[PromptTemplate]) -> tuple[TemplateSpread, ...]:
    """Variation of accuracy and AUC over templates; a metric that is missing for one of them is left out."""
    spreads: list[TemplateSpread] = []
    for metric in HEADLINE_METRICS:
        every = [result.value for each in templates for result in each.results if result.metric == metric]
        values = [value for value in every if value is not None]
        if len(values) == len(templates) > 1:
            spreads.append(
                TemplateSpread(
                    metric=metric,
                    lowest=min(values),
                    highest=max(values),
                    mean=float(np.mean(values)),
                    std=float(np.std(values, ddof=1)),
                )
            )
    return tuple(spreads)


def nearest_tokens(vectors: Tensor, table: Tensor, number: int = NEAREST_TOKENS) -> tuple[Tensor, Tensor]:
    """Ids and cosines of the tokens nearest to each vector by cosine similarity, `[L, number]` each, nearest first.

    Args:
        vectors: `[L, D]`.
        table: Token embeddings, `[V, D]`.
        number: Tokens per vector.
    """
    cosines = F.normalize(vectors.float(), dim=1) @ F.normalize(table.float(), dim=1).T
    values, ids = cosines.topk(min(number, len(table)), dim=1)
    return ids, values


def _template(analysis: _Analysis, template: str, *, default: bool) -> PromptTemplate:
    _, predictions = analysis.predictions(template)
    measures = classification_measures(predictions, analysis.task.classes, rankings=("auc",))
    headlines = [each for each in measures if each.metric in HEADLINE_METRICS]
    results = estimate(headlines, predictions.patients, analysis.options.bootstrap)
    return PromptTemplate(template=template, default=default, results=results)


def _negation_tests(analysis: _Analysis) -> tuple[NegationTest, ...]:
    """Compares each finding's prompt with the prompt for its absence, with the default template."""
    task, images, options = analysis.task, analysis.images, analysis.options
    present_prompts = [class_prompt(name, task.images.template, task.words) for name in task.classes]
    absent_prompts = [absent_prompt(name, task.images.template, task.words) for name in task.classes]
    with torch.no_grad():
        embeds = task.model.encode_text([*present_prompts, *absent_prompts]).float().cpu()
    findings = len(task.classes)
    cosines = F.cosine_similarity(embeds[:findings], embeds[findings:])
    logits = class_logits(images.image_embeds, embeds, task.model.logit_scale)
    present, absent = logits[:, :findings], logits[:, findings:]
    tests: list[NegationTest] = []
    for column, name in enumerate(task.classes):
        scores = {
            "auc/present": present[:, column],
            "auc/absent": -absent[:, column],
            "auc/pair": present[:, column] - absent[:, column],
        }
        labels = label_columns(images, [name])[:, 0]
        labels[labels == -1] = np.nan
        if options.blank == "absent":
            labels[np.isnan(labels)] = 0
        known = ~np.isnan(labels)
        shown = labels[known] == 1
        reason = None
        if not known.any():
            reason = f"no image is labelled for {name}"
        elif shown.all() or not shown.any():
            reason = f"{'every' if shown.all() else 'no'} image shows {name}"
        measures = [
            Measure(metric, None if reason else auc(values[known], shown), known, reason)
            for metric, values in scores.items()
        ]
        tests.append(
            NegationTest(
                finding=name,
                present_prompt=present_prompts[column],
                absent_prompt=absent_prompts[column],
                cosine=float(cosines[column]),
                predicted_present=float((scores["auc/pair"] > 0).mean()),
                prevalence=float(shown.mean()) if known.any() else None,
                results=estimate(measures, images.patients, options.bootstrap),
            )
        )
    return tuple(tests)


@torch.no_grad()
def _context(model: DualEncoder, settings: Settings) -> tuple[tuple[ContextVector, ...], float]:
    """Learned context vectors with their nearest tokens, and the mean norm of token embeddings."""
    tower = model.text_tower
    ids = torch.arange(tower.tokenizer.vocabulary, device=model.logit_scale.device)
    table = torch.cat([tower.lm.embed(part).float().cpu() for part in ids.split(_TOKEN_BATCH)])
    token_norm = float(table.norm(dim=1).mean())
    if model.context is None:
        return (), token_norm
    vectors = model.context.detach().float().cpu()
    initial = initial_context(tower, prompt_prefix(settings.data), settings.context, settings.seed)
    displacements: list[float | None] = [None] * len(vectors)
    if initial.shape == vectors.shape:
        displacements = [*(vectors - initial).norm(dim=1).tolist()]
    nearest, cosines = nearest_tokens(vectors, table)
    return tuple(
        ContextVector(
            position=row + 1,
            norm=float(vector.norm()),
            displacement=displacements[row],
            nearest_tokens=tuple(
                (tower.tokenizer.decode_token(token), round(cosine, 4))
                for token, cosine in zip(nearest[row].tolist(), cosines[row].tolist(), strict=True)
            ),
        )
        for row, vector in enumerate(vectors)
    ), token_norm
