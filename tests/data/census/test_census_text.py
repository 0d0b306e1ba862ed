from cleft.data.census.text import census_lines
from cleft.types import Captions, Census, Groups, Leftover, Tally


def lines(**changes):
    return census_lines(
        Census(**{"dataset": "manifest", "table": "manifest.csv", "faults": (), "images": 7, **changes})
    )


def test_faults_come_first_and_notes_behind_them():
    told = lines(faults=("a b", "c d"), notes=("e f",), patients=5, sources={"manifest.csv": "ab"})
    assert told[:4] == ["fault: a b", "fault: c d", "e f", "7 images of 5 patients can be used"]


def test_of_what_could_not_be_read_nothing_but_the_fault_is_told():
    assert lines(faults=("no table",), images=0) == ["fault: no table"]


def test_long_lists_are_cut_with_their_count():
    told = lines(
        tallies=(Tally(name="view", counts=tuple((f"v{i}", 20 - i) for i in range(12))),),
        labels={f"finding {i}": (i, 0, 0, 0) for i in range(40)},
        unlisted=tuple(Leftover(reason=f".e{i}", count=1) for i in range(12)),
    )
    assert "images by view  v0 20, v1 19, v2 18, v3 17, v4 16, v5 15, v6 14, v7 13 and 4 more" in told
    assert "and 10 rarer findings" in told
    assert [line.split()[:2] for line in told if line.startswith("finding ")][1] == ["finding", "39"]
    assert sum(line.startswith("files that no row names") for line in told) == 8
    assert len(told) < 60


def test_long_names_and_captions_are_cut_where_they_are_alike():
    told = lines(
        labels={"x" * 50: (1, 2, 3, 4)},
        captions=Captions(distinct=1, written=0, longest=40, common=(("same " * 30 + "end", 7),)),
        left_out=(Leftover(reason="missing", count=1, examples=("folder/" * 60 + "a.png",)),),
    )
    assert any(line.startswith("x" * 33 + "… ") for line in told)
    assert any(line.startswith("        7  …") and line.endswith("same end") for line in told)
    assert max(map(len, told)) < 240


def test_columns_stand_below_one_another():
    splits = Groups(
        name="split",
        groups=("train", "val", "test"),
        images=(4, 1, 2),
        patients=(3, 1, 1),
        shares={"Edema": (0.5, None, 0.0)},
    )
    printed = lines(labels={"Edema": (1_234, 0, 5, 67)}, splits=splits, split_recipe="patients", split_digest="ab")
    head, row = (line for line in printed if line.startswith(("finding", "Edema")))
    assert len(head) == len(row)
    assert row.split() == ["Edema", "1,234", "0", "5", "67", "50.0", "%", "–", "0.0", "%"]
    assert "split patients: 0 patients are in two splits (digest ab)" in printed


def test_what_was_decoded_is_said_whether_good_or_bad():
    assert "7 images were decoded; all can be used" in lines(decoded=7)
    told = lines(decoded=3, undecodable=(Leftover(reason="truncated", count=1, examples=("a.png: truncated",)),))
    assert "3 of 7 images, drawn at random, were decoded; 1 cannot be used" in told
    assert "cannot be decoded, truncated: 1, such as a.png: truncated" in told
