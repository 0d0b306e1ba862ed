"""Passes that are played back equal passes that are computed, whatever happens between forward and back.

Recording itself needs a card (tests/gpu); here a recording is a pass that computes anew each time it is played.
"""

import copy
import logging
import pickle

import pytest
import torch
from tests.fakes.texts import CAPTIONS, error, moving, tower

from cleft.models import cuda_graphs
from cleft.models.cuda_graphs import CudaGraphs, Pass, node_multiple


class Replayed:
    """Answers as a recording does: into and out of places of its own."""

    plays = 0

    def __init__(self, made, pool):
        self.made, self.weights = made, made.weights

    def replay_forward(self, inputs):
        Replayed.plays += 1
        for own, new in zip(self.made.inputs, inputs, strict=True):
            own.detach().copy_(new.detach())
        with torch.enable_grad():
            self.states = self.made.forward()
        return self.states.detach().clone()

    def replay_backward(self, gradient):
        return self.made.backward(self.states, gradient)


@pytest.fixture
def recorded(monkeypatch):
    """How many passes were played back, and not computed."""
    monkeypatch.setattr(cuda_graphs, "_CapturedPass", Replayed)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    Replayed.plays = 0
    return Replayed


def inputs(built):
    packed = built._tree.subtree(CAPTIONS)
    return packed.input_ids[None], packed.visible[None], packed.position_ids[None]


def gradients(states, leaves):
    found = torch.autograd.grad(states[..., 0].sum(), leaves, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


@pytest.mark.parametrize("adapt", ["lora", "ia3", "prefix", "full"])
def test_a_pass_played_back_has_the_values_and_gradients_of_one_computed(recorded, adapt):
    built = tower(adapt=adapt)
    recordings = CudaGraphs(built.lm)
    for step in range(3):
        played, computed = recordings(*inputs(built)), built.lm(*inputs(built))
        assert error(played, computed) < 1e-6
        assert error(gradients(played, moving(built)), gradients(computed, moving(built))) < 1e-6
        with torch.no_grad():  # an optimiser moves weights where they lie
            for weight in moving(built):
                weight.add_(0.01 * step)
    assert recorded.plays == 3


def test_vectors_in_the_place_of_tokens_get_gradients_though_no_weight_moves(recorded):
    built = tower(adapt="frozen", train_embeddings=False)
    tokens, visible, positions = inputs(built)
    vectors = built.lm.embed(tokens).detach().requires_grad_()
    played = gradients(CudaGraphs(built.lm)(vectors, visible, positions), [vectors])
    assert error(played, gradients(built.lm(vectors, visible, positions), [vectors])) < 1e-6
    assert recorded.plays == 1


def test_gradients_of_two_steps_add_up(recorded):
    built = tower()
    recordings = CudaGraphs(built.lm)
    for _ in range(2):
        recordings(*inputs(built))[..., 0].sum().backward()
    twice = torch.cat([weight.grad.flatten() for weight in moving(built) if weight.grad is not None])
    assert error(twice, 2 * gradients(built.lm(*inputs(built)), moving(built))) < 1e-6


def test_a_second_pass_that_comes_before_the_first_went_back_is_computed(recorded):
    built = tower()
    recordings = CudaGraphs(built.lm)
    first, second = recordings(*inputs(built)), recordings(*inputs(built))
    assert recorded.plays == 1
    expected = gradients(built.lm(*inputs(built)), moving(built))
    assert error(gradients(first, moving(built)), expected) < 1e-6
    assert error(gradients(second, moving(built)), expected) < 1e-6
    third = recordings(*inputs(built))
    del third  # nobody will ask for its gradients
    recordings(*inputs(built))
    assert recorded.plays == 3


def test_gradients_are_given_once(recorded):
    built = tower()
    states = CudaGraphs(built.lm)(*inputs(built))
    states.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="gives its gradients once; read the texts again"):
        states.sum().backward()


def test_what_changes_a_pass_makes_another_recording(recorded):
    built = tower()
    recordings = CudaGraphs(built.lm)
    for change in (lambda: None, built.train, lambda: built.lm.model.wpe.weight.data.add_(1), built.double):
        change()
        recordings(*inputs(built)).sum().backward()
    # Moved where it lies, a weight needs none; in another mode or other memory, it does.
    assert len(recordings._kept) == 3


def test_a_model_that_moves_as_a_whole_is_computed(recorded, monkeypatch):
    built = tower(adapt="full")
    monkeypatch.setattr(cuda_graphs, "_MAX_TRAINABLE", 100)
    CudaGraphs(built.lm)(*inputs(built))
    assert recorded.plays == 0


def test_nothing_is_recorded_where_no_gradient_can_be_asked_for(recorded):
    built = tower(adapt="frozen", train_embeddings=False)
    CudaGraphs(built.lm)(*inputs(built))
    assert recorded.plays == 0


def test_a_model_that_cannot_be_recorded_is_computed_and_says_so_once(recorded, monkeypatch, caplog):
    def refuse(made, pool):
        raise RuntimeError("operation not permitted\nwith more lines")

    monkeypatch.setattr(cuda_graphs, "_CapturedPass", refuse)
    built = tower()
    recordings = CudaGraphs(built.lm)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert error(recordings(*inputs(built)), built.lm(*inputs(built))) < 1e-6
    told = "this language model cannot be recorded (operation not permitted); it is computed step by step"
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [told]


def test_a_copy_of_a_tower_records_its_own_weights(recorded):
    built = tower()
    built._graphs(*inputs(built)).sum().backward()
    other = copy.deepcopy(built)
    assert other._graphs._model is other.lm
    assert not other._graphs._kept


def test_a_pickled_tower_holds_no_graph_and_its_recordings_are_of_its_own_weights(recorded):
    built = tower()
    built._graphs(*inputs(built)).sum().backward()
    assert built._graphs._kept
    other = pickle.loads(pickle.dumps(built))  # noqa: S301 our own
    assert other._graphs._model is other.lm
    assert not other._graphs._kept


def test_few_sizes_occur():
    assert {-(-nodes // node_multiple(nodes)) * node_multiple(nodes) for nodes in range(140, 204)} == {160, 192, 224}


def test_a_pass_hangs_nothing_on_the_weights_themselves():
    built = tower()
    weights = {name: weight for name, weight in built.lm.named_parameters() if weight.requires_grad}
    states = Pass(built.lm, weights, inputs(built)).forward()
    assert all(found is None for found in torch.autograd.grad(states.sum(), moving(built), allow_unused=True))
