"""Singular and plural in generated sentences."""

from __future__ import annotations

import re


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun.

    Args:
        number: Count.
        noun: Noun in the singular, with or without an adjective.
        plural: Plural that does not end in an additional s.

    Example:
        >>> count(1, "image"), count(0, "image"), count(1_200, "query", "queries")
        ('1 image', '0 images', '1,200 queries')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def share(number: int, total: int, noun: str, plural: str | None = None) -> str:
    """Returns a part of a total with its noun; the verb that follows agrees with the part.

    Example:
        >>> share(1, 5, "image"), share(5, 5, "image"), share(2, 2, "label"), share(1, 1, "patient")
        ('1 of 5 images', 'all 5 images', 'both labels', 'the only patient')
    """
    if number == total == 1:
        return f"the only {noun}"
    if number == total == 2:
        return f"both {plural or f'{noun}s'}"
    return f"all {count(total, noun, plural)}" if 0 < number == total else f"{number:,} of {count(total, noun, plural)}"


def verb(number: int, singular: str, plural: str) -> str:
    """Returns the form of a verb that agrees with a number.

    Example:
        >>> verb(1, "is", "are"), verb(0, "is", "are")
        ('is', 'are')
    """
    return singular if number == 1 else plural


def agree(number: int, sentence: str) -> str:
    """Returns a sentence in which every pair `[singular|plural]` is replaced by the form that agrees with a number.

    Args:
        number: Count.
        sentence: Constant text; user input could contain brackets.

    Example:
        >>> agree(1, "[lacks|lack] a window; [it is|they are] shown by [its|their] values")
        'lacks a window; it is shown by its values'
    """
    return _PAIR.sub(lambda pair: pair[1 if number == 1 else 2], sentence)


_PAIR = re.compile(r"\[([^\[\]|]*)\|([^\[\]|]*)\]")
