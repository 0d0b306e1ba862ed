import pytest

from cleft.data import DATASETS
from cleft.data.captions import OPENING, write_caption
from cleft.data.prompts import CLASS_SETS, absent_name, absent_prompt, class_prompt, resolve_classes
from cleft.data.readers.chexpert import CAPTION_ORDER, FINDINGS
from cleft.data.readers.embed_captions import FINDINGS as MAMMOGRAM_FINDINGS
from cleft.data.readers.embed_captions import Facts, mammogram_caption
from cleft.errors import ConfigError


def test_prompts_of_present_and_absent_classes_differ_by_one_word():
    assert class_prompt("Pneumonia") == f"{OPENING} pneumonia"
    assert absent_prompt("Pneumonia") == f"{OPENING} no pneumonia"
    assert absent_name("No Finding") == "finding"


def test_a_class_prompt_is_the_caption_of_that_finding_alone():
    assert all(class_prompt(name) == write_caption({name: 1.0}) for name in FINDINGS)


def test_sets_keep_the_authors_order():
    assert resolve_classes(["chexpert-5"], FINDINGS) == (
        "Atelectasis",
        "Edema",
        "Cardiomegaly",
        "Pleural Effusion",
        "Consolidation",
    )
    assert resolve_classes(["chexpert-14"], FINDINGS) == CAPTION_ORDER
    assert CLASS_SETS["pneumonia-2"] == ("No Finding", "Pneumonia")


def test_classes_are_spelled_as_in_the_table():
    assert resolve_classes(["EDEMA", "Pleural effusion"], ["edema", "pleural Effusion"]) == (
        "edema",
        "pleural Effusion",
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Edma"], r"names 'Edma', which the table has no column for, nearest to 'Edma' is 'Edema'"),
        (["chexpert5"], r"nearest to 'chexpert5' is 'chexpert-5'"),
        (["pneumonia-2"], r"names 'No Finding' of the set 'pneumonia-2', which the table has no column for"),
        (["Edema", "edema"], r"names \['Edema'\] twice"),
        ([], r"names nothing"),
    ],
)
def test_classes_that_do_not_exist_are_refused(names, message):
    with pytest.raises(ConfigError, match=message):
        resolve_classes(names, ["Edema", "Pneumonia"])


def test_every_finding_can_be_named_alone():
    findings = CLASS_SETS["chexpert-14"]
    assert all(resolve_classes([finding], findings) == (finding,) for finding in findings)


def test_a_prompt_begins_as_the_captions_of_its_dataset_do():
    assert class_prompt("Edema", "this film shows") == "this film shows edema"
    assert absent_prompt("Edema", "this film shows") == "this film shows no edema"


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("BI-RADS 1", "with birads score 1 negative"),
        ("BI-RADS 6", "with birads score 6 known biopsy proven malignancy"),
        ("Density A", "with breast tissue density 1 almost entirely fat"),
        ("Density D", "with breast tissue density 4 extremely dense"),
    ],
)
def test_a_class_of_mammograms_is_said_as_captions_say_it(name, prompt):
    opening = DATASETS["embed"].opening
    assert class_prompt(name, opening) == f"this is a breast 2d full field digital mammogram of a patient {prompt}"
    facts = Facts(birads=int(name[-1])) if name.startswith("BI-RADS") else Facts(density="ABCD".index(name[-1]) + 1)
    assert class_prompt(name, opening) == mammogram_caption(facts, "simple")


def test_the_class_sets_of_mammograms_are_their_findings():
    assert (*CLASS_SETS["birads-7"], *CLASS_SETS["density-4"]) == MAMMOGRAM_FINDINGS


@pytest.mark.parametrize(
    "typed",
    ["pleural effusion.", "PLEURAL_EFFUSION", "pleural\u00a0effusion", " Pleural  Effusion ", "Pleural-Effusion"],
)
def test_a_class_is_found_in_any_spelling(typed):
    assert resolve_classes([typed], ["Edema", "Pleural Effusion"]) == ("Pleural Effusion",)
    assert resolve_classes([typed], ["Edema", "Pleural_Effusion"]) == ("Pleural_Effusion",)


def test_a_spelling_that_fits_two_findings_names_neither():
    findings = ["Pleural_Effusion", "Pleural Effusion"]
    assert resolve_classes(["pleural effusion"], findings) == ("Pleural Effusion",)
    with pytest.raises(ConfigError, match="no column for"):
        resolve_classes(["pleural-effusion"], findings)


def test_a_class_with_an_invisible_character_is_refused_with_its_code_point():
    with pytest.raises(ConfigError, match=r"a class that holds U\+200B \(zero width space\) at character 3; remove it"):
        resolve_classes(["ede\u200bma"], ["Edema"])
