import pytest

from cleft.data.prompts import CLASS_SETS, absent_prompt, class_prompt, class_prompts
from cleft.data.readers.chexpert import FINDINGS
from cleft.data.wordings import DEFAULT, PHRASES, WORDINGS, check_phrases, check_wording, find_wording
from cleft.errors import ConfigError


def test_the_default_says_no_finding_as_captions_do():
    assert DEFAULT.phrase("No Pneumonia") == "no finding"
    assert DEFAULT.phrase("Pneumonia") == "pneumonia"
    assert find_wording("default", "rsna") == DEFAULT


def test_the_released_words_for_rsna_are_the_authors_and_for_nobody_else():
    rsna, chexpert = find_wording("released", "rsna"), find_wording("released", "chexpert")
    assert [rsna.phrase(name) for name in CLASS_SETS["rsna-2"]] == ["no findings", "pneumothorax"]
    assert [chexpert.phrase(name) for name in FINDINGS] == [DEFAULT.phrase(name) for name in FINDINGS]


def test_the_released_prompts_of_mammograms_keep_their_punctuation():
    assert find_wording("released", "embed").phrase("BI-RADS 1") == "birads score 1: negative."
    assert DEFAULT.phrase("BI-RADS 1") == "birads score 1 negative"


def test_prompts_follow_the_wording():
    rsna = find_wording("released", "rsna")
    assert class_prompt("Pneumonia", "it shows", rsna) == "it shows pneumothorax"
    assert absent_prompt("Pneumonia", "it shows", rsna) == "it shows no pneumothorax"
    assert absent_prompt("No Pneumonia", "it shows") == "it shows finding"


def test_a_file_has_the_last_word_and_may_speak_of_one_dataset_alone(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("Edema: no  # text, as in every YAML file here\nrsna/Edema: wet   lungs\n")
    assert (find_wording(str(path), "rsna").name, find_wording(str(path), "nih").name) == ("mine", "mine")
    assert find_wording(str(path), "rsna").phrase("Edema") == "wet lungs"
    assert find_wording(str(path), "nih").phrase("Edema") == "no"
    assert find_wording(str(path), "nih").phrase("No Pneumonia") == PHRASES["No Pneumonia"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Edema:\n", r"mine\.yaml, line 1: 'Edema' is not followed by a phrase"),
        ("A: b\nEdema: [a, b]\n", r"mine\.yaml, line 2: 'Edema' is not followed by a phrase"),
        ("- a\n", "mine.yaml"),
    ],
)
def test_a_file_that_holds_no_phrases_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_wording(str(path), "rsna")


def test_an_unknown_wording_is_refused_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"'relased' is neither default nor released nor gloria nor a YAML file.*'released'"
    ):
        find_wording("relased", "rsna")
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        find_wording("/nowhere/absent.yaml", "rsna")


def test_words_that_tell_nothing_apart_are_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("Pneumonia: pneumothorax\n")
    wording = find_wording(str(path), "chexpert")
    check_wording(wording, ["Pneumonia", "Edema"])
    with pytest.raises(ConfigError, match="says 'pneumothorax' for Pneumonia and for Pneumothorax"):
        check_wording(wording, ["Pneumonia", "Pneumothorax"])
    with pytest.raises(ConfigError, match=r"no phrase for Pnuemonia, nearest to 'Pnuemonia' is 'Pneumonia'"):
        check_wording(wording, ["Pnuemonia"])


def test_glorias_sentences_stand_for_a_class_without_an_opening():
    wording = find_wording("gloria", "chexpert")
    check_wording(wording, CLASS_SETS["chexpert-5"])
    assert class_prompts("Edema", "it shows", wording)[:2] == (
        "pulmonary edema",
        "improvement in pulmonary interstitial edema",
    )
    assert class_prompts("Edema", "it shows") == ("it shows edema",)


def test_glorias_sentences_speak_of_five_classes_alone_and_are_no_phrases():
    wording = find_wording("gloria", "rsna")
    with pytest.raises(
        ConfigError, match=r"has sentences for Atelectasis, .* and none for No Pneumonia, Pneumonia; ask"
    ):
        check_wording(wording, CLASS_SETS["rsna-2"])
    with pytest.raises(ConfigError, match=r"a learned context needs a phrase for each class, and wording 'gloria' has"):
        check_phrases(wording, "a learned context")
    check_phrases(DEFAULT, "a learned context")


@pytest.mark.parametrize("wording", sorted(WORDINGS.keys() - {"gloria"}))
@pytest.mark.parametrize("classes", CLASS_SETS)
def test_every_set_of_classes_has_words_that_differ(wording, classes):
    dataset = "rsna" if classes == "rsna-2" else "chexpert"
    check_wording(find_wording(wording, dataset), CLASS_SETS[classes])
