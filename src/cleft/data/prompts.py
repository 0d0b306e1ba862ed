"""From the name of a class to the sentence that stands for it, and from names to the classes that are told apart."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

from cleft.arguments import as_texts
from cleft.config import Settings, join_list, split_list
from cleft.data.captions import OPENING
from cleft.data.datasets import DATASETS
from cleft.data.readers.chexpert import CAPTION_ORDER
from cleft.data.readers.embed_captions import BIRADS_CLASSES, DENSITY_CLASSES
from cleft.data.readers.embed_captions import OPENING as MAMMOGRAM_OPENING
from cleft.data.readers.nih import FINDINGS as NIH_FINDINGS
from cleft.data.tables.faults import nearest
from cleft.data.wordings import DEFAULT, Wording
from cleft.errors import ConfigError
from cleft.text_rules import normalise, text_fault

CLASS_SETS: dict[str, tuple[str, ...]] = {
    "chexpert-5": ("Atelectasis", "Edema", "Cardiomegaly", "Pleural Effusion", "Consolidation"),
    "chexpert-14": CAPTION_ORDER,
    "pneumonia-2": ("No Finding", "Pneumonia"),
    "rsna-2": ("No Pneumonia", "Pneumonia"),
    "nih-14": NIH_FINDINGS,
    "birads-7": BIRADS_CLASSES,
    "density-4": DENSITY_CLASSES,
}
"""Classes by the name of their set, in the order of the authors' code."""


TEMPLATES: dict[str, tuple[str, ...]] = {
    OPENING: (
        "a chest x ray of a patient with",
        "chest radiograph with",
        "this frontal chest x ray shows",
        "the lungs and heart of a patient with",
        "there is",
        "findings are suggesting",
        "",
    ),
    MAMMOGRAM_OPENING: (
        "a mammogram of a patient with",
        "mammography with",
        "this breast image shows",
        "the breast of a patient with",
        "there is",
        "findings are suggesting",
        "",
    ),
}
"""Other openings of a class prompt, by the usual one, for asking how far answers depend on it; the last is the bare
name. Like captions they are lower case without punctuation."""


def templates_of(opening: str) -> tuple[str, ...]:
    """Returns the openings to compare: the one given, and others that mean the same.

    Example:
        >>> templates_of("an ultrasound with")
        ('an ultrasound with', 'there is', 'findings are suggesting', '')
    """
    return (opening, *TEMPLATES.get(opening, ("there is", "findings are suggesting", "")))


def class_prompt(name: str, opening: str = OPENING, wording: Wording = DEFAULT) -> str:
    """Returns the sentence for a class that is present.

    Example:
        >>> class_prompt("Pleural Effusion")
        'this is a chest x ray of a patient with pleural effusion'
    """
    return f"{opening} {wording.phrase(name)}".strip()


def class_prompts(name: str, opening: str = OPENING, wording: Wording = DEFAULT) -> tuple[str, ...]:
    """Returns the sentences for a class that is present: one, or those that the wording has for it."""
    return wording.sentences.get(name) or (class_prompt(name, opening, wording),)


def absent_prompt(name: str, opening: str = OPENING, wording: Wording = DEFAULT) -> str:
    """Returns the sentence for a class that is absent, to be compared with `class_prompt`.

    Example:
        >>> absent_prompt("Pneumonia")
        'this is a chest x ray of a patient with no pneumonia'
    """
    return f"{opening} {absent_name(name, wording)}".strip()


def absent_name(name: str, wording: Wording = DEFAULT) -> str:
    """Returns what stands for an absent class behind the opening or a learned context.

    Example:
        >>> absent_name("Pleural Effusion"), absent_name("No Finding")
        ('no pleural effusion', 'finding')
    """
    phrase = wording.phrase(name)
    return phrase.removeprefix("no ") if phrase.startswith("no ") else f"no {phrase}"


def resolve_classes(names: str | Sequence[str], findings: Iterable[str]) -> tuple[str, ...]:
    """Turns names of sets and of findings into the classes that are told apart.

    Args:
        names: Keys of `CLASS_SETS` or findings, in any mixture; spelling does not matter. A `str` is one of them, or
            several with commas between them.
        findings: Findings the table has.

    Returns:
        Findings as the table spells them, in the order given.

    Raises:
        DataError: If a name is no `str`.
        ConfigError: If a name is neither, a set names a finding the table lacks, or a class stands twice.

    Example:
        >>> resolve_classes(["pneumonia-2", "edema"], ["Edema", "Pneumonia", "No Finding"])
        ('No Finding', 'Pneumonia', 'Edema')
    """
    spelled = {finding.casefold(): finding for finding in findings}
    if isinstance(names, str):
        alone = _find(names, spelled) is not None or names.casefold() in CLASS_SETS
        names = [names] if alone else split_list(names)
    names = list(names)
    names = as_texts(names, "class") if names else names
    classes: list[str] = []
    for name in names:
        fault = text_fault(name)
        if fault is not None:
            raise ConfigError(f"classes names a class that {fault[1]}")
        members = CLASS_SETS.get(name.casefold(), (name,))
        for member in members:
            found = _find(member, spelled)
            if found is None:
                origin = f"{member!r} of the set {name!r}" if len(members) > 1 else repr(name)
                parts = {part.strip().casefold(): full for full in spelled.values() for part in full.split(",")}
                within = parts.get(member.casefold())
                close = nearest(member, [*spelled.values(), *CLASS_SETS] if len(members) == 1 else spelled.values())
                if within is not None:
                    raise ConfigError(
                        f"classes names {origin}, which is a part of {within!r}: that name holds a comma; put it in "
                        f"quotes: --classes {shlex.quote(join_list([within]))}"
                    )
                raise ConfigError(
                    f"classes names {origin}, which the table has no column for{close}; "
                    f"it has {', '.join(spelled.values()) or 'no finding at all'}; sets are {', '.join(CLASS_SETS)}; "
                    f"name others with --classes"
                )
            classes.append(found)
    repeated = sorted({name for name in classes if classes.count(name) > 1})
    if repeated or not classes:
        raise ConfigError(f"classes={list(names)} names {repeated or 'nothing'}{' twice' if repeated else ''}")
    return tuple(classes)


def _find(name: str, spelled: Mapping[str, str]) -> str | None:
    """The finding of a table that a name means, `spelled` by letter case, and where none is by normalisation too."""
    if name.casefold() in spelled:
        return spelled[name.casefold()]
    alike = [finding for finding in spelled.values() if normalise(finding, "words-2") == normalise(name, "words-2")]
    return alike[0] if len(alike) == 1 and normalise(name, "words-2") else None


def choose_classes(
    classes: str | Sequence[str] | None, settings: Settings, dataset: str, findings: Sequence[str]
) -> tuple[str, ...]:
    """Returns what is told apart: what was asked for, else the run's own classes, else those usual for the dataset.

    Raises:
        ConfigError: If a class is not a finding of the table.
    """
    if classes is not None:
        return resolve_classes(classes, findings)
    try:
        return resolve_classes(settings.classes, findings)
    except ConfigError:
        usual = DATASETS[dataset].classes
        if usual is None:
            raise
    return resolve_classes(usual, findings)
