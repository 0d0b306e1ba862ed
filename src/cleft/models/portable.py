"""Pickling and copying of towers: their Hugging Face models hold hooks that cannot be pickled."""

from __future__ import annotations

from torch import Tensor, nn

_INSTALLED = "_output_capturing_hooks_installed"


def replace_local_hooks(model: nn.Module) -> None:
    """Replaces the hooks of transformers that are local functions, which pickle refuses.

    Those that capture hidden states are removed: transformers installs them again when they are needed. Those that let
    gradients reach checkpointed blocks get an equal function in their place.
    """
    for module in model.modules():
        hooks = vars(module)["_forward_hooks"]
        for key, hook in list(hooks.items()):
            name = getattr(hook, "__name__", "")
            if name == "output_capturing_hook":
                del hooks[key]
            elif name == "make_inputs_require_grads":
                hooks[key] = _require_gradients
        module.__dict__.pop(_INSTALLED, None)


def _require_gradients(_module: nn.Module, _inputs: object, output: Tensor) -> None:
    output.requires_grad_()
