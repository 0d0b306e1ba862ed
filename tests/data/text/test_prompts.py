import re
from itertools import product

import pytest

from cleft.data import DATASETS
from cleft.data.readers.chexpert import CAPTION_ORDER, FINDINGS
from cleft.data.readers.embed_captions import FINDINGS as MAMMOGRAM_FINDINGS
from cleft.data.readers.embed_captions import Facts, mammogram_caption
from cleft.data.text.captions import CHEST_PREFIX, write_caption
from cleft.data.text.prompts import (
    CLASS_NAMES,
    CLASS_SETS,
    DEFAULT_NAMES,
    DRAWN,
    GRAMMAR,
    PHRASES,
    absent_name,
    absent_prompt,
    check_class_names,
    class_prompt,
    class_prompts,
    draw_prompts,
    find_class_names,
    require_phrases,
    resolve_classes,
)
from cleft.errors import ConfigError


def test_prompts_of_present_and_absent_classes_differ_by_one_word():
    assert class_prompt("Pneumonia") == f"{CHEST_PREFIX} pneumonia"
    assert absent_prompt("Pneumonia") == f"{CHEST_PREFIX} no pneumonia"
    assert absent_name("No Finding") == "finding"


def test_a_class_prompt_is_the_caption_of_that_finding_only():
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
        (["Edma"], r"names 'Edma', which is not a column of the table, nearest to 'Edma' is 'Edema'"),
        (["chexpert5"], r"nearest to 'chexpert5' is 'chexpert-5'"),
        (["pneumonia-2"], r"names 'No Finding' of the set 'pneumonia-2', which is not a column of the table"),
        (["Edema", "edema"], r"names \['Edema'\] twice"),
        ([], r"names nothing"),
    ],
)
def test_classes_that_do_not_exist_are_refused(names, message):
    with pytest.raises(ConfigError, match=message):
        resolve_classes(names, ["Edema", "Pneumonia"])


def test_every_finding_can_be_selected_on_its_own():
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
def test_class_prompts_of_mammograms_use_the_phrases_of_captions(name, prompt):
    opening = DATASETS["embed"].prompt_prefix
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


def test_an_ambiguous_spelling_is_refused():
    findings = ["Pleural_Effusion", "Pleural Effusion"]
    assert resolve_classes(["pleural effusion"], findings) == ("Pleural Effusion",)
    with pytest.raises(ConfigError, match="is not a column of the table"):
        resolve_classes(["pleural-effusion"], findings)


def test_a_class_with_an_invisible_character_is_refused_with_its_code_point():
    with pytest.raises(ConfigError, match=r"a class that holds U\+200B \(zero width space\) at character 3; remove it"):
        resolve_classes(["ede\u200bma"], ["Edema"])


def test_the_default_phrase_for_no_finding_is_that_of_captions():
    assert DEFAULT_NAMES.phrase("No Pneumonia") == "no finding"
    assert DEFAULT_NAMES.phrase("Pneumonia") == "pneumonia"
    assert find_class_names("default", "rsna") == DEFAULT_NAMES


def test_the_released_class_names_for_rsna_apply_to_rsna_only():
    rsna, chexpert = find_class_names("released", "rsna"), find_class_names("released", "chexpert")
    assert [rsna.phrase(name) for name in CLASS_SETS["rsna-2"]] == ["no findings", "pneumothorax"]
    assert [chexpert.phrase(name) for name in FINDINGS] == [DEFAULT_NAMES.phrase(name) for name in FINDINGS]


def test_the_released_prompts_of_mammograms_keep_their_punctuation():
    assert find_class_names("released", "embed").phrase("BI-RADS 1") == "birads score 1: negative."
    assert DEFAULT_NAMES.phrase("BI-RADS 1") == "birads score 1 negative"


def test_prompts_use_the_class_names():
    rsna = find_class_names("released", "rsna")
    assert class_prompt("Pneumonia", "it shows", rsna) == "it shows pneumothorax"
    assert absent_prompt("Pneumonia", "it shows", rsna) == "it shows no pneumothorax"
    assert absent_prompt("No Pneumonia", "it shows") == "it shows finding"


