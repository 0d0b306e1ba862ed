"""How deep below the head each weight of a vision model lies, whatever family it is of.

The outermost list of blocks tells: the blocks of a ViT, the stages of a ResNet, Swin or ConvNeXt.
"""

from __future__ import annotations

from torch import nn


def weight_heights(model: nn.Module) -> tuple[dict[str, int], int]:
    """Counts, for each weight, the units between it and the pixels.

    Args:
        model: A Hugging Face vision model.

    Returns:
        Name to height: 0 for the embeddings and whatever else stands in front of the blocks, 1 for the first block or
        stage, and so on; and the height of what stands behind the last one, which is also that of a head on top. A
        model without a list of blocks is all of one height.

    Example:
        >>> blocks = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(3)])
        >>> weight_heights(nn.ModuleDict({"stem": nn.Linear(2, 2, bias=False), "blocks": blocks}))
        ({'stem.weight': 0, 'blocks.0.weight': 1, 'blocks.1.weight': 2, 'blocks.2.weight': 3}, 4)
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = outermost_list(model)
    if blocks is None:
        return dict.fromkeys(names, 0), 0
    place, units = blocks
    heights: dict[str, int] = {}
    reached = False
    for name in names:
        inside = name.startswith(f"{place}.")
        reached = reached or inside
        unit = int(name.removeprefix(f"{place}.").partition(".")[0]) + 1 if inside else units + 1
        heights[name] = unit if reached else 0
    return heights, units + 1


def outermost_list(model: nn.Module) -> tuple[str, int] | None:
    """Returns name and length of the list of blocks that holds most weights and is in no other list; None if none."""
    found: dict[str, tuple[int, int]] = {}
    for name, child in model.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(child, nn.ModuleList | nn.Sequential) and name and not inner:
            found[name] = (sum(weight.numel() for weight in child.parameters()), len(child))
    if not found:
        return None
    place = max(found, key=lambda name: found[name][0])
    return place, found[place][1]
