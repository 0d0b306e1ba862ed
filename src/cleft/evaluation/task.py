"""What every question put to a run has in common: which images, how it is written down, and what is odd about it.

A task adds what is its own: how the model answers. `evaluation.zero_shot` and `evaluation.classify` are such tasks.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from cleft.config import (
    DataConfig,
    Settings,
    join_list,
    load_run_settings,
    merge_overrides,
    overridden_keys,
    split_list,
)
from cleft.data import data_config, report_not_inherited
from cleft.data.batches import eval_loader
from cleft.data.counts import FEWEST_PATIENTS
from cleft.data.splits.subsets import ids_digest
from cleft.data.text.prompts import Wording, check_phrases, check_wording, choose_classes, find_wording
from cleft.errors import CheckpointError, ConfigError, DataError
from cleft.evaluation.calibration import calibrate
from cleft.evaluation.examples import pick_examples
from cleft.evaluation.metrics import Floats
from cleft.evaluation.predictions import (
    Answers,
    Blank,
    answer_multi_class,
    answer_present_absent,
    find_one_class,
    score_one_class,
    score_presence,
)
from cleft.evaluation.scoring import Draws, Scored
from cleft.evaluation.selection import Part, PerClass, Selection, select_images
from cleft.evaluation.subgroups import by_subgroup
from cleft.models.checkpoint import check_reads_texts, load_model, weights_digest
from cleft.models.dual_encoder import DualEncoder
from cleft.results import Evaluation, Result
from cleft.training.features import EncodingModel, compare_images, encode_images
from cleft.training.surroundings import command_line, device_of
from cleft.types import Embeddings, ImageModel, LabelledImages

log = logging.getLogger(__name__)

Scoring = Literal["multi-class", "present-absent"]

BATCH = 64
"""Images that are read at once."""
CANNOT_BE_ASKED = "no temperature: no validation image can be asked this"
"""Why there is none, where `Question.score` finds nothing."""
REVERSED = 0.4
"""An AUC below this, whose whole interval lies below a half, is no bad luck."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which images are asked about, and what: the options of every task."""

    data: str | None = None
    """`dataset:folder` in place of the run's own data, e.g. `chexpert:/data/CheXpert`."""
    split: Part = "test"
    """Which part of the data; `all` does not split it."""
    classes: tuple[str, ...] | None = None
    """Names of sets, or findings; None for the run's own."""
    scoring: Scoring = "multi-class"
    """`multi-class`: which one of the classes, asked of images that show exactly one. `present-absent`: whether each
    finding is there, asked of every image where that is known."""
    blank: Blank = "unknown"
    """For `present-absent`: whether a finding nobody mentioned is not known, or absent."""
    per_class: int | None = None
    """Ask about as many images of each class, drawn by the hash of their ids, in place of all."""
    per_patient: int | None = None
    """Most images of a patient in a class, where `per_class` is given; by default 4."""
    allow_overlap: bool = False
    """Whether to score patients the run was trained on. The result then says so."""
    drop_overlap: bool = False
    """Whether to score only patients the run has not seen. The result counts the images left out."""
    overrides: tuple[str, ...] = ()
    """Data settings in place of the run's, as typed: `--data.root`, `<folder>`."""

    def run_settings(self, run: Path) -> Settings:
        """Return the settings of a run, with the overrides where no other data are named.

        Raises:
            ConfigError: If an override is no setting of data.
        """
        settings = load_run_settings(run)
        for key in sorted(overridden_keys(self.overrides)):
            if not key.startswith("data.") or key == "data.dataset":
                raise ConfigError(
                    f"--{key} cannot be changed here, only settings of data can, such as --data.root <folder>; for "
                    f"another dataset give --data <dataset>:<folder>"
                )
            if self.data is not None and key in ("data.root", "data.table"):
                raise ConfigError(f"--data {self.data} and --{key} both say which images are read; give one of them")
        return settings if self.data is not None else merge_overrides(settings, self.overrides)

    def config(self, settings: Settings) -> DataConfig:
        """Where to read."""
        config = data_config(settings, self.data)
        return config if self.data is None else merge_overrides(replace(settings, data=config), self.overrides).data

    def balance(self) -> PerClass | None:
        """What to draw.

        Raises:
            ConfigError: If a number is below 1, or `per_patient` is given without `per_class`.
        """
        for name, number in (("--per-class", self.per_class), ("--per-patient", self.per_patient)):
            if number is not None and number < 1:
                raise ConfigError(f"{name} {number}: give 1 or more")
        if self.per_class is None:
            if self.per_patient is not None:
                raise ConfigError(
                    f"--per-patient {self.per_patient} does nothing without --per-class; give both, or neither"
                )
            return None
        return PerClass(self.per_class) if self.per_patient is None else PerClass(self.per_class, self.per_patient)

    def images(self, run: Path, settings: Settings, *, progress: bool = True) -> Selection:
        """Reads, checks and prepares the images to evaluate, as `select_images`.

        Reports which data settings of the run are not used for them.
        """
        config = self.config(settings)
        report_not_inherited(settings.data, config)
        return select_images(
            run,
            config,
            settings,
            self.split,
            classes=self.classes,
            per_class=self.balance(),
            allow_overlap=self.allow_overlap,
            drop_overlap=self.drop_overlap,
            progress=progress,
        )

    def pose(
        self, run: Path, wording: str | None = None, *, phrases: str | None = None, progress: bool = True
    ) -> Posed:
        """Makes ready what a question in words needs; what cannot be asked is refused before an image is encoded.

        Args:
            run: Run folder of either stage.
            wording: Which words stand for the classes; by default the run's own.
            phrases: What needs a phrase for each class, as a sentence begins with it; whole sentences are then refused.
            progress: Whether to show bars.

        Raises:
            ConfigError: If the run, the data, a class or the wording is unknown.
            DataError: If nothing can be asked of the images, or patients were trained on.
            CheckpointError: If the run reads no texts, or its weights are damaged.
        """
        settings = self.run_settings(run)
        check_reads_texts(run)
        words = find_wording(wording or settings.wording, self.config(settings).dataset)
        if phrases is not None:
            check_phrases(words, phrases)
        images = self.images(run, settings, progress=progress)
        classes = choose_classes(self.classes, settings, images.dataset, images.findings)
        check_wording(words, classes)
        model = load_model(run).to(device_of(settings)).eval()
        check_images(run, model, settings)
        return Posed(run, settings, images, classes, words, model, weights_digest(run))

    def validation(
        self, run: Path, settings: Settings, *, progress: bool = True
    ) -> tuple[Selection | None, str | None]:
        """Reads the validation images of the same data, to fit a temperature on; or says why there are none.

        A question that is not put to the test images has none: they may be among those that are asked about. Whether
        the run has seen them does not matter for a single number.
        """
        if self.split != "test":
            if self.split == "all":
                return None, "no temperature: all images were scored, and none is left to fit it on"
            return (
                None,
                f"no temperature: it is fitted for test images alone, and those of {self.split} were scored",
            )
        try:
            return select_images(
                run, self.config(settings), settings, "val", allow_overlap=True, progress=progress
            ), None
        except DataError as error:
            if error.reason == "no-image":
                return None, "no temperature: the data have no validation part"
            log.warning("the validation images cannot be used, so no temperature is fitted: %s", error)
            return None, "no temperature: the validation images cannot be used"

    def answer(
        self, logits: Floats, images: Embeddings | LabelledImages, classes: Sequence[str], draws: Draws
    ) -> Answers:
        """Measures logits of images.

        Args:
            logits: Of the classes, `[N, C]`; for `present-absent` of their presence and then of their absence,
                `[N, 2 C]`.
            images: Labels, patients and views of the images, `[N]`.
            classes: Columns of the labels, `[C]`.
            draws: How intervals are drawn.

        Raises:
            DataError: If no image can be asked this.
        """
        if self.scoring == "multi-class":
            return answer_multi_class(logits, images, classes, draws)
        return answer_present_absent(*halves(logits), images, classes, draws, blank=self.blank)

    def rows(self, images: Embeddings | LabelledImages, classes: Sequence[str]) -> list[int]:
        """Images that are asked this: those that show exactly one of the classes, or all."""
        return find_one_class(images, classes) if self.scoring == "multi-class" else list(range(len(images.ids)))

    def score(self, logits: Floats, images: Embeddings | LabelledImages, classes: Sequence[str]) -> Scored | None:
        """What stands behind the numbers of `answer`, without measuring them; None where no image can be asked."""
        try:
            if self.scoring == "multi-class":
                return score_one_class(logits, images, classes)[1]
            return score_presence(*halves(logits), images, classes, blank=self.blank)
        except DataError:
            return None

    def command(self, run: Path, task: str, options: Mapping[str, object]) -> str:
        """What to type for the same evaluation, without folders.

        Args:
            run: Run folder.
            task: As `--task` names it.
            options: Further options of the task; what is None is left out, and what is True has no value.
        """
        asked: dict[str, object] = {
            "--split": self.split,
            "--scoring": self.scoring,
            "--data": None if self.data is None else f"{self.data.partition(':')[0]}:<folder>",
            "--classes": None if self.classes is None else join_list(self.classes),
            "--blank": None if self.blank == "unknown" else self.blank,
            "--per-class": self.per_class,
            "--per-patient": self.per_patient,
            **options,
        }
        words = [
            name if value is True else f"{name} {shlex.quote(str(value))}"
            for name, value in asked.items()
            if value is not None
        ]
        flags = ["--allow-overlap"] * self.allow_overlap + ["--drop-overlap"] * self.drop_overlap
        typed = command_line(list(self.overrides)).split()
        return " ".join(["cleft evaluate", run.resolve().name, f"--task {task}", *words, *flags, *typed])


