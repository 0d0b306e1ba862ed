"""Split files: reproduction on another machine, with ids or digests, and files that are refused."""

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cleft.config import DataConfig
from cleft.data.splits.recipes import salts_of, split_records
from cleft.data.splits.split_file import (
    label_source,
    make_split_file,
    read_split_file,
    split_lines,
    write_split_file,
)
from cleft.data.splits.subsets import ids_digest
from cleft.errors import ConfigError, DataError
from cleft.grammar import count, verb
from cleft.types import Reading, Record, Splits


def record(name, patient):
    return Record(id=name, image=Path(name), labels={}, patient=patient)


def people(sizes):
    return [record(f"p{p}-{i}", f"p{p}") for p, size in enumerate(sizes) for i in range(size)]


def reading(records, **more):
    return Reading(dataset="chexpert", records=list(records), findings=(), sources={"train.csv": "ab" * 32}, **more)


RECORDS = people([1, 2, 3] * 40)


def write(path, records=RECORDS, *, hashed=False, config=None):
    config = config or DataConfig()
    whole = reading(records)
    splits = split_records(whole, config)
    salts = salts_of(splits.recipe, config)
    write_split_file(path, make_split_file(splits, whole, config, salts=salts, hashed=hashed))
    return splits


def follow(path, records=RECORDS):
    return split_records(reading(records), DataConfig(split_file=path))


def edit(path, **changes):
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, **changes}))
    return tree


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("name", ["split.json", "split.json.gz"])
def test_a_split_file_reproduces_the_digest_whatever_the_order_of_the_table(tmp_path, name, hashed):
    drawn = write(tmp_path / name, hashed=hashed)
    back = follow(tmp_path / name, RECORDS[::-1])
    assert back.digest == drawn.digest
    assert back.recipe == "patients"
    assert [{r.id for r in part} for part in back[:3]] == [{r.id for r in part} for part in drawn[:3]]
    assert back.notes == (f"the split is read from {name}",)


def test_a_split_file_overrides_recipe_and_fractions(tmp_path):
    drawn = write(tmp_path / "split.json")
    other = DataConfig(split_file=tmp_path / "split.json", split="5x200-strict", val_fraction=0.4, test_fraction=0)
    assert split_records(reading(RECORDS), other).digest == drawn.digest


def test_a_split_file_records_recipe_sources_and_sizes(tmp_path):
    drawn = write(tmp_path / "split.json", config=DataConfig(views=("AP",)))
    tree = json.loads((tmp_path / "split.json").read_text())
    assert list(tree)[:4] == ["schema", "format", "dataset", "recipe"]
    assert (tree["schema"], tree["format"], tree["dataset"]) == (1, "cleft-split", "chexpert")
    assert tree["digest"] == tree["written"] == drawn.digest
    assert tree["images"] == {**{n: len(p) for n, p in zip(drawn._fields, drawn[:3], strict=False)}, "left out": 0}
    assert tree["patients"]["test"] == len({r.patient for r in drawn.test})
    assert tree["salts"] == {"test": "cleft-test-v1", "val": "cleft-val-v1"}
    assert tree["settings"]["views"] == ["AP"]
    assert tree["sources"] == {"train.csv": "ab" * 32}


def test_hashed_files_contain_no_id(tmp_path):
    write(tmp_path / "split.json", hashed=True)
    text = (tmp_path / "split.json").read_text()
    assert not any(f'"{r.id}"' in text for r in RECORDS)
    assert read_split_file(tmp_path / "split.json").hashed


def test_the_digest_of_an_id_is_the_scrypt_that_the_file_describes(tmp_path):
    write(tmp_path / "split.json", hashed=True)
    tree = json.loads((tmp_path / "split.json").read_text())
    how = tree["id_hash"]
    expected = {
        hashlib.scrypt(r.id.encode(), salt=how["salt"].encode(), n=how["n"], r=how["r"], p=how["p"], dklen=8).hex()
        for r in RECORDS
    }
    assert expected == {*tree["train"], *tree["val"], *tree["test"]}
    assert how["name"] == "scrypt"
    assert how["n"] * how["r"] * 128 >= 1 << 19  # memory per guess


def test_a_file_of_an_earlier_version_with_sha256_is_still_read(tmp_path):
    drawn = write(tmp_path / "split.json")
    tree = json.loads((tmp_path / "split.json").read_text())
    old = {
        part: sorted(
            hashlib.sha256(f"cleft-split-id-v1|chexpert|{key}".encode()).hexdigest()[:16] for key in tree[part]
        )
        for part in ("train", "val", "test")
    }
    del tree["id_hash"]
    written = ids_digest(f"{part}|{key}" for part, keys in old.items() for key in keys)
    (tmp_path / "split.json").write_text(json.dumps({**tree, **old, "hashed": True, "written": written}))
    assert follow(tmp_path / "split.json").digest == drawn.digest


