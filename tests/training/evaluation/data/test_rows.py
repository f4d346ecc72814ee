"""Rows are named by their places, through links or not, so that a moved copy has the same fingerprint."""

import shutil

from training.evaluation.data.tables import TableData


def fingerprint(folder) -> str:
    return TableData(str(folder)).part("labels").test.fingerprint


def test_a_copy_and_links_have_the_fingerprint_of_the_files(class_folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(class_folders, copy, copy_function=shutil.copy2)  # with the times of the files
    assert fingerprint(copy) == fingerprint(class_folders)
    linked = tmp_path / "linked"
    for path in class_folders.rglob("*.png"):
        place = linked / path.relative_to(class_folders)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    assert fingerprint(linked) == fingerprint(class_folders)
    (copy / "cat" / "1.png").rename(copy / "cat" / "other.png")
    assert fingerprint(copy) != fingerprint(class_folders)
