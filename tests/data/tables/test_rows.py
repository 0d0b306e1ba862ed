import gc

import numpy as np
import pytest

from cleft.data.tables.csv import read_table
from cleft.data.tables.rows import BLANK, gc_paused, read_ages, read_codes, read_sexes, read_texts


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "Edema,sex,age,text\n1,M,61,a\n1.0,female,0,\n 0 ,Unknown,155, b \n-1.0,,061Y,a\n,m,,NA\n-1,F,nan,a\n"
    )
    return read_table(path)[0]


def test_codes_are_read_by_value_and_blank_is_a_separate_code(table):
    codes, faults = read_codes(table, ["Edema"])
    assert codes[:, 0].tolist() == [1, 1, 0, -1, BLANK, -1]
    assert codes.dtype == np.int8
    assert faults == []


@pytest.mark.parametrize("text", ["yes", "2", "inf", "nan", "NA", "1e0", "0.5", "--1", "TRUE"])
def test_other_cells_are_faults(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(f"Edema,x\n1,\n{text},\n,\n{text},\n")
    codes, (fault,) = read_codes(read_table(path)[0], ["Edema"])
    assert codes[:, 0].tolist() == [1, BLANK, BLANK, BLANK]
    assert (fault.what, list(fault.lines)) == (f"column 'Edema' holds '{text}'", [3, 5])


@pytest.mark.parametrize(
    "cells", [["Doe^Jane", "Roe^Richard"], ["2026-11-24"], ["20261124"], ["1", "2026-11-24"], ["a sentence of words"]]
)
def test_o1_a_name_or_date_in_a_column_of_labels_is_not_quoted(tmp_path, cells):
    path = tmp_path / "t.csv"
    path.write_text("remark,x\n" + "".join(f"{cell},\n" for cell in cells))
    _, (fault,) = read_codes(read_table(path)[0], ["remark"])
    assert fault.what == "column 'remark' holds text that is not a label"
    assert fault.remedy.endswith("rename it '_remark'")


def test_sexes_are_spelled_one_way_and_others_counted(table):
    assert read_sexes(table.columns["sex"], 6) == (["Male", "Female", None, None, "Male", "Female"], 1)


def test_impossible_ages_are_unknown_and_counted(table):
    assert read_ages(table.columns["age"], 6) == ([61, 0, None, None, None, None], 3)


def test_texts_keep_words_like_na(table):
    assert read_texts(table.columns["text"], 6) == ["a", None, "b", "a", "NA", "a"]


def test_a_missing_column_is_unknown_in_every_row():
    assert read_texts(None, 2) == [None, None]
    assert read_sexes(None, 2) == ([None, None], 0)
    assert read_ages(None, 2) == ([None, None], 0)


def test_garbage_collection_is_off_inside_and_restored_after_an_error():
    seen = []

    @gc_paused()
    def fail():
        seen.append(gc.isenabled())
        raise KeyError

    assert gc.isenabled()
    with pytest.raises(KeyError):
        fail()
    assert seen == [False]
    assert gc.isenabled()


def test_garbage_collection_that_was_off_stays_off():
    with gc_paused():
        with gc_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_decorated_function_pauses_garbage_collection_every_time():
    states = gc_paused()(gc.isenabled)
    assert [states(), states()] == [False, False]
    assert gc.isenabled()
