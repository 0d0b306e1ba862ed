import os

import pytest

from cleft.data.tables.spelling import respell


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
def test_case_and_accents_do_not_hide_a_file(root, written, on_disk):
    assert respell(root, [written], []) == {written: on_disk}


def test_a_file_with_two_claims_or_a_claim_with_two_files_is_left_alone(root):
    assert respell(root, ["images/p2.PNG", "Images/P2.png"], []) == {}
    (root / "images/P2.png").touch()
    assert respell(root, ["IMAGES/p2.PNG"], []) == {}
    assert respell(root, ["IMAGES/p2.PNG"], ["images/P2.png"]) == {"IMAGES/p2.PNG": "Images/p2.png"}


def test_what_is_not_there_and_what_is_a_folder_are_not_found(root):
    assert respell(root, ["Images/none.png", "none/p1.png", "bilder", "Images/P1.PNG/x.png"], []) == {}


def test_links_are_not_followed(root, tmp_path_factory):
    away = tmp_path_factory.mktemp("away")
    (away / "s.png").touch()
    (root / "Link").symlink_to(away)
    (root / "Images" / "Linked.png").symlink_to(away / "s.png")
    assert respell(root, ["link/S.png", "images/linked.PNG"], []) == {}


def test_each_folder_is_listed_once(root, monkeypatch):
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    respell(root, [f"Images/{i}.png" for i in range(50)], [])
    assert len(listed) == len(set(listed)) <= 3
