"""Measures the local losses of GLoRIA and MGCA against loops over the batch, forward and backward.

    python benchmarks/objectives.py                    on a CPU, minutes
    python benchmarks/objectives.py --batch 8          a quick check

Variants are interleaved, and one runs twice to show the noise; values and gradients must agree first. Features are
random, because speed depends on shapes only: GLoRIA's 361 regions and up to 97 words of width 768, MGCA's 196 patches
and 111 word slots of width 128. `short` texts have 4 to 24 words, as sentences and captions; `mixed` ones 4 to the
maximum; `full` ones the maximum.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import AGAIN, distance, number, table, timed
from cleft.models.methods.gloria import local_loss
from cleft.models.methods.mgca import token_loss
from timing import Spread, interleave, machine

Loss = Callable[..., Tensor]

OURS = "batched"
LENGTHS: Mapping[str, tuple[int, int]] = {"short": (4, 24), "mixed": (4, 97), "full": (97, 97)}
TOLERANCE = 1e-4
HEAD = ("variant", "s min", "s median", "s max", "x batched (median)", "x batched (min)", "largest error")


def gloria_by_pairs(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Computes the loss in two loops over images and texts, from the formulas."""
    similarity: list[Tensor] = []
    texts = [text[real] for text, real in zip(words, mask, strict=True)]
    for image in regions:
        for text in texts:
            shares = (image @ text.T).softmax(dim=1)
            attention = (4 * shares.T).softmax(dim=1)
            similarity.append((5 * torch.cosine_similarity(attention @ image, text, dim=1)).exp().sum().log())
    return _both_directions(10 * torch.stack(similarity).view(len(regions), len(texts)))