@pytest.mark.parametrize("bad", [{"n": 1 << 30}, {"n": 3}, {"r": 1 << 20}, {"p": 10**6}, {"name": "md5"}, {"n": -2}])
def test_scrypt_parameters_that_need_too_much_memory_are_refused(tmp_path, bad):
    write(tmp_path / "split.json", hashed=True)
    tree = json.loads((tmp_path / "split.json").read_text())
    edit(tmp_path / "split.json", id_hash={**tree["id_hash"], **bad})
    with pytest.raises(DataError, match="its ids are hashed with"):
        follow(tmp_path / "split.json")


def test_matched_digests_are_cached_and_a_damaged_cache_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr("cleft.data.splits.split_file._MIN_CACHED", 10)
    drawn = write(tmp_path / "split.json", hashed=True)
    config = DataConfig(split_file=tmp_path / "split.json", cache=tmp_path / "cache")
    assert split_records(reading(RECORDS), config).digest == drawn.digest
    (kept,) = (tmp_path / "cache" / "splits").iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    with monkeypatch.context() as patched:
        patched.setattr("cleft.data.splits.split_file.IdHash.digests", None)  # fails if called
        assert split_records(reading(RECORDS[::-1]), config).digest == drawn.digest
    kept.write_text(kept.read_text().replace(RECORDS[0].id, "p999-0"))
    assert split_records(reading(RECORDS), config).digest == drawn.digest
    assert split_records(reading(RECORDS[:-1]), config).digest != drawn.digest


def test_equal_splits_are_equal_bytes_and_nothing_else_is_overwritten(tmp_path):
    for name in ("split.json", "split.json.gz"):
        write(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        write(tmp_path / name, RECORDS[::-1])
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(ConfigError, match=r"split\.json exists and is not overwritten; use another name"):
        write(tmp_path / "split.json", RECORDS[:60])


def test_ids_without_an_image_and_images_without_an_id_are_counted(tmp_path):
    drawn = write(tmp_path / "split.json")
    gone = [r for r in RECORDS if r.patient != drawn.train[0].patient]
    new = people([2] * 130)[-20:]
    back = follow(tmp_path / "split.json", [*gone, *new])
    lost = len(RECORDS) - len(gone)
    assert back.notes[1:3] == (
        f"{count(lost, 'id')} of split.json {verb(lost, 'is', 'are')} not among the images",
        "20 images are in no part of split.json and are left out (0 when it was written)",
    )
    assert back.notes[3].startswith("the split differs from the one in split.json: its digest is ")
    assert len(back.train) == len(drawn.train) - lost
    assert back.digest == ids_digest(f"{n}|{r.id}" for n, p in zip(back._fields, back[:3], strict=False) for r in p)


def test_a_changed_table_is_noted(tmp_path):
    write(tmp_path / "split.json")
    other = replace(reading(RECORDS), sources={"train.csv": "cd" * 32})
    back = split_records(other, DataConfig(split_file=tmp_path / "split.json"))
    assert back.notes[-1] == "split.json was made from tables with other content: train.csv"


def test_a_file_written_by_hand_needs_dataset_recipe_and_ids_only(tmp_path):
    tree = {"schema": 1, "format": "cleft-split", "dataset": "chexpert", "recipe": "ours"}
    (tmp_path / "mine.json").write_text(json.dumps({**tree, "train": ["p1-0", "p1-1"], "test": ["p2-0"]}))
    back = follow(tmp_path / "mine.json")
    assert [[r.id for r in part] for part in back[:3]] == [["p1-0", "p1-1"], [], ["p2-0"]]
    assert back.recipe == "ours"


@pytest.mark.parametrize("recipe", ["ours", "patients", "5x200-strict"])
def test_patients_in_two_parts_are_refused(tmp_path, recipe):
    tree = {"schema": 1, "format": "cleft-split", "dataset": "chexpert", "recipe": recipe}
    (tmp_path / "mine.json").write_text(json.dumps({**tree, "train": ["p1-0", "p2-0"], "test": ["p1-1"]}))
    with pytest.raises(DataError, match=rf"1 patient is in two splits of the recipe '{recipe}', such as p1; "):
        follow(tmp_path / "mine.json")


def test_recipes_that_allow_it_may_share_patients(tmp_path):
    tree = {"schema": 1, "format": "cleft-split", "dataset": "chexpert", "recipe": "5x200-paper"}
    (tmp_path / "mine.json").write_text(json.dumps({**tree, "train": ["p1-0", "p2-0"], "test": ["p1-1"]}))
    assert follow(tmp_path / "mine.json").shared_patients == 1


def test_an_id_in_two_parts_is_refused(tmp_path):
    tree = {"schema": 1, "format": "cleft-split", "dataset": "chexpert", "recipe": "ours"}
    (tmp_path / "mine.json").write_text(json.dumps({**tree, "train": ["p1-0", "p2-0"], "val": ["p1-0"]}))
    with pytest.raises(DataError, match=r"mine\.json: 1 id is in it twice, such as p1-0; remove one of them"):
        follow(tmp_path / "mine.json")


@pytest.mark.parametrize("hashed", [False, True])
def test_an_id_that_was_lost_or_changed_is_damage(tmp_path, hashed):
    write(tmp_path / "split.json", hashed=hashed)
    train = json.loads((tmp_path / "split.json").read_text())["train"]
    for spoiled in (train[1:], [*train[1:], "x"]):
        edit(tmp_path / "split.json", train=spoiled)
        with pytest.raises(DataError, match=r"split\.json is damaged: its ids differ"):
            follow(tmp_path / "split.json")


def test_an_image_moved_to_another_part_is_damage(tmp_path):
    write(tmp_path / "split.json")
    tree = json.loads((tmp_path / "split.json").read_text())
    edit(tmp_path / "split.json", train=tree["train"][1:], test=[*tree["test"], tree["train"][0]])
    with pytest.raises(DataError, match="is damaged"):
        follow(tmp_path / "split.json")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"schema": 2},
            r"split\.json is not a split file: .*has schema 2, this version reads 1; write it with cleft data split",
        ),
        ({"format": "other"}, r"its format is 'other', not 'cleft-split'"),
        ({"dataset": "rsna"}, r"is a split of data\.dataset=rsna, not of chexpert; use that dataset"),
        ({"train": "p1-0"}, r"is not a split file: .*train holds str"),
        ({"more": 1}, r"is not a split file: .*unknown fields \['more'\]"),
    ],
)
def test_another_version_format_or_dataset_is_refused(tmp_path, changes, sentence):
    write(tmp_path / "split.json")
    edit(tmp_path / "split.json", **changes)
    with pytest.raises(DataError, match=sentence):
        follow(tmp_path / "split.json")


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-9], lambda data: b"", lambda data: b"\xff" + data, gzip.compress]
)
def test_truncated_and_other_files_are_refused(tmp_path, spoil):
    write(tmp_path / "split.json.gz")
    path = tmp_path / "cut.json"
    path.write_bytes(spoil((tmp_path / "split.json.gz").read_bytes()))
    with pytest.raises(DataError, match=r"cut\.json (is not a split file|cannot be read as a split file)"):
        follow(path)


