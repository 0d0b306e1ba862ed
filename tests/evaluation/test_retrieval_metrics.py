"""Search and retrieval metrics by hand, and against loops."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cleft.evaluation import retrieval_metrics
from cleft.evaluation.metrics import value_of
from cleft.evaluation.retrieval_metrics import (
    Items,
    SearchResult,
    chance,
    mean_rank,
    median_rank,
    precision,
    recall,
    search,
    sets_share_finding,
)


def marked(embeds, key, findings=None, owner=None):
    numbers = np.asarray(key, dtype=np.int64)
    return Items(
        torch.tensor(embeds, dtype=torch.float32),
        numbers,
        numbers if findings is None else np.asarray(findings, dtype=np.int64),
        -1 - np.arange(len(numbers)) if owner is None else np.asarray(owner, dtype=np.int64),
    )


def on_line(*places):
    """Points whose similarity to the query (1, 0) is the number given."""
    return [[place, 0.0] for place in places]


QUERY = marked([[1.0, 0.0]], [7], [0], [-100])
NOTHING = np.eye(9, dtype=bool)


def test_rank_is_that_of_the_first_of_several_matches():
    found = search(QUERY, marked(on_line(0.9, 0.8, 0.7, 0.6), [1, 7, 7, 2], [1, 0, 0, 2]), NOTHING)
    assert found.first_match.tolist() == [2]
    assert (found.matches.tolist(), found.candidates.tolist()) == ([2], [4])
    assert found.top.tolist() == [[0, 1, 2, 3]]
    assert found.relevant.tolist() == [[False, True, True, False]]
    assert value_of(recall(found, 1), 1) == 0
    assert value_of(recall(found, 5), 1) == 1
    assert value_of(precision(found, 1), 1) == 0


def test_precision_counts_candidates_that_share_a_finding():
    found = search(
        QUERY, marked(on_line(0.9, 0.8, 0.7, 0.6, 0.5, 0.4), [7, 1, 1, 1, 1, 1], [0, 1, 0, 2, 3, 0]), NOTHING
    )
    assert value_of(precision(found, 5), 1) == pytest.approx(2 / 5)
    assert found.relevant_total.tolist() == [3]


def test_ties_rank_candidates_without_match_first():
    found = search(QUERY, marked(on_line(0.5, 0.5, 0.5, 0.5), [7, 1, 7, 2], [0, 1, 0, 2]), NOTHING)
    assert found.first_match.tolist() == [3]
    assert sorted(found.top[0, :2].tolist()) == [1, 3]


def test_images_of_the_same_patient_are_no_candidates():
    images = marked(on_line(1.0, 0.99, 0.5), [3, 3, 3], owner=[0, 0, 1])
    found = search(images, images, np.ones((4, 4), dtype=bool))
    assert found.candidates.tolist() == [1, 1, 2]
    assert found.first_match.tolist() == [1, 1, 1]
    assert found.top[0].tolist() == [2, -1, -1]
    assert found.relevant[0].tolist() == [True, False, False]


def test_a_query_without_match_has_no_rank():
    found = search(QUERY, marked(on_line(0.9, 0.8), [1, 2], [1, 2]), NOTHING)
    assert (found.first_match.tolist(), found.matches.tolist()) == ([0], [0])


def test_sets_share_a_finding_or_are_both_empty():
    sets = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1], [0, 0, 0]], dtype=bool)
    assert sets_share_finding(sets).astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def test_block_size_changes_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    embeds = F.normalize(torch.randn(57, 4, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    images = marked(embeds, generator.integers(5, size=57), owner=generator.integers(20, size=57))
    shared = sets_share_finding(generator.random((5, 3)) < 0.5)
    at_once = search(images, images, shared)
    monkeypatch.setattr(retrieval_metrics, "_CELLS", 57 * 4)
    for one, other in zip(at_once, search(images, images, shared), strict=True):
        assert np.array_equal(one, other)


def test_search_equals_a_loop():
    generator = np.random.default_rng(1)
    embeds = F.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    key, owner = generator.integers(6, size=40), generator.integers(15, size=40)
    images = marked(embeds.numpy(), key, owner=owner)
    shared = sets_share_finding(generator.random((6, 3)) < 0.4)
    found = search(images, images, shared)
    near = (embeds @ embeds.T).numpy()
    for query in range(40):
        others = [place for place in np.argsort(-near[query], kind="stable") if owner[place] != owner[query]]
        ranks = [rank for rank, place in enumerate(others, start=1) if key[place] == key[query]]
        assert found.first_match[query] == (ranks[0] if ranks else 0)
        assert found.top[query].tolist() == others[:10]
        assert found.relevant_total[query] == sum(shared[key[query], key[place]] for place in others)


def test_median_rank_is_reached_by_half_of_the_queries():
    ranks = np.array([1, 2, 7, 30])
    found = SearchResult(ranks, np.zeros((4, 1)), np.zeros((4, 1), bool), ranks, ranks, ranks)
    assert value_of(median_rank(found), 4) == 2
    assert value_of(mean_rank(found), 4) == 10
    assert median_rank(found)(np.array([[1.0, 1.0, 3.0, 1.0]]))[0] == 7


def test_a_caption_is_weighted_by_the_share_of_its_images_in_a_resample():
    found = SearchResult(
        *[np.array([1, 20])] + [np.zeros((2, 1))] + [np.zeros((2, 1), bool)] + [np.array([30, 30])] * 3
    )
    statistic = recall(found, 1, np.array([0, 0, 1]))
    assert value_of(statistic, 3) == 0.5
    assert statistic(np.array([[2.0, 2.0, 1.0]]))[0] == pytest.approx(2 / 3)
    assert statistic(np.array([[0.0, 0.0, 2.0]]))[0] == 0


@pytest.mark.parametrize(("candidates", "right"), [(6, 1), (6, 3), (5, 5)])
def test_chance_level_is_the_mean_over_all_orders(candidates, right):
    found = SearchResult(*(np.array([value]) for value in (1, 0, 0, candidates, right, 2)))
    firsts = [
        min(order.index(each) for each in range(right)) + 1 for order in itertools.permutations(range(candidates))
    ]
    expected = chance(found)
    for k in (1, 5):
        assert expected[f"recall@{k}"] == pytest.approx(np.mean([first <= k for first in firsts]))
    assert expected["mean-rank"] == pytest.approx(np.mean(firsts))
    assert np.mean([first <= expected["median-rank"] for first in firsts]) >= 0.5
    assert np.mean([first <= expected["median-rank"] - 1 for first in firsts]) < 0.5
    assert expected["precision@10"] == pytest.approx(2 / candidates)


def test_random_embeddings_reach_about_chance_level():
    generator = np.random.default_rng(3)
    embeds = F.normalize(torch.randn(1_500, 64, generator=torch.Generator().manual_seed(3)), dim=1).numpy()
    images = marked(embeds, generator.integers(30, size=1_500), owner=generator.integers(700, size=1_500))
    found = search(images, images, np.eye(30, dtype=bool))
    expected = chance(found)
    assert value_of(recall(found, 10), 1_500) == pytest.approx(expected["recall@10"], abs=0.05)
    assert value_of(precision(found, 10), 1_500) == pytest.approx(expected["precision@10"], abs=0.01)
    assert value_of(mean_rank(found), 1_500) == pytest.approx(expected["mean-rank"], rel=0.1)
