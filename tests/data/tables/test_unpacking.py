"""A table may be packed; whatever is packed with it, or in another way, is refused with a sentence."""

import io
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleft.data.tables import columns as tables
from cleft.data.tables.columns import read_table, scan_table
from cleft.errors import DataError

CSV = "id,Edema\n007,1\n008,0\n"


def zipped(entries, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, text in entries.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def write(tmp_path, data):
    path = tmp_path / "manifest.csv"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "entries",
    [
        {"manifest.csv": CSV},
        {"deep/er/LABELS.CSV": "\ufeff" + CSV},
        {"manifest.csv": CSV, "README.txt": "about", "deep/": ""},
        {"a/manifest.csv": CSV, "__MACOSX/a/._manifest.csv": "junk", "a/.DS_Store": "junk"},
        {"../../manifest.csv": CSV},
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_one_table_of_a_zip_archive_is_read(tmp_path, entries, method):
    table = read_table(write(tmp_path, zipped(entries, method)), ["id"])
    assert table.columns["id"].texts() == ["007", "008"]
    assert [path.name for path in tmp_path.rglob("*")] == ["manifest.csv"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped({"a.csv": CSV, "b.csv": CSV}), "a zip archive with 2 tables that end in .csv; it may hold one"),
        (zipped({"a.txt": CSV}), "a zip archive with no table that ends in .csv"),
        (zipped({"[Content_Types].xml": "", "xl/workbook.xml": ""}), "a workbook; export it as CSV"),
        (zipped({"a.csv": CSV}, zipfile.ZIP_LZMA), "an unusual method; unpack it"),
        (zipped({"a.csv": CSV * 99})[:-40], "damaged zip file"),
        (zipped({"a.csv": CSV * 99}).replace(b"a.csv", b"b.csv", 1), "damaged zip file"),
    ],
)
def test_an_archive_that_is_not_one_table_is_refused(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, data), [])


def test_an_archive_with_a_password_is_refused(tmp_path):
    data = bytearray(zipped({"a.csv": CSV}))
    central = data.index(b"PK\x01\x02")
    data[6] |= 1
    data[central + 8] |= 1
    with pytest.raises(DataError, match="with a password"):
        read_table(write(tmp_path, bytes(data)), [])


def test_inflating_a_zip_stops_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_BYTES", 10_000)
    with pytest.raises(DataError, match="inflates to more than"):
        read_table(write(tmp_path, zipped({"a.csv": "id\n" + "1\n" * 10_000})), [])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_archive_is_read_or_refused_as_data(tmp_path_factory, data):
    whole = bytearray(zipped({"a.csv": CSV * 20}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.mktemp("zip"), bytes(whole))
    try:
        scan_table(path)
    except DataError:
        pass
