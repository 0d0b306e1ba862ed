"""Tampered model folders: no uncaught exception, crash, hang or write, and no other embeddings without a message.

Every mutant is read in a child process with a deadline and a limit of memory, by `cleft.load` and by `cleft evaluate`.
A mutant is sealed where its digests were made anew, as by somebody who means it: such a folder is another model, and
its embeddings may differ. In all others every change must be refused.

    python -m pytest -m slow tests/fuzz/test_model_folders.py -s
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.fakes.models import CAPTIONS, edit_description, fake_images, fake_model, fake_settings

import cleft
from cleft.cli import main
from cleft.config import dump_settings
from cleft.errors import CleftError
from cleft.models.checkpoint import save_model
from cleft.models.model_folder import digest_of, seal

MUTANTS = int(os.environ.get("CLEFT_FUZZ_FOLDERS", "200"))
SECONDS = 120
MEMORY = 16 * 2**30
"""Address space of a child; a model of these tests needs a thousandth of it."""
VALUES = [
    None,
    True,
    [],
    {},
    "",
    "x",
    "../x",
    0,
    -1,
    1,
    0.5,
    1e300,
    10**6,
    2**31,
    2**63,
    10**40,
    [[]],
    {"a": []},
    [1e9],
]
BESIDE = ("results", "embeddings")
"""What evaluating a model writes into its folder."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Synthetic radiographs, and model folders of two kinds that can be evaluated."""
    home = tmp_path_factory.mktemp("fuzz")
    assert main(["data", "phantoms", str(home / "data"), "--patients", "12"]) == 0
    for name, settings in (("one", fake_settings("resnet", "gpt2")), ("two", fake_settings("vit", "bert"))):
        data = dataclasses.replace(settings.data, root=home / "data", cache=home / "cache")
        settings = dataclasses.replace(settings, data=data)
        model = fake_model(settings)
        if name == "one":
            model.set_context(torch.randn(3, 24, generator=torch.Generator().manual_seed(0)))
        save_model(model, settings, home / name)
        (home / name / "config.yaml").write_text(dump_settings(settings))
        assert main(evaluation(home / name, home / "data")) == 0  # children inherit what it imports and prepares
        for made in BESIDE:
            shutil.rmtree(home / name / made, ignore_errors=True)
    return home


@pytest.mark.slow
def test_tampered_model_folders(home, tmp_path, capsys):
    clean = {name: embeddings_of(home / name) for name in ("one", "two")}
    assert [outcome(home / name, home / "data", clean[name]) for name in clean] == ["equal", "equal"]
    found: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    faults: list[str] = []
    for number in range(MUTANTS):
        draw = random.Random(number)
        place = tmp_path / f"{number}"
        (place / "documents/notes").mkdir(parents=True)
        (place / "documents/thesis.txt").write_text("three years")
        (place / ".bashrc").write_text("alias ll='ls -l'")
        name = draw.choice(["one", "two"])
        folder = shutil.copytree(home / name, place / "model")
        mutate = draw.choice(MUTATIONS)
        sealed = bool(mutate(folder, draw))
        kinds[mutate.__name__] += 1
        before = snapshot(place)
        result = outcome(folder, home / "data", clean[name])
        if snapshot(place) != before:
            result = "wrote"
        if result == "other embeddings" and sealed:
            result = "another model, sealed"
        found[result.partition(":")[0]] += 1
        if result not in ("refused", "equal", "another model, sealed"):
            faults.append(f"{number} {mutate.__name__}: {result}")
            with capsys.disabled():
                print(faults[-1])
        shutil.rmtree(place)
    with capsys.disabled():
        print(f"\n{MUTANTS} tampered model folders: {dict(found)}; {len(faults)} faults\n{dict(kinds)}")
    assert not faults, "\n".join(faults)
    assert found["refused"] > MUTANTS / 2


def flip_bytes(folder, draw):
    path = draw.choice(files_of(folder))
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 1, 5])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(folder, draw):
    path = draw.choice(files_of(folder))
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))] + draw.choice([b"", bytes(40)]))


def rename(folder, draw):
    path = draw.choice(files_of(folder))
    path.rename(draw.choice([path.with_name(path.name.upper()), path.with_name(f"{path.name}."), folder / "other"]))


def remove(folder, draw):
    draw.choice(files_of(folder)).unlink()


def swap(folder, draw):
    one, other = draw.sample(files_of(folder), 2)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def swap_digests(folder, draw):
    def change(tree):
        one, other = draw.sample(sorted(tree["files"]), 2)
        tree["files"][one], tree["files"][other] = tree["files"][other], tree["files"][one]

    edit_description(folder, change)


def add(folder, draw):
    path = folder / draw.choice(
        ["towers/text/adapter_config.json", "towers/text/code.py", "towers/x", "towers/image/model.safetensors"]
    )
    path.write_text("{}")


