"""Class prompts: names of classes, the phrases for them, prompt templates, and the choice of classes.

Class names affect zero-shot results only, so each result records them. The prompts of `gloria` are complete sentences
about severity, kind and location, a few drawn per class. Source of these: Huang et al. 2021 and the constants of the
released code; the spelling is theirs.
"""

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
from cleft.data.text.captions import CHEST_PREFIX, NO_FINDING, clean_text
from cleft.errors import ConfigError
from cleft.text_rules import as_texts, normalise, text_fault

DRAWN = 5
"""Sentences per class; the default of the released code."""
_SEED = 6
"""Seed of the released code."""

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
"""Class to the parts of its sentences, in the order in which they are read and the released code iterates over them."""


def draw_prompts() -> dict[str, tuple[str, ...]]:
    """Draw the sentences of each class with the seed of the released code; always the same ones.

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
"""Phrase after the prompt prefix for a class whose cleaned name is not used, in the words of captions."""

CLASS_NAMES: dict[str, dict[str, str]] = {
    "default": {},
    "released": {
        **DATASETS["embed"].phrases,
        "rsna/Pneumonia": "pneumothorax",
        "rsna/No Pneumonia": "no findings",
    },
    "gloria": {},
}
"""Class to phrase, by the name of the set, in addition to `PHRASES`; `dataset/class` applies to that dataset only.

`released` are those of the authors' code (docs/decisions/0014). `gloria` has complete sentences (`SENTENCES`).
"""

SENTENCES: dict[str, dict[str, tuple[str, ...]]] = {"gloria": draw_prompts()}
"""Class to complete prompts, by the name of the set."""


@dataclass(frozen=True)
class ClassNames:
    """The phrases or sentences for classes in prompts."""

    name: str
    """Key of `CLASS_NAMES`, or the name of a file without its folder."""
    phrases: Mapping[str, str]
    """Class, as spelled in the table, to its phrase."""
    sentences: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Class to complete sentences, used without a prefix; the one most similar to an image counts. Names with
    sentences have no phrases."""

    def phrase(self, name: str) -> str:
        """Return the phrase of a class, for use after a prompt prefix or a learned context."""
        return self.phrases.get(name) or clean_text(name)


DEFAULT_NAMES = ClassNames("default", PHRASES)


def find_class_names(name: str, dataset: str) -> ClassNames:
    """Return the class names for a dataset.

    Args:
        name: Key of `CLASS_NAMES`, or a YAML file that maps classes to phrases.
        dataset: Name of the evaluated dataset.

    Raises:
        ConfigError: If there is no such key or file, or the file contains something other than phrases.

    Example:
        >>> [find_class_names("released", dataset).phrase("Pneumonia") for dataset in ("rsna", "nih")]
        ['pneumothorax', 'pneumonia']
    """
    if name in CLASS_NAMES:
        return ClassNames(name, PHRASES | _for_dataset(CLASS_NAMES[name], dataset), SENTENCES.get(name, {}))
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"class_names={name!r} is not {', '.join(CLASS_NAMES)} or a YAML file of class: phrase"
            f"{suggestion(name, CLASS_NAMES)}"
        )
    return ClassNames(path.stem, PHRASES | _for_dataset(_read_phrases(path), dataset))


def check_class_names(names: ClassNames, classes: Sequence[str]) -> None:
    """Raise an error if class names lack these classes, or have the same phrase for two of them.

    Raises:
        ConfigError: If they do.
    """
    missing = [name for name in classes if names.sentences and name not in names.sentences]
    if missing:
        raise ConfigError(
            f"class_names={names.name!r} has sentences for {', '.join(names.sentences)} but not for "
            f"{', '.join(missing)}; evaluate its classes, or set other class_names"
        )
    if names.name not in CLASS_NAMES and not any(name in names.phrases for name in classes):
        close = "".join(suggestion(name, names.phrases) for name in classes)
        raise ConfigError(
            f"class_names={names.name!r} has no phrase for {', '.join(classes)}{close}; spell them as in the table"
        )
    used: dict[str, str] = {}
    for name in classes:
        other = used.setdefault(names.phrase(name), name)
        if other != name:
            raise ConfigError(
                f"class_names={names.name!r} has the phrase {names.phrase(name)!r} for both {other} and {name}; give "
                f"them different phrases"
            )


def require_phrases(names: ClassNames, what: str) -> None:
    """Raise an error if class names are complete sentences where phrases are needed.

    Args:
        names: The class names.
        what: What needs phrases, as the beginning of the message.

    Raises:
        ConfigError: If they have no phrases.
    """
    if names.sentences:
        raise ConfigError(
            f"{what} needs a phrase for each class, and class_names={names.name!r} has complete sentences; set others, "
            f"such as default"
        )


