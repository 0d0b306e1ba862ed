"""Writes requirements.lock: every version pinned in constraints.txt with the SHA-256 of each of its files.

    python .ci/lock.py <address of a package index that answers in JSON (PEP 691)>

torch is left out: the builds for CPUs and for each CUDA release have the same version and other hashes, and are
published by other indexes. It is installed last, by its version alone.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNHASHED = {"torch"}
HEAD = (
    "# Written by .ci/lock.py from constraints.txt: every version with the SHA-256 of each of its files.\n"
    "# torch is not listed: its builds for CPUs and for each CUDA release share a version and differ in their hashes.\n"
)


def pins(text: str) -> dict[str, str]:
    """Returns name to version of each line `name==version`."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", text, re.MULTILINE))


def hashes(index: str, name: str, version: str) -> list[str]:
    """Returns the SHA-256 of each file of a release, ascending.

    Raises:
        SystemExit: If the index has no file of that release.
    """
    address = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', name).lower()}/"
    request = urllib.request.Request(address, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    spelled = r"[-_.]+".join(map(re.escape, re.split(r"[-_.]+", name)))
    stem = re.compile(rf"{spelled}-{re.escape(version)}(-|\.tar|\.zip)", re.IGNORECASE)
    found = sorted(file["hashes"]["sha256"] for file in files if stem.match(file["filename"]) and not file["yanked"])
    if not found:
        raise SystemExit(f"{address} has no file of {name} {version}")
    return found


def main(index: str) -> None:
    """Writes the lock."""
    lines = [HEAD]
    for name, version in pins((ROOT / "constraints.txt").read_text(encoding="utf-8")).items():
        if name not in UNHASHED:
            known = " \\\n".join(f"    --hash=sha256:{digest}" for digest in hashes(index, name, version))
            lines.append(f"{name}=={version} \\\n{known}\n")
    (ROOT / "requirements.lock").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
