"""CLIP's tokenizer from its file of merges spells as OpenAI's code does."""

import gzip
import re
from itertools import pairwise

import pytest
from tests.fakes.published import MERGES, write_merges

from cleft.errors import CheckpointError
from cleft.models.importing.clip import load_merges
from cleft.models.tokenizer import load_tokenizer

WHOLE = 512 + len(MERGES) + 2
TEXTS = [
    "Chest X-ray: a chest   x ray\twith edema.",
    "edema",
    "EDEMA, it's 12 ribs (3rd)!?",
    "the patient's ribs; don't",
    "37°C – œdème",
    "ch che ches chest",
]


@pytest.fixture
def merges(tmp_path):
    return write_merges(tmp_path / "bpe_simple_vocab_16e6.txt.gz")


def letters():
    """A letter for each byte: its own where that is a letter, else one behind 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    order = {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(rest)}
    return order


def by_hand(text):
    """Words, then bytes, then the earliest merge of two neighbours until none is left."""
    ranks = {tuple(merge.split()): rank for rank, merge in enumerate(MERGES)}
    vocabulary = [*letters().values(), *(f"{letter}</w>" for letter in letters().values())]
    vocabulary += ["".join(pair) for pair in ranks]
    ids = []
    for word in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", " ".join(text.split()).lower()):
        parts = [letters()[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while pairs := [pair for pair in pairwise(parts) if pair in ranks]:
            first = min(pairs, key=ranks.__getitem__)
            at = next(i for i in range(len(parts) - 1) if (parts[i], parts[i + 1]) == first)
            parts[at : at + 2] = ["".join(first)]
        ids += [vocabulary.index(part) for part in parts]
    return ids


def test_texts_are_spelled_as_by_hand(merges):
    tokenizer = load_merges(merges, WHOLE)
    assert tokenizer(TEXTS, add_special_tokens=False)["input_ids"] == [by_hand(text) for text in TEXTS]
    assert by_hand("chest") == [512 + MERGES.index("che s"), 256 + ord("t") - 33]


def test_a_text_is_framed_by_the_two_last_tokens(merges):
    tokenizer = load_merges(merges, WHOLE)
    assert len(tokenizer) == WHOLE
    assert tokenizer("a")["input_ids"] == [WHOLE - 2, 256 + ord("a") - 33, WHOLE - 1]
    assert tokenizer.eos_token_id == WHOLE - 1


def test_it_is_the_same_when_saved_and_loaded(merges, tmp_path):
    load_merges(merges, WHOLE).save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again(TEXTS)["input_ids"] == load_merges(merges, WHOLE)(TEXTS)["input_ids"]
    assert len(again) == WHOLE


def test_the_vocabulary_of_the_text_tower_says_how_many_merges_count(merges):
    fewer = load_merges(merges, WHOLE - 8)
    assert fewer("ede", add_special_tokens=False)["input_ids"] == [513 - 1, 256 + ord("e") - 33]
    with pytest.raises(CheckpointError, match=r"has 13 merges and the text tower 528 tokens, of which 14 should be"):
        load_merges(merges, 528)
    with pytest.raises(CheckpointError, match="has 13 merges and the text tower 100 tokens"):
        load_merges(merges, 100)


@pytest.mark.parametrize(
    "content",
    [b"#version: 0.2\ne d\n", gzip.compress(b"\xff\xfe"), gzip.compress(b"e d\n" * 99)[:20]],
    ids=["plain", "no text", "cut off"],
)
def test_what_is_no_packed_file_of_merges_is_refused(tmp_path, content):
    (tmp_path / "merges.gz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is no file of merges packed by gzip .*; give CLIP's bpe_simple_vocab"):
        load_merges(tmp_path / "merges.gz", WHOLE)
