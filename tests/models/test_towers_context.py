"""The learned context starts at the opening, its last token next to the class name."""

import functools

import torch
from tests.fakes.texts import OPENING, tower

from cleft.config import ContextConfig
from cleft.models.dual_encoder import build_context

tower = functools.cache(tower)


def test_the_opening_comes_last_and_random_vectors_in_front():
    written = tower().embed_opening(OPENING)
    context = build_context(tower(), OPENING, ContextConfig(length=len(written) + 5), seed=0)
    assert context.shape == (len(written) + 5, 16)
    assert torch.equal(context[5:], written)
    assert context[:5].abs().max() <= written.std() * 3**0.5
    assert context[:5].std() > written.std() / 2


def test_of_a_longer_opening_the_last_tokens_stay():
    written = tower().embed_opening(OPENING)
    context = build_context(tower(), OPENING, ContextConfig(length=3), seed=0)
    assert torch.equal(context, written[-3:])


def test_a_random_start_holds_no_token_of_the_opening():
    context = build_context(tower(), OPENING, ContextConfig(length=12, init="random"), seed=0)
    assert torch.cdist(context, tower().embed_opening(OPENING)).min() > 0.1


def test_the_seed_alone_decides():
    config = ContextConfig(length=30)
    torch.manual_seed(1)
    first = build_context(tower(), OPENING, config, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first, build_context(tower(), OPENING, config, seed=3))
    assert not torch.equal(first, build_context(tower(), OPENING, config, seed=4))


def test_an_opening_as_context_reads_as_the_whole_sentence():
    context = tower().embed_opening(OPENING)
    behind = tower().encode_behind_context(["edema", "pleural effusion"], context)
    whole = tower().encode([f"{OPENING} edema", f"{OPENING} pleural effusion"])
    torch.testing.assert_close(behind, whole, atol=1e-5, rtol=1e-5)