class Posed(NamedTuple):
    """A question in words, and the model that it is put to."""

    run: Path
    settings: Settings
    """Of the run."""
    images: Selection
    """What is asked about."""
    classes: tuple[str, ...]
    """Columns of the labels."""
    words: Wording
    """What stands for them."""
    model: DualEncoder
    weights: str
    """Digest of the model's weights."""

    def embed(self, images: Selection, *, progress: bool = True) -> Embeddings:
        """Encodes images for this model; as `embed_images`."""
        return embed_images(self.run, self.model, images, self.settings, self.weights, progress=progress)

    def compare(
        self,
        images: Selection,
        compare: Callable[[Tensor], Tensor],
        key: Mapping[str, str],
        *,
        progress: bool = True,
    ) -> Tensor:
        """Compares images with what does not change; as `compare_images`, whose `key` names it.

        Raises:
            NumericsError: If a similarity is not finite.
        """
        return compare_images(
            self.model,
            compare,
            eval_loader(images.records, images.prepared, images.findings, self.settings, batch_size=BATCH),
            images.records,
            folder=self.run / "embeddings",
            key=_key(self.weights, images, self.settings) | dict(key),
            progress=progress,
        )


def embed_images(
    run: Path, model: EncodingModel, images: Selection, settings: Settings, weights: str, *, progress: bool = True
) -> Embeddings:
    """Encodes selected images, or takes what an equal pass left in the run's `embeddings`.

    Args:
        run: Run folder.
        model: Its model.
        images: What to encode.
        settings: Of the run.
        weights: Digest of the model's weights.
        progress: Whether to show a bar.

    Raises:
        NumericsError: If an embedding is not finite.
    """
    return encode_images(
        model,
        eval_loader(images.records, images.prepared, images.findings, settings, batch_size=BATCH),
        images.records,
        images.findings,
        folder=run / "embeddings",
        key=_key(weights, images, settings),
        progress=progress,
    )