def gloria_by_texts(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Computes the loss in a loop over texts, each cut to its words, with all images at once, as the released code."""
    similarity: list[Tensor] = []
    for text, real in zip(words, mask, strict=True):
        shares = (regions @ text[real].T).softmax(dim=2)  # [B, M, W]
        attention = (4 * shares.mT).softmax(dim=2)
        cosine = torch.cosine_similarity(attention @ regions, text[real], dim=2)
        similarity.append((5 * cosine).exp().sum(dim=1).log())
    return _both_directions(10 * torch.stack(similarity, dim=1))


def mgca_by_pairs(words: Tensor, patches: Tensor, mask: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """Computes the loss in a loop over pairs, from the formulas."""
    total = words.new_zeros(())
    for text, image, real, of_words, of_patches in zip(words, patches, mask, beta, gamma, strict=True):
        w, p = F.normalize(text, dim=1), F.normalize(image, dim=1)
        text_context = F.normalize((w @ p.T / 0.1).softmax(dim=1) @ p, dim=1)
        image_context = (p @ w[real].T / 0.1).softmax(dim=1) @ w[real]
        for queries, keys, weights in ((w, text_context, of_words), (p, image_context, of_patches)):
            logits, own = queries @ keys.T / 0.1, torch.arange(len(queries))
            each = F.cross_entropy(logits, own, reduction="none") + F.cross_entropy(logits.T, own, reduction="none")
            total = total + (weights * each).sum() / 2
    return total / len(words)


def mgca_by_tokens(words: Tensor, patches: Tensor, mask: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """Computes the loss in loops over words and patches, as the formulas are written."""
    total = words.new_zeros(())
    for text, image, real, of_words, of_patches in zip(words, patches, mask, beta, gamma, strict=True):
        w, p = F.normalize(text, dim=1), F.normalize(image, dim=1)
        text_context = torch.stack([F.normalize((word @ p.T / 0.1).softmax(dim=0) @ p, dim=0) for word in w])
        image_context = torch.stack([(patch @ w[real].T / 0.1).softmax(dim=0) @ w[real] for patch in p])
        for queries, keys, weights in ((w, text_context, of_words), (p, image_context, of_patches)):
            for j in range(len(queries)):
                for one, others in ((queries[j], keys), (keys[j], queries)):
                    total = total - weights[j] * (others @ one / 0.1).log_softmax(dim=0)[j] / 2
    return total / len(words)


GLORIA: Mapping[str, Loss] = {
    OURS: local_loss,
    "loop over texts": gloria_by_texts,
    "loop over images and texts": gloria_by_pairs,
}
MGCA: Mapping[str, Loss] = {
    OURS: token_loss,
    "loop over pairs": mgca_by_pairs,
    "loop over words and patches": mgca_by_tokens,
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(options.seed)
    typed = " ".join(sys.argv[1:] if arguments is None else arguments)
    print(f"    python benchmarks/objectives.py {typed}\n")
    print(f"- device: {machine(torch.device('cpu'))}")
    print(f"- versions: torch {torch.__version__}, Python {platform.python_version()}")
    print(f"- batch {options.batch}, float32, {options.rounds} rounds, interleaved\n")
    for name in options.lengths:
        inputs = gloria_inputs(options.batch, LENGTHS[name], generator)
        print(f"### GLoRIA, {name} texts: {int(inputs[2].sum()):,} words\n")
        print(shown(*measure(GLORIA, inputs, options.rounds)), flush=True)
    for name in options.lengths:
        inputs = mgca_inputs(options.batch, LENGTHS[name], generator)
        print(f"### MGCA, {name} texts: {int(inputs[2].sum()):,} words\n")
        print(shown(*measure(MGCA, inputs, options.rounds)), flush=True)


def gloria_inputs(
    batch: int, lengths: tuple[int, int], generator: torch.Generator, spots: int = 361, width: int = 768
) -> tuple[Tensor, ...]:
    """Draws regions, words and mask."""
    regions, words = (_features(batch, count, width, generator) for count in (spots, 97))
    return regions, words, _mask(batch, lengths, 97, generator)


def mgca_inputs(
    batch: int, lengths: tuple[int, int], generator: torch.Generator, spots: int = 196, width: int = 128
) -> tuple[Tensor, ...]:
    """Draws words, patches, mask and weights."""
    words, patches = (_features(batch, count, width, generator) for count in (111, spots))
    mask = _mask(batch, lengths, 111, generator)
    beta = torch.rand(batch, 111, generator=generator) * mask
    gamma = torch.rand(batch, spots, generator=generator)
    return words, patches, mask, *(weights / weights.sum(dim=1, keepdim=True) for weights in (beta, gamma))


def measure(
    ways: Mapping[str, Loss], inputs: tuple[Tensor, ...], rounds: int
) -> tuple[dict[str, Spread], dict[str, float]]:
    """Returns seconds of each variant, and its relative error of value and gradient."""
    results = {way: value_and_gradient(loss, inputs) for way, loss in ways.items()}
    errors = {
        way: max(distance(one, other) for one, other in zip(result, results[OURS], strict=True))
        for way, result in results.items()
    }
    if not max(errors.values()) <= TOLERANCE:
        raise SystemExit(f"error: variants differ by more than {TOLERANCE}, {errors}; nothing was timed")
    works = {way: lambda loss=loss: value_and_gradient(loss, inputs) for way, loss in ways.items()}
    return interleave({**works, OURS + AGAIN: works[OURS]}, torch.device("cpu"), rounds=rounds), errors


def shown(spreads: Mapping[str, Spread], errors: Mapping[str, float]) -> str:
    """Returns the measurements as a table."""
    ours = spreads[OURS]
    rows = [
        [
            way,
            *timed(spread),
            number(spread.median / ours.median),
            number(spread.least / ours.least),
            "" if way not in errors or way == OURS else f"{errors[way]:.0e}",
        ]
        for way, spread in spreads.items()
    ]
    return table(HEAD, rows)


def value_and_gradient(loss: Loss, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Returns the loss and its gradients with respect to the two feature inputs."""
    features = [part.detach().requires_grad_() for part in inputs[:2]]
    value = loss(*features, *inputs[2:])
    return [value.detach(), *torch.autograd.grad(value, features)]


def _features(batch: int, count: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch, count, width, generator=generator) / width**0.25


def _mask(batch: int, lengths: tuple[int, int], slots: int, generator: torch.Generator) -> Tensor:
    count = torch.randint(lengths[0], lengths[1] + 1, (batch, 1), generator=generator)
    return torch.arange(slots) < count


def _both_directions(logits: Tensor) -> Tensor:
    own = torch.arange(len(logits))
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lengths", choices=sorted(LENGTHS), nargs="+", default=list(LENGTHS), help="of texts")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each variant")
    parser.add_argument("--threads", type=int, default=2, help="one thread is timed by process CPU time")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
