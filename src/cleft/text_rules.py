"""Text normalisation: the rules that are applied before the tokenizer, and texts that are refused.

Embeddings depend on spelling and punctuation, so the rule belongs to the model: `model.json` names it
(`text.normalisation`), and it is applied to every text, from tables, the command line or Python (docs/decisions/0172).
Every rule is idempotent. A rule is never changed; an improved rule is a new version.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, cast

from cleft.errors import DataError

RuleName: TypeAlias = Literal["words-2", "release-2", "lower-2", "nfc-2", "words-1", "release-1", "lower-1", "nfc-1"]
"""Kind and version of a rule. Version 1 is for models trained before rules were recorded."""


MOST_CHARACTERS = 50_000
"""Longest text in characters: ten times the longest radiology reports. Tokenising 1 MB takes most of a second."""


_LIST_NUMBER = re.compile(r"(?:^|(?<=\.))\s*[0-9]+\.(?=\s|$)", re.MULTILINE)


_NUMBER_AND_STOP = re.compile(r"[0-9]+\.")


_LETTERS_AND_DIGITS = re.compile(r"[^\W_]+")


_FORBIDDEN = re.compile(
    "["
    "\x00-\x08\x0e-\x1f\x7f-\x9f"  # control characters except tab and line breaks
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # invisible
    "\ud800-\udfff"  # surrogates
    "\ufdd0-\ufdef\ufffe\uffff"  # noncharacters
    "]"
)
"""Invisible characters that change the tokens of a text."""


def clean_words(text: str) -> str:
    r"""Returns lower-case words and numbers, without punctuation and list numbers.

    Example:
        >>> clean_words("1. Right-sided effusion, 3.5 cm;\n2. No pneumothorax.")
        'right sided effusion 3 5 cm no pneumothorax'

    Source:
        The authors' cleaning, without two errors: it drops letters outside ASCII, and the integer part of a
        decimal number like the number of a list (docs/decisions/0172).
    """
    text = _LIST_NUMBER.sub(" ", unicodedata.normalize("NFC", text))
    return " ".join(re.findall(r"\w+", text.lower()))


def _words(text: str) -> str:
    """`clean_words` with underscores as blanks, and with combining vowel signs and accents kept."""
    text = unicodedata.normalize("NFC", _LIST_NUMBER.sub(" ", unicodedata.normalize("NFC", text)).lower())
    if text.isascii():
        return " ".join(_LETTERS_AND_DIGITS.findall(text))
    kept = (letter if letter.isalnum() or unicodedata.category(letter)[0] == "M" else " " for letter in text)
    return " ".join("".join(kept).split())


def _release(text: str) -> str:
    """Cleaning of the releases of CLEFT, GLoRIA and MGCA, except that texts of one word are kept for class names."""
    text = _NUMBER_AND_STOP.sub(" ", unicodedata.normalize("NFC", text)).lower()
    words = (word.encode("ascii", "ignore").decode() for word in re.findall(r"\w+", text))
    return " ".join(word for word in words if word)


def _composed(text: str) -> str:
    """Unicode NFC, with runs of white space replaced by a blank."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _lower(text: str) -> str:
    return _composed(_composed(text).lower())


_RULES: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "words-2": _words,
        "release-2": _release,
        "lower-2": _lower,
        "nfc-2": _composed,
        "words-1": clean_words,
        "release-1": _release,
        "lower-1": _lower,
        "nfc-1": _composed,
    }
)


_OF_TEXTS: Mapping[str, str] = MappingProxyType(
    {"whole": "nfc", "gloria": "release", "mgca": "release", "medclip": "lower", "bank": "lower"}
)
"""`data.texts` to the kind of rule that leaves such texts unchanged; `words` otherwise."""


def rule_for(texts: str, *, version: int = 2) -> RuleName:
    """Returns the rule of a model trained on texts of a kind.

    Args:
        texts: As `data.texts`.
        version: 2, or 1 for a model trained before rules were recorded.
    """
    return cast("RuleName", f"{_OF_TEXTS.get(texts, 'words')}-{version}")


def normalise(text: str, rule: RuleName) -> str:
    r"""Returns a normalised text; idempotent.

    Example:
        >>> normalise("This is a chest X-ray of a patient with Pleural_Effusion.", "words-2")
        'this is a chest x ray of a patient with pleural effusion'
        >>> normalise("Nodule of 3.5 cm.", "release-2"), normalise("Nodule\tof  3.5 cm.", "nfc-2")
        ('nodule of 5 cm', 'Nodule of 3.5 cm.')
    """
    return _RULES[rule](text)


