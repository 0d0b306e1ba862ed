"""What every evaluation starts from: settings, images, class names, model and embeddings.

Results on patients that a model was trained on are too optimistic. A run stores its patients as keyed digests, so that
they are recognised in any table without being named.

Shapes: `N` images, `E` joint dimension.
"""

from __future__ import annotations

import csv
import io
import logging
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

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
from cleft.data import data_config, prompt_prefix, read_dataset, report_not_inherited
from cleft.data.batches import eval_loader
from cleft.data.images.cache import PreparedImages, obtain_images
from cleft.data.splits.recipes import split_records
from cleft.data.splits.split_file import leakage_notes
from cleft.data.splits.subsets import PER_PATIENT, class_sizes, draw_per_class, ids_digest
from cleft.data.tables.paths import PHANTOMS_FILE
from cleft.data.text.prompts import ClassNames, check_class_names, choose_classes, find_class_names, require_phrases
from cleft.errors import CheckpointError, ConfigError, DataError
from cleft.evaluation import EvaluationOptions, PromptOptions, Split
from cleft.files import Output, csv_text
from cleft.grammar import count, share, verb
from cleft.models.checkpoint import check_joint_space, load_model, weights_digest
from cleft.models.dual_encoder import DualEncoder
from cleft.models.model_folder import DESCRIPTION
from cleft.training.features import EncodingModel, compare_images, encode_images, inference_device
from cleft.training.provenance import command_line, people_of, seen_patients
from cleft.types import Embeddings, ImageModel, Reading, Record

log = logging.getLogger(__name__)

BATCH_SIZE = 64
"""Images per batch when encoding."""
NO_VALIDATION_LABELS = "no temperature: no validation image has the labels it needs"


def evaluation_settings(run: Path, options: EvaluationOptions) -> Settings:
    """Returns the settings of a run, with the overrides applied unless other data are named.

    For other data, data settings of the run that are not used are reported.

    Raises:
        ConfigError: If an override is not a data setting.
    """
    settings = load_run_settings(run)
    for key in sorted(overridden_keys(options.overrides)):
        if not key.startswith("data.") or key == "data.dataset":
            raise ConfigError(
                f"--{key} cannot be changed here, only settings of data can, such as --data.root <folder>; for another "
                f"dataset give --data <dataset>:<folder>"
            )
        if options.data is not None and key in ("data.root", "data.table"):
            raise ConfigError(f"--data {options.data} and --{key} both say which images are read; give one of them")
    if options.data is None:
        return merge_overrides(settings, options.overrides)
    report_not_inherited(settings.data, evaluation_data(settings, options))
    return settings


def evaluation_data(settings: Settings, options: EvaluationOptions) -> DataConfig:
    """Returns the data settings of an evaluation: those of the run, or of the dataset named in the options."""
    config = data_config(settings, options.data)
    return config if options.data is None else merge_overrides(replace(settings, data=config), options.overrides).data


