"""A prefix tree holds every distinct prefix once; each node attends to its ancestors."""

import csv
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cleft.models.prefix_tree import PrefixTree, pack_texts, pad_nodes, prepend_chain

A, B, C, END = 1, 2, 3, 9
texts_of_tokens = st.lists(
    st.lists(st.integers(1, 4), max_size=7).map(lambda ids: [*ids, END]), min_size=1, max_size=12
)


def spelled(texts):
    return [" ".join(map(str, text)) for text in texts]


def spelled_tree(**options):
    return PrefixTree(lambda new: [[int(token) for token in text.split()] for text in new], **options)


def ways_down(packed):
    return [packed.input_ids[packed.visible[last]].tolist() for last in packed.last]


def test_a_tree_by_hand():
    packed = pack_texts([[A, B], [A, C], [A, B]])
    assert packed.input_ids.tolist() == [A, B, C]
    assert packed.position_ids.tolist() == [0, 1, 1]
    assert packed.visible.tolist() == [[True, False, False], [True, True, False], [True, False, True]]
    assert packed.last.tolist() == [1, 2, 1]


def test_a_self_mtokenised_end_token_attends_to_its_text_only():
    packed = pack_texts([[A, END], [A, B, END]], mask_eos_self=True)
    assert ways_down(packed) == [[A], [A, B]]


def test_a_self_mtokenised_end_token_without_text_attends_to_itself():
    assert pack_texts([[END]], mask_eos_self=True).visible.tolist() == [[True]]


def test_a_text_without_tokens_is_refused():
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        pack_texts([[A], []])


@given(texts_of_tokens)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_nodes_are_the_set_of_prefixes_and_paths_are_the_texts(texts):
    packed = pack_texts(texts)
    assert len(packed.input_ids) == len({tuple(text[:end]) for text in texts for end in range(1, len(text) + 1)})
    assert ways_down(packed) == texts
    assert (packed.position_ids == packed.visible.sum(dim=1) - 1).all()
    assert not packed.visible.triu(1).any(), "a parent stands before its children"


@given(texts_of_tokens, texts_of_tokens)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_cached_texts_do_not_change_a_batch(before, texts):
    tree = spelled_tree()
    tree.rows(spelled(before))
    packed = tree.subtree(spelled(texts))
    assert ways_down(packed) == texts
    assert len(packed.input_ids) == len(pack_texts(texts).input_ids)


@given(texts_of_tokens, st.integers(8, 20))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_subtrees_contain_every_text_once_and_stay_below_the_limit(texts, limit):
    pieces = list(spelled_tree().subtrees(spelled(texts), limit))
    found = {int(place): way for places, packed in pieces for place, way in zip(places, ways_down(packed), strict=True)}
    assert found == dict(enumerate(texts))
    assert sum(len(places) for places, _ in pieces) == len(texts)
    assert all(len(packed.input_ids) <= limit for _, packed in pieces)


def test_a_cached_text_is_not_tokenised_again():
    tokenised = []
    tree = PrefixTree(lambda new: [tokenised.append(text) or [len(text)] for text in new])
    tree.subtree(["edema", "edema", "no finding"])
    tree.subtree(["no finding", "edema"])
    assert tokenised == ["edema", "no finding"]


def test_a_full_tree_is_cleared_and_stays_correct():
    tree = spelled_tree(capacity=5)
    for start in range(20):
        texts = [[start, 7, END], [start, 8, END]]
        assert ways_down(tree.subtree(spelled(texts))) == texts
    assert tree.nodes <= 10


def test_subtrees_are_filled_up_to_the_limit():
    # Four texts of three nodes without a shared prefix: two fit into six nodes, one into five.
    tree = spelled_tree()
    texts = spelled([[A, B, END], [B, A, END], [C, A, END], [END, A, C]])
    sizes = {limit: [len(piece.input_ids) for _, piece in tree.subtrees(texts, limit)] for limit in (2, 5, 6, 11, 12)}
    assert sizes == {2: [3] * 4, 5: [3] * 4, 6: [6, 6], 11: [9, 3], 12: [12]}


def test_padded_tokens_and_lengths():
    tree = spelled_tree()
    ids, lengths = tree.tokens(tree.rows(spelled([[A, B, END], [C, END]])), 0)
    assert ids.tolist() == [[A, B, END], [C, END, 0]]
    assert lengths.tolist() == [3, 2]


def test_every_text_attends_to_a_prepended_chain():
    packed = prepend_chain(pack_texts([[A, END], [B, END]], mask_eos_self=True), 2)
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 2, 3]
    assert packed.visible[:2, :2].tolist() == [[True, False], [True, True]]
    assert packed.visible[packed.last].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 1, 0]]


def test_padding_nodes_attend_only_to_themselves():
    packed = pad_nodes(pack_texts([[A, B, END]]), 8, extra_keys=2)
    assert len(packed.input_ids) == 6
    assert packed.visible[3:].tolist() == torch.eye(6, dtype=torch.bool)[3:].tolist()
    assert not packed.visible[:3, 3:].any()
    assert pad_nodes(packed, 6) is packed


def test_all_real_captions_share_4238_prefixes(shared):
    with (shared / "data/chexpert-label-sets/label_sets.csv").open() as file:
        rows = list(csv.DictReader(file))
    order = ["Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation"]
    order += ["Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"]
    order += ["Support Devices", "No Finding"]
    opening = "this is a chest x ray of a patient with".split()
    texts = [[*opening, *" ".join(n for n in order if row[n] == "1").lower().split(), "<end>"] for row in rows]
    number = {word: place for place, word in enumerate(sorted({word for text in texts for word in text}))}
    tree = PrefixTree(lambda new: [[number[word] for word in text.split()] for text in new], mask_eos_self=True)
    captions = [" ".join(text) for text in texts]
    assert len(tree.subtree(captions).input_ids) == 4238
    weights = np.array([int(row["images"]) for row in rows])
    draw = random.Random(0)
    sizes = [len(tree.subtree(draw.choices(captions, weights.tolist(), k=72)).input_ids) for _ in range(200)]
    assert np.mean(sizes) == pytest.approx(168, rel=0.02)
