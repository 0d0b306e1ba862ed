"""What every question put to a run has in common: which images, how it is written down, and what is odd about it.

A task adds what is its own: how the model answers. `evaluation.zero_shot` and `evaluation.classify` are such tasks.
"""

from __future__ import annotations

import csv
import io
import logging
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
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
from cleft.data import data_config, prompt_template, read_dataset, report_not_inherited
from cleft.data.batches import eval_loader
from cleft.data.images.cache import PreparedImages, obtain_images
from cleft.data.splits.recipes import split_records
from cleft.data.splits.split_file import leakage_notes
from cleft.data.splits.subsets import PER_PATIENT, class_sizes, draw_per_class, ids_digest
from cleft.data.tables.paths import PHANTOMS_FILE
from cleft.data.text.prompts import ClassNames, check_class_names, choose_classes, find_class_names, require_phrases
from cleft.errors import CheckpointError, ConfigError, DataError
from cleft.evaluation.metrics import Floats
from cleft.evaluation.predictions import (
    Blank,
    ClassificationResults,
    multi_class_predictions,
    multi_class_results,
    present_absent_predictions,
    present_absent_results,
    rows_with_one_class,
)
from cleft.evaluation.scoring import Bootstrap, Predictions
from cleft.files import Output, csv_text
from cleft.grammar import count, share, verb
from cleft.models.checkpoint import check_joint_space, load_model, weights_digest
from cleft.models.dual_encoder import DualEncoder
from cleft.models.model_folder import DESCRIPTION
from cleft.training.features import EncodingModel, compare_images, device_of, encode_images
from cleft.training.provenance import command_line, people_of, seen_patients
from cleft.types import Embeddings, ImageModel, LabelledImages, Reading, Record, Splits

Split = Literal["train", "val", "test", "all"]
"""Part of a dataset; `all` does not split it."""


class PerClass(NamedTuple):
    """As many images of each class, in place of all images of a part."""

    images: int
    """Of each class."""
    per_patient: int = PER_PATIENT
    """Most images of a patient in a class."""


class Known(NamedTuple):
    """Images left out because the run has seen their patient."""

    images: int = 0
    notes: tuple[str, ...] = ()


class Selection(NamedTuple):
    """The images of one question, and where they come from."""

    dataset: str
    people: str
    """Whose patients these are."""
    records: list[Record]
    """Readable ones alone, in the order of the table."""
    findings: tuple[str, ...]
    opening: str
    """What a class prompt begins with."""
    prepared: PreparedImages
    recipe: str
    split_digest: str
    """Of all parts together, as the run keeps it."""
    synthetic: bool
    """Whether the images were drawn."""
    notes: list[str]
    left_out: int = 0
    """Images of patients whom the run has seen, where only the others are asked about."""


def select_images(
    run: Path,
    config: DataConfig,
    settings: Settings,
    part: Split,
    *,
    classes: Sequence[str] | None = None,
    per_class: PerClass | None = None,
    allow_overlap: bool = False,
    drop_overlap: bool = False,
    progress: bool = True,
) -> Selection:
    """Reads the table, takes one part of it, refuses patients the run knows, and prepares the images.

    Args:
        run: Run folder.
        config: Where to read.
        settings: Of the run; they say how images are prepared.
        part: Which part of the data.
        classes: What will be told apart, as for `choose_classes`; only `per_class` asks for it.
        per_class: How many images of each class to draw from the part, as its ids say, whatever their order; None takes
            them all. A note counts them and their patients.
        allow_overlap: Whether patients the run was trained on may be asked about; a note then says so.
        drop_overlap: Whether such patients are left out and the others asked about; a note counts them.
        progress: Whether to show a bar.

    Raises:
        ConfigError: If a class is not a finding of the table, or overlap is both to be allowed and dropped.
        DataError: If the part is empty or has too few images of a class, too many images cannot be read, or patients
            were trained on.
    """
    reading = read_dataset(config)
    if part == "all":
        records, recipe, digest = reading.records, "all", ids_digest(record.id for record in reading.records)
        told: list[str] = []
        drawn: dict[str, set[str]] = {}
    else:
        splits = split_records(reading, config)
        drawn = {splits.digest: {record.patient for record in (*splits.train, *splits.val)}}
        records, recipe, digest = {"train": splits.train, "val": splits.val, "test": splits.test}[part], *splits[3:5]
        told = _told(splits, part)
    if not records:
        raise DataError(f"the split {part!r} of the recipe {recipe!r} holds no image", reason="no-image")
    if drop_overlap:
        if allow_overlap:
            raise ConfigError("--allow-overlap and --drop-overlap contradict each other; give one of them")
        records, known = _unseen(run, reading.people or reading.dataset, records, drawn)
    else:
        known = Known()
    if per_class is not None:
        named = choose_classes(classes, settings, reading.dataset, reading.findings)
        records, note = _draw(records, named, per_class)
        told = [*told, note]
    notes = [*told, *known.notes, *_cautions(run, reading)]
    if not drop_overlap:
        notes += _overlap(run, reading.people or reading.dataset, records, drawn, allowed=allow_overlap)
    prepared = obtain_images(records, config, settings.images, progress=progress)
    return _selection(reading, config, records, prepared, recipe, digest, notes)._replace(left_out=known.images)


