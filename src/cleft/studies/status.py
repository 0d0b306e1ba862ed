"""What steps have cost, and what the rest will: measured in this folder, or not known."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cleft.config import Settings, Stage, dump_settings, load_settings
from cleft.data import DATASETS, data_config
from cleft.data.datasets import CLASS_SETS
from cleft.errors import CleftError, ConfigError
from cleft.evaluation.result_files import read_evaluation
from cleft.files import file_key, write_whole
from cleft.grammar import count
from cleft.models.hub import check_weights_available
from cleft.models.image_classifier import read_head_info
from cleft.models.parameter_count import TEXT_PARTS, build_meta_model, count_parameters, trained_token_rows
from cleft.privacy import is_hidden
from cleft.results import Evaluation
from cleft.strict_json import find_json, write_json
from cleft.studies.plans import SUBJECTS, Plan, Row
from cleft.studies.steps import LANGUAGE_MODEL, Given, Step, Work, row_settings
from cleft.training.linear_probe import follow_protocol
from cleft.training.provenance import read_summary
from cleft.training.run_folder import changes

FILE = "times.json"


class Times:
    """Seconds of every step that was run whole in a folder of runs.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._seconds: dict[str, float] = {
            name: float(value) for name, value in (find_json(self._path) or {}).items() if _is_number(value)
        }

    def add(self, step: Step, seconds: float) -> None:
        """Keeps the time of a step that was run from beginning to end."""
        self._seconds[step.name] = round(seconds, 1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self._seconds)

    def of(self, name: str) -> float | None:
        """Seconds of one step, if it was measured."""
        return self._seconds.get(name)

    def estimate(self, step: Step) -> float | None:
        """Median of the same step of other seeds; None where none was measured."""
        alike = [seconds for name, seconds in self._seconds.items() if _kin(name) == _kin(step.name)]
        return statistics.median(alike) if alike else None


def _kin(name: str) -> tuple[str, ...]:
    """A step's name without its seed.

    Example:
        >>> _kin("cleft-lora/seed-2/stage-one") == _kin("cleft-lora/seed-0/stage-one")
        True
    """
    return tuple(part for part in name.split("/") if not part.startswith("seed-"))


def told_cost(steps: Sequence[Step], times: Times) -> str:
    """For how long steps will run, as far as that was measured here."""
    measured = [seconds for step in steps if (seconds := times.estimate(step)) is not None]
    unknown = len(steps) - len(measured)
    if not measured:
        return "cost not known" if unknown else "no cost"
    return f"about {spell(sum(measured))}" + f" and {count(unknown, 'step')} of unknown cost" * bool(unknown)


def spell(seconds: float) -> str:
    """Seconds, minutes or hours.

    Example:
        >>> spell(48), spell(150), spell(7200)
        ('48 s', '2.5 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def counted(steps: Iterable[Step], names: Mapping[Any, str]) -> str:
    """Steps by kind.

    Example:
        >>> counted([], {})
        ''
    """
    kinds = [names[step.kind] for step in steps]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def row_facts(row: Row, given: Given, work: Work) -> dict[str, float]:
    """Moving and frozen weights from the shapes alone, and the length of the context, as far as they are known.

    The rows of the embedding that move are known once a run has counted its tokens. Of a model that was given nothing
    moves, and no time went into training it here.
    """
    if row.model is not None:
        still = {"trainable": 0.0, "seconds": 0.0}
        try:
            counts = count_parameters(build_meta_model(row.model.settings)).values()
        except CleftError:
            return still
        return still | {"frozen": float(sum(count.trainable + count.frozen for count in counts))}
    home = row.stage_one or row.home or row.key
    first = work.steps.get(f"{home}/seed-0/stage-one")
    settings = row_settings(row, given) if first is None else first.settings
    try:
        model = build_meta_model(settings, tokens=_tokens(first))
    except CleftError:
        return {}  # a shape that is neither known here nor to be had, or a language model that is not learned yet
    counts = count_parameters(model)
    facts = {
        "trainable": float(sum(count.trainable for count in counts.values())),
        "trainable_text": float(sum(count.trainable for part, count in counts.items() if part in TEXT_PARTS)),
        "frozen": float(sum(count.frozen for count in counts.values())),
    }
    return facts | ({"length": float(row_settings(row, given).context.length)} if row.speaks and row.context else {})


def lacking_weights(plans: Sequence[Plan], given: Given) -> dict[str, str]:
    """Published models that rows start from and that cannot be had, each with why."""
    rows = [row for plan in plans for row in plan.rows]
    settings = [row_settings(row, given) for row in rows if row.model is None]
    named = [(each.image.model, each.image.random_weights, "image.model") for each in settings]
    named += [
        (each.text.model, each.text.random_weights, "text.model") for each in settings if each.method != "image-only"
    ]
    named += [(row.model.base, False, "text.model") for row in rows if row.model is not None]
    wanted = {model: setting for model, random, setting in named if model is not None and not random}
    found: dict[str, str] = {}
    for model, setting in wanted.items():
        try:
            check_weights_available(model, setting)
        except ConfigError as error:
            found[model] = str(error)
    return found


def _tokens(first: Step | None) -> int:
    """Distinct tokens of the captions that a finished run learned from."""
    return 0 if first is None else trained_token_rows(first.folder) or 0


_STAGES: dict[str, Stage] = {
    "adopt": "context",  # which data, which classes; its towers are in its name
    "pretrain": "pretrain",
    "context": "context",
    "classify": "classify",
}


def is_done(step: Step) -> bool:
    """Whether nothing is left to do of a step that trains or writes a table."""
    if step.kind in ("apart", "adopt"):
        return False  # they take a moment, and tables or places may have changed
    return (step.folder / ("learned.json" if step.kind == "language-model" else "summary.json")).is_file()


def check_settings(step: Step) -> None:
    """Refuses a folder that holds a run of other settings, which must not count as this study's.

    Raises:
        ConfigError: If it does; says what differs.
    """
    begun = (step.folder / "summary.json").is_file() or any((step.folder / "states").glob("*.ckpt"))
    if step.kind not in _STAGES or not begun or _is_as_written(step):
        return
    begun_with = load_settings(step.folder)
    wanted = _resolved(step, begun_with.classes)
    differing, _ = changes(_in_place_of(begun_with, wanted), wanted, _STAGES[step.kind])
    if differing:
        raise ConfigError(
            f"{step.folder} was begun with other settings: {'; '.join(map(str, differing))}; put the old values back "
            f"to go on, or choose another folder for the study with --out"
        )


def settle(step: Step) -> None:
    """Has a run that was moved, or whose data were, say where things lie now: it may be asked and gone on from.

    Its model folder stays as it is, for answers are known by the digest of all that is in it.
    """
    if step.kind not in _STAGES or not (step.folder / "config.yaml").is_file() or _is_as_written(step):
        return
    begun_with = load_settings(step.folder)
    settled = _in_place_of(begun_with, _resolved(step, begun_with.classes))
    if settled != begun_with:
        write_whole(step.folder / "config.yaml", dump_settings(settled), mode=None)


def _in_place_of(begun_with: Settings, wanted: Settings) -> Settings:
    """Settings of a run with the places of today; a study's own language model is known by its name."""
    data = replace(begun_with.data, root=wanted.data.root, exclude_patients=wanted.data.exclude_patients)
    old, new = begun_with.text.model, wanted.text.model
    moved = old is not None and new is not None and _is_own(old) and Path(old).name == Path(new).name
    text = replace(begun_with.text, model=new) if moved else begun_with.text
    return replace(begun_with, data=data, text=text)


