"""Several values in one word, with commas between them; a value that contains a comma is quoted."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cleft.errors import ConfigError

_ITEM = re.compile(r"""\s*(?:"((?:[^"]|"")*)"|'((?:[^']|'')*)'|([^,]*))\s*(,|$)""")


def split_list(text: str) -> list[str]:
    """Returns the values of a word, without spaces around them; empty ones are left out.

    Raises:
        ConfigError: If a quote is not closed or something follows it.

    Example:
        >>> split_list('"Effusion, left", Edema'), split_list("Crohn's disease,'a, b'")
        (['Effusion, left', 'Edema'], ["Crohn's disease", 'a, b'])
    """
    values: list[str] = []
    place = 0
    while place < len(text):
        found = _ITEM.match(text, place)
        bare = "" if found is None or found[3] is None else found[3].strip()
        if found is None or bare[:1] in ('"', "'"):
            raise ConfigError(
                f'{text!r}: a quote is not closed, or text follows it; write "Effusion, left",Edema, each quote '
                f"within a quoted value twice"
            )
        double, single = found[1], found[2]
        value = double.replace('""', '"') if double is not None else single.replace("''", "'") if single else bare
        if value.strip():
            values.append(value.strip())
        place = found.end()
    return values


def join_list(values: Iterable[str]) -> str:
    """Returns values as one word that `split_list` reads again.

    Example:
        >>> join_list(["Effusion, left", "Edema"])
        '"Effusion, left",Edema'
    """
    return ",".join(
        '"' + value.replace('"', '""') + '"' if "," in value or value[:1] in ('"', "'") else value for value in values
    )
