import os

import pytest

from cleft.data.tables.paths import are_files, find_inside, find_respelled, leaves_root, normalise_path


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../a.png", "a/../../b.png", "a/..", "C:\\a.png", "c:a.png", "a\\b.png", "\\\\host\\a.png", 
        "a\0.png", "http://host/a.png", "s3://bucket/a.png", "file:///a.png", "~/a.png",
    ],
)  # fmt: skip
def test_paths_that_leave_the_root_are_detected_by_text(path):
    assert leaves_root(path)


@pytest.mark.parametrize("path", ["a.png", "a/b.png", "..a/b..png", "a b/ü.png", "./a.png", "ab:c.png"])
def test_paths_inside_the_root_are_accepted(path):
    assert not leaves_root(path)


def test_paths_are_normalised():
    assert {normalise_path(path) for path in ("a/b.png", "./a/b.png", "a//b.png", "a/./b.png")} == {"a/b.png"}


@pytest.mark.parametrize("count", [3, 30])
def test_files_differ_from_folders_and_missing_paths(tmp_path, count):
    """A few files are looked up one by one, many are listed; both give the same result."""
    paths = [tmp_path / f"{i}.png" for i in range(count)]
    for path in paths[1:]:
        path.touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.png").symlink_to(paths[1])
    (tmp_path / "broken.png").symlink_to(paths[0])
    names = [*(path.name for path in paths), "folder", "link.png", "broken.png", ""]
    expected = [False, *[True] * (count - 1), False, True, False, False]
    assert are_files([f"{tmp_path}/{name}" for name in names]).tolist() == expected
    present, outside = find_inside(tmp_path, names)
    assert present.tolist() == expected
    assert not outside.any()


def test_a_missing_folder_holds_no_files(tmp_path):
    assert not are_files([f"{tmp_path}/none/{i}.png" for i in range(20)]).any()


@pytest.fixture
def tree(tmp_path):
    """A root with links to a file and a folder outside it, and to both inside it."""
    root, away = tmp_path / "root", tmp_path / "away"
    for folder in (root / "in", away):
        folder.mkdir(parents=True)
        (folder / "a.png").touch()
    (root / "file.png").symlink_to(away / "a.png")
    (root / "folder").symlink_to(away)
    (root / "good.png").symlink_to(root / "in" / "a.png")
    (root / "goodfolder").symlink_to(root / "in")
    return root


def test_links_out_of_the_root_are_not_followed(tree):
    names = ["in/a.png", "file.png", "folder/a.png", "good.png", "goodfolder/a.png", "in/b.png"]
    present, outside = find_inside(tree, names)
    assert present.tolist() == [True, False, False, True, True, False]
    assert outside.tolist() == [False, True, True, False, False, False]


def test_a_root_that_is_itself_a_link_is_a_root(tree, tmp_path):
    (tmp_path / "alias").symlink_to(tree)
    present, outside = find_inside(tmp_path / "alias", ["in/a.png", "folder/a.png"])
    assert (present.tolist(), outside.tolist()) == ([True, False], [False, True])


def test_a_folder_outside_is_not_listed(tree, monkeypatch):
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(os.fspath(path)) or scandir(path))
    find_inside(tree, [f"folder/{i}.png" for i in range(20)])
    assert listed == []


@pytest.fixture
def root(tmp_path):
    for name in ("Images/P1.PNG", "Images/e\u0301tude.png", "Images/p2.png", "images/other.png", "Bilder/q.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("Images/p1.png", "Images/P1.PNG"),
        ("IMAGES/p1.png", "Images/P1.PNG"),
        ("Images/\u00e9tude.png", "Images/e\u0301tude.png"),
        ("bilder/Q.PNG", "Bilder/q.png"),
        ("images/OTHER.png", "images/other.png"),
    ],
)
def test_files_are_found_despite_letter_case_and_accents(root, written, on_disk):
    assert find_respelled(root, [written], []) == {written: on_disk}


def test_ambiguous_spellings_are_not_matched(root):
    assert find_respelled(root, ["images/p2.PNG", "Images/P2.png"], []) == {}
    (root / "images/P2.png").touch()
    assert find_respelled(root, ["IMAGES/p2.PNG"], []) == {}
    assert find_respelled(root, ["IMAGES/p2.PNG"], ["images/P2.png"]) == {"IMAGES/p2.PNG": "Images/p2.png"}


def test_missing_files_and_folders_are_not_found(root):
    assert find_respelled(root, ["Images/none.png", "none/p1.png", "bilder", "Images/P1.PNG/x.png"], []) == {}


def test_links_are_not_followed(root, tmp_path_factory):
    away = tmp_path_factory.mktemp("away")
    (away / "s.png").touch()
    (root / "Link").symlink_to(away)
    (root / "Images" / "Linked.png").symlink_to(away / "s.png")
    assert find_respelled(root, ["link/S.png", "images/linked.PNG"], []) == {}


def test_each_folder_is_listed_once(root, monkeypatch):
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    find_respelled(root, [f"Images/{i}.png" for i in range(50)], [])
    assert len(listed) == len(set(listed)) <= 3
