"""From the name of a class to the sentence that stands for it, and from names to the classes that are told apart."""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import MappingProxyType

from cleft.config import Settings, join_list, read_yaml, split_list
from cleft.data.datasets import CLASS_SETS, DATASETS
from cleft.data.tables.faults import suggestion
from cleft.data.text.captions import CHEST_TEMPLATE, NO_FINDING, clean_text
from cleft.errors import ConfigError
from cleft.text_rules import as_texts, normalise, text_fault

DRAWN = 5
"""Sentences of a class, as the release draws by default."""
_SEED = 6
"""What the release seeds its package with."""

_ZONES = ("mid lung zone", "upper lung zone", "right lung zone", "left lung zone")
_BASES = ("lung bases", "right lung base", "left lung base", "bilateral lung bases")
_LOBES = ("left lower lobe", "right lower lobe")
_OTHER_PLACES = ("lower lung zone", "upper lung zone", *_LOBES, "left upper lobe", "right uppper lobe")

GRAMMAR: Mapping[str, tuple[tuple[str, ...], ...]] = MappingProxyType(
    {
        "Atelectasis": (
            ("", "mild", "minimal"),
            tuple(
                f"{kind} atelectasis"
                for kind in ("subsegmental", "linear", "trace", "bibasilar", "retrocardiac", "bandlike", "residual")
            ),
            tuple(f"at the {place}" for place in (*_ZONES, *_BASES, *_LOBES)),
        ),
        "Cardiomegaly": (
            (
                "cardiac silhouette size is upper limits of normal",
                "cardiomegaly which is unchanged",
                "mildly prominent cardiac silhouette",
                "portable view of the chest demonstrates stable cardiomegaly",
                "portable view of the chest demonstrates mild cardiomegaly",
                "persistent severe cardiomegaly",
                "heart size is borderline enlarged",
                "cardiomegaly unchanged",
                "heart size is at the upper limits of normal",
                "redemonstration of cardiomegaly",
                "ap erect chest radiograph demonstrates the heart size is the upper limits of normal",
                "cardiac silhouette size is mildly enlarged",
                "mildly enlarged cardiac silhouette, likely left ventricular enlargement. other chambers are less "
                "prominent",
                "heart size remains at mildly enlarged",
                "persistent cardiomegaly with prominent upper lobe vessels",
            ),
        ),
        "Consolidation": (
            ("", "increased", "improved", "apperance of"),
            tuple(
                f"{kind} consolidation"
                for kind in ("bilateral", "reticular", "retrocardiac", "patchy", "airspace", "partial")
            ),
            tuple(f"at the {place}" for place in (*_OTHER_PLACES, "right lung base", "left lung base")),
        ),
        "Edema": (
            ("", "mild", "improvement in", "presistent", "moderate", "decreased"),
            ("pulmonary edema", "trace interstitial edema", "pulmonary interstitial edema"),
        ),
        "Pleural Effusion": (
            ("", "small", "stable", "large", "decreased", "increased"),
            ("left", "right", "tiny"),
            tuple(f"{kind} pleural effusion" for kind in ("bilateral", "subpulmonic", "bilateral")),
        ),
    }
)
"""Class to the parts of its sentences, in the order in which they are read and the release goes through them."""


def draw_prompts() -> dict[str, tuple[str, ...]]:
    """Draws the sentences of each class as the release does, from the first draw of its seed on; the same ones always.

    Example:
        >>> draw_prompts()["Edema"][0]
        'pulmonary edema'
    """
    generator = random.Random(_SEED)
    drawn: dict[str, tuple[str, ...]] = {}
    for name, parts in GRAMMAR.items():
        sentences = [clean_text(" ".join(chosen)) for chosen in product(*parts)]
        drawn[name] = tuple(dict.fromkeys(generator.sample(sentences, DRAWN)))
    return drawn


PHRASES: dict[str, str] = {
    **{name: clean_text(phrase) for dataset in DATASETS.values() for name, phrase in dataset.phrases.items()},
    "No Pneumonia": NO_FINDING,
}
"""What stands behind the opening for a class whose cleaned name does not say it, in the words that captions use."""

CLASS_NAMES: dict[str, dict[str, str]] = {
    "default": {},
    "released": {
        **DATASETS["embed"].phrases,
        "rsna/Pneumonia": "pneumothorax",
        "rsna/No Pneumonia": "no findings",
    },
    "gloria": {},
}
"""Class to phrase, by the name of the wording, on top of `PHRASES`; `dataset/class` holds for that dataset alone.

`released` is what the authors' code compares with (docs/decisions/0014). `gloria` has whole sentences (`SENTENCES`)."""

SENTENCES: dict[str, dict[str, tuple[str, ...]]] = {"gloria": draw_prompts()}
"""Class to sentences that stand for it by themselves, by the name of the wording."""


