"""CSV tables: columns of text, each row with its line number.

Cells are kept as text: `000123`, `1e5`, `NA` and `None` are neither numbers nor missing values. A column stores each
distinct text once, so that `tables.rows` converts it once per distinct text, not once per row. Files may be compressed
(gzip, or one CSV in a zip archive); decompression stops at a size limit and writes nothing to disk.

Faults of single rows and columns are collected as `Fault`s, so that all of them can be reported.

Shapes: `N` rows below the header.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
from numpy.typing import NDArray

from cleft.data.tables.faults import Fault
from cleft.data.tables.paths import is_junk
from cleft.errors import DataError
from cleft.grammar import count

MAX_BYTES = 4 << 30
"""Largest table, after decompression."""

MAX_COLUMNS = 256
MAX_CELL_BYTES = 64 << 10
_BOM = b"\xef\xbb\xbf"
_LF, _QUOTE = 10, 34
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_FOREIGN = {
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"PAR1": "a Parquet file; write it as CSV",
    b"BZh": "compressed with bzip2; unpack it or compress it with gzip",
    b"\xfd7zXZ": "compressed with xz; unpack it or compress it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it or compress it with gzip",
}


@dataclass(frozen=True, slots=True)
class Column:
    """Texts of a column, dictionary-encoded."""

    values: list[str]
    """Each distinct text once."""
    index: NDArray[np.int32]
    """Position in `values` of each row's text, `[N]`."""

    def texts(self) -> list[str]:
        """Returns the text of every row, without surrounding spaces."""
        values = [value.strip() for value in self.values]
        return [values[i] for i in self.index.tolist()]

    def rows_of(self, positions: Collection[int]) -> NDArray[np.int64]:
        """Returns the indices of rows whose text is one of `values[positions]`, in order."""
        wanted = np.zeros(len(self.values) + 1, dtype=bool)
        wanted[list(positions)] = True
        return np.flatnonzero(wanted[self.index])


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of text, not yet converted."""

    path: Path
    columns: dict[str, Column]
    """By name, in the order of the file. Columns without a name, such as a row index, are dropped."""
    lines: NDArray[np.int64]
    """Line on which each row starts, `[N]`; the header is line 1."""
    sha256: str
    """Of the file's bytes on disk."""
    header: tuple[str, ...] = ()
    """Every column name in the file, including columns that were not read."""

    def __len__(self) -> int:
        return len(self.lines)

    def lines_of(self, column: Column, positions: Collection[int]) -> list[int]:
        """Returns the lines whose text in a column is one of `column.values[positions]`."""
        return self.lines[column.rows_of(positions)].tolist()

    @property
    def source(self) -> dict[str, str]:
        """Name and SHA-256, as `Reading.sources` lists them."""
        return {self.path.name: self.sha256}


def read_table(path: Path, *, wanted: Callable[[str], bool] | None = None) -> tuple[Table, list[Fault]]:
    """Reads a CSV table and collects faults of single rows and columns, which are dropped.

    Args:
        path: A CSV file in UTF-8: plain, gzip, or alone in a zip archive (recognised by content, not by name). A
            byte-order mark, CRLF and blank lines are accepted.
        wanted: Selects columns by name; by default all. Some tables have a hundred that are never used.

    Raises:
        DataError: If it cannot be read as a table: no file, another encoding or format, an unclosed quote, no row.
    """
    raw = _read_bytes(path)
    data = _clean(path, unpack(path, raw, MAX_BYTES))
    starts, lines = _find_rows(path, data)
    if not len(starts):
        raise DataError(f"{path} is empty; it needs a header and at least one row", reason="table")
    end = int(starts[1]) if len(starts) > 1 else len(data)
    header = _read_header(path, data[int(starts[0]) : end])
    if len(starts) == 1:
        raise DataError(f"{path} holds a header but no rows", reason="table")
    selected = [name for name in header if wanted is None or wanted(name)]
    columns, kept, faults = _read_columns(path, pa.py_buffer(data).slice(end), header, set(selected), lines[1:])
    table = Table(
        path=path,
        columns=columns,
        lines=lines[1:][kept],
        sha256=hashlib.sha256(raw).hexdigest(),
        header=tuple(name for name in header if name),
    )
    return table, [*_repeated_columns(header, set(selected)), *faults]


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(
            f"no table at {path}; check data.root and data.table, or the setting that names it", reason="table"
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES >> 30} GiB; split it", reason="table")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", reason="table") from error


