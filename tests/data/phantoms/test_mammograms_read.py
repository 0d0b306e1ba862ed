"""The reader of EMBED on drawn mammograms: both pairs of tables say the same, and so does the long way."""

import csv
from collections import Counter

import pytest

from cleft.config import DataConfig
from cleft.data.phantoms.mammogram_patients import ODDITIES
from cleft.data.phantoms.mammograms import write_mammograms
from cleft.data.readers.embed import read_embed
from cleft.data.readers.embed_captions import BIRADS_CLASSES, DENSITY_CLASSES

SCORES = dict(zip("ANBPSMK", range(7), strict=True))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    patients = len(ODDITIES) + 12
    return write_mammograms(tmp_path_factory.mktemp("embed") / "drawn", patients=patients, size=64, progress=False)


def table(root, name):
    with (root / "tables" / name).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def scan(root, **settings):
    return read_embed(DataConfig(dataset="embed", root=root, **settings))


def long_way(root, rule):
    """Image to BI-RADS and density, one image and one finding at a time."""
    findings = table(root, "EMBED_OpenData_clinical.csv")
    men = {row["empi_anon"] for row in findings if row["tissueden"].startswith("5")}
    said = {}
    for image in table(root, "EMBED_OpenData_metadata.csv"):
        keys = ("empi_anon", "acc_anon")
        exam = [row for row in findings if all(row[key] == image[key] for key in keys)]
        if image["FinalImageType"] != "2D" or image["empi_anon"] in men or not exam:
            continue
        side = image["ImageLateralityFinal"]
        letters = [row["asses"] for row in exam if row["side"] in (side, "B", "")]
        desc = exam[0]["desc"] or image["StudyDescription"]
        if not letters and "bilat" not in desc.lower():
            continue
        letters = [letter for letter in letters if letter in SCORES] if letters else ["N"]
        densities = Counter(int(float(row["tissueden"])) for row in exam if row["tissueden"])
        density = densities.most_common(1)[0][0] if densities else None
        if letters or density:
            path = image["anon_dicom_path"].partition("anon_dicom/")[2]
            said[path] = (choose(letters, desc, rule) if letters else None, density)
    return said


def choose(letters, desc, rule):
    scores = [SCORES[letter] for letter in letters]
    if rule == "first":
        return scores[0]
    if rule == "highest":
        return 0 if max(scores) <= 2 and 0 in scores else max(scores)
    order = [6, 5, 4, 0, 3, 2, 1] if "screen" in desc.lower() else [6, 5, 4, 3, 0, 2, 1]
    return min(scores, key=order.index)


def said_of(record):
    birads = [score for score, name in enumerate(BIRADS_CLASSES) if record.labels.get(name) == 1]
    density = [code for code, name in enumerate(DENSITY_CLASSES, start=1) if record.labels.get(name) == 1]
    return birads[0] if birads else None, density[0] if density else None


@pytest.mark.parametrize("rule", ["severity", "first", "highest"])
def test_reading_equals_a_direct_join_of_the_tables(root, rule):
    found = scan(root, breast_label=rule)
    assert found.faults == []
    assert {record.id: said_of(record) for record in found.reading.records} == long_way(root, rule)


def test_the_rules_differ_where_a_breast_has_several_findings(root):
    said = [long_way(root, rule) for rule in ("severity", "first")]
    assert said[0] != said[1]


def test_the_reduced_tables_say_the_same(root, tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "images").symlink_to(root / "images")
    for name in ("metadata_reduced", "clinical_reduced"):
        (tmp_path / "tables" / f"EMBED_OpenData_{name}.csv").symlink_to(root / "tables" / f"EMBED_OpenData_{name}.csv")
    full, reduced = (scan(folder, caption="natural").reading for folder in (root, tmp_path))
    assert "EMBED_OpenData_clinical_reduced.csv names the column RACE_DESC ETHNICITY_DESC" in reduced.notes
    assert [(r.id, r.labels, r.caption, r.age) for r in full.records] == [
        (r.id, r.labels, r.caption, r.age) for r in reduced.records
    ]
    assert {record.scanner for record in reduced.records} == {None}


def test_every_oddity_is_counted(root):
    reading = scan(root).reading
    assert {"type-cview", "male"} <= set(reading.rejected)
    notes = "\n".join(reading.notes)
    for part in ("implied-negative", "several findings", "compressed or magnified", "XCCL", "show an implant"):
        assert part in notes