@dataclass(frozen=True)
class ClassNames:
    """The words that stand for classes."""

    name: str
    """Key of `CLASS_NAMES`, or the name of a file without its folder."""
    phrases: Mapping[str, str]
    """Class, as the table spells it, to its phrase."""
    sentences: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Class to whole sentences, of which the one nearest to an image counts. They stand without an opening, and a
    wording that has some has no phrases."""

    def phrase(self, name: str) -> str:
        """Returns what stands for a class behind the opening, or behind a learned context."""
        return self.phrases.get(name) or clean_text(name)


DEFAULT_NAMES = ClassNames("default", PHRASES)


def find_class_names(name: str, dataset: str) -> ClassNames:
    """Returns a wording as it holds for a dataset.

    Args:
        name: Key of `CLASS_NAMES`, or a YAML file that maps classes to phrases.
        dataset: Name of the dataset whose classes will be asked about.

    Raises:
        ConfigError: If there is no such wording or file, or the file holds anything else than phrases.

    Example:
        >>> [find_class_names("released", dataset).phrase("Pneumonia") for dataset in ("rsna", "nih")]
        ['pneumothorax', 'pneumonia']
    """
    if name in CLASS_NAMES:
        return ClassNames(name, PHRASES | _of_dataset(CLASS_NAMES[name], dataset), SENTENCES.get(name, {}))
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"wording={name!r} is neither {' nor '.join(CLASS_NAMES)} nor a YAML file of class: phrase"
            f"{suggestion(name, CLASS_NAMES)}"
        )
    return ClassNames(path.stem, PHRASES | _of_dataset(_read_phrases(path), dataset))


def check_class_names(wording: ClassNames, classes: Sequence[str]) -> None:
    """Refuses a wording that says nothing about these classes, or the same about two of them.

    Raises:
        ConfigError: If it does.
    """
    silent = [name for name in classes if wording.sentences and name not in wording.sentences]
    if silent:
        raise ConfigError(
            f"wording {wording.name!r} has sentences for {', '.join(wording.sentences)} and none for "
            f"{', '.join(silent)}; ask about classes it has, or in another wording"
        )
    if wording.name not in CLASS_NAMES and not any(name in wording.phrases for name in classes):
        close = "".join(suggestion(name, wording.phrases) for name in classes)
        raise ConfigError(f"wording {wording.name!r} has no phrase for {', '.join(classes)}{close}; spell them alike")
    said: dict[str, str] = {}
    for name in classes:
        other = said.setdefault(wording.phrase(name), name)
        if other != name:
            raise ConfigError(
                f"wording {wording.name!r} says {wording.phrase(name)!r} for {other} and for {name}; "
                f"no model can tell them apart: give them different phrases"
            )


def require_phrases(wording: ClassNames, what: str) -> None:
    """Refuses a wording of whole sentences where a phrase is needed, to be put behind something or denied.

    Args:
        wording: Which.
        what: What needs phrases, as a sentence begins with it.

    Raises:
        ConfigError: If it has no phrases.
    """
    if wording.sentences:
        raise ConfigError(
            f"{what} needs a phrase for each class, and wording {wording.name!r} has whole sentences; take another, "
            f"such as default"
        )


def _of_dataset(phrases: Mapping[str, str], dataset: str) -> dict[str, str]:
    """What holds for one dataset; what is said of it alone comes before what is said of all."""
    general = {name: phrase for name, phrase in phrases.items() if "/" not in name}
    own = {
        name.removeprefix(f"{dataset}/"): phrase for name, phrase in phrases.items() if name.startswith(f"{dataset}/")
    }
    return general | own


def _read_phrases(path: Path) -> dict[str, str]:
    file = read_yaml(path)
    phrases: dict[str, str] = {}
    for name, phrase in file.tree.items():
        if not isinstance(phrase, str) or not phrase.strip():
            line = file.lines.get(name, 1)
            raise ConfigError(f"{path}, line {line}: {name!r} is not followed by a phrase, such as {name}: pneumonia")
        phrases[name] = " ".join(phrase.split())
    return phrases


TEMPLATES: dict[str, tuple[str, ...]] = {
    CHEST_TEMPLATE: (
        "a chest x ray of a patient with",
        "chest radiograph with",
        "this frontal chest x ray shows",
        "the lungs and heart of a patient with",
        "there is",
        "findings are suggesting",
        "",
    ),
    DATASETS["embed"].template: (
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


def prompt_templates(opening: str) -> tuple[str, ...]:
    """Returns the openings to compare: the one given, and others that mean the same.

    Example:
        >>> prompt_templates("an ultrasound with")
        ('an ultrasound with', 'there is', 'findings are suggesting', '')
    """
    return (opening, *TEMPLATES.get(opening, ("there is", "findings are suggesting", "")))


def class_prompt(name: str, opening: str = CHEST_TEMPLATE, wording: ClassNames = DEFAULT_NAMES) -> str:
    """Returns the sentence for a class that is present.

    Example:
        >>> class_prompt("Pleural Effusion")
        'this is a chest x ray of a patient with pleural effusion'
    """
    return f"{opening} {wording.phrase(name)}".strip()


def class_prompts(name: str, opening: str = CHEST_TEMPLATE, wording: ClassNames = DEFAULT_NAMES) -> tuple[str, ...]:
    """Returns the sentences for a class that is present: one, or those that the wording has for it."""
    return wording.sentences.get(name) or (class_prompt(name, opening, wording),)


def absent_prompt(name: str, opening: str = CHEST_TEMPLATE, wording: ClassNames = DEFAULT_NAMES) -> str:
    """Returns the sentence for a class that is absent, to be compared with `class_prompt`.

    Example:
        >>> absent_prompt("Pneumonia")
        'this is a chest x ray of a patient with no pneumonia'
    """
    return f"{opening} {absent_name(name, wording)}".strip()


def absent_name(name: str, wording: ClassNames = DEFAULT_NAMES) -> str:
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
                close = suggestion(member, [*spelled.values(), *CLASS_SETS] if len(members) == 1 else spelled.values())
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