def _clean(path: Path, data: bytes) -> bytes:
    """Strips byte-order marks, converts line ends to LF, and raises for anything but UTF-8 text."""
    while data.startswith(_BOM):
        data = data[len(_BOM) :]
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if (at := data.find(b"\0")) >= 0:
        raise DataError(f"{path} line {_line(data, at)}: holds a NUL byte; export the table again", reason="table")
    if not data.isascii():
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"byte 0x{data[error.start]:02x} is not UTF-8"
            raise DataError(
                f"{path} line {_line(data, error.start)}: {what}; save the table as UTF-8", reason="table"
            ) from error
    return data


def _line(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def _find_rows(path: Path, data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the offset and the line of each row; blank lines are not rows."""
    text = np.frombuffer(data, dtype=np.uint8)
    newlines = np.flatnonzero(text == _LF)
    quotes = np.flatnonzero(text == _QUOTE)
    _check_quotes(path, data, text, quotes)
    # A newline ends a row unless it is inside quotes, that is, after an odd number of them.
    ends = newlines[np.searchsorted(quotes, newlines) % 2 == 0] if len(quotes) else newlines
    starts = np.concatenate([[0], ends + 1])
    stops = np.concatenate([ends, [len(text)]])
    filled = stops > starts
    starts = starts[filled]
    return starts, np.searchsorted(newlines, starts) + 1


def _check_quotes(path: Path, data: bytes, text: NDArray[np.uint8], quotes: NDArray[np.int64]) -> None:
    """Raises for a quote that is not closed or is inside an unquoted cell: it would silently swallow rows."""
    delimiters = np.frombuffer(b',\n"', dtype=np.uint8)
    before = np.where(quotes > 0, text[quotes - 1], _LF) if len(quotes) else quotes
    after = np.where(quotes < len(text) - 1, text[np.minimum(quotes + 1, len(text) - 1)], _LF)
    sound = np.where(np.arange(len(quotes)) % 2 == 0, np.isin(before, delimiters), np.isin(after, delimiters))
    wrong = quotes[~sound]
    if len(wrong) or len(quotes) % 2:
        at = int(wrong[0]) if len(wrong) else int(quotes[-1])
        raise DataError(
            f"{path} line {_line(data, at)}: a quote is not closed or is inside a cell; "
            'put the cell in quotes and double each quote inside it ("")',
            reason="table",
        )


def _read_header(path: Path, line: bytes) -> list[str]:
    names = [name.strip() for name in next(csv.reader([line.decode("utf-8").replace("\n", " ").rstrip()]))]
    for mark, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and mark in names[0]:
            raise DataError(f"{path} separates its cells by {word}; save it with commas", reason="table")
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{path} has {len(names)} columns, more than {MAX_COLUMNS}", reason="table")
    return names


def _repeated_columns(header: Sequence[str], selected: Collection[str]) -> list[Fault]:
    places = {name: [i + 1 for i, other in enumerate(header) if other == name] for name in selected if name}
    return [
        Fault("columns", f"column {name!r} occurs at positions {at}", "rename or remove all but one", (1,))
        for name, at in places.items()
        if len(at) > 1
    ]


def _read_columns(
    path: Path, body: Any, header: Sequence[str], selected: Collection[str], lines: NDArray[np.int64]
) -> tuple[dict[str, Column], NDArray[np.int64], list[Fault]]:
    """Parses the rows below the header; returns columns, indices of the rows kept, and faults of the other rows."""
    wrong: list[tuple[int, int]] = []  # row, number of cells

    def skip(row: Any) -> str:
        wrong.append((row.number - 1, row.actual_columns))
        return "skip"

    keys = [str(i) for i in range(len(header))]
    try:
        parsed = arrow_csv.read_csv(
            pa.BufferReader(body),  # a view: the text is not copied
            # Only single-threaded parsing reports the number of a bad row.
            read_options=arrow_csv.ReadOptions(use_threads=False, column_names=keys, block_size=32 << 20),
            parse_options=arrow_csv.ParseOptions(invalid_row_handler=skip, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(keys, pa.string()),
                strings_can_be_null=False,
                # An empty list would mean all columns.
                include_columns=[key for key, name in zip(keys, header, strict=True) if name in selected] or keys[:1],
            ),
        )
    except pa.ArrowInvalid as error:
        # The error message may quote cells, which may contain names of patients.
        raise DataError(f"{path} cannot be parsed as CSV; open it in an editor and export it again") from error
    kept = np.delete(np.arange(len(lines)), [row for row, _ in wrong])
    columns: dict[str, Column] = {}
    for key, name in zip(keys, header, strict=True):
        if name and name in selected:
            columns.setdefault(name, _encode(parsed.column(key)))
    faults = [
        Fault(
            "columns",
            f"{count(cells, 'cell')} where the header has {len(header)}",
            "fix the commas, or quote a cell that holds one",
            [int(lines[row]) for row, count in wrong if count == cells],
        )
        for cells in sorted({count for _, count in wrong})
    ]
    return columns, kept, [*faults, *_long_cells(columns, lines[kept])]


def _encode(column: Any) -> Column:
    encoded = column.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        if encoded.num_chunks == 0:
            return Column([], np.zeros(0, dtype=np.int32))
        encoded = encoded.chunk(0)
    return Column(encoded.dictionary.to_pylist(), np.asarray(encoded.indices, dtype=np.int32))


def _long_cells(columns: dict[str, Column], lines: NDArray[np.int64]) -> list[Fault]:
    faults: list[Fault] = []
    for name, column in columns.items():
        # A character has at most four bytes.
        long = [i for i, value in enumerate(column.values) if len(value) * 4 > MAX_CELL_BYTES]
        long = [i for i in long if len(column.values[i].encode()) > MAX_CELL_BYTES]
        if long:
            what = f"column {name!r} holds a cell of more than {MAX_CELL_BYTES >> 10} KiB"
            faults.append(Fault("label", what, "shorten it", lines[column.rows_of(long)].tolist()))
    return faults


def unpack(path: Path, raw: bytes, limit: int) -> bytes:
    """Returns the text of a table as bytes, decompressed if it is gzip or zip.

    Args:
        path: File, for messages.
        raw: Its bytes.
        limit: Largest number of bytes after decompression.

    Raises:
        DataError: If the file is of another format, damaged, or larger than `limit` unpacked.
    """
    for magic, what in _FOREIGN.items():
        if raw.startswith(magic):
            raise DataError(f"{path} is {what}", reason="table")
    try:
        if raw.startswith(_GZIP):
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
                return _read(path, file, limit)
        if raw.startswith(_ZIP):
            with zipfile.ZipFile(io.BytesIO(raw)) as archive, archive.open(_only_table(path, archive)) as file:
                return _read(path, file, limit)
    except (OSError, EOFError, ValueError, zlib.error, struct.error, zipfile.BadZipFile, NotImplementedError) as error:
        kind = "gzip" if raw.startswith(_GZIP) else "zip"
        raise DataError(
            f"{path} is a damaged {kind} file ({type(error).__name__}); copy it again", reason="table"
        ) from error
    return raw


def _only_table(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The only CSV of an archive; files that file managers add do not count."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir() and not is_junk(entry.filename)]
    tables = [entry for entry in entries if entry.filename.casefold().endswith(".csv")]
    if any(entry.filename == "[Content_Types].xml" for entry in entries):
        raise DataError(f"{path} is a workbook; export it as CSV in UTF-8", reason="table")
    if len(tables) != 1:
        found = f"{len(tables)} tables that end in .csv" if tables else "no table that ends in .csv"
        raise DataError(f"{path} is a zip archive with {found}; it may hold one, or unpack it", reason="table")
    if tables[0].flag_bits & 1 or tables[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path} is a zip archive with a password or an unusual method; unpack it", reason="table")
    return tables[0]


def _read(path: Path, file: IO[bytes] | gzip.GzipFile, limit: int) -> bytes:
    data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{path} inflates to more than {limit / 2**30:.3g} GiB; split it", reason="table")
    return data
