"""Which words stand for a class in its prompt: ours, the released code's, GLoRIA's, or those of a file.

A wording decides nothing in stage one, whose sentences are captions. Every zero-shot number depends on it, so each
result names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cleft.config.yaml_tree import read_yaml
from cleft.data.captions import NO_FINDING, clean_text
from cleft.data.gloria_prompts import draw_prompts
from cleft.data.readers.embed_captions import PHRASES as MAMMOGRAM_PHRASES
from cleft.data.tables.faults import nearest
from cleft.errors import ConfigError

PHRASES: dict[str, str] = {
    **{name: clean_text(phrase) for name, phrase in MAMMOGRAM_PHRASES.items()},
    "No Pneumonia": NO_FINDING,
}
"""What stands behind the opening for a class whose cleaned name does not say it, in the words that captions use."""

WORDINGS: dict[str, dict[str, str]] = {
    "default": {},
    "released": {
        **MAMMOGRAM_PHRASES,
        "rsna/Pneumonia": "pneumothorax",
        "rsna/No Pneumonia": "no findings",
    },
    "gloria": {},
}
"""Class to phrase, by the name of the wording, on top of `PHRASES`; `dataset/class` holds for that dataset alone.

`released` is what the authors' code compares with (docs/decisions/0098). `gloria` has whole sentences (`SENTENCES`)."""

SENTENCES: dict[str, dict[str, tuple[str, ...]]] = {"gloria": draw_prompts()}
"""Class to sentences that stand for it by themselves, by the name of the wording."""


@dataclass(frozen=True)
class Wording:
    """The words that stand for classes."""

    name: str
    """Key of `WORDINGS`, or the name of a file without its folder."""
    phrases: Mapping[str, str]
    """Class, as the table spells it, to its phrase."""
    sentences: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Class to whole sentences, of which the one nearest to an image counts. They stand without an opening, and a
    wording that has some has no phrases."""

    def phrase(self, name: str) -> str:
        """Returns what stands for a class behind the opening, or behind a learned context."""
        return self.phrases.get(name) or clean_text(name)


DEFAULT = Wording("default", PHRASES)


def find_wording(name: str, dataset: str) -> Wording:
    """Returns a wording as it holds for a dataset.

    Args:
        name: Key of `WORDINGS`, or a YAML file that maps classes to phrases.
        dataset: Name of the dataset whose classes will be asked about.

    Raises:
        ConfigError: If there is no such wording or file, or the file holds anything else than phrases.

    Example:
        >>> find_wording("released", "rsna").phrase("Pneumonia"), find_wording("released", "nih").phrase("Pneumonia")
        ('pneumothorax', 'pneumonia')
    """
    if name in WORDINGS:
        return Wording(name, PHRASES | _of_dataset(WORDINGS[name], dataset), SENTENCES.get(name, {}))
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"wording={name!r} is neither {' nor '.join(WORDINGS)} nor a YAML file of class: phrase"
            f"{nearest(name, WORDINGS)}"
        )
    return Wording(path.stem, PHRASES | _of_dataset(_read_phrases(path), dataset))


def check_wording(wording: Wording, classes: Sequence[str]) -> None:
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
    if wording.name not in WORDINGS and not any(name in wording.phrases for name in classes):
        close = "".join(nearest(name, wording.phrases) for name in classes)
        raise ConfigError(f"wording {wording.name!r} has no phrase for {', '.join(classes)}{close}; spell them alike")
    said: dict[str, str] = {}
    for name in classes:
        other = said.setdefault(wording.phrase(name), name)
        if other != name:
            raise ConfigError(
                f"wording {wording.name!r} says {wording.phrase(name)!r} for {other} and for {name}; "
                f"no model can tell them apart: give them different phrases"
            )


def check_phrases(wording: Wording, what: str) -> None:
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