def class_name_rule(rule: RuleName) -> RuleName:
    """Returns the rule for class names after a learned context, for a rule for sentences.

    Contexts are always trained with lower-case class names.
    """
    return "words-1" if rule.endswith("-1") else "words-2"


def normalise_all(texts: Sequence[str], rule: RuleName) -> list[str]:
    """Returns checked and normalised texts.

    Raises:
        DataError: If a text has no letter and no digit, is too long, or contains an invisible character.
    """
    check_texts(texts)
    normal = [normalise(text, rule) for text in texts]
    silent = [place for place, text in enumerate(normal) if not any(map(str.isalnum, text))]
    if silent:
        lost = any(letter.isalnum() for place in silent for letter in texts[place])
        why = f" after normalisation by text.normalisation={rule}" if lost else ""
        raise DataError(
            f"{_which(silent)} no letter and no digit{why}; write a sentence or leave {_them(silent)} out",
            reason="empty-text",
        )
    return normal


def check_texts(texts: Sequence[str]) -> None:
    """Refuses texts that are too long or contain an invisible character; messages give positions, not content.

    Raises:
        DataError: If there is one.
    """
    for place, text in enumerate(texts):
        fault = text_fault(text)
        if fault is not None:
            reason, what = fault
            raise DataError(f"the text at position {place} {what}", reason=reason)


def text_fault(text: str) -> tuple[str, str] | None:
    r"""Returns the reason code and the message for an invalid text, or None for a valid one.

    Example:
        >>> text_fault("pneumo\u200bthorax")
        ('forbidden-character', 'holds U+200B (zero width space) at character 6; remove it')
    """
    if len(text) > MOST_CHARACTERS:
        return "too-long", f"has {len(text):,} characters and may have {MOST_CHARACTERS:,}; shorten it"
    found = _FORBIDDEN.search(text)
    if found is None:
        return None
    letter, where = found[0], f"at character {found.start()}"
    if "\ud800" <= letter <= "\udfff":
        return "encoding", f"holds half a surrogate pair, U+{ord(letter):04X}, {where}; save the table as UTF-8"
    name = unicodedata.name(letter, "a control character" if ord(letter) < 0xA0 else "no character").lower()
    return "forbidden-character", f"holds U+{ord(letter):04X} ({name}) {where}; remove it"


def refuse_duplicates(texts: Sequence[str], what: str) -> None:
    """Refuses equal texts among those that must differ; the message gives their positions.

    Args:
        texts: Normalised texts.
        what: Their kind for messages, such as `class names`.

    Raises:
        DataError: If two are equal.
    """
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        if first.setdefault(text, place) != place:
            raise DataError(
                f"the {what} at positions {first[text]} and {place} are equal after normalisation; leave one out or "
                f"change it",
                reason="duplicate-text",
            )


def _which(places: Sequence[int]) -> str:
    if len(places) == 1:
        return f"the text at position {places[0]} holds"
    named = ", ".join(map(str, places[:10])) + (", …" if len(places) > 10 else "")
    return f"the texts at positions {named} hold"


def _them(places: Sequence[int]) -> str:
    return "it" if len(places) == 1 else "them"


Texts: TypeAlias = str | Iterable[str]
"""One text, or several in order: a list, tuple, generator, array of strings, or column of a data frame."""


def as_texts(texts: Texts, what: str = "text") -> list[str]:
    """Returns texts as a list; a `str` is one text.

    Args:
        texts: One or several.
        what: Name of a text in messages.

    Raises:
        DataError: If there is none, they have no order, or one is not a `str`.
    """
    values: Any = texts
    if hasattr(values, "tolist") and not isinstance(values, str):  # arrays and columns of data frames
        values = values.tolist()
    if isinstance(values, str):
        return [str(values)]
    if isinstance(values, bytes | Mapping | Set) or not isinstance(values, Iterable):
        given = "None" if values is None else type(values).__name__
        why = "; decode it first" if isinstance(values, bytes) else "; give a str, or a list of them"
        raise DataError(f"{given} is not a {what}{why}", reason="not-text")
    found = list(cast("Iterable[Any]", values))
    for place, value in enumerate(found):
        if not isinstance(value, str):
            given = repr(value) if value is None or isinstance(value, float) else type(value).__name__
            raise DataError(
                f"the {what} at position {place} is {given}, not a str; leave it out or replace it", reason="not-text"
            )
    if not found:
        raise DataError(f"no {what} was given; give at least one", reason="empty-text")
    return [str(value) for value in found]
