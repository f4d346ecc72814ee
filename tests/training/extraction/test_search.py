import shutil
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image

from modeling_radio import RadioModel
from training.extraction.search import FeatureFolder, search, to_table, write_found_page


@pytest.fixture
def colors(tmp_path):
    """Plain images, which even a random model tells apart, in two splits."""
    values = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "gray": (128, 128, 128)}
    for split in ("train", "test"):
        for name, color in values.items():
            path = tmp_path / "colors" / split / ("warm" if name == "red" else "cold") / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 32), tuple(value + 2 * (split == "test") for value in color)).save(path)
    return tmp_path / "colors"


@pytest.mark.parametrize("by", [None, "teacher_a"])
def test_an_image_is_found_by_itself(extract, settings, colors, by):
    extract(data=str(colors), adaptors=["teacher_a"])
    query = str(colors / "test" / "cold" / "blue.png")
    hits = search(settings(data=None, search=query, by=by, top=3))
    assert [(hit.split, hit.row["id"]) for hit in hits[:2]] == [
        ("test", "test/cold/blue.png"),
        ("train", "train/cold/blue.png"),
    ]
    assert hits[0].cosine == pytest.approx(1, abs=1e-5)
    assert [hit.cosine for hit in hits] == sorted((hit.cosine for hit in hits), reverse=True)
    lines = to_table(hits).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["", "cosine", "split", "id", "label"]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["1", "1.000", "test", "test/cold/blue.png", "cold"]
    assert len(lines) == 5


def test_a_vector_of_zeros_has_no_direction(extract, settings, colors, checkpoint, tmp_path):
    model = RadioModel.from_pretrained(checkpoint)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model.save_pretrained(tmp_path / "zeros")
    extract(checkpoint=tmp_path / "zeros", data=str(colors))
    query = str(colors / "test" / "cold" / "blue.png")
    hits = search(settings(checkpoint=tmp_path / "zeros", data=None, search=query, top=3))
    assert [hit.cosine for hit in hits] == [0, 0, 0]


def test_another_image_finds_others(extract, settings, colors):
    extract(data=str(colors))
    found = {
        name: search(settings(data=None, search=str(colors / "train" / place / f"{name}.png"), top=2))
        for name, place in (("red", "warm"), ("green", "cold"))
    }
    assert {hit.row["id"].rpartition("/")[2] for hit in found["red"]} == {"red.png"}
    assert {hit.row["id"].rpartition("/")[2] for hit in found["green"]} == {"green.png"}


def test_a_text_is_compared_in_the_space_of_the_tower(extract, settings, colors, zero_shot_folder):
    extract(checkpoint=zero_shot_folder, data=str(colors), adaptors=["siglip2-g"], shard_images=3)
    hits = search(settings(checkpoint=zero_shot_folder, data=None, search="a photo of a cat", top=8))
    from training.evaluation.models.radio import open_radio

    model = open_radio(zero_shot_folder)
    text = model.embed_texts(["a photo of a cat"])[0]
    for hit in hits:
        with Image.open(colors / hit.row["id"]) as picture:
            pixels = model.preprocess(torch.from_numpy(__import__("numpy").array(picture)).movedim(-1, 0))
        summary = model.encode(pixels[None], ["siglip2-g"]).adaptors["siglip2-g"].summary[0]
        assert hit.cosine == pytest.approx(torch.cosine_similarity(summary, text, dim=0).item(), abs=1e-5)
    assert [hit.cosine for hit in hits] == sorted((hit.cosine for hit in hits), reverse=True)
    others = search(settings(checkpoint=zero_shot_folder, data=None, search="grass", top=8))
    assert [hit.cosine for hit in others] != [hit.cosine for hit in hits]
    with pytest.raises(ValueError, match="`by` must be 'siglip2-g' for texts, got 'other'"):
        search(settings(checkpoint=zero_shot_folder, data=None, search="grass", by="other"))


def test_a_text_may_be_longer_than_a_path(extract, settings, colors, zero_shot_folder):
    extract(checkpoint=zero_shot_folder, data=str(colors), adaptors=["siglip2-g"])
    assert len(search(settings(checkpoint=zero_shot_folder, data=None, search="a red cat, " * 500, top=2))) == 2


def test_labels_outside_of_the_classes_stay_numbers(extract, settings, colors, tmp_path):
    names = ["cold", "warm"]
    paths = [str(colors / "test" / "cold" / f"{name}.png") for name in ("blue", "green", "gray")]
    columns = {"image": ImageColumn(), "label": ClassLabel(names=names)}
    images = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    rows = Dataset.from_dict({"image": images, "label": [-1, 1, None]}, features=Features(columns))
    rows.to_parquet(tmp_path / "rows" / "train.parquet")
    extract(data=str(tmp_path / "rows"))
    hits = search(settings(data=None, search=paths[0], top=3))
    assert {hit.number: hit.row["label"] for hit in hits} == {0: -1, 1: "warm", 2: None}
    assert "| -1" in to_table(hits)


def test_what_cannot_be_searched_is_said(extract, settings, colors, checkpoint, zero_shot_folder, tmp_path):
    with pytest.raises(ValueError, match=r"`output` must be a folder of training\.extract"):
        search(settings(data=None, search="cat"))
    extract(data=str(colors))
    with pytest.raises(ValueError, match="`search` must be an image file where the checkpoint has no text tower"):
        search(settings(data=None, search="a cat"))
    with pytest.raises(ValueError, match=r"`search` must be an image that can be decoded.*missing\.png"):
        search(settings(data=None, search="missing.png"))
    query = str(colors / "test" / "cold" / "blue.png")
    with pytest.raises(
        ValueError, match=r"must hold the column 'teacher_a/summary'.*got summary.*--adaptors teacher_a"
    ):
        search(settings(data=None, search=query, by="teacher_a"))
    with pytest.raises(ValueError, match="`checkpoint` must be the one that the features are of"):
        search(settings(checkpoint=zero_shot_folder, data=None, search=query))
    (tmp_path / "out" / FeatureFolder(tmp_path / "out").shards[1].path).unlink()
    with pytest.raises(ValueError, match="which lacks 1 of 2 files"):
        search(settings(data=None, search=query))


def test_the_page_shows_what_was_found(extract, settings, colors, tmp_path):
    extract(data=str(colors))
    query = str(colors / "train" / "warm" / "red.png")
    asked = settings(data=str(colors), search=query, top=3, page=tmp_path / "found.html")
    hits = search(asked)
    write_found_page(asked, hits)
    page = (tmp_path / "found.html").read_text()
    assert page.count("data:image/webp;base64,") == 4  # the query and three others
    assert "1.000 train/warm/red.png" in page
    assert "Measurements" not in page
    search(asked)  # a page of ours is replaced
    other = shutil.copytree(colors, tmp_path / "other")
    (other / "test" / "warm" / "red.png").unlink()
    with pytest.raises(ValueError, match="`data` must be the images that the features are of"):
        write_found_page(settings(data=str(other), search=query, page=tmp_path / "found.html"), hits)
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(ValueError, match="`page` must leave room"):
        search(settings(data=str(colors), search=query, page=tmp_path / "notes.html"))
