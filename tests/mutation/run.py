"""Inserts mutations into the core modules one at a time and runs the tests that must detect each.

    python -m tests.mutation.run                  # 200 faults; results are kept and reused while nothing changed
    python -m tests.mutation.run --module losses  # every fault of the modules whose name contains this

Every fault is tried in a forked process that has imported torch before, without the reference data beside the
checkout. A fault that no test notices must have its reason in `survivors.txt`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.mutants import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build/mutation.json"
"""Outcome of each fault by the digest of its source and its tests."""
SURVIVORS = Path(__file__).with_name("survivors.txt")
SAMPLE = 200
TARGETS = {
    "cleft.models.methods.losses": ["tests/models/methods/test_losses.py"],
    "cleft.models.prefix_tree": ["tests/models/test_prefix_tree.py", "tests/models/test_text_tower.py"],
    "cleft.models.text_tower": [
        "tests/models/test_text_tower.py",
        "tests/models/methods",
        "tests/models/test_dual_encoder.py",
    ],
    "cleft.models.dual_encoder": ["tests/models/test_dual_encoder.py", "tests/training/test_prompt_context.py"],
    "cleft.training.prompt_context": ["tests/training/test_prompt_context.py"],
    "cleft.training.lightning_module": ["tests/training/test_lightning_module.py"],
    "cleft.data.splits.recipes": ["tests/data/splits"],
    "cleft.data.splits.subsets": ["tests/data/splits"],
    "cleft.data.sampling": ["tests/data/test_sampling.py"],
    "cleft.evaluation.metrics": ["tests/evaluation/test_metrics.py", "tests/evaluation/test_compare.py"],
}
"""Module to the tests that must detect its mutations. Not the module: pytest would read its file, not the mutation."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a fault."""

    mutant: Mutant
    caught: bool
    seconds: float


def source_of(module: str) -> Path:
    """Returns the file of a module."""
    return ROOT / "src" / Path(*module.split(".")).with_suffix(".py")


def sample(count: int = SAMPLE) -> list[Mutant]:
    """Returns a sample of the mutations of all modules; it depends on the mutations only."""
    every = [mutant for module in TARGETS for mutant in mutants_of(module, source_of(module))]
    return sorted(every, key=lambda mutant: mutant.order)[:count]


def reasons() -> dict[str, str]:
    """Returns the mutations that may survive, with their reasons."""
    lines = SURVIVORS.read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" | ", 1) for line in lines if line and not line.startswith("#")]
    return {key.strip(): why.strip() for key, why in pairs}


def run(mutants: Sequence[Mutant], *, jobs: int = 2) -> list[Outcome]:
    """Runs mutations, in parallel; outcomes in the order of `mutants`."""
    _import_libraries()
    with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:  # the processes end without clean-up
        tempfile.tempdir = scratch
        try:
            return _run(mutants, jobs)
        finally:
            tempfile.tempdir = None


def _run(mutants: Sequence[Mutant], jobs: int) -> list[Outcome]:
    kept: dict[str, list[float]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    slowest = {module: _unchanged(module, kept) for module in sorted({mutant.module for mutant in mutants})}
    waiting = [mutant for mutant in mutants if _digest(mutant) not in kept]
    running: dict[int, tuple[Mutant, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            running[_start(mutant.module, mutant.source)] = mutant, time.monotonic()
        time.sleep(0.05)
        for child, (mutant, started) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            seconds = time.monotonic() - started
            if not done and seconds > 30 + 10 * slowest[mutant.module]:  # an endless loop
                os.kill(child, signal.SIGKILL)
                done, status = os.waitpid(child, 0)
            if done:
                del running[child]
                caught = status != 0
                kept[_digest(mutant)] = [float(caught), seconds]
                KEPT.parent.mkdir(exist_ok=True)
                KEPT.write_text(json.dumps(kept))
                print(f"{'caught  ' if caught else 'SURVIVED'} {seconds:5.1f} s  {mutant.key}", flush=True)
    return [Outcome(mutant, bool(kept[_digest(mutant)][0]), kept[_digest(mutant)][1]) for mutant in mutants]


def _unchanged(module: str, kept: dict[str, list[float]]) -> float:
    """Returns the seconds of the tests of an unchanged module; they must pass."""
    source = source_of(module).read_text(encoding="utf-8")
    digest = _digest_of(module, source)
    if digest not in kept:
        started = time.monotonic()
        child = _start(module, source)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError(f"the tests of {module} fail without any fault: {' '.join(TARGETS[module])}")
        kept[digest] = [0.0, time.monotonic() - started]
    return kept[digest][1]


def _digest(mutant: Mutant) -> str:
    return _digest_of(mutant.module, mutant.source)


def _digest_of(module: str, source: str) -> str:
    found = hashlib.sha256(source.encode())
    for place in TARGETS[module]:
        for path in sorted((ROOT / place).rglob("*.py")) if (ROOT / place).is_dir() else [ROOT / place]:
            found.update(path.read_bytes())
    return found.hexdigest()


def _import_libraries() -> None:
    import lightning  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch
    import transformers.models.auto.modeling_auto  # noqa: F401

    torch.set_num_threads(1)


def _start(module: str, source: str) -> int:
    """Starts the tests of a module in a forked process, with its source replaced; returns the process id."""
    child = os.fork()
    if child:
        return child
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.environ["CLEFT_TEST_DATA"] = os.devnull
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins that are imported already cannot be rewritten
        sys.meta_path.insert(0, _Replaced(module, source))
        sys.path.insert(0, str(ROOT))
        os.chdir(ROOT)
        import pytest

        os._exit(int(pytest.main(["-x", "-q", *TARGETS[module]])))
    finally:
        os._exit(70)  # only where pytest did not return


class _Replaced(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from a given source."""

    def __init__(self, module: str, source: str) -> None:
        self.module, self.source = module, source

    def find_spec(self, fullname, path, target=None):
        """Returns how to import the module; None for all others."""
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.module else None

    def get_filename(self, fullname):
        """Returns the file of the module."""
        return str(source_of(fullname))

    def get_data(self, path):
        """Returns the source."""
        return self.source.encode()


def main(words: Sequence[str] | None = None) -> int:
    """Runs the selected faults and prints those that survived; 1 where one has no reason."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--module", help="every fault of the modules whose name contains this, in place of a sample")
    parser.add_argument("--count", type=int, default=SAMPLE, help="faults to sample")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    options = parser.parse_args(words)
    if options.module:
        modules = [module for module in TARGETS if options.module in module]
        mutants = [mutant for module in modules for mutant in mutants_of(module, source_of(module))]
    else:
        mutants = sample(options.count)
    survived = [outcome.mutant.key for outcome in run(mutants, jobs=options.jobs) if not outcome.caught]
    known = reasons()
    for key in survived:
        print(f"{key} | {known.get(key, '(no reason)')}")
    print(f"{len(mutants) - len(survived)} of {len(mutants)} caught")
    return int(any(key not in known for key in survived))


if __name__ == "__main__":
    sys.exit(main())
