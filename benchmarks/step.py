"""Measures a training step and its alternatives: time, memory, tokens and operations.

    python benchmarks/step.py                                  on a CPU, minutes
    python benchmarks/step.py --size tiny --batches 72         a quick check
    python benchmarks/step.py --size paper                     on a GPU: the paper's pair of encoders
    python benchmarks/step.py --size paper --part count        anywhere: its operations

Variants run interleaved in one process; one runs twice to show the noise. Before timing, embeddings, loss and gradients
must agree. Weights and images are random, because speed depends on shapes only; captions repeat as in a dataset,
because they determine the number of tree nodes.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from bench import Bench
from captions import independent_findings, read_label_sets
from counted import count
from sizes import SIZES
from text_tower import measure_text
from timing import machine, matmul_ceiling
from ways import WAYS
from whole_step import measure_step


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    settings = SIZES[options.size]
    named = options.device if options.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(named)
    bench = Bench(
        device=device,
        half=(settings.train.precision if options.precision == "auto" else options.precision) == "bf16-mixed",
        rounds=options.rounds,
        limit=options.limit,
        left_out=frozenset(options.leave_out),
        seed=options.seed,
    )
    captions = read_label_sets(options.label_sets) if options.label_sets else independent_findings(options.seed)
    ceiling = matmul_ceiling(device, bench.dtype)
    print(f"    python benchmarks/step.py {' '.join(_shown(arguments))}\n")
    print(f"- device: {machine(device)}")
    print(
        f"- versions: torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}"
    )
    print(f"- products in {bench.dtype}; a large one reaches {ceiling / 1e12:.3g} TFLOP/s, the ceiling of this run")
    print(f"- captions: {captions.origin}")
    print(f"- encoders: {_described(settings.text.scratch)} with LoRA; {_described(settings.image.scratch)}")
    print(f"- {options.rounds} rounds, interleaved; errors are of values and gradients, at most {bench.tolerance}\n")
    if options.part in ("count", "all"):
        count(settings, captions, options.batches, options.seed)
    if options.part in ("text", "all"):
        measure_text(settings, captions, options.batches, bench, ceiling)
    if options.part in ("step", "all"):
        measure_step(settings, captions, options.step_batches, bench, ceiling)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="scaled", help="which pair of encoders; see sizes.py")
    parser.add_argument("--part", choices=("count", "text", "step", "all"), default="all", help="what to print")
    parser.add_argument("--batches", type=int, nargs="+", default=[72, 256, 1024, 4096], help="for the text encoder")
    parser.add_argument("--step-batches", type=int, nargs="+", default=[72], help="for the complete step")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each variant")
    parser.add_argument("--limit", type=float, default=60.0, help="longest run in seconds; longer ones are left out")
    parser.add_argument(
        "--leave-out", choices=WAYS, nargs="*", default=[], help="variants not to run, such as for lack of memory"
    )
    parser.add_argument("--label-sets", type=Path, help="table of real sets of findings, with a column `images`")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; one thread is timed by process CPU time")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    parser.add_argument(
        "--precision", choices=("auto", "32-true", "bf16-mixed"), default="auto", help="auto: the size's"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def _shown(arguments: Sequence[str] | None) -> list[str]:
    """Returns the arguments without folders."""
    typed = sys.argv[1:] if arguments is None else arguments
    return [f"<folder>/{Path(word).name}" if "/" in word else shlex.quote(word) for word in typed]


def _described(scratch: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (scratch or {}).items())


if __name__ == "__main__":
    main()
