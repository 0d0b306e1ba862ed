"""Numbers and their nouns and verbs in generated sentences."""

import re

import numpy as np
import pytest
import torch
from tests.fakes import chexpert, embed, iu_xray, manifest, mimic, nih, rsna

from cleft.config import DataConfig
from cleft.data import read_dataset
from cleft.data.images.dicom_headers import ODDITIES, oddity_notes
from cleft.data.splits.subsets import Leakage
from cleft.errors import DataError
from cleft.evaluation import Bootstrap
from cleft.evaluation.predictions import multi_class_results, present_absent_results
from cleft.grammar import agree, count, share, verb
from cleft.types import LabelledImages

FEW = Bootstrap(resamples=10)


@pytest.mark.parametrize(
    ("number", "total", "sentence"),
    [
        (0, 5, "0 of 5 images are"),
        (1, 5, "1 of 5 images is"),
        (4, 5, "4 of 5 images are"),
        (5, 5, "all 5 images are"),
        (2, 2, "both images are"),
        (0, 1, "0 of 1 image are"),
        (1, 1, "the only image is"),
        (1_000, 2_000, "1,000 of 2,000 images are"),
    ],
)
def test_a_share_agrees_with_its_verb(number, total, sentence):
    assert f"{share(number, total, 'image')} {verb(number, 'is', 'are')}" == sentence


def test_nouns_agree_with_their_numbers():
    assert [count(n, "class", "classes") for n in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]


def images(labels):
    codes = torch.tensor(labels, dtype=torch.float32)
    names = [f"p{row}" for row in range(len(codes))]
    return LabelledImages(codes, ("Edema", "Mass"), names, names, [None] * len(codes))


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        ([[1, 0]], "Scored: 1 image with exactly one of the classes (0 of 1 image show none of them, 0 several)."),
        (
            [[1, 0], [0, 0]],
            "Scored: 1 image with exactly one of the classes (1 of 2 images shows none of them, 0 several).",
        ),
        (
            [[1, 0], [0, 1], [1, 1]],
            "Scored: 2 images with exactly one of the classes (0 of 3 images show none of them, 1 several).",
        ),
    ],
)
def test_scored_images_agree_in_number(labels, note):
    logits = np.ones((len(labels), 2), np.float32)
    assert multi_class_results(logits, images(labels), ("Edema", "Mass"), FEW).notes[0] == note


def test_blank_labels_agree_in_number():
    logits = np.ones((2, 1), np.float32)
    said = [
        present_absent_results(np.tile(logits, 2), images(labels), ("Edema",), FEW, blank="absent")
        .notes[0]
        .partition("; ")[2]
        for labels in ([[1, 0], [0, 0]], [[1, 0], [-1, 0]], [[-1, 0], [-1, 0]])
    ]
    assert said == [
        "0 of 2 labels are blank or uncertain and count as absent.",
        "1 of 2 labels is blank or uncertain and counts as absent.",
        "both labels are blank or uncertain and count as absent.",
    ]


def test_shared_patients_agree_in_number():
    leak = Leakage(part="test", into="train", patients=1, of_patients=1, images=1, same_study=0)
    assert leak.message() == "the only test patient is also in train, with 1 other image"


PLURAL = re.compile(
    r"(?<![\w.,])1 (?:"
    r"(?:of (?:these|\d+) )?(?:\w+ )?\w+s (?:are|have|do|were|name|show|hold|give|count|stand|state|belong)\b"
    r"|(?:(?:2D|index|distinct|text|compressed|or|magnified|damaged) )*"
    r"(?:images|patients|rows|files|findings|reports|studies|ids|exams|terms|times|boxes|cells|views|breasts)\b)"
)
"""What disagrees with the number 1; the noun of a share (`1 of 5 images is`) is that of its total."""


def disagreeing(sentences):
    """Returns the sentences in which a noun or verb behind the number 1 is plural."""
    return [
        sentence for sentence in sentences if PLURAL.search(re.sub(r"\b1 of \d+ (\w+)s (?:is|has)\b", "", sentence))
    ]


@pytest.mark.parametrize(
    "sentence",
    ["1 images are not on disk", "1 of 5 images are not on disk", "names 1 studies, none", "1 index terms state none"],
)
def test_the_check_finds_disagreement(sentence):
    assert disagreeing([sentence])


@pytest.mark.parametrize("sentence", ["11 images are", "1 of 5 images is not on disk", "1 image is", "v1.1 files are"])
def test_the_check_passes_agreement(sentence):
    assert not disagreeing([sentence])