def test_a_file_of_class_names_may_be_limited_to_a_dataset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("Edema: no  # text, as in every YAML file here\nrsna/Edema: wet   lungs\n")
    assert (find_class_names(str(path), "rsna").name, find_class_names(str(path), "nih").name) == ("mine", "mine")
    assert find_class_names(str(path), "rsna").phrase("Edema") == "wet lungs"
    assert find_class_names(str(path), "nih").phrase("Edema") == "no"
    assert find_class_names(str(path), "nih").phrase("No Pneumonia") == PHRASES["No Pneumonia"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Edema:\n", r"mine\.yaml, line 1: 'Edema' is not followed by a phrase"),
        ("A: b\nEdema: [a, b]\n", r"mine\.yaml, line 2: 'Edema' is not followed by a phrase"),
        ("- a\n", "mine.yaml"),
    ],
)
def test_a_file_without_phrases_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_class_names(str(path), "rsna")


def test_unknown_class_names_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"'relased' is not default, released, gloria or a YAML file.*'released'"):
        find_class_names("relased", "rsna")
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        find_class_names("/nowhere/absent.yaml", "rsna")


def test_equal_phrases_for_two_classes_are_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("Pneumonia: pneumothorax\n")
    wording = find_class_names(str(path), "chexpert")
    check_class_names(wording, ["Pneumonia", "Edema"])
    with pytest.raises(ConfigError, match="'pneumothorax' for both Pneumonia and Pneumothorax"):
        check_class_names(wording, ["Pneumonia", "Pneumothorax"])
    with pytest.raises(ConfigError, match=r"no phrase for Pnuemonia, nearest to 'Pnuemonia' is 'Pneumonia'"):
        check_class_names(wording, ["Pnuemonia"])


def test_glorias_sentences_are_used_without_a_prefix():
    wording = find_class_names("gloria", "chexpert")
    check_class_names(wording, CLASS_SETS["chexpert-5"])
    assert class_prompts("Edema", "it shows", wording)[:2] == (
        "pulmonary edema",
        "improvement in pulmonary interstitial edema",
    )
    assert class_prompts("Edema", "it shows") == ("it shows edema",)


def test_glorias_sentences_exist_for_five_classes_and_are_not_phrases():
    wording = find_class_names("gloria", "rsna")
    with pytest.raises(
        ConfigError, match=r"has sentences for Atelectasis, .* but not for No Pneumonia, Pneumonia; evaluate"
    ):
        check_class_names(wording, CLASS_SETS["rsna-2"])
    with pytest.raises(
        ConfigError, match=r"a learned context needs a phrase for each class, and class_names='gloria' has"
    ):
        require_phrases(wording, "a learned context")
    require_phrases(DEFAULT_NAMES, "a learned context")


@pytest.mark.parametrize("wording", sorted(CLASS_NAMES.keys() - {"gloria"}))
@pytest.mark.parametrize("classes", CLASS_SETS)
def test_every_class_set_has_distinct_phrases(wording, classes):
    dataset = "rsna" if classes == "rsna-2" else "chexpert"
    check_class_names(find_class_names(wording, dataset), CLASS_SETS[classes])


def test_each_class_has_as_many_sentences_as_in_the_released_code():
    sentences = {name: [" ".join(parts) for parts in product(*grammar)] for name, grammar in GRAMMAR.items()}
    assert {name: (len(each), len(set(each))) for name, each in sentences.items()} == {
        "Atelectasis": (210, 210),
        "Cardiomegaly": (15, 15),
        "Consolidation": (192, 192),
        "Edema": (18, 18),
        "Pleural Effusion": (54, 36),
    }
    assert sentences["Pleural Effusion"][0] == " left bilateral pleural effusion"
    # 108 in the release, which leaves a blank on each side where nothing is said of severity and place.
    assert max(len(sentence) for each in sentences.values() for sentence in each) == 106


def test_the_same_five_cleaned_sentences_are_drawn_every_time():
    drawn = draw_prompts()
    assert drawn == draw_prompts()
    assert drawn["Edema"] == (
        "pulmonary edema",
        "improvement in pulmonary interstitial edema",
        "decreased pulmonary edema",
        "moderate pulmonary edema",
        "mild pulmonary edema",
    )
    assert {name: len(set(each)) for name, each in drawn.items()} == dict.fromkeys(GRAMMAR, DRAWN)
    assert all(re.fullmatch(r"\w+( \w+)+", sentence) for each in drawn.values() for sentence in each)
    assert drawn["Cardiomegaly"][0] == "portable view of the chest demonstrates mild cardiomegaly"