def _is_own(model: str) -> bool:
    """Whether a language model is one that a study taught, whose name holds a digest of what it learned."""
    return (Path(model).is_absolute() or is_hidden(model)) and Path(model).name.startswith(LANGUAGE_MODEL)


def _is_as_written(step: Step) -> bool:
    """Whether a run keeps these settings letter for letter, which is sooner seen than settings are read."""
    facts = read_head_info(step.folder) if step.kind == "classify" else None
    if step.kind == "classify" and facts is None:
        return False
    wanted = dump_settings(_resolved(step, () if facts is None else facts.classes))
    return (step.folder / "config.yaml").read_text(encoding="utf-8") == wanted


def _resolved(step: Step, classes: tuple[str, ...]) -> Settings:
    """Settings as the run of a step keeps them; that of a head says which data, which protocol, which findings."""
    if step.kind != "classify":
        return step.settings
    data, head = data_config(step.settings, step.data), follow_protocol(step.settings.classify)
    return replace(step.settings, data=data, classify=head, classes=classes)


def find_answer(step: Step) -> Path | None:
    """The result file of a question, if it was put to the weights that lie there now."""
    weights = (read_summary(step.folder) or {}).get("weights")
    if weights is None:
        return None
    for path in sorted((step.folder / "results").glob("*.json")):
        try:
            evaluation = glance(path)
        except CleftError:
            continue  # of an older version, or damaged: it is asked again
        if evaluation.checkpoint == weights and answers(evaluation, step):
            return path
    return None


def glance(path: Path) -> Evaluation:
    """What a result file says was asked, of what, by which weights; its numbers are left away.

    Raises:
        CleftError: If it cannot be read.
    """
    return _glance(path, file_key(path))


@functools.cache
def _glance(path: Path, key: str) -> Evaluation:
    """A file is opened once as long as it is not written anew."""
    return replace(
        read_evaluation(path),
        results=(),
        floors=(),
        confusion=None,
        roc={},
        examples=(),
        calibration=None,
        subgroups=(),
        retrieval=(),
        audit=None,
        space=None,
    )


def answers(evaluation: Evaluation, step: Step) -> bool:
    """Whether a result is the answer to a step's question."""
    assert step.subject is not None
    subject = SUBJECTS[step.subject]
    if (evaluation.dataset, evaluation.split, evaluation.scoring) != (subject.dataset, "test", "multi-class"):
        return False
    if evaluation.similarity != "global" or evaluation.standardised:
        return False
    if step.kind == "zero-shot" and evaluation.wording != Path(step.settings.class_names).stem:
        return False
    if evaluation.task != ("zero-shot" if step.kind == "zero-shot" else step.settings.classify.mode):
        return False
    if ("--per-class" in evaluation.command) != (step.balanced and subject.per_class is not None):
        return False
    return _plain(evaluation.classes) in [_plain(names) for names in _possible(step, subject.classes)]


def _possible(step: Step, named: str | None) -> Iterable[Sequence[str]]:
    """The classes that were meant: those named, the run's own, or those usual for another dataset."""
    if named is not None:
        return [_members([named])]
    settings: Settings = step.settings
    usual = [] if step.data is None else [_members(DATASETS[step.data.partition(":")[0]].classes or ())]
    return [_members(settings.classes), *usual]


def _members(names: Sequence[str]) -> list[str]:
    return [member for name in names for member in CLASS_SETS.get(name.casefold(), (name,))]


def _plain(names: Sequence[str]) -> list[str]:
    return [name.casefold() for name in names]
