"""The program prints a row for every way, and refuses to time what is not equal."""

import math

import pytest
import torch

from bench import Bench, Trial, largest_errors, table
from captions import draw_batch, independent_findings, read_label_sets
from memory import Peak
from step import main
from ways import WAYS

BENCH = Bench(device=torch.device("cpu"), half=False, rounds=1, limit=1.0)


def trial(*gradients):
    return Trial(torch.ones(2), torch.tensor(gradients), Peak(0), 0.0)


def rows(printed, head):
    _, _, part = printed.partition(head)
    lines = [line for line in part.partition("###")[0].splitlines() if line.startswith("|")]
    names, _, *cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {line[0]: dict(zip(names, line, strict=True)) for line in cells}


@pytest.mark.benchmark
def test_from_captions_to_tables(capsys):
    threads = torch.get_num_threads()
    main(["--size", "tiny", "--batches", "24", "256", "--step-batches", "24", "--rounds", "1", "--limit", "1"])
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    text, step = rows(printed, "### Text encoder, batch 24"), rows(printed, "### Complete step, batch 24")
    assert set(WAYS) < set(text)
    assert set(WAYS) | {"image encoder alone"} < set(step)
    counted = rows(printed, "### Counted, batch 24")
    assert {way: line["sequences x tokens"] for way, line in counted.items()}.items() <= {
        way: line["sequences x tokens"] for way, line in text.items()
    }.items()
    assert text["padded to max"]["error"] == "reference"
    assert all(float(row["error"]) < 2e-5 for row in text.values() if row["error"] != "reference")
    assert float(text["padded to max"]["x tree"]) > 2
    assert float(step["prefix tree"]["x image alone"]) > 1
    left_out = rows(printed, "### Text encoder, batch 256")["padded to max, checkpointed"]
    assert "not run" in left_out["s median"]
    assert "extrapolated" in left_out["s median"]


def test_variants_that_differ_are_not_timed():
    fine = {"a": trial(3.0, 4.0), "b": trial(3.0, 4.0 + 5e-5)}
    assert largest_errors(fine, "a", BENCH)["b"] == pytest.approx(1e-5, rel=0.1)
    for wrong in (trial(3.0, 4.1), trial(3.0, math.nan), trial(0.0, 0.0)):
        with pytest.raises(SystemExit, match=r"'b' differs from 'a'.*nothing was timed"):
            largest_errors({**fine, "b": wrong}, "a", BENCH)


def test_columns_without_a_number_are_left_out():
    assert table(["way", "MB", "s"], [["a", "-", "1"], ["b", "-", "-"]]) == (
        "| way | s |\n| --- | ---: |\n| a | 1 |\n| b | - |\n"
    )


def test_synthetic_captions_repeat_and_keep_their_frequencies():
    captions = independent_findings()
    images = dict(zip(captions.texts, captions.images, strict=True))
    devices = sum(count for text, count in images.items() if "support devices" in text) / sum(images.values())
    assert devices == pytest.approx(0.5611, abs=0.01)
    assert not any("edema" in text and "no finding" in text for text in images)
    assert 30 < len(set(draw_batch(captions, 72, seed=0))) < 60


def test_label_sets_become_captions_drawn_as_often_as_they_occur(tmp_path):
    path = tmp_path / "sets.csv"
    path.write_text("Edema,No Finding,images\n1,0,9\n0,1,0\n")
    captions = read_label_sets(path)
    assert captions.texts == [f"this is a chest x ray of a patient with {words}" for words in ("edema", "no finding")]
    assert set(draw_batch(captions, 50, seed=1)) == {captions.texts[0]}
