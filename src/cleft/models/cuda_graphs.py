"""A language model's passes as CUDA graphs: recorded once for each number of nodes, then played back.

A tree of a few hundred nodes is so little work that a fast card waits for Python to name the next kernel. A recording
names them all at once. It plays the same kernels on the same weights, so values stay; where weights have moved to
other memory it is made anew, and what cannot be recorded is computed step by step as before.

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
"""Larger trees keep a card busy by themselves."""
_MAX_GRAPHS = 16
_MAX_TRAINABLE = 200_000_000
"""Gradients are copied out of a recording; of a whole language model that would cost more than it saves."""
_WARM_UP = 3


def node_multiple(nodes: int) -> int:
    """Returns what a number of nodes is rounded up to, so that few sizes occur.

    Example:
        >>> [node_multiple(nodes) for nodes in (20, 180, 300, 900)]
        [32, 32, 64, 128]
    """
    return 32 if nodes <= 256 else 64 if nodes <= 512 else 128


class CudaGraphs:
    """Plays a model's passes back, and computes them step by step where that is not possible.

    All recordings share their memory, so one pass at a time may wait for its backward: a second one before that is
    computed step by step.

    Args:
        model: Called with tokens or vectors, mask and positions; returns states.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: dict[Hashable, _CapturedPass] = {}
        self._made = 0
        self._waiting: Callable[[], object | None] | None = None
        self._pool: Any = None

    def __reduce__(self) -> tuple[type[CudaGraphs], tuple[nn.Module]]:
        """Copies and pickles without graphs: a copied model has its own weights, and captures its own."""
        return CudaGraphs, (self._model,)

    def __call__(self, tokens: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Returns the states of one tree on a card, `[1, P, D]`.

        Args:
            tokens: Ids `[1, P]`, or vectors `[1, P, D]`.
            visible: `[1, P, P]` bool.
            positions: `[1, P]`.
        """
        inputs = (tokens, visible, positions)
        recording = self._find(inputs) if self._waiting is None or self._waiting() is None else None
        if recording is None:
            return self._model(*inputs)
        waiting = _PendingBackward()
        self._waiting = weakref.ref(waiting)
        return _Replay.apply(recording, waiting, *inputs, *recording.weights)

    def _find(self, inputs: Sequence[Tensor]) -> _CapturedPass | None:
        moving = {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}
        needless = not moving and not inputs[0].requires_grad
        if needless or sum(weight.numel() for weight in moving.values()) > _MAX_TRAINABLE:
            return None
        key = (
            inputs[0].shape,
            inputs[0].dtype,
            inputs[0].requires_grad,
            self._model.training,
            torch.is_autocast_enabled("cuda"),
            torch.get_autocast_dtype("cuda"),
            tuple(weight.data_ptr() for weight in self._model.parameters()),
            tuple(moving),
        )
        if key not in self._kept and self._made < _MAX_GRAPHS:
            self._made += 1
            try:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._kept[key] = _CapturedPass(Pass(self._model, moving, inputs), self._pool)
            except RuntimeError as error:
                self._made = _MAX_GRAPHS
                reason = str(error.__context__ or error).splitlines()[0]
                LOG.warning("this language model cannot be recorded (%s); it is computed step by step", reason)
        return self._kept.get(key)


class Pass:
    """A pass forward and one back, for inputs in places of their own.

    The weights stand in it under other names for the same memory, so that nothing that hangs on the weights
    themselves (sums of gradients begun on another stream, hooks of distributed training) is recorded.

    Args:
        model: The model.
        moving: Its weights that want gradients, by name.
        inputs: Of the shapes to come.
    """

    def __init__(self, model: nn.Module, moving: dict[str, nn.Parameter], inputs: Sequence[Tensor]) -> None:
        self.weights = list(moving.values())
        self.inputs = [each.detach().clone().requires_grad_(each.requires_grad) for each in inputs]
        self._model = model
        self._aliases = {name: weight.detach().requires_grad_() for name, weight in moving.items()}

    def forward(self) -> Tensor:
        """Returns the states of the inputs."""
        return torch.func.functional_call(self._model, self._aliases, tuple(self.inputs))

    def backward(self, states: Tensor, gradient: Tensor) -> list[Tensor | None]:
        """Returns gradients of inputs and weights; None where there is none."""
        leaves = [*self.inputs, *self._aliases.values()]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(states, wanted, gradient, allow_unused=True))
        return [next(found) if leaf.requires_grad else None for leaf in leaves]


class _CapturedPass:
    """A pass, recorded."""

    def __init__(self, made: Pass, pool: Any) -> None:
        self.weights = made.weights
        self._inputs = made.inputs
        device = made.inputs[0].device
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        # Recording draws random numbers; a run that goes on must draw what it would have drawn. And casts of weights
        # that lie in the cache of the caller must not be taken for those of the next step.
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
        """Returns the states of new inputs."""
        for own, new in zip(self._inputs, inputs, strict=True):
            own.detach().copy_(new.detach())
        self._forward.replay()
        return self._states.clone()

    def replay_backward(self, gradient: Tensor) -> list[Tensor | None]:
        """Returns the gradients of inputs and weights from that of the states."""
        self._gradient.copy_(gradient)
        self._backward.replay()
        return [None if each is None else each.clone() for each in self._gradients]


class _PendingBackward:
    """Lives as long as a pass may still be asked for its gradients."""


class _Replay(torch.autograd.Function):
    """Has the gradients of a recorded pass."""

    @staticmethod
    def forward(ctx: Any, recording: _CapturedPass, waiting: _PendingBackward, *tensors: Tensor) -> Tensor:
        """Plays the pass forward; `tensors` are its inputs, then the weights that want gradients."""
        ctx.recording, ctx.waiting = recording, waiting
        return recording.replay_forward(tensors[: len(tensors) - len(recording.weights)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator hides its names
        """Plays the pass back, once."""
        if ctx.waiting is None:
            raise RuntimeError(
                "a recorded pass gives its gradients once; read the texts again, or text.cuda_graphs=false"
            )
        ctx.waiting = None
        return (None, None, *ctx.recording.replay_backward(grad_outputs[0]))
