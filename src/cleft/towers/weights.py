"""Sets of named weights: what is wrong with them, and what two of them differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def misfits(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Says in what a file's weights differ from a model's: names, shapes, types. Empty where they agree.

    Shapes must be equal, not only broadcast to each other.
    """
    both = sorted(given.keys() & expected.keys())
    differing = [name for name in both if _form(given[name]) != _form(expected[name])]
    faults = [
        listed("missing", sorted(expected.keys() - given.keys())),
        listed("unexpected", sorted(given.keys() - expected.keys())),
        listed("of another shape or type", differing),
    ]
    return "; ".join(filter(None, faults))


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights that hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def listed(what: str, names: Sequence[str]) -> str:
    """Count, kind and the first five names; empty where there are none.

    Example:
        >>> listed("missing", ["a", "b", "c", "d", "e", "f"])
        '6 missing: a, b, c, d, e, …'
    """
    if not names:
        return ""
    return f"{len(names)} {what}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


def _form(tensor: Tensor) -> tuple[object, ...]:
    return (*tensor.shape, tensor.dtype)
