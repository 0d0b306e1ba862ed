"""Only words of many patients, and our own, are left to learn a vocabulary from."""

import pytest

from cleft.data.vocabulary import words_of_many
from cleft.models.tokenizer import learn_tokenizer


def told(*texts, patients="abcde"):
    return [(patient, text) for patient in patients for text in texts]


def test_a_word_needs_as_many_patients_and_not_as_many_texts():
    many = told("clear lungs", patients="abcde")
    few = told("Ada was seen", "Ada came back", "Ada left", "Ada rose", "Ada sat", patients="a")
    found = words_of_many([*many, *few], [], fewest=5)
    assert found.parts == ["clear lungs"]
    assert (found.words, found.left_out) == (10, 8)
    assert words_of_many([*many, *few], [], fewest=1).parts == list(dict.fromkeys(text for _, text in [*many, *few]))


def test_patients_of_one_text_and_of_several_texts_count_alike():
    said = [("a", "one Ada"), ("b", "one Ada"), ("c", "Ada two")]
    assert words_of_many(said, [], fewest=3).parts == [" Ada", "Ada "]


def test_words_that_are_ours_stay_whoever_holds_them():
    found = words_of_many([("a", "there is a hernia of Bo")], ["Hernia", "hernia", "there is"])
    assert found.parts == ["there is ", " hernia "]


def test_case_tells_a_name_from_a_word():
    found = words_of_many([*told("the long lung"), ("f", "the Long report")], [])
    assert found.parts == ["the long lung", "the "]


def test_where_nobody_shares_a_word_there_is_still_something_to_learn_from():
    assert words_of_many([("a", "Ada"), ("b", "Bo")], ["this is"]).parts == ["this is"]
    assert words_of_many([], ["this is"]).parts == ["this is"]


@pytest.mark.parametrize(
    "name", ["Quartermaine", "O'Quartermaine", "Éloïse", "Quarter-Maine", "МАРИЯ", "QM12345", "12345678", "'Squire"]
)
@pytest.mark.parametrize("around", ["seen by {}", "by Dr.{}'s hand", "{}", "({})", "by_{}_", "by\n{}\n", "1{}1"])
@pytest.mark.parametrize("causal", [True, False])
def test_no_token_of_a_learned_vocabulary_spells_a_name_of_few(name, around, causal):
    shared = told("seen by Dr. hand's", "1 of 2 (by)")
    said = [*shared, *((patient, around.format(name)) for patient in "abcd" for _ in range(9))]
    tokenizer, naive = (
        learn_tokenizer(texts, causal=causal) for texts in (words_of_many(said, []).parts, [text for _, text in said])
    )
    assert tokenizer.tokenize(" seen") == ["Ġseen"] or tokenizer.tokenize("seen") == ["seen"]
    assert max(map(len, naive.tokenize(name))) > 3
    assert max(map(len, tokenizer.tokenize(name))) <= 2
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize(name)) == name
