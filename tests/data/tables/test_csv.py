"""CSV tables, plain, compressed or alone in a zip archive; other files are refused."""

import gzip
import hashlib
import io
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleft.data.tables import csv as tables
from cleft.data.tables.csv import read_table
from cleft.data.tables.faults import Fault, missing_columns, raise_faults
from cleft.errors import DataError


def write(tmp_path, data):
    path = tmp_path / "table.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def valid_table(path, columns):
    """A table without faults that has these columns."""
    table, faults = read_table(path)
    raise_faults(path, [*faults, *missing_columns(table.columns, columns)])
    return table


def texts(path):
    table = valid_table(path, [])
    return {name: column.texts() for name, column in table.columns.items()}


def test_ids_and_words_like_na_are_kept_as_text(tmp_path):
    path = write(tmp_path, "id,word\n000123,NA\n1e5,None\n12345678901234567890,null\n")
    assert texts(path) == {"id": ["000123", "1e5", "12345678901234567890"], "word": ["NA", "None", "null"]}


@pytest.mark.parametrize(
    "data",
    [
        b"a,b\n1,2\n3,4\n",
        b"a,b\n1,2\n3,4",
        b"a,b\r\n1,2\r\n3,4\r\n",
        b"a,b\r1,2\r3,4\r",
        b"\xef\xbb\xbfa,b\n1,2\n3,4\n",
        b"\xef\xbb\xbf\xef\xbb\xbfa,b\n1,2\n3,4\n",
        b"\na,b\n\n1,2\n\n\n3,4\n\n",
        b' a ,"b"\n"1",2\n 3,4\n',
        gzip.compress(b"a,b\n1,2\n3,4\n", mtime=0),
    ],
)
def test_equivalent_csv_files_are_read_equally(tmp_path, data):
    assert texts(write(tmp_path, data)) == {"a": ["1", "3"], "b": ["2", "4"]}


def test_quoted_cells_may_hold_commas_quotes_and_line_ends(tmp_path):
    path = write(tmp_path, 'a,b\n"x, ""y""\nz",1\nw,2\n')
    table = valid_table(path, ["a", "b"])
    assert table.columns["a"].texts() == ['x, "y"\nz', "w"]
    assert table.lines.tolist() == [2, 4]


def test_line_numbers_count_blank_lines_and_skip_bad_rows(tmp_path):
    table, faults = read_table(write(tmp_path, "a,b\n\n1,2\n3\n\n4,5\n6,7,8\n9,10\n"))
    assert table.lines.tolist() == [3, 6, 8]
    assert [(fault.what, list(fault.lines)) for fault in faults] == [
        ("1 cell where the header has 2", [4]),
        ("3 cells where the header has 2", [7]),
    ]


def test_an_extra_comma_on_every_row_is_refused_with_its_line(tmp_path):
    with pytest.raises(DataError, match=r"lines 2, 3: 3 cells where the header has 2; fix the commas"):
        valid_table(write(tmp_path, "a,b\n1,2,\n3,4,\n"), ["a"])


def test_a_missing_column_is_named_with_what_was_found_and_the_nearest(tmp_path):
    with pytest.raises(DataError, match=r"no column 'Edema'; found \['edemma', 'b'\].*nearest to 'Edema' is 'edemma'"):
        valid_table(write(tmp_path, "edemma,b\n1,2\n"), ["Edema", "b"])


def test_a_repeated_column_is_refused_by_its_positions(tmp_path):
    with pytest.raises(DataError, match=r"column 'Edema' occurs at positions \[1, 3\]"):
        valid_table(write(tmp_path, "Edema,b, Edema\n1,2,3\n"), ["b"])