def retype_unsealed(folder, draw):
    """Changes a field of `model.json` without updating its digest."""
    tree = json.loads((folder / "model.json").read_text())
    place = draw.choice(list(leaves(tree)))
    put(tree, place, other_than(tree, place, draw))
    (folder / "model.json").write_text(json.dumps(tree, indent=1))


def retype(folder, draw):
    edit_description(folder, lambda tree: alter(tree, draw), sealed=draw.random() < 0.5)
    return True


def retype_settings(folder, draw):
    edit_description(folder, lambda tree: alter(tree["settings"], draw))
    return True


def respell_settings(folder, draw):
    """Writes settings in forms that may mean the same: 1 for 1.0, text for a number, a list of one."""

    def change(tree):
        settings = tree["settings"]
        for place in draw.sample(list(leaves(settings)), 3):
            value = get(settings, place)
            forms = [value, str(value), [value]]
            if isinstance(value, int | float):
                forms += [float(value), f"{value}", value + 0.0, f"{float(value):e}"]
            put(settings, place, draw.choice(forms))

    edit_description(folder, change)
    return True


def retype_tower(folder, draw):
    path = draw.choice([*(folder / "towers").rglob("config.json"), folder / "towers/text/tokenizer_config.json"])
    return rewrite(folder, path, lambda tree: alter(tree, draw))


def retype_tokenizer(folder, draw):
    return rewrite(folder, folder / "towers/text/tokenizer.json", lambda tree: alter(tree, draw))


def replace_tower(folder, draw):
    path = draw.choice(list((folder / "towers").rglob("*.json")))
    path.write_text(
        draw.choice(["", "[]", "null", "{}", "[" * 10_000, '{"a": NaN}', '{"model_type": "gpt2"}', "\ufeff{}"])
    )
    return reseal(folder)


def falsify_header(folder, draw):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    tree = json.loads(content[8 : 8 + size])
    name = draw.choice([name for name in tree if name != "__metadata__"])
    entry = tree[name]
    fault = draw.choice(["dtype", "shape", "data_offsets", "name", "drop", "twice", "size"])
    if fault == "dtype":
        entry["dtype"] = draw.choice(["F64", "F16", "I32", "F8_E4M3", "C64", "X", 3, None])
    elif fault in ("shape", "data_offsets"):
        entry[fault] = draw.choice([[], [0], [-1], [2**62, 2**62], None, [1.5], "x", list(reversed(entry[fault]))])
    elif fault == "name":
        tree[draw.choice(["", "../x", "context", "a" * 10_000, "base.\0"])] = tree.pop(name)
    elif fault == "drop":
        del tree[name]
    text = json.dumps(tree).encode()
    if fault == "twice":
        text = text[:-1] + b", " + json.dumps({name: entry}).encode()[1:]
    length = draw.choice([0, 2**62, len(text) - 1]) if fault == "size" else len(text)
    path.write_bytes(struct.pack("<Q", length) + text + content[8 + size :])
    return reseal(folder)


