"""Forward and backward pass of a language model as CUDA graphs, captured once per number of nodes and replayed.

A prefix tree of a few hundred nodes is so little work that a fast GPU waits for Python to launch the next kernel. A
graph launches all kernels at once: the same kernels on the same weights, so values do not change. If weights move to
other memory the graph is captured again; passes that cannot be captured run eagerly.

Shapes: `P` nodes of a packed tree, `D` width.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LOG = logging.getLogger(__name__)
MAX_GRAPH_NODES = 1024
"""Larger trees keep the GPU busy without a graph."""
_MAX_GRAPHS = 16
_MAX_TRAINABLE = 200_000_000
"""Parameters. Gradients are copied out of the graph; for a fully trainable model that costs more than it saves."""
_WARM_UP = 3


def node_multiple(nodes: int) -> int:
    """Returns the multiple to which a number of nodes is rounded up, so that few graphs are needed.

    Example:
        >>> [node_multiple(nodes) for nodes in (20, 180, 300, 900)]
        [32, 32, 64, 128]
    """
    return 32 if nodes <= 256 else 64 if nodes <= 512 else 128


class CudaGraphs:
    """Replays passes of a model from CUDA graphs, and runs them eagerly where that is not possible.

    All graphs share one memory pool, so only one forward pass may wait for its backward pass; a second one in between
    runs eagerly.

    Args:
        model: Called with tokens or embeddings, mask and positions; returns hidden states.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._captured: dict[Hashable, _CapturedPass] = {}
        self._attempts = 0
        self._pending: Callable[[], object | None] | None = None
        self._pool: Any = None

    def __reduce__(self) -> tuple[type[CudaGraphs], tuple[nn.Module]]:
        """Copies and pickles without graphs: a copied model has other weights and captures its own."""
        return CudaGraphs, (self._model,)

    def __call__(self, tokens: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Returns the hidden states of one tree on a GPU, `[1, P, D]`.

        Args:
            tokens: Token ids `[1, P]`, or embeddings `[1, P, D]`.
            visible: `[1, P, P]` bool.
            positions: `[1, P]`.
        """
        inputs = (tokens, visible, positions)
        captured = self._find(inputs) if self._pending is None or self._pending() is None else None
        if captured is None:
            return self._model(*inputs)
        pending = _PendingBackward()
        self._pending = weakref.ref(pending)
        return _Replay.apply(captured, pending, *inputs, *captured.weights)

    def _find(self, inputs: Sequence[Tensor]) -> _CapturedPass | None:
        trainable = {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}
        no_gradient = not trainable and not inputs[0].requires_grad
        if no_gradient or sum(weight.numel() for weight in trainable.values()) > _MAX_TRAINABLE:
            return None
        key = (
            inputs[0].shape,
            inputs[0].dtype,
            inputs[0].requires_grad,
            self._model.training,
            torch.is_autocast_enabled("cuda"),
            torch.get_autocast_dtype("cuda"),
            tuple(weight.data_ptr() for weight in self._model.parameters()),
            tuple(trainable),
        )
        if key not in self._captured and self._attempts < _MAX_GRAPHS:
            self._attempts += 1
            try:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._captured[key] = _CapturedPass(Pass(self._model, trainable, inputs), self._pool)
            except RuntimeError as error:
                self._attempts = _MAX_GRAPHS
                reason = str(error.__context__ or error).splitlines()[0]
                LOG.warning("no CUDA graph can be captured of this language model (%s); it runs eagerly", reason)
        return self._captured.get(key)


class Pass:
    """Forward and backward pass on static input buffers.

    Weights are replaced by aliases of the same memory, so that nothing attached to the parameters themselves (gradient
    accumulation on another stream, hooks of distributed training) is captured.

    Args:
        model: The model.
        trainable: Its trainable parameters by name.
        inputs: Example inputs with the shapes to capture.
    """

    def __init__(self, model: nn.Module, trainable: dict[str, nn.Parameter], inputs: Sequence[Tensor]) -> None:
        self.weights = list(trainable.values())
        self.inputs = [each.detach().clone().requires_grad_(each.requires_grad) for each in inputs]
        self._model = model
        self._aliases = {name: weight.detach().requires_grad_() for name, weight in trainable.items()}

    def forward(self) -> Tensor:
        """Returns the hidden states of the inputs."""
        return torch.func.functional_call(self._model, self._aliases, tuple(self.inputs))

    def backward(self, states: Tensor, gradient: Tensor) -> list[Tensor | None]:
        """Returns gradients of inputs and weights, None where there is none, from the gradient of the states."""
        leaves = [*self.inputs, *self._aliases.values()]
        differentiable = [leaf for leaf in leaves if leaf.requires_grad]
        gradients = iter(torch.autograd.grad(states, differentiable, gradient, allow_unused=True))
        return [next(gradients) if leaf.requires_grad else None for leaf in leaves]


class _CapturedPass:
    """A pass captured as two CUDA graphs."""

    def __init__(self, made: Pass, pool: Any) -> None:
        self.weights = made.weights
        self._inputs = made.inputs
        device = made.inputs[0].device
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        # Capturing draws random numbers; a resumed run must draw the same ones as an uninterrupted run. And weights
        # cast by the caller's autocast cache must not be reused for the next step.
        with (
            torch.random.fork_rng(devices=[device.index]),
            torch.autocast("cuda", autocast[1], enabled=autocast[0], cache_enabled=False),
        ):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    states = made.forward()
                    made.backward(states, torch.zeros_like(states))
                    del states
            torch.cuda.current_stream(device).wait_stream(side)
            self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._forward, pool=pool):
                states = made.forward()
            self._gradient = torch.zeros_like(states)
            with torch.cuda.graph(self._backward, pool=pool):
                self._gradients = made.backward(states, self._gradient)
        self._states = states.detach()

    def replay_forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns the hidden states of new inputs."""
        for own, new in zip(self._inputs, inputs, strict=True):
            own.detach().copy_(new.detach())
        self._forward.replay()
        return self._states.clone()

    def replay_backward(self, gradient: Tensor) -> list[Tensor | None]:
        """Returns gradients of inputs and weights from the gradient of the states."""
        self._gradient.copy_(gradient)
        self._backward.replay()
        return [None if each is None else each.clone() for each in self._gradients]


class _PendingBackward:
    """Token that lives as long as a backward pass may follow."""


class _Replay(torch.autograd.Function):
    """Autograd function that replays a captured pass."""

    @staticmethod
    def forward(ctx: Any, captured: _CapturedPass, pending: _PendingBackward, *tensors: Tensor) -> Tensor:
        """Replays the forward pass; `tensors` are its inputs, then the trainable weights."""
        ctx.captured, ctx.pending = captured, pending
        return captured.replay_forward(tensors[: len(tensors) - len(captured.weights)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator hides its names
        """Replays the backward pass, once."""
        if ctx.pending is None:
            raise RuntimeError(
                "a CUDA graph gives gradients once; encode the texts again, or set text.cuda_graphs=false"
            )
        ctx.pending = None
        return (None, None, *ctx.captured.replay_backward(grad_outputs[0]))
