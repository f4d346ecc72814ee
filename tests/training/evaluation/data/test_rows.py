"""Rows are named by their places, through links or not, so that a moved copy has the same fingerprint."""

import shutil

import pytest
from PIL import Image

from training.evaluation.data_tables import TableData


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


@pytest.mark.parametrize("names", ["132", "1233"])
def test_the_fingerprint_knows_order_and_repetition(names, tmp_path):
    """Kept features are found by number: those of rows in another order are of other images."""
    for name in "123":
        Image.new("RGB", (20, 20), (80 * int(name), 0, 0)).save(tmp_path / f"{name}.png")

    def of_rows(listed):
        rows = [f"{name}.png,number {place}" for place, name in enumerate(listed)]
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,caption", *rows]))
        return TableData(str(tmp_path)).part("captions").test

    first = of_rows("123")
    assert of_rows("123").picture_fingerprint == first.picture_fingerprint
    others = of_rows(names)
    assert others.picture_fingerprint != first.picture_fingerprint
    assert others.fingerprint != first.fingerprint