def damage_numbers(folder, draw):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    size = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(draw.choice([1, 20])):
        place = size + 4 * draw.randrange((len(content) - size) // 4)
        content[place : place + 4] = draw.choice([b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\1\0\0\0"])
    path.write_bytes(content)
    return reseal(folder)


def link(folder, draw):
    kind = draw.choice(["file", "folder", "outside", "loop", "pipe"])
    path = (
        draw.choice(files_of(folder)) if kind != "folder" else draw.choice([folder / "towers", folder / "towers/text"])
    )
    if kind == "loop":
        path.unlink()
        path.symlink_to(path.name)
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "outside":
        path.unlink()
        path.symlink_to(folder.parent / "documents/thesis.txt")
    else:
        path.rename(folder.parent / "moved")
        path.symlink_to(folder.parent / "moved")


def stage_hostile(folder, draw):
    """Adds a hostile interrupted save, complete or not, with names of files outside."""
    stage = folder / ".saving"
    stage.mkdir()
    facts = {"bytes": 4, "sha256": hashlib.sha256(b"evil").hexdigest()}
    name = draw.choice(
        [
            "../payload",
            "link/.bashrc",
            "towers/../../.bashrc",
            str(folder.parent / ".bashrc"),
            "model.json",
            "towers",
            "",
        ]
    )
    files = {"model.safetensors": facts, name: facts} if draw.random() < 0.8 else {}
    (folder / "link").symlink_to(folder.parent)
    (stage / "link").mkdir()
    for path in (stage / "model.safetensors", stage / "link/.bashrc", folder / "payload"):
        path.write_text("evil")
    if draw.random() < 0.5:
        shutil.rmtree(folder / "towers")
        (folder / "towers").symlink_to(folder.parent / "documents")
    tree = {"made_by": {}, "settings": {}, "trained_tokens": []}
    (stage / "model.json").write_text(draw.choice([seal(tree, files), json.dumps({"schema": 1, "files": files}), "{"]))


def stage_copy(folder, draw):
    """Adds the folder's model as an interrupted save, complete or damaged."""
    shutil.copytree(folder, folder / ".saving", ignore=shutil.ignore_patterns("config.yaml"))
    if draw.random() < 0.7:
        draw.choice([flip_bytes, cut, remove, link, swap])(folder / ".saving", draw)
    if draw.random() < 0.3:
        (folder / ".saving").rename(folder.parent / "moved")
        (folder / ".saving").symlink_to(folder.parent / "moved")


MUTATIONS = [
    *(flip_bytes, flip_bytes, cut, rename, remove, swap, swap_digests, add, retype_unsealed, retype, retype),
    *(retype_settings, retype_settings, respell_settings, retype_tower, retype_tower, retype_tokenizer),
    *(
        replace_tower,
        falsify_header,
        falsify_header,
        damage_numbers,
        link,
        link,
        stage_hostile,
        stage_hostile,
        stage_copy,
    ),
]


def files_of(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "config.yaml"]


def rewrite(folder, path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    return reseal(folder)


def reseal(folder):
    """Recomputes the digests of all files."""

    def change(tree):
        for name in tree["files"]:
            path = folder / name
            tree["files"][name] = {"bytes": path.stat().st_size, "sha256": digest_of(path)}

    edit_description(folder, change)
    return True


def leaves(tree, place=()):
    """Places of every value in nested objects and lists, and of every object and list."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*place, key)
        if isinstance(value, dict | list) and len(value) < 50:
            yield from leaves(value, (*place, key))


def get(tree, place):
    for key in place:
        tree = tree[key]
    return tree


def put(tree, place, value):
    get(tree, place[:-1])[place[-1]] = value


def other_than(tree, place, draw):
    old = get(tree, place)
    return draw.choice([value for value in VALUES if value != old or type(value) is not type(old)])


def alter(tree, draw):
    """One value of a tree becomes another, is dropped, or gets a neighbour."""
    place = draw.choice(list(leaves(tree)))
    parent = get(tree, place[:-1])
    change = draw.random()
    if change < 0.7:
        parent[place[-1]] = other_than(tree, place, draw)
    elif change < 0.85:
        del parent[place[-1]]
    elif isinstance(parent, dict):
        parent[draw.choice(["x", "../x", "", "auto_map", "self"])] = draw.choice(VALUES)
    else:
        parent.append(draw.choice(VALUES))


def snapshot(folder):
    """Every entry below a folder, but what evaluating writes: type, inode, time of change, content or target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[1:2] and name.parts[1] in BESIDE:
            continue
        state = path.lstat()
        inside = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        changed = 0 if path.is_dir() else state.st_ctime_ns
        found[name.as_posix()] = (state.st_mode, state.st_ino, changed, inside)
    return found


def evaluation(folder, data):
    return ["evaluate", str(folder), "--data", f"chexpert:{data}", "--split", "all", "--allow-overlap"]


def embeddings_of(folder) -> str:
    model = cleft.load(folder)
    with torch.no_grad():
        parts = [model.encode_image(fake_images()), model.encode_text(CAPTIONS)]
        parts += [] if model.context is None else [model.encode_class_names(["edema"])]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def outcome(folder: Path, data: Path, clean: str) -> str:
    """What a child makes of a folder: refused, equal, other embeddings, or a fault with its reason."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), 1)
                os.dup2(null.fileno(), 2)
            os.write(writer, tried(folder, data, clean).encode()[:4000])
        finally:
            os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], SECONDS)
    result = os.read(reader, 4000).decode() if ready else "hung: "
    os.close(reader)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return result or "died: "


def tried(folder: Path, data: Path, clean: str) -> str:
    try:
        digest = embeddings_of(folder)
    except CleftError:
        digest = None
    except BaseException:  # noqa: BLE001 whatever is raised that is no CleftError is what this looks for
        return f"uncaught: {traceback.format_exc()[-1500:]}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            code = main(evaluation(folder, data))
    except BaseException:  # noqa: BLE001 as above
        return f"uncaught: evaluate {traceback.format_exc()[-1500:]}"
    if "Traceback" in said.getvalue() or code not in (0, 2, 3, 4, 5, 6):
        return f"uncaught: evaluate {code} {said.getvalue()[-1500:]}"
    if code:
        return "refused"  # by both, or by evaluate alone, such as for scores that are not finite
    if digest is None:
        return "evaluated, not loaded"
    return "equal" if digest == clean else "other embeddings"
