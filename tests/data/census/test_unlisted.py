import pytest

from cleft.data.census.unlisted import find_unlisted


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(root, *names):
    unlisted = find_unlisted([f"{root}/{name}" for name in names])
    return {left.reason: (left.count, left.examples) for left in unlisted.files}, unlisted.junk


def test_e9_files_that_no_row_names_are_counted_by_their_ending(tmp_path):
    touch(
        tmp_path, *(f"images/{i}.png" for i in range(6)), "images/deep/a.JPG", "images/deep/1.2.840.113", "images/b.tif"
    )
    assert found(tmp_path, "images/0.png", "images/1.png", "images/gone.png") == (
        {
            ".png": (4, ("2.png", "3.png", "4.png")),
            ".jpg": (1, ("deep/a.JPG",)),
            ".tif": (1, ("b.tif",)),
            "without ending": (1, ("deep/1.2.840.113",)),
        },
        0,
    )


@pytest.mark.parametrize(
    "name", [".DS_Store", "._p1.png", "Thumbs.db", "p9.png.part", "__MACOSX/p1.png", "deep/desktop.ini", "a.crdownload"]
)
def test_what_file_managers_and_broken_downloads_leave_is_junk(tmp_path, name):
    touch(tmp_path, "images/p1.png", f"images/{name}")
    assert found(tmp_path, "images/p1.png") == ({}, 1)


def test_only_what_lies_below_the_folder_of_all_images_counts(tmp_path):
    touch(tmp_path, "a/b/1.png", "a/c/2.png", "a/3.png", "other/4.png", "5.png")
    assert found(tmp_path, "a/b/1.png", "a/c/2.png") == ({".png": (1, ("3.png",))}, 0)


def test_tables_and_documents_are_no_images(tmp_path):
    touch(tmp_path, "1.png", "manifest.csv", "manifest.csv.gz", "README.md", "report.PDF", "labels.zip")
    assert found(tmp_path, "1.png") == ({}, 0)


def test_links_are_not_entered(tmp_path):
    touch(tmp_path, "in/1.png", "away/2.png")
    (tmp_path / "in/link").symlink_to(tmp_path / "away")
    (tmp_path / "in/3.png").symlink_to(tmp_path / "away/2.png")
    assert found(tmp_path, "in/1.png") == ({}, 0)


def test_a_table_without_an_image_has_no_folder_to_look_into(tmp_path):
    touch(tmp_path, "1.png")
    assert find_unlisted([]) == find_unlisted([f"{tmp_path}/"]) == ((), 0)