def test_an_index_column_without_a_name_is_left_out(tmp_path):
    assert texts(write(tmp_path, ",a\n0,x\n1,y\n")) == {"a": ["x", "y"]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,b\n", "a header but no rows"),
        (b"a,b\n\n\n", "a header but no rows"),
        (b"a,b\n1,2\n3,\xff\n", "line 3: byte 0xff is not UTF-8"),
        (b"a,b\n1,2\n3,\x00\n", "line 3: holds a NUL byte"),
        (b'a,b\n1,2\n3,"x\n5,6\n', "line 3: a quote is not closed"),
        (b'a,b\n1,"x\n2,"y\n', "line 3: a quote is not closed or is inside a cell"),
        (b'a,b\n1,5" tube\n', "line 2: a quote is not closed or is inside a cell"),
        (b'a,b\n1,""x"\n', "line 2: a quote"),
        (b"a;b\n1;2\n", "separates its cells by semicolons"),
        (b"a\tb\n1\t2\n", "separates its cells by tabs"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        (b"PK\x03\x04 whatever", "damaged zip file"),
        (gzip.compress(b"a,b\n1,2\n" * 999, mtime=0)[:-20], "damaged gzip file"),
        (b",".join(b"c%d" % i for i in range(300)) + b"\n" + b"," * 299 + b"\n", "300 columns, more than 256"),
        (b"a,b\n1,2\n3," + b"x" * 70_000 + b"\n", "line 3: column 'b' holds a cell of more than 64 KiB"),
    ],
)
def test_files_that_are_not_tables_are_refused_with_the_line(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        valid_table(write(tmp_path, data), [])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no table at .*nowhere\.csv"):
        valid_table(tmp_path / "nowhere.csv", [])


def test_decompression_stops_at_the_limit(tmp_path, monkeypatch):
    path = write(tmp_path, gzip.compress(b"a,b\n" + b"1,2\n" * 1000, mtime=0))
    monkeypatch.setattr(tables, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="inflates to more than"):
        valid_table(path, [])


def test_the_digest_is_that_of_the_file(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbfa\r\n1\r\n")
    assert valid_table(path, ["a"]).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_twenty_lines_are_named_and_the_rest_counted():
    message = Fault("label", "bad", "fix it", range(1, 26)).message(
        Path("t.csv")
    )  # the folder of a test has numbers too
    assert "19, 20 and 5 more: bad; fix it" in message
    assert "21" not in message


def test_the_error_has_the_first_fault_and_counts_the_others(tmp_path):
    with pytest.raises(DataError, match=r"\(2 more kinds of fault: see `cleft data check`\)"):
        valid_table(write(tmp_path, "a,b,b\n1,2\n1,2,3\n1,2,3,4\n"), [])


def test_an_error_does_not_quote_a_row(tmp_path):
    with pytest.raises(DataError) as caught:
        valid_table(write(tmp_path, "a,b\nCANARY,1,2\n"), [])
    assert "CANARY" not in str(caught.value)


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_cells_survive_a_round_trip(tmp_path_factory, rows, mark, end):
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [("a", "b"), *rows]]
    path = tmp_path_factory.mktemp("q") / "t.csv"
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + (end.join(quoted) + end).encode())
    table = valid_table(path, ["a", "b"])
    cells = [[column.values[i] for i in column.index] for column in table.columns.values()]
    assert list(zip(*cells, strict=True)) == rows


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text('ab,"\n\r;\x00é\ufeff1', max_size=30).map(str.encode) | st.binary(max_size=30))
def test_any_bytes_are_read_or_refused_as_data(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("z") / "t.csv"
    path.write_bytes(data)
    try:
        table, _ = read_table(path)
    except DataError:
        return
    assert all(len(column.index) == len(table) for column in table.columns.values())
    assert (np.diff(table.lines) > 0).all()


@pytest.mark.benchmark
def test_a_million_rows_take_seconds(tmp_path):
    line = (
        "CheXpert-v1.0-small/train/patient{:07d}/study1/view1_frontal.jpg,Male,60,Frontal,AP,,,-1.0,1.0,,,0.0,,,,,,,\n"
    )
    text = io.StringIO()
    text.write(",".join(f"c{i}" for i in range(19)) + "\n")
    text.writelines(line.format(i) for i in range(1_000_000))
    path = write(tmp_path, text.getvalue())
    start = time.perf_counter()
    assert len(valid_table(path, ["c0"])) == 1_000_000
    assert time.perf_counter() - start < 10


def test_columns_that_are_not_selected_are_neither_kept_nor_faults(tmp_path):
    path = write(tmp_path, "id,more,more,name\n1,x,y,a\n2,z,w,b\n")
    table, faults = read_table(path, wanted=lambda name: name in ("id", "name"))
    assert {name: column.texts() for name, column in table.columns.items()} == {"id": ["1", "2"], "name": ["a", "b"]}
    assert (table.header, faults) == (("id", "more", "more", "name"), [])


def test_a_table_without_selected_columns_still_counts_its_rows(tmp_path):
    table, _ = read_table(write(tmp_path, "a,b\n1,2\n3,4\n"), wanted=lambda name: False)
    assert (len(table), table.columns) == (2, {})


CSV = "id,Edema\n007,1\n008,0\n"


def zipped(entries, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, text in entries.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def write_bytes(tmp_path, data):
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
    table = valid_table(write_bytes(tmp_path, zipped(entries, method)), ["id"])
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
        valid_table(write_bytes(tmp_path, data), [])


def test_an_archive_with_a_password_is_refused(tmp_path):
    data = bytearray(zipped({"a.csv": CSV}))
    central = data.index(b"PK\x01\x02")
    data[6] |= 1
    data[central + 8] |= 1
    with pytest.raises(DataError, match="with a password"):
        valid_table(write_bytes(tmp_path, bytes(data)), [])


def test_decompression_of_a_zip_stops_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_BYTES", 10_000)
    with pytest.raises(DataError, match="inflates to more than"):
        valid_table(write_bytes(tmp_path, zipped({"a.csv": "id\n" + "1\n" * 10_000})), [])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_archive_is_read_or_refused_as_data(tmp_path_factory, data):
    whole = bytearray(zipped({"a.csv": CSV * 20}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = write_bytes(tmp_path_factory.mktemp("zip"), bytes(whole))
    try:
        read_table(path)
    except DataError:
        pass
