import io
import sys
from pathlib import Path

import pytest

from cleft.data.counts import (
    count_ages,
    count_captions,
    count_labels,
    count_values,
    group_records,
    prevalence_by_group,
    progress_bar,
)
from cleft.types import Record


def record(number, patient=None, caption="", **labels):
    return Record(
        id=str(number), image=Path(str(number)), labels=labels, patient=patient or str(number), caption=caption
    )


def test_labels_are_counted_by_value_and_if_unmentioned():
    shared = {"Edema": 1.0, "Fracture": -1.0}
    records = [Record(id=str(i), image=Path("x"), labels=shared, patient="p") for i in range(3)]
    records += [record(3, Edema=0.0), record(4)]
    assert count_labels(records, ["Edema", "Fracture", "Mass"]) == {
        "Edema": (3, 1, 0, 1),
        "Fracture": (0, 0, 3, 2),
        "Mass": (0, 0, 0, 5),
    }


def test_counts_of_unknown_values_only_are_none():
    assert count_values("view", [None, None]) is None
    assert count_ages([None]) is None


def test_ages_are_counted_in_consecutive_decades():
    counted = count_ages([9.9, 10, 35, None])
    assert counted.counts == (("0–9", 1), ("10–19", 1), ("20–29", 0), ("30–39", 1), ("unknown", 1))
    assert counted.ordered


def test_o10_a_share_of_fewer_than_five_patients_is_not_reported():
    groups = {
        "AP": [record(i, Edema=float(i < 2)) for i in range(5)],
        "PA": [record(9, "same", Edema=1.0)] * 8,
        "LL": [],
    }
    found = prevalence_by_group("view", groups, ["Edema"])
    assert (found.images, found.patients) == ((5, 8, 0), (5, 1, 0))
    assert found.shares == {"Edema": (pytest.approx(0.4), None, None)}
    assert prevalence_by_group("view", groups, ["Edema"], min_patients=1).shares["Edema"][1] == 1.0


def test_the_largest_groups_are_first_and_unknown_values_form_no_group():
    records = [record(i, scanner=float(i)) for i in range(30)]
    groups = group_records(records, lambda r: None if int(r.id) < 3 else str(int(r.id) % 10 + int(r.id) // 20))
    assert len(groups) == 8
    assert [len(group) for group in groups.values()] == sorted((len(group) for group in groups.values()), reverse=True)
    assert not {"0", "1", "2"} & {r.id for group in groups.values() for r in group}


def test_a_caption_of_few_patients_is_not_shown():
    records = [record(i, f"p{i}", "with edema") for i in range(5)]
    records += [record(i, "one", "Mrs Canary, seen in May") for i in range(5, 15)]
    counted = count_captions(records, written=10)
    assert (counted.distinct, counted.from_table, counted.longest) == (2, 10, 5)
    assert counted.common == (("with edema", 5),)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def walk(monkeypatch, stream, *, enabled):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("prepare images", 3, enabled=enabled) as advance:
        for _ in range(3):
            advance()
    return stream.getvalue()


def test_a_terminal_shows_progress_and_rate(monkeypatch):
    shown = walk(monkeypatch, Terminal(), enabled=True)
    assert "prepare images" in shown
    assert "3/3" in shown


def test_a_log_file_gets_no_progress_bar(monkeypatch):
    assert walk(monkeypatch, io.StringIO(), enabled=True) == ""


def test_a_disabled_bar_shows_nothing(monkeypatch):
    assert walk(monkeypatch, Terminal(), enabled=False) == ""
