import re
from itertools import product

from cleft.data.gloria_prompts import DRAWN, GRAMMAR, draw_prompts


def test_each_class_has_as_many_sentences_as_the_release():
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


def test_the_same_five_of_each_are_drawn_always_and_cleaned():
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