def parse_classes(classes: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Returns class sets or findings as a tuple; in a string they are separated by commas, names with commas quoted."""
    if classes is None:
        return None
    words = split_list(classes) if isinstance(classes, str) else classes
    return tuple(word.strip() for word in words if word.strip())


def command_of(run: Path, task: str, options: EvaluationOptions) -> str:
    """Returns the command of an evaluation: all options that differ from their defaults, without folders.

    Args:
        run: Run folder.
        task: Value of `--task`.
        options: Options of the evaluation.
    """
    words = ["cleft evaluate", run.resolve().name, f"--task {task}"]
    for field in fields(options):
        value = getattr(options, field.name)
        if not field.metadata.get("option", True) or value == field.default:
            continue
        if field.name == "data":
            value = f"{value.partition(':')[0]}:<folder>"
        elif field.name in ("classes", "directions"):
            value = join_list(parse_classes(value) or ())
        elif field.name == "class_names":
            value = Path(value).name
        flag = f"--{field.name.replace('_', '-')}"
        words.append(flag if value is True else f"{flag} {shlex.quote(str(value))}")
    return " ".join([*words, *command_line(list(options.overrides)).split()])


class Selection(NamedTuple):
    """Images of an evaluation, and where they come from."""

    dataset: str
    people: str
    """Name of the patient population; datasets that show the same patients share it."""
    records: list[Record]
    """Readable images only, in the order of the table."""
    findings: tuple[str, ...]
    template: str
    """Prompt template: the words in front of a class name."""
    prepared: PreparedImages
    recipe: str
    """Name of the split recipe."""
    split_digest: str
    """Digest of all splits together, as the run stores it."""
    synthetic: bool
    """Whether the images are synthetic."""
    notes: list[str]
    overlap_left_out: int = 0
    """Images left out because the model was trained on their patients."""


def select_images(
    run: Path,
    settings: Settings,
    options: EvaluationOptions,
    *,
    classes: str | Sequence[str] | None = None,
    progress: bool = True,
) -> Selection:
    """Reads the table, selects the images to evaluate on, and prepares them.

    Args:
        run: Run folder, with the patients of training.
        settings: Settings of the run, with those of image preparation.
        options: Data, split, images per class, and what to do with patients the model was trained on.
        classes: Classes, as for `choose_classes`; read only with `options.per_class`.
        progress: Whether to show a progress bar.

    Raises:
        ConfigError: If a class is not a finding of the table, or options contradict each other.
        DataError: If the split is empty or has too few images of a class, too many images cannot be read, or the model
            was trained on patients of the split.
    """
    if options.allow_overlap and options.drop_overlap:
        raise ConfigError("--allow-overlap and --drop-overlap contradict each other; give one of them")
    per_class, per_patient = _images_per_class(options)
    config = evaluation_data(settings, options)
    reading = read_dataset(config)
    records, recipe, digest, trained, notes = _split(reading, config, options.split)
    people = reading.patient_dataset or reading.dataset
    left_out = 0
    overlap_notes: list[str] = []
    if options.drop_overlap:
        kept, overlap_notes = _drop_overlap(run, people, records, trained)
        records, left_out = kept, len(records) - len(kept)
    if per_class is not None:
        chosen = choose_classes(parse_classes(classes), settings, reading.dataset, reading.findings)
        records = draw_per_class(records, chosen, per_class, per_patient)
        patients = ", ".join(f"{name} of {number:,}" for name, (_, number) in class_sizes(records, chosen).items())
        notes.append(
            f"Drawn: {count(per_class, 'image')} of each class, at most {per_patient} of a patient in a class; "
            f"patients: {patients}."
        )
    notes += [*overlap_notes, *_cautions(run, reading)]
    if not options.drop_overlap:
        notes += _overlap_notes(run, people, records, trained, allowed=options.allow_overlap)
    prepared = obtain_images(records, config, settings.images, progress=progress)
    usable = prepared.usable(records)
    return Selection(
        dataset=reading.dataset,
        people=people,
        records=usable,
        findings=reading.findings,
        template=prompt_prefix(config),
        prepared=prepared,
        recipe=recipe,
        split_digest=digest,
        synthetic=config.root is not None and (config.root / PHANTOMS_FILE).is_file(),
        notes=[*notes, *_unreadable_notes(prepared, records, usable)],
        overlap_left_out=left_out,
    )


def validation_images(
    run: Path, settings: Settings, options: EvaluationOptions, *, progress: bool = True
) -> Selection | str:
    """Returns the validation images that a temperature is fitted on, or the reason why there are none.

    Only the test split has them: images of other splits may be validation images themselves. Patients of training are
    allowed, since one parameter is fitted.
    """
    if options.split == "all":
        return "no temperature: all images were evaluated, and none is left to fit it on"
    if options.split != "test":
        return f"no temperature: it is fitted for test images only, and those of {options.split} were evaluated"
    validation = EvaluationOptions(data=options.data, overrides=options.overrides, split="val", allow_overlap=True)
    try:
        return select_images(run, settings, validation, progress=progress)
    except DataError as error:
        if error.reason == "no-image":
            return "no temperature: the data have no validation split"
        log.warning("the validation images cannot be used, so no temperature is fitted: %s", error)
        return "no temperature: the validation images cannot be used"


def _images_per_class(options: EvaluationOptions) -> tuple[int | None, int]:
    for name, number in (("--per-class", options.per_class), ("--per-patient", options.per_patient)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} {number}: give 1 or more")
    if options.per_class is None and options.per_patient is not None:
        raise ConfigError(
            f"--per-patient {options.per_patient} has no effect without --per-class; give both, or neither"
        )
    return options.per_class, PER_PATIENT if options.per_patient is None else options.per_patient


def _split(
    reading: Reading, config: DataConfig, split: Split
) -> tuple[list[Record], str, str, dict[str, set[str]], list[str]]:
    """Returns the records of a split, recipe, digest, patients used in training by digest, and notes."""
    if split == "all":
        records, recipe, digest = reading.records, "all", ids_digest(record.id for record in reading.records)
        trained: dict[str, set[str]] = {}
        notes: list[str] = []
    else:
        splits = split_records(reading, config)
        records, recipe, digest = getattr(splits, split), splits.recipe, splits.digest
        trained = {splits.digest: {record.patient for record in (*splits.train, *splits.val)}}
        notes = [*(f"{note[0].upper()}{note[1:]}." for note in splits.notes), *leakage_notes(splits, split)]
    if not records:
        raise DataError(f"the split {split!r} of the recipe {recipe!r} holds no image", reason="no-image")
    return records, recipe, digest, trained, notes


def _unreadable_notes(prepared: PreparedImages, records: Sequence[Record], usable: Sequence[Record]) -> list[str]:
    lost = len(records) - len(usable)
    if not lost:
        return []
    reasons = Counter(prepared.rejected[record.id] for record in records if record.id in prepared.rejected)
    listed = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common())
    return [
        f"{share(lost, len(records), 'image')} of the split cannot be read and {verb(lost, 'was', 'were')} not scored "
        f"({listed})."
    ]


def _cautions(run: Path, reading: Reading) -> list[str]:
    """Returns the dataset's cautions, and one if its patients cannot be matched with those of training."""
    trained, people = people_of(run), reading.patient_dataset or reading.dataset
    cautions = [f"{caution[0].upper()}{caution[1:]}." for caution in reading.cautions]
    if not trained or people in trained:
        return cautions
    return [
        *cautions,
        f"Overlap of patients with training is unknown: these are patients of {people}, and the run was trained on "
        f"those of {' and '.join(sorted(trained))}.",
    ]


def _overlap_notes(
    run: Path, people: str, records: Sequence[Record], trained: Mapping[str, Collection[str]], *, allowed: bool
) -> list[str]:
    """Returns notes about patients that the model was trained on, if they are allowed.

    Raises:
        DataError: If there are such patients, or that is unknown, and they are not allowed.
        CheckpointError: If the run is not finished.
    """
    patients = {record.patient for record in records}
    try:
        seen = seen_patients(run, people, patients, splits=trained)
    except DataError as error:
        if error.reason != "unknown-training":
            raise
        if not (run / DESCRIPTION).is_file():
            raise CheckpointError(
                f"{run} is not finished: it holds no {DESCRIPTION}; resume it with the same command"
            ) from error
        if not allowed:
            raise DataError(f"{error}; --allow-overlap evaluates anyway and says so", reason=error.reason) from error
        return ["The run does not say which patients it was trained on; these may be among them."]
    if not seen:
        return []
    overlap = _trained_on(len(seen), len(patients))
    if not allowed:
        raise DataError(
            f"{overlap}: results on them are too optimistic; take another split, --drop-overlap to leave them out, or "
            f"--allow-overlap to evaluate anyway and say so",
            reason="overlap",
        )
    return [f"Beware: {overlap}. These results are too optimistic."]


def _drop_overlap(
    run: Path, people: str, records: Sequence[Record], trained: Mapping[str, Collection[str]]
) -> tuple[list[Record], list[str]]:
    """Returns the images of patients that the model was not trained on, and a note that counts the others.

    Raises:
        DataError: If the patients of training are unknown, or no image is left.
    """
    patients = {record.patient for record in records}
    seen = seen_patients(run, people, patients, splits=trained)
    if not seen:
        return list(records), []
    kept = [record for record in records if record.patient not in seen]
    overlap = _trained_on(len(seen), len(patients))
    if not kept:
        raise DataError(f"{overlap}; none is left; take other data or another split", reason="overlap")
    dropped = len(records) - len(kept)
    return kept, [f"Left out: {overlap}; of them {count(dropped, 'image')} {verb(dropped, 'was', 'were')} not scored."]


def _trained_on(seen: int, patients: int) -> str:
    return f"{share(seen, patients, 'patient')} {verb(seen, 'was', 'were')} trained on or used to choose the weights"


class PreparedTask(NamedTuple):
    """An evaluation with text prompts, checked and loaded."""

    run: Path
    settings: Settings
    """Settings of the run."""
    images: Selection
    classes: tuple[str, ...]
    """Columns of the labels."""
    words: ClassNames
    """Class names in prompts."""
    model: DualEncoder
    weights: str
    """Digest of the model's weights."""

    def embed(self, images: Selection, *, progress: bool = True) -> Embeddings:
        """Returns the embeddings of images; as `embed_images`."""
        return embed_images(self.run, self.model, images, self.settings, self.weights, progress=progress)

    def compare(
        self,
        images: Selection,
        similarity: Callable[[Tensor], Tensor],
        key: Mapping[str, str],
        *,
        progress: bool = True,
    ) -> Tensor:
        """Returns similarities of images with fixed prompts; as `compare_images`, whose `key` identifies the prompts.

        Raises:
            NumericsError: If a similarity is not finite.
        """
        return compare_images(
            self.model,
            similarity,
            eval_loader(images.records, images.prepared, images.findings, self.settings, batch_size=BATCH_SIZE),
            images.records,
            folder=self.run / "embeddings",
            key=_embeddings_key(self.weights, images, self.settings) | dict(key),
            progress=progress,
        )


def prepare(
    run: Path, options: PromptOptions, *, needs_phrases: str | None = None, progress: bool = True
) -> PreparedTask:
    """Checks an evaluation with text prompts and loads its images and model; no image is encoded yet.

    Args:
        run: Run folder of stage one or two.
        options: Images, classes and class names.
        needs_phrases: What needs a phrase for each class, as the start of a message; complete sentences are then
            refused.
        progress: Whether to show progress bars.

    Raises:
        ConfigError: If the run, the data, a class or the class names are unknown.
        DataError: If no image can be evaluated, or the model was trained on its patients.
        CheckpointError: If the model has no text tower, or its weights are damaged.
    """
    settings = evaluation_settings(run, options)
    check_joint_space(run)
    words = find_class_names(options.class_names or settings.class_names, evaluation_data(settings, options).dataset)
    if needs_phrases is not None:
        require_phrases(words, needs_phrases)
    images = select_images(run, settings, options, classes=options.classes, progress=progress)
    classes = choose_classes(parse_classes(options.classes), settings, images.dataset, images.findings)
    check_class_names(words, classes)
    model = load_model(run).to(inference_device(settings)).eval()
    check_image_spec(run, model, settings)
    return PreparedTask(run, settings, images, classes, words, model, weights_digest(run))


def check_image_spec(run: Path, model: ImageModel, settings: Settings) -> None:
    """Raises if a model expects other images than the settings of its run prepare.

    Raises:
        CheckpointError: If size, mean or std differ.
    """
    spec, size = model.image_spec, settings.images.size
    if (spec.size, spec.mean, spec.std) != ((size, size), settings.images.mean, settings.images.std):
        raise CheckpointError(
            f"{run}: model.json and config.yaml differ in images.size, images.mean or images.std; one of them was "
            f"edited, copy the run again"
        )


def embed_images(
    run: Path, model: EncodingModel, images: Selection, settings: Settings, weights: str, *, progress: bool = True
) -> Embeddings:
    """Returns the embeddings of selected images, from the run's `embeddings` folder if they are stored there.

    Args:
        run: Run folder.
        model: Model of the run.
        images: Images to encode.
        settings: Settings of the run.
        weights: Digest of the model's weights.
        progress: Whether to show a progress bar.

    Raises:
        NumericsError: If an embedding is not finite.
    """
    return encode_images(
        model,
        eval_loader(images.records, images.prepared, images.findings, settings, batch_size=BATCH_SIZE),
        images.records,
        images.findings,
        folder=run / "embeddings",
        key=_embeddings_key(weights, images, settings),
        progress=progress,
    )


def _embeddings_key(weights: str, images: Selection, settings: Settings) -> dict[str, str]:
    return {"weights": weights, "pixels": images.prepared.digest, "size": str(settings.images.size)}


def write_embeddings(run: Path, options: EvaluationOptions, out: Output, *, progress: bool = True) -> Path:
    """Writes a CSV table with the embedding of each selected image: columns `image` and `e0` to `e<E-1>`, unit length.

    Embeddings stored in a run do not name their images, since runs are shared; this table does.

    Args:
        run: Run folder of stage one or two; stored embeddings are not computed again.
        options: Images to encode.
        out: CSV table.
        progress: Whether to show a progress bar.

    Returns:
        The table. `image` is the path in the user's table, without a leading `./` or the folder of a release.

    Raises:
        CheckpointError: If the model has no text tower, or its weights are damaged.
        DataError: If images cannot be read, or the model was trained on their patients.
    """
    check_joint_space(run)
    settings = evaluation_settings(run, options)
    images = select_images(run, settings, options, classes=getattr(options, "classes", None), progress=progress)
    model = load_model(run).to(inference_device(settings)).eval()
    embeddings = embed_images(run, model, images, settings, weights_digest(run), progress=progress)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", *(f"e{column}" for column in range(embeddings.image_embeds.shape[1]))])
    for name, row in zip(embeddings.ids, embeddings.image_embeds.tolist(), strict=True):
        table.writerow([csv_text(name), *(f"{value:.9g}" for value in row)])
    return out.write(text.getvalue())
