"""Counts words that a reader of the field would stumble over, in everything a person reads.

python -m tests.tools.words                         # counts per word, then every place of the words to avoid
python -m tests.tools.words src/cleft/data          # only below these paths
python -m tests.tools.words --soft                  # also lists words that are often, but not always, wrong
python -m tests.tools.words --tests tests/training  # also reads tests
python -m tests.tools.words --root <checkout>       # another checkout, such as one of an earlier commit
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

AVOID: dict[str, tuple[str, str]] = {
    "told": (r"told|tells?(?! ?\(\))|telling", "reported, described, shown"),
    "asked": (r"ask(?:s|ed|ing)?", "requested, evaluated, set"),
    "answer": (r"answer(?:s|ed|ing)?", "prediction, result, reply, value"),
    "stands": (r"(?:stands?|stood|standing)(?! for\b| ins?\b)(?!-)", "is, appears"),
    "mend": (r"mend(?:s|ed|ing)?", "fix"),
    "lies": (r"lies|lie|lay(?! out)|lain|lying", "is, is stored"),
    "nobody": (r"nobody", "no patient, no module, never"),
    "hears": (r"hears?|heard|hearing", "uses, reads, receives"),
    "speaks for": (r"(?:speaks?|spoke|speaking)(?: for)?", "represents"),
    "goes on": (r"(?:go|goes|going|gone|went) on(?! to\b)", "resume, continue"),
    "house": (r"houses?", "package"),
    "room": (r"(?<!make )rooms?", "package, space"),
    "shelf": (r"shelf|shelves", "cache file"),
    "twin": (r"twins?", "duplicate"),
    "wording": (r"wordings?", "class names, prompt template"),
    "picture": (r"pictures?", "image, figure"),
    "surprise": (r"surpris(?:e|es|ed|ing)", "negative log-likelihood, unexpected"),
    "keeper": (r"keepers?", "callback"),
    "stands still": (
        r"(?:stands?|held|hold|holds|kept|keeps?) still|moving (?:weights|part|parts)",
        "frozen, trainable",
    ),
    "floor": (r"(?<![.\w])floors?(?! ?\()(?! division)", "baseline without a model"),
    "of its own": (r"of (?:its|their|our|his) own", "separate, its"),
    "learn from": (r"to (?:learn from|choose by|be asked about)|learned from by", "train, validation, test"),
    "gives away": (r"(?:give|gives|given|gave) away", "leak, overlap"),
    "alike": (r"alike", "in the same way"),
    "merit": (r"merits?", "score"),
    "spoil": (r"spoil(?:s|ed|t)?", "damage"),
    "blind end": (r"blind end", "the EOS token does not attend to itself"),
    "played back": (r"played back|plays? back|playback", "CUDA graph, replay"),
    "sick": (r"sick from well", "discrimination"),
    "rubbish": (r"rubbish", "garbage collection"),
    "verb": (r"verbs?(?! ?\()", "command"),
    "bit-equal": (r"bit[- ]equal", "bitwise identical"),
}
"""Words of the former private language: name, pattern and what the field says instead."""

SOFT: dict[str, tuple[str, str]] = {
    "whole": (r"whole", "complete, entire"),
    "found": (r"(?:the|a|what is|what was) found(?! in| at)", "result"),
    "known": (r"what is known|known by", "recorded, registered"),
    "says": (r"says|said|say", "reports, states"),
    "taken": (r"taken", "used, applied"),
    "beside": (r"beside", "next to, compared with"),
    "marks": (r"marks", "relevance, labels"),
    "would be": (r"would be", "is"),
    "question": (r"questions?", "task, evaluation"),
    "opening": (r"openings?", "prompt template"),
    "moves": (r"moves|moving", "trainable"),
    "phantom": (r"phantoms?", "synthetic image"),
    "census": (r"census(?:es)?", "dataset check"),
    "otherwise than": (r"otherwise than", "differently from"),
    "arrow": (r"arrows?", "dependency"),
    "whoever": (r"whoever|whatever", ""),
}
"""Words that are often right; read each place."""

ALLOWED: tuple[tuple[str, str, str], ...] = (
    ("verb", "CONTRIBUTING.md", "the part of speech"),
    ("verb", "src/cleft/grammar.py", "the part of speech"),
    ("answer", "src/cleft/evaluation/result_files.py", "key of stored example images, salt of stored orders"),
    ("answer", "src/cleft/report/run_page.py", "key of stored example images"),
    ("answer", "src/cleft/results.py", "key of stored example images"),
    ("told", "src/cleft/evaluation/classifier.py", "key of summary.json of earlier runs"),
    ("told", "src/cleft/training/provenance.py", "key of summary.json of earlier runs"),
    ("told", "src/cleft/training/run_folder.py", "key of summary.json of earlier runs"),
    ("keeper", "src/cleft/training/callbacks.py", "key of training states"),
    ("keeper", "src/cleft/training/trainer.py", "key of training states"),
    ("keeper", "src/cleft/training/training_state.py", "key of training states"),
    ("asked", "src/cleft/models/importing/safe_load.py", "advice to ask the authors of a file"),
)
"""Word, file or folder, and why it is right there."""


class Place(NamedTuple):
    """One occurrence."""

    word: str
    path: str
    line: int
    text: str


def files(root: Path = ROOT, tests: bool = False) -> list[Path]:
    """Returns the files that users read: top pages, docs, the package, its presets, and tests if set."""
    kept = [root / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    kept += sorted((root / "docs").rglob("*.md"))
    kept += sorted(
        path for path in (root / "src").rglob("*") if path.suffix in {".py", ".yaml", ".html", ".css", ".js"}
    )
    if tests:
        kept += sorted(path for path in (root / "tests").rglob("*.py") if path != Path(__file__))
    return [path for path in kept if path.is_file() and path.relative_to(root).as_posix() != "docs/log.md"]


def spaced(text: str) -> str:
    """Returns a line without former names of settings, and with `snake_case` and `CamelCase` split into words."""
    text = re.sub(r"""formerly["']?[:=] ?"[^"]*"|old_values=\{[^}]*\}""", "", text)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text.replace("_", " "))


def places(
    root: Path = ROOT,
    words: dict[str, tuple[str, str]] = AVOID,
    below: tuple[str, ...] = (),
    tests: bool = False,
    use_exceptions: bool = True,
) -> Iterator[Place]:
    """Yields every occurrence of the words, without those that are allowed, in order of files and lines."""
    patterns = {word: re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE) for word, (pattern, _) in words.items()}
    for path in files(root, tests):
        name = path.relative_to(root).as_posix()
        if below and not any(name.startswith(start.rstrip("/")) for start in below):
            continue
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if text.startswith(("from ", "import ")):
                continue
            apart = spaced(text)
            for word, pattern in patterns.items():
                if use_exceptions and any(word == each and name.startswith(where) for each, where, _ in ALLOWED):
                    continue
                for _ in pattern.finditer(apart):
                    yield Place(word, name, number, text.strip())


def counts(root: Path = ROOT, words: dict[str, tuple[str, str]] = AVOID) -> Counter[str]:
    """Returns the number of occurrences by word, 0 for those that do not occur."""
    return Counter({word: 0 for word in words}) + Counter(place.word for place in places(root, words))


def main() -> None:
    """Prints the counts and the places."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("below", nargs="*", help="only files whose path begins so, such as src/cleft/data")
    parser.add_argument("--soft", action="store_true", help="also list words that are often right")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to read")
    parser.add_argument("--tests", action="store_true", help="also read tests")
    parser.add_argument("--counts", action="store_true", help="counts alone")
    options = parser.parse_args()
    words = {**AVOID, **SOFT} if options.soft else AVOID
    found = list(places(options.root, words, tuple(options.below), options.tests))
    by_word = Counter(place.word for place in found)
    if not options.counts:
        for place in found:
            print(f"{place.path}:{place.line}: [{place.word}] {place.text[:140]}")
    for word in words:
        print(f"{by_word[word]:5}  {word:15} → {words[word][1]}")
    print(f"{sum(by_word[word] for word in AVOID):5}  words to avoid in all")


if __name__ == "__main__":
    main()
