"""Which of the settings that were typed for a whole study are not used, by which rows or on which data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cleft.config import load_settings, overridden_keys
from cleft.data import data_config, recipe_of
from cleft.errors import ConfigError
from cleft.studies.plans import Row
from cleft.studies.steps import Given, Step, row_settings, words_of_row
from cleft.training.same import flat


def unused_words(rows: Sequence[Row], given: Given, steps: Iterable[Step]) -> list[str]:
    """Returns one line for each typed setting that some rows or some data do not use.

    Args:
        rows: Of all plans.
        given: What was typed.
        steps: Of all cells.

    Raises:
        ConfigError: If no row uses a setting, and it is not one of texts that no row reads.
    """
    typed = sorted(overridden_keys(given.words))
    if not typed:
        return []
    lines: list[str] = []
    without = {key: [row.key for row in rows if not _uses(row, given, key)] for key in typed}
    for key, names in without.items():
        of_texts = not any(key in overridden_keys(words_of_row(row, given)) for row in rows)
        if len(names) == len(rows) and not of_texts:
            raise ConfigError(f"--{key} is used by no row of this study: each sets it itself; leave it out")
        if names:
            rows_of = ", ".join(dict.fromkeys(names))
            lines.append(f"--{key} is not used by rows that set it themselves or read no texts: {rows_of}")
    return [*lines, *_on_other_data([key for key in typed if key.startswith("data.")], steps)]


def _uses(row: Row, given: Given, key: str) -> bool:
    """Whether a row's settings have the value that was typed."""
    words = words_of_row(row, given)
    if key not in overridden_keys(words):
        return False
    return flat(row_settings(row, given))[key] == flat(load_settings(row.preset, words))[key]


def _on_other_data(keys: Sequence[str], steps: Iterable[Step]) -> list[str]:
    """Lines about settings of the data that rows are trained on, where another dataset is read."""
    found: dict[str, None] = {}
    for step in steps:
        if step.data is None:
            continue
        own, other = step.settings.data, data_config(step.settings, step.data)
        for key in keys:
            name = key.removeprefix("data.")
            if getattr(own, name) != getattr(other, name):
                found[f"--{key} is used for {own.dataset}, not for {other.dataset} (split {recipe_of(other)})"] = None
    return list(found)