def _selection(
    reading: Reading,
    config: DataConfig,
    records: list[Record],
    prepared: PreparedImages,
    recipe: str,
    digest: str,
    notes: list[str],
) -> Selection:
    """What can be read of some records; a note counts the rest."""
    usable = prepared.usable(records)
    notes = [*notes]
    if len(usable) < len(records):
        reasons = Counter(prepared.rejected[record.id] for record in records if record.id in prepared.rejected)
        listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        lost = len(records) - len(usable)
        notes.append(
            f"{share(lost, len(records), 'image')} of the split cannot be read and {verb(lost, 'was', 'were')} not "
            f"scored ({listed})."
        )
    return Selection(
        dataset=reading.dataset,
        people=reading.people or reading.dataset,
        records=usable,
        findings=reading.findings,
        opening=prompt_template(config),
        prepared=prepared,
        recipe=recipe,
        split_digest=digest,
        synthetic=config.root is not None and (config.root / PHANTOMS_FILE).is_file(),
        notes=notes,
    )


def _cautions(run: Path, reading: Reading) -> list[str]:
    """What the reading has to say beside every number, and whether its patients could be recognised at all."""
    known, asked = people_of(run), reading.people or reading.dataset
    cautions = [f"{caution[0].upper()}{caution[1:]}." for caution in reading.cautions]
    if not known or asked in known:
        return cautions
    told = f"patients of {asked}, and the run was trained on those of {' and '.join(sorted(known))}"
    return [*cautions, f"Whether some of these people were trained on is not known: they are {told}."]


def _told(splits: Splits, part: Split) -> list[str]:
    """What the split has to say where numbers on one of its parts are read."""
    return [*(f"{note[0].upper()}{note[1:]}." for note in splits.notes), *leakage_notes(splits, part)]


def _draw(records: Sequence[Record], classes: Sequence[str], per_class: PerClass) -> tuple[list[Record], str]:
    """The images drawn, and a sentence about them."""
    drawn = draw_per_class(records, classes, per_class.images, per_class.per_patient)
    patients_of = ", ".join(f"{name} of {patients:,}" for name, (_, patients) in class_sizes(drawn, classes).items())
    return drawn, (
        f"Drawn: {count(per_class.images, 'image')} of each class, at most {per_class.per_patient} of a patient in a "
        f"class; patients: {patients_of}."
    )


def _overlap(
    run: Path, people: str, records: Sequence[Record], drawn: Mapping[str, Collection[str]], *, allowed: bool
) -> list[str]:
    """Notes about patients the run was trained on, where they are allowed.

    Raises:
        DataError: If there are such patients, or that is not known, and it is not allowed.
        CheckpointError: If the run has not been trained yet.
    """
    patients = {record.patient for record in records}
    try:
        seen = seen_patients(run, people, patients, splits=drawn)
    except DataError as error:
        if error.reason != "unknown-training":
            raise
        if not (run / DESCRIPTION).is_file():
            raise CheckpointError(
                f"{run} is not finished: it holds no {DESCRIPTION}; resume it with the same command"
            ) from error
        if not allowed:
            raise DataError(
                f"{error}; --allow-overlap scores these all the same and says so", reason=error.reason
            ) from error
        return ["The run does not say which patients it was trained on; these may be among them."]
    if not seen:
        return []
    overlap = _trained_on(len(seen), len(patients))
    if not allowed:
        raise DataError(
            f"{overlap}: numbers on them would be too good; take another split, or --allow-overlap to score them all "
            f"the same and say so",
            reason="overlap",
        )
    return [f"Beware: {overlap}. These numbers are too good."]


