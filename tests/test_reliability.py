"""The table of faults in docs/reliability.md is complete and names existing tests."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
ROWS = {"A": 14, "B": 12, "C": 14, "D": 18, "E": 15, "F": 10, "G": 13, "H": 13, "I": 8, "J": 11, "K": 8, "L": 18} | {
    "M": 9,
    "N": 8,
    "O": 10,
    "P": 5,
}
"""Section to its number of rows."""
REASONS = ("does not apply: ", "no test: ", "open: ", "outside the code: ", "every test ")


def table():
    """Returns row to (priority, content of its last column)."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\| ([A-P]-?\d+) \| ([012]) \| .+ \| (.+) \|", line):
            assert match[1] not in found, f"{match[1]} is listed twice"
            found[match[1]] = match[2], match[3]
    return found


def existing_tests():
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for file in files for name in re.findall(r"^\s*def (test_\w+)", file.read_text(), re.MULTILINE)}


def test_every_row_is_listed():
    names = {
        f"{section}{'-' if section == 'P' else ''}{number + 1}" for section in ROWS for number in range(ROWS[section])
    }
    assert set(table()) == names


def test_every_row_has_a_test_that_exists_or_a_reason():
    exist = existing_tests()
    for row, (_, cell) in table().items():
        named = re.findall(r"`(test_\w+)`", cell)
        assert named or cell.startswith(REASONS), f"{row}: neither a test nor a reason"
        assert not set(named) - exist, f"{row}: no such test: {set(named) - exist}"


def test_tests_named_after_a_row_refer_to_a_row_in_the_table():
    rows = {row.replace("-", "").lower() for row in table()}
    for name in existing_tests():
        found = re.match(r"test_((?:[a-p]\d+_)+)", name)
        unknown = set(found[1].strip("_").split("_")) - rows if found else set()
        assert not unknown, name


def test_the_most_serious_rows_are_tested_or_do_not_apply():
    for row, (priority, cell) in table().items():
        if priority == "0" and "`test_" not in cell:
            assert cell.startswith(("does not apply: ", "every test ")), row


def test_the_rows_are_those_of_the_design(shared):
    design = (shared / "design" / "reliability.md").read_text(encoding="utf-8")
    wanted = dict(re.findall(r"^\| ([A-P]-?\d+) \| (\d) \|", design, re.MULTILINE))
    if not wanted:
        pytest.skip("the design is not here")
    assert {row: priority for row, (priority, _) in table().items()} == wanted
