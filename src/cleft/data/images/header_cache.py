"""Keeps what was read of headers in one Parquet file; digests stand in place of paths, because paths hold ids."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cleft.data.images.headers import Header
from cleft.files import write_whole

log = logging.getLogger(__name__)

_FORM = 3
"""Rises when `Header` or its keys change; headers in caches of another form are read again."""


def load_headers(cache: Path) -> dict[str, Header]:
    """What a cache holds; nothing if it is absent, damaged or of another form."""
    try:
        with open(cache, "rb") as file:
            table = pq.read_table(pa.BufferReader(file.read()))
        if (table.schema.metadata or {}).get(b"form") != str(_FORM).encode():
            return {}
        columns = [table.column(name).to_pylist() for name in ("key", *Header._fields)]
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, pa.ArrowException) as error:
        log.warning("%s: the cache of headers cannot be read (%s); read anew", cache, type(error).__name__)
        return {}
    return {key: Header._make([*values[:-1], tuple(values[-1])]) for key, *values in zip(*columns, strict=True)}


def save_headers(cache: Path, known: Mapping[str, Header]) -> None:
    """Writes the whole cache anew, in one step, for its owner's eyes alone."""
    columns = dict(zip(Header._fields, map(list, zip(*known.values(), strict=True)), strict=True))
    table = pa.table({"key": list(known), **columns}).replace_schema_metadata({"form": str(_FORM)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(cache, sink.getvalue().to_pybytes())
