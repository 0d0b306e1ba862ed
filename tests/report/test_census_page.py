"""The page of a data check: self-contained, escaped, private."""

import dataclasses
import json
import re
import stat

import pytest
from tests.report.test_run_page import HOSTILE_TEXTS, Page

from cleft.errors import ResourceError
from cleft.report.census_page import render_census, write_census
from cleft.report.charts import bar_chart, dot_strip, histogram, stacked_bar
from cleft.report.html import format_percent
from cleft.results import from_json, to_json
from cleft.types import Captions, Census, Excluded, Groups, Tally, Thumbnail

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def census(word="Edema", **changes):
    """Return a census with every field set, and a text in every field that is read from a file."""
    splits = Groups(
        name="split",
        groups=("train", "val", "test"),
        images=(60, 5, 20),
        patients=(40, 4, 15),
        shares={word: (0.5, None, 0.25)},
    )
    views = Groups(name="view", groups=(word, "PA"), images=(60, 25), patients=(40, 19), shares={word: (0.5, 0.125)})
    full = Census(
        dataset=word,
        table=word,
        faults=(word,),
        notes=(word,),
        images=85,
        patients=59,
        studies=70,
        labels={word: (40, 30, 5, 10)},
        tallies=(Tally(name=word, counts=((word, 60), ("PA", 20), ("unknown", 5))), AGES),
        groups=(views,),
        captions=Captions(distinct=2, from_table=1, longest=12, common=((word, 70),)),
        splits=splits,
        split_recipe=word,
        split_digest="1789a3c86d12f3d6",
        shared_patients=0,
        sources={word: "ab" * 32},
        excluded_rows=(Excluded(reason=word, count=3, examples=(word, word)),),
        files_inspected=85,
        file_tallies=(Tally(name="format", counts=((word, 85),)),),
        decoded=50,
        undecodable=(Excluded(reason=word, count=1, examples=(word,)),),
        unlisted=(Excluded(reason=word, count=2, examples=(word,)),),
        junk=4,
        thumbnails=(Thumbnail(image=DOT, view=word, labels=(word,)),),
    )
    return dataclasses.replace(full, **changes)


AGES = Tally(name="age", counts=(("40–49", 30), ("50–59", 0), ("60–69", 50), ("unknown", 5)), ordered=True)


def page(**changes):
    return Page(render_census(census(**changes)))


def test_census_page_is_self_contained(tmp_path):
    html = write_census(census(), tmp_path / "out" / "census.html").read_text()
    assert not re.search(r"https?:|@import|<script", html)
    assert "default-src 'none'" in html
    sources = {attrs["src"][:22] for _, _, attrs in Page(html).elements if "src" in attrs}
    assert sources == {"data:image/png;base64,"}


def test_census_page_links_resolve():
    for seen in (page(), page(splits=None, captions=None, groups=(), thumbnails=(), labels={}, sources={}, tallies=())):
        assert len(seen.ids) == len(set(seen.ids))
        assert {anchor[1:] for anchor in seen.anchors} == set(seen.ids)


def test_census_page_shows_all_counts():
    text = page().text
    for words in (
        "85",
        "59",
        "50 of 85 images, sampled at random, were decoded",
        "1 cannot be used",
        "4 system or partial files ignored",
        "60 · 70.6 %",
        "unknown",
        "5 images without this value",
        "40 30 5 10 50.0 % – 25.0 %",
        "60 images of 40 patients",
        "50.0 % 12.5 %",
        "2 distinct captions; 1 of 85 from the table",
        "The longest has 12 words",
        "1789a3c86d12f3d6",
        "ab" * 32,
    ):
        assert words in text


def test_census_page_is_readable_by_its_owner_only(tmp_path):
    assert stat.S_IMODE(write_census(census(), tmp_path / "census.html").stat().st_mode) == 0o600


def test_o8_census_page_warns_of_patient_images():
    assert "This page shows images of patients." in page().text
    assert "images of patients" not in page(thumbnails=()).text
    drawn = page(synthetic=True).text
    assert "drawn by a program" in drawn
    assert "images of patients" not in drawn


def test_census_page_warns_of_file_names():
    bare = {"faults": (), "excluded_rows": (), "undecodable": (), "unlisted": ()}
    assert "file names and cells of the table" in page().text
    assert "file names" not in page(**bare).text
    assert "No problems found: the dataset is ready for training." in page(**bare).text


def test_empty_census_shows_its_problem():
    html = render_census(Census(dataset="rsna", table="", faults=("no table",)))
    assert "no table" in Page(html).text
    assert "No image was decoded" in Page(html).text


@pytest.mark.parametrize("word", HOSTILE_TEXTS)
def test_h13_markup_in_a_census_is_escaped(word):
    plain, escaped = page(), Page(render_census(census(word)))
    assert escaped.shape == plain.shape
    assert re.sub(r"\s+", " ", word).strip() in escaped.text


def test_invalid_png_is_not_shown():
    bad = Thumbnail(image="x' onerror='alert(1)", view="", labels=())
    assert not [tag for tag, _, _ in page(thumbnails=(bad,)).elements if tag == "img"]


def test_census_survives_json():
    text = to_json(census())
    assert json.loads(text)["labels"] == {"Edema": [40, 30, 5, 10]}
    assert from_json(text, Census, where="census.json") == census()


def test_unwritable_page_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"--page .* is not a folder; choose another place"):
        write_census(census(), tmp_path / "file" / "page.html")


def widths(svg):
    return [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', svg)]


def test_bar_lengths_are_proportional_to_counts():
    assert widths(bar_chart("t", [("a", 40), ("b", 10), ("c", 0)])) == [86.0, 21.5, 1.0]
    assert [height for height in re.findall(r'height="([\d.]+)"', histogram("t", [("0–9", 10), ("10–19", 5)], ""))] == [
        "124.0",
        "62.0",
    ]
    assert widths(stacked_bar((1, 1, 0, 2))) == [35.0, 35.0, 70.0]


def test_long_name_has_its_own_line():
    long = "JPEG 2000 Image Compression (Lossless Only)"
    drawn = bar_chart("t", [(long, 2), ("short", 1)])
    assert f">{long}<title>" in drawn
    assert re.findall(r'<rect x="130" y="(\d+)"', drawn) == ["18", "39"]
    assert re.findall(r'<text x="0" y="(\d+)"', drawn) == ["14", "50"]


def test_suppressed_share_is_not_drawn():
    assert dot_strip((0.5, None), 1).count("<circle") == 1
    assert 'cx="70.0"' in dot_strip((0.5, None), 1)
    assert "<path" in dot_strip((None, 0.5), 1).replace('<path class="rail"', "")


def test_small_percentages_are_not_rounded_to_zero():
    assert (format_percent(0.0001)[:4], format_percent(0)[:3], format_percent(1)[:5]) == ("<0.1", "0.0", "100.0")