def _unseen(
    run: Path, people: str, records: Sequence[Record], drawn: Mapping[str, Collection[str]]
) -> tuple[list[Record], Known]:
    """The images of patients whom the run has not seen, and a count of the others.

    Raises:
        DataError: If the run's patients are not known, or no image is left.
    """
    patients = {record.patient for record in records}
    seen = seen_patients(run, people, patients, splits=drawn)
    kept = [record for record in records if record.patient not in seen]
    if not kept:
        raise DataError(
            f"{_trained_on(len(seen), len(patients))}; none is left; take other data or another split",
            reason="overlap",
        )
    left_out = len(records) - len(kept)
    overlap = _trained_on(len(seen), len(patients))
    return kept, Known(
        left_out,
        (f"Left out: {overlap}; of them {count(left_out, 'image')} {verb(left_out, 'was', 'were')} not scored.",)
        * bool(seen),
    )


def _trained_on(seen: int, patients: int) -> str:
    return f"{share(seen, patients, 'patient')} {verb(seen, 'was', 'were')} trained on or used to choose the weights"


log = logging.getLogger(__name__)

Scoring = Literal["multi-class", "present-absent"]

BATCH = 64
"""Images that are read at once."""
CANNOT_BE_ASKED = "no temperature: no validation image can be asked this"
"""Why there is none, where `Question.score` finds nothing."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which images are asked about, and what: the options of every task."""

    data: str | None = None
    """`dataset:folder` in place of the run's own data, e.g. `chexpert:/data/CheXpert`."""
    split: Split = "test"
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
    ) -> PreparedTask:
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
        check_joint_space(run)
        words = find_class_names(wording or settings.class_names, self.config(settings).dataset)
        if phrases is not None:
            require_phrases(words, phrases)
        images = self.images(run, settings, progress=progress)
        classes = choose_classes(self.classes, settings, images.dataset, images.findings)
        check_class_names(words, classes)
        model = load_model(run).to(device_of(settings)).eval()
        check_image_spec(run, model, settings)
        return PreparedTask(run, settings, images, classes, words, model, weights_digest(run))

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
        self, logits: Floats, images: Embeddings | LabelledImages, classes: Sequence[str], draws: Bootstrap
    ) -> ClassificationResults:
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
            return multi_class_results(logits, images, classes, draws)
        return present_absent_results(*halves(logits), images, classes, draws, blank=self.blank)

    def rows(self, images: Embeddings | LabelledImages, classes: Sequence[str]) -> list[int]:
        """Images that are asked this: those that show exactly one of the classes, or all."""
        return rows_with_one_class(images, classes) if self.scoring == "multi-class" else list(range(len(images.ids)))

    def score(self, logits: Floats, images: Embeddings | LabelledImages, classes: Sequence[str]) -> Predictions | None:
        """What stands behind the numbers of `answer`, without measuring them; None where no image can be asked."""
        try:
            if self.scoring == "multi-class":
                return multi_class_predictions(logits, images, classes)[1]
            return present_absent_predictions(*halves(logits), images, classes, blank=self.blank)
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


class PreparedTask(NamedTuple):
    """A question in words, and the model that it is put to."""

    run: Path
    settings: Settings
    """Of the run."""
    images: Selection
    """What is asked about."""
    classes: tuple[str, ...]
    """Columns of the labels."""
    words: ClassNames
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


def check_image_spec(run: Path, model: ImageModel, settings: Settings) -> None:
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


def write_embeddings(run: Path, question: Question, out: Output, *, progress: bool = True) -> Path:
    """Writes the embedding of each selected image: a column `image` and `e0` to `e<E-1>`, unit length.

    Args:
        run: Run folder of either stage; embeddings that an evaluation left in it are not computed again.
        question: Which images.
        out: A CSV table.
        progress: Whether to show a bar.

    Returns:
        The table. `image` is the image's path in the user's table, without a `./` or the folder of a release in front.

    Raises:
        CheckpointError: If the run reads no texts, or its weights are damaged.
        DataError: If images cannot be read, or patients were trained on.
    """
    check_joint_space(run)
    settings = question.run_settings(run)
    images = question.images(run, settings, progress=progress)
    model = load_model(run).to(device_of(settings)).eval()
    found = embed_images(run, model, images, settings, weights_digest(run), progress=progress)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", *(f"e{column}" for column in range(found.image_embeds.shape[1]))])
    for name, row in zip(found.ids, found.image_embeds.tolist(), strict=True):
        table.writerow([csv_text(name), *(f"{value:.9g}" for value in row)])
    return out.write(text.getvalue())
