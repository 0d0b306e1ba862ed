"""Replayed passes equal eager passes, whatever happens between forward and backward.

Capturing needs a GPU (tests/gpu); here a captured pass computes eagerly at each replay.
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
    """Behaves like a captured pass: copies inputs into its own buffers."""

    replays = 0

    def __init__(self, made, pool):
        self.made, self.weights = made, made.weights

    def replay_forward(self, inputs):
        Replayed.replays += 1
        for own, new in zip(self.made.inputs, inputs, strict=True):
            own.detach().copy_(new.detach())
        with torch.enable_grad():
            self.states = self.made.forward()
        return self.states.detach().clone()

    def replay_backward(self, gradient):
        return self.made.backward(self.states, gradient)


@pytest.fixture
def captured(monkeypatch):
    """Counts the passes that were replayed, not run eagerly."""
    monkeypatch.setattr(cuda_graphs, "_CapturedPass", Replayed)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    Replayed.replays = 0
    return Replayed


def inputs(built):
    packed = built._tree.subtree(CAPTIONS)
    return packed.input_ids[None], packed.visible[None], packed.position_ids[None]


def gradients(states, leaves):
    found = torch.autograd.grad(states[..., 0].sum(), leaves, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


@pytest.mark.parametrize("adapt", ["lora", "ia3", "prefix", "full"])
def test_a_replayed_pass_has_the_values_and_gradients_of_an_eager_one(captured, adapt):
    built = tower(adapt=adapt)
    graphs = CudaGraphs(built.lm)
    for step in range(3):
        replayed, computed = graphs(*inputs(built)), built.lm(*inputs(built))
        assert error(replayed, computed) < 1e-6
        assert error(gradients(replayed, moving(built)), gradients(computed, moving(built))) < 1e-6
        with torch.no_grad():  # an optimiser updates weights in place
            for weight in moving(built):
                weight.add_(0.01 * step)
    assert captured.replays == 3


def test_embeddings_as_input_get_gradients_of_a_frozen_model(captured):
    built = tower(adapt="frozen", train_embeddings=False)
    tokens, visible, positions = inputs(built)
    vectors = built.lm.embed(tokens).detach().requires_grad_()
    replayed = gradients(CudaGraphs(built.lm)(vectors, visible, positions), [vectors])
    assert error(replayed, gradients(built.lm(vectors, visible, positions), [vectors])) < 1e-6
    assert captured.replays == 1


def test_gradients_of_two_steps_add_up(captured):
    built = tower()
    graphs = CudaGraphs(built.lm)
    for _ in range(2):
        graphs(*inputs(built))[..., 0].sum().backward()
    twice = torch.cat([weight.grad.flatten() for weight in moving(built) if weight.grad is not None])
    assert error(twice, 2 * gradients(built.lm(*inputs(built)), moving(built))) < 1e-6


def test_a_second_forward_before_the_first_backward_runs_eagerly(captured):
    built = tower()
    graphs = CudaGraphs(built.lm)
    first, second = graphs(*inputs(built)), graphs(*inputs(built))
    assert captured.replays == 1
    expected = gradients(built.lm(*inputs(built)), moving(built))
    assert error(gradients(first, moving(built)), expected) < 1e-6
    assert error(gradients(second, moving(built)), expected) < 1e-6
    third = graphs(*inputs(built))
    del third  # no backward pass will follow
    graphs(*inputs(built))
    assert captured.replays == 3


def test_a_second_backward_is_refused(captured):
    built = tower()
    states = CudaGraphs(built.lm)(*inputs(built))
    states.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="gives gradients once; encode the texts again"):
        states.sum().backward()


def test_another_mode_or_other_memory_is_captured_again(captured):
    built = tower()
    graphs = CudaGraphs(built.lm)
    for change in (lambda: None, built.train, lambda: built.lm.model.wpe.weight.data.add_(1), built.double):
        change()
        graphs(*inputs(built)).sum().backward()
    # Updated in place, a weight needs no new graph; in another mode or other memory, it does.
    assert len(graphs._captured) == 3


def test_a_fully_trainable_model_runs_eagerly(captured, monkeypatch):
    built = tower(adapt="full")
    monkeypatch.setattr(cuda_graphs, "_MAX_TRAINABLE", 100)
    CudaGraphs(built.lm)(*inputs(built))
    assert captured.replays == 0


def test_nothing_is_captured_without_trainable_weights(captured):
    built = tower(adapt="frozen", train_embeddings=False)
    CudaGraphs(built.lm)(*inputs(built))
    assert captured.replays == 0


def test_a_model_that_cannot_be_captured_runs_eagerly_with_one_warning(captured, monkeypatch, caplog):
    def refuse(made, pool):
        raise RuntimeError("operation not permitted\nwith more lines")

    monkeypatch.setattr(cuda_graphs, "_CapturedPass", refuse)
    built = tower()
    graphs = CudaGraphs(built.lm)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert error(graphs(*inputs(built)), built.lm(*inputs(built))) < 1e-6
    warning = "no CUDA graph can be captured of this language model (operation not permitted); it runs eagerly"
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [warning]


def test_a_copied_tower_captures_its_own_weights(captured):
    built = tower()
    built._graphs(*inputs(built)).sum().backward()
    other = copy.deepcopy(built)
    assert other._graphs._model is other.lm
    assert not other._graphs._captured


def test_a_pickled_tower_holds_no_graph_and_captures_its_own_weights(captured):
    built = tower()
    built._graphs(*inputs(built)).sum().backward()
    assert built._graphs._captured
    other = pickle.loads(pickle.dumps(built))  # noqa: S301 our own
    assert other._graphs._model is other.lm
    assert not other._graphs._captured


def test_few_graph_sizes_occur():
    assert {-(-nodes // node_multiple(nodes)) * node_multiple(nodes) for nodes in range(140, 204)} == {160, 192, 224}


def test_a_pass_attaches_nothing_to_the_parameters():
    built = tower()
    weights = {name: weight for name, weight in built.lm.named_parameters() if weight.requires_grad}
    states = Pass(built.lm, weights, inputs(built)).forward()
    assert all(found is None for found in torch.autograd.grad(states.sum(), moving(built), allow_unused=True))
