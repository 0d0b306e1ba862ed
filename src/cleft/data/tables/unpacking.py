"""From a table's bytes on disk to those of its text: plain, gzip, or a zip archive that holds one CSV.

The content decides, never the name. What is inflated is counted while it is, so that a small file cannot fill the
memory; nothing is written to disk, and no name in an archive becomes a path.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

from cleft.data.tables.files import is_junk
from cleft.errors import DataError

_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_FOREIGN = {
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"PAR1": "a Parquet file; write it as CSV",
    b"BZh": "compressed with bzip2; unpack it or compress it with gzip",
    b"\xfd7zXZ": "compressed with xz; unpack it or compress it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it or compress it with gzip",
}


def unpack(path: Path, raw: bytes, limit: int) -> bytes:
    """Undoes gzip or zip.

    Args:
        path: Of the file, for messages.
        raw: Its bytes.
        limit: Largest number of bytes that may come out.

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
    """The one CSV of an archive; what file managers add beside it does not count."""
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