def test_missing_and_unrelated_split_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no split file at .*gone\.json; set data\.split_file"):
        follow(tmp_path / "gone.json")
    write(tmp_path / "split.json")
    with pytest.raises(DataError, match=r"none of the \d+ training images of .*split\.json is among the 1 here"):
        follow(tmp_path / "split.json", [record("x", "x")])


def labelled(number, **labels):
    return Record(id=f"i{number}", image=Path("x"), labels=labels, patient=f"p{number}", study=f"s{number}")


TRAIN = [labelled(i, Edema=float(i % 2)) for i in range(10)]
VAL = [labelled(i, Edema=1.0) for i in range(10, 15)]
TEST = [labelled(i, Edema=1.0) for i in range(15, 18)]
READING = Reading(
    dataset="chexpert",
    records=[*TRAIN, *VAL, *TEST, labelled(99)],
    findings=("Edema",),
    sources={"train.csv": "ab" * 32, "train_cheXbert.csv": "cd" * 32},
)


def split_of(**changes):
    whole = {"train": TRAIN, "val": VAL, "test": TEST, "recipe": "patients", "digest": "d1", "shared_patients": 0}
    return Splits(**{**whole, **changes})


def test_the_summary_has_salts_sources_sizes_and_shares_by_part():
    salts = {"test": "cleft-test-v1", "val": "cleft-val-v1"}
    assert split_lines(split_of(), READING, DataConfig(label_source="chexbert"), salts) == [
        "split patients (digest d1); salts: test cleft-test-v1, val cleft-val-v1",
        "labels: train_cheXbert.csv",
        f"SHA-256 of train.csv: {'ab' * 32}",
        f"SHA-256 of train_cheXbert.csv: {'cd' * 32}",
        "",
        "             train       val      test",
        "images          10         5         3",
        "patients        10         5         3",
        "Edema       50.0 %   100.0 %         –",
        "1 image is in no part",
    ]


def test_notes_and_leakage_precede_the_table():
    lines = split_lines(
        split_of(test=TRAIN[:6], notes=("a note",), shared_patients=6),
        READING,
        DataConfig(split_file=Path("split.json")),
        {},
    )
    assert lines[0] == "split patients (digest d1)"
    assert lines[4:6] == [
        "a note",
        "Beware: all 6 test patients are also in train, with 6 other images, 6 of them from a study that is also in "
        "test (split patients); metrics on test are too optimistic.",
    ]


def test_the_label_source_is_the_table_unless_another_is_set():
    assert label_source(READING, DataConfig()) == "train.csv"
    assert label_source(READING, DataConfig(label_source="visualchexbert")) == "train_visualCheXbert.csv"