def _for_dataset(phrases: Mapping[str, str], dataset: str) -> dict[str, str]:
    """Phrases for one dataset; those for this dataset only take precedence over general ones."""
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
    CHEST_PREFIX: (
        "a chest x ray of a patient with",
        "chest radiograph with",
        "this frontal chest x ray shows",
        "the lungs and heart of a patient with",
        "there is",
        "findings are suggesting",
        "",
    ),
    DATASETS["embed"].prompt_prefix: (
        "a mammogram of a patient with",
        "mammography with",
        "this breast image shows",
        "the breast of a patient with",
        "there is",
        "findings are suggesting",
        "",
    ),
}
"""Prompt prefix of a dataset to alternatives, for measuring prompt sensitivity; the last one is the bare name. Like
captions they are lower case without punctuation."""


def prompt_templates(prefix: str) -> tuple[str, ...]:
    """Return the prompt templates to compare: the given one, and others with the same meaning.

    Example:
        >>> prompt_templates("an ultrasound with")
        ('an ultrasound with', 'there is', 'findings are suggesting', '')
    """
    return (prefix, *TEMPLATES.get(prefix, ("there is", "findings are suggesting", "")))


def class_prompt(name: str, prefix: str = CHEST_PREFIX, names: ClassNames = DEFAULT_NAMES) -> str:
    """Return the prompt of a present class.

    Example:
        >>> class_prompt("Pleural Effusion")
        'this is a chest x ray of a patient with pleural effusion'
    """
    return f"{prefix} {names.phrase(name)}".strip()


def class_prompts(name: str, prefix: str = CHEST_PREFIX, names: ClassNames = DEFAULT_NAMES) -> tuple[str, ...]:
    """Return the prompts of a present class: one, or the sentences of the class names."""
    return names.sentences.get(name) or (class_prompt(name, prefix, names),)


def absent_prompt(name: str, prefix: str = CHEST_PREFIX, names: ClassNames = DEFAULT_NAMES) -> str:
    """Return the prompt of an absent class, to be compared with `class_prompt`.

    Example:
        >>> absent_prompt("Pneumonia")
        'this is a chest x ray of a patient with no pneumonia'
    """
    return f"{prefix} {absent_name(name, names)}".strip()


def absent_name(name: str, names: ClassNames = DEFAULT_NAMES) -> str:
    """Return the phrase of an absent class, for use after a prompt prefix or a learned context.

    Example:
        >>> absent_name("Pleural Effusion"), absent_name("No Finding")
        ('no pleural effusion', 'finding')
    """
    phrase = names.phrase(name)
    return phrase.removeprefix("no ") if phrase.startswith("no ") else f"no {phrase}"


def resolve_classes(names: str | Sequence[str], findings: Iterable[str]) -> tuple[str, ...]:
    """Resolve names of class sets and findings to findings of a table.

    Args:
        names: Keys of `CLASS_SETS` or findings, in any combination; case does not matter. A `str` is one of them, or
            several separated by commas.
        findings: Findings of the table.

    Returns:
        Findings as spelled in the table, in the order given.

    Raises:
        DataError: If a name is not a `str`.
        ConfigError: If a name is neither, a set contains a finding that the table lacks, or a class is repeated.

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
                        f"classes names {origin}, which is a part of {within!r}: that name contains a comma; put it in "
                        f"quotes: --classes {shlex.quote(join_list([within]))}"
                    )
                raise ConfigError(
                    f"classes names {origin}, which is not a column of the table{close}; "
                    f"its findings are {', '.join(spelled.values()) or 'none'}; sets are {', '.join(CLASS_SETS)}; "
                    f"choose others with --classes"
                )
            classes.append(found)
    repeated = sorted({name for name in classes if classes.count(name) > 1})
    if repeated or not classes:
        raise ConfigError(f"classes={list(names)} names {repeated or 'nothing'}{' twice' if repeated else ''}")
    return tuple(classes)


def _find(name: str, spelled: Mapping[str, str]) -> str | None:
    """Return the finding of a table that a name means, by letter case (`spelled`), or else after text normalisation."""
    if name.casefold() in spelled:
        return spelled[name.casefold()]
    matches = [finding for finding in spelled.values() if normalise(finding, "words-2") == normalise(name, "words-2")]
    return matches[0] if len(matches) == 1 and normalise(name, "words-2") else None


def choose_classes(
    classes: str | Sequence[str] | None, settings: Settings, dataset: str, findings: Sequence[str]
) -> tuple[str, ...]:
    """Return the classes to evaluate: the requested ones, else those of the run, else those of the dataset.

    Raises:
        ConfigError: If a class is not a finding of the table.
    """
    if classes is not None:
        return resolve_classes(classes, findings)
    try:
        return resolve_classes(settings.classes, findings)
    except ConfigError:
        default = DATASETS[dataset].classes
        if default is None:
            raise
    return resolve_classes(default, findings)
