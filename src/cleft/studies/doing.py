"""Runs one step of a study, in this process or in one of its own."""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from cleft.data import data_config, read_dataset
from cleft.data.splits.recipes import split_records
from cleft.data.text.prompts import choose_classes
from cleft.data.text.texts import Texts
from cleft.evaluation.classifier import evaluate_classify
from cleft.evaluation.zero_shot import evaluate_zero_shot
from cleft.files import write_whole
from cleft.models.language_model import is_causal, read_text_config
from cleft.studies.base_lm import learn_language_model
from cleft.studies.models import adopt
from cleft.studies.plans import SUBJECTS
from cleft.studies.steps import Step
from cleft.training.classify import classify
from cleft.training.context import learn_context
from cleft.training.pretrain import pretrain

log = logging.getLogger(__name__)


def do(step: Step) -> Path:
    """Runs a step, or goes on with it, or finds it finished.

    Returns:
        Its folder; of a question, the result file.

    Raises:
        CleftError: As what it runs does.
    """
    if step.kind == "apart":
        return _list_apart(step)
    if step.kind == "language-model":
        return _learn_language_model(step)
    if step.kind == "adopt":
        return adopt(step)
    if step.kind == "pretrain":
        return pretrain(step.settings, step.folder, progress=False)
    if step.kind == "context":
        assert step.source is not None
        return learn_context(step.source, step.settings, step.folder, progress=False)
    if step.kind == "classify":
        assert step.source is not None
        return classify(step.source, step.settings, step.folder, data=step.data, progress=False)
    assert step.subject is not None
    subject = SUBJECTS[step.subject]
    per_class = subject.per_class if step.balanced else None
    overlap = step.model is not None  # our own rows keep test patients apart; of a given model the result says
    if step.kind == "score":
        return evaluate_classify(step.folder, per_class=per_class, allow_overlap=overlap, progress=False)
    return evaluate_zero_shot(
        step.folder,
        data=step.data,
        classes=subject.classes,
        per_class=per_class,
        allow_overlap=overlap,
        progress=False,
    )


def _learn_language_model(step: Step) -> Path:
    """A study's own language model learns captions, and a masked one whatever else is said of findings.

    Rows of masked models read sentences of several kinds, and all begin from the same one.
    """
    config, text, seed = step.settings.data, step.settings.text, step.settings.seed
    reading = read_dataset(config)
    records = split_records(reading, config).train
    kinds: tuple[Kind, ...] = ("captions",) if is_causal(read_text_config(text)) else get_args(Kind)
    texts = [Texts(records, reading.findings, replace(config, texts=kind), seed) for kind in kinds]
    return learn_language_model(
        [sentence for each in texts for sentence in each.every()],
        text,
        step.folder,
        learnable=[part for each in texts for part in each.learnable().parts],
        seed=seed,
    )


Kind = Literal["captions", "findings", "bank"]
"""Sentences that are made of labels, as `data.texts` names them."""


def _list_apart(step: Step) -> Path:
    """Writes the patients of the other data sets' tests whom the data to learn from may show too.

    The file names patients, as tables do, and is for its owner alone.
    """
    people = read_dataset(step.settings.data).people or step.settings.data.dataset
    found: dict[str, None] = {}
    for other in step.others:
        config = data_config(step.settings, other)
        reading = read_dataset(config)
        if (reading.people or reading.dataset) == people:
            found |= {record.patient: None for record in split_records(reading, config).test}
    if not found:
        log.info("%s: nobody of %s stands in another data set's test", step.folder.name, people)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([["patient"], *([patient] for patient in sorted(found))])
    step.folder.parent.mkdir(parents=True, exist_ok=True)
    write_whole(step.folder, table.getvalue().encode())
    return step.folder


def check_question(step: Step) -> None:
    """Refuses data that cannot be asked, before anything is trained for it.

    Raises:
        ConfigError: If a class is not a finding of the table.
        DataError: If the table cannot be read.
    """
    assert step.subject is not None
    settings = replace(step.settings, data=replace(step.settings.data, exclude=None))
    reading = read_dataset(data_config(settings, step.data))
    named = SUBJECTS[step.subject].classes
    choose_classes(None if named is None else [named], settings, reading.dataset, reading.findings)