def test_a_pair_of_forms_agrees():
    assert agree(1, "[lacks|lack] [its|their] mark") == "lacks its mark"
    assert [agree(n, "[is|are] there") for n in (0, 2)] == ["are there"] * 2


@pytest.mark.parametrize("number", [1, 2])
def test_every_oddity_of_a_header_agrees(number):
    notes = oddity_notes(dict.fromkeys(ODDITIES, number))
    assert len(notes) == len(ODDITIES)
    assert not [note for note in notes if "[" in note or "|" in note]
    verbs = [note.split()[2] for note in notes]
    assert all(word.endswith("s") == (number == 1) for word in verbs), verbs
    assert not disagreeing(notes)


def one_of_each_chexpert(root):
    rows = [row for row in chexpert.odd_rows() if row["AP/PA"] != "LL"]
    rows.append(chexpert.chexpert_row("patient00009/study1/view1_frontal.jpg", age="200"))
    chexpert.write_fake_chexpert(root, rows[1:], missing=["patient00009/study1/view1_frontal.jpg"])
    others = {row["Path"].partition("train/")[2]: {"Edema": "1.0"} for row in [*rows[:3], *rows[4:]]}
    chexpert.write_labels_of(root / chexpert.SMALL, "train_cheXbert.csv", [*rows[:3], *rows[4:]], others)
    return {"label_source": "chexbert"}


def one_of_each_embed(root):
    files = [
        embed.file_row("a", BreastImplantPresent="YES", spot_mag="1.0"),
        embed.file_row("b", side="R"),
        embed.file_row("c", exam="7"),
        embed.file_row("d", patient="10000002"),
    ]
    findings = [
        embed.finding_row("A", "L", "3"),
        embed.finding_row("M", "L", "9"),
        embed.finding_row("N", "Q", "2", exam="7", age_at_study="150", GENDER_DESC="Other"),
        embed.finding_row("Z", "L", "1", exam="7"),
    ]
    embed.write_fake_embed(root, files, findings, missing=["b"])
    return {}


def one_of_each_iu_xray(root):
    reports = [report._replace(views=("Frontal",)) for report in iu_xray.odd_reports()[:4]]
    iu_xray.write_fake_openi(root, [*reports, iu_xray.odd_reports()[4]], missing=["2_IM-0002-1001"])
    return {}


def one_of_each_manifest(root):
    header = "image,patient,view,sex,age,Edema,split,report"
    lines = ["images/a.png,7.0,PA,X,61,1,train,Clear lungs XXXX.", "images/b.png,8,PA,F,200,0,,"]
    manifest.write_fake_manifest(root, [*lines, "images/c.png,9,PA,F,50,0,val,"], header=header)
    (root / "images/a.png").rename(root / "images/A.png")
    (root / "images/b.png").unlink()
    return {}


def one_of_each_mimic(root):
    studies = mimic.odd_studies()
    mimic.write_fake_mimic(root, studies, missing=[mimic.image_id(studies[0], 0)])
    return {}


def one_of_each_nih(root):
    rows = [*nih.odd_rows(), nih.nih_row(20, 0, age="400")]
    images = [row.partition(",")[0] for row in rows]
    nih.write_fake_nih(root, rows, lists=([*images[:3], "00009999_000.png"], images[4:]), missing=images[:1])
    return {}


def one_of_each_rsna(root):
    rsna.write_fake_rsna(root, rsna.odd_rows()[2:], headers={2: {"PatientAge": "151"}}, missing=[4])
    rsna.write_matches(root / "matches.csv", {2: (13, 7.5), 3: (7, 0.9)})
    return {"patient_mapping": root / "matches.csv"}


DATASETS = {
    "chexpert": one_of_each_chexpert,
    "embed": one_of_each_embed,
    "iu-xray": one_of_each_iu_xray,
    "manifest": one_of_each_manifest,
    "mimic": one_of_each_mimic,
    "nih": one_of_each_nih,
    "rsna": one_of_each_rsna,
}


@pytest.mark.parametrize("dataset", DATASETS)
def test_notes_of_a_reader_agree_where_one_image_is_affected(tmp_path, dataset):
    settings = DATASETS[dataset](tmp_path / "data")
    config = DataConfig(dataset=dataset, root=tmp_path / "data", cache=tmp_path / "cache", max_invalid=0.9, **settings)
    notes = read_dataset(config).notes
    assert [note for note in notes if re.search(r"\b1 \w+", note)]
    assert not disagreeing(notes)
    with pytest.raises(DataError, match=r"1 of \d images is not (on disk|in )") as caught:
        read_dataset(DataConfig(dataset=dataset, root=tmp_path / "data", cache=tmp_path / "cache", **settings))
    assert not disagreeing([str(caught.value)])