def _key(weights: str, images: Selection, settings: Settings) -> dict[str, str]:
    return {"weights": weights, "pixels": images.prepared.digest, "size": str(settings.images.size)}


def halves(logits: Floats) -> tuple[Floats, Floats]:
    """Logits that findings are there, and that they are not, `[N, C]` each."""
    findings = logits.shape[1] // 2
    return logits[:, :findings], logits[:, findings:]


def class_names(classes: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of sets or findings, of which a string has several with commas between them.

    A name that contains a comma is quoted there.
    """
    if classes is None:
        return None
    words = split_list(classes) if isinstance(classes, str) else classes
    return tuple(word.strip() for word in words if word.strip())


def write_down(
    question: Question,
    run: Path,
    images: Selection,
    answers: Answers,
    *,
    task: str,
    checkpoint: str,
    classes: Sequence[str],
    draws: Draws,
    examples: int,
    prompts: str = "none",
    class_prompts: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
    validation: Scored | None = None,
    unvalidated: str | None = None,
) -> Evaluation:
    """Makes the noun of a result file of answers and of the images they are about.

    Args:
        question: What was asked.
        run: The run that was asked.
        images: What it was asked about; `answers.rows` are rows of its records.
        answers: What it answered.
        task: As `--task` names it.
        checkpoint: Digest of the weights that answered.
        classes: What was told apart.
        draws: How intervals were drawn.
        examples: Images with their answers to keep for the page; 0 keeps none.
        prompts: What class names were read behind.
        class_prompts: These prompts.
        options: Options of the command besides those of `question`.
        notes: What a reader must know of this task, behind the notes of images and answers.
        validation: Answers to validation images of the same data, to fit a temperature on.
        unvalidated: Why there are none.

    Returns:
        The evaluation; an AUC that says the opposite of what it should is warned of, in its notes and in the log.
    """
    turned = reversal_notes(answers.results)
    for note in turned:
        log.warning("%s", note)
    asked = [images.records[row] for row in answers.rows]
    return Evaluation(
        task=task,
        dataset=images.dataset,
        split=question.split,
        split_recipe=images.recipe,
        split_digest=images.split_digest,
        ids_digest=ids_digest(record.id for record in asked),
        checkpoint=checkpoint,
        scoring=question.scoring,
        prompts=prompts,
        classes=tuple(classes),
        class_prompts=tuple(class_prompts),
        results=answers.results,
        floors=answers.floors,
        confusion=answers.confusion,
        roc=answers.roc,
        examples=pick_examples(answers, [record.id for record in images.records], classes, images.prepared, examples),
        synthetic=images.synthetic,
        overlap_left_out=images.left_out,
        command=question.command(run, task, options or {}),
        seed=draws.seed,
        notes=(*images.notes, *answers.notes, *turned, *notes),
        calibration=calibrate(answers.scored, validation, reason=unvalidated, draws=draws),
        subgroups=by_subgroup(answers.scored, asked, classes, draws, fewest=1 if images.synthetic else FEWEST_PATIENTS),
    )


def reversal_notes(results: Sequence[Result]) -> list[str]:
    """A warning about every AUC that lies far below a half, interval and all: images are ranked the wrong way round.

    Example:
        >>> reversal_notes([Result(metric="auc/Edema", value=0.2, interval=(0.1, 0.3))])[0][:59]
        'Beware: auc/Edema 0.200 [0.100-0.300] lies far below 0.5, w'
    """
    low = [
        f"{result.metric} {result.value:.3f} [{result.interval[0]:.3f}-{result.interval[1]:.3f}]"
        for result in results
        if result.metric.partition("/")[0] == "auc"
        and result.value is not None
        and result.interval is not None
        and result.value < REVERSED
        and result.interval[1] < 0.5
    ]
    if not low:
        return []
    lies = "lies" if len(low) == 1 else "lie"
    return [
        f"Beware: {', '.join(low)} {lies} far below 0.5, which is chance: images that show a class are ranked behind "
        f"those that do not. Look whether labels or prompts are reversed."
    ]


def check_images(run: Path, model: ImageModel, settings: Settings) -> None:
    """Refuses a model that wants other images than its run's settings make.

    Raises:
        CheckpointError: If it does.
    """
    wanted, size = model.image_spec, settings.images.size
    if (wanted.size, wanted.mean, wanted.std) != ((size, size), settings.images.mean, settings.images.std):
        raise CheckpointError(
            f"{run}: model.json and config.yaml differ in images.size, images.mean or images.std; one of them was "
            f"edited, copy the run again"
        )
