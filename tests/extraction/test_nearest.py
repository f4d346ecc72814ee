"""Searches by images and texts, with and without an index, and their page."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image
from pyarrow.parquet import read_table
from refusals import refused

from modeling_radio import RadioModel
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.extraction.nearest import (
    FeatureFolder,
    build_indexes,
    index_path,
    nearest,
    search,
    to_table,
    write_found_page,
)
from modeling_radio.extraction.settings import SearchSettings


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_nearest_row_is_the_vector_itself(extract, dtype, tmp_path):
    extract(vector_dtype=dtype)
    data = FeatureFolder(tmp_path / "out")
    rows = [np.stack(read_table(data.store.folder / each.path)["summary"].to_numpy()) for each in data.shards]
    vectors = np.concatenate(rows).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[7]
    found = nearest(data.store, data.shards, "summary", vectors[7], 4)
    assert found[0][1:] == ("train", 7)
    scores = [cosine for cosine, _, _ in found]
    np.testing.assert_allclose(scores, cosines[[number for _, _, number in found]], atol=1e-6)
    np.testing.assert_allclose(scores, np.sort(cosines)[::-1][:4], atol=1e-5)
    assert len(nearest(data.store, data.shards, "summary", vectors[7], 99)) == 23


@pytest.mark.parametrize(("kind", "index_class"), [("flat", "IndexFlatIP"), ("hnsw", "IndexHNSWFlat")])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_index_finds_the_same_as_a_comparison_with_all(extract, kind, index_class, dtype, tmp_path):
    faiss = pytest.importorskip("faiss")
    extract(adaptors=["teacher_a"], vector_dtype=dtype)
    data = FeatureFolder(tmp_path / "out")
    queries = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    by_all = [nearest(data.store, data.shards, "summary", query, 5) for query in queries]
    build_indexes(data.store, data.shards, ["summary", "teacher_a/summary"], kind)
    assert (data.store.folder / index_path("train", "teacher_a/summary")).is_file()
    path = data.store.folder / index_path("train", "summary")
    index = faiss.read_index(str(path))
    assert (type(index).__name__, index.ntotal) == (index_class, 23)
    for query, expected in zip(queries, by_all, strict=True):
        found = nearest(data.store, data.shards, "summary", query, 5)
        assert [each[1:] for each in found] == [each[1:] for each in expected]
        np.testing.assert_allclose([each[0] for each in found], [each[0] for each in expected], atol=1e-5)
    assert len(nearest(data.store, data.shards, "summary", queries[0], 99)) == 23
    content = path.read_bytes()
    for changed in (content[:20], content[:99] + bytes([content[99] ^ 0x40]) + content[100:]):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"train-summary\.faiss"):
            nearest(data.store, data.shards, "summary", queries[0], 5)


@pytest.fixture
def asked(checkpoint, tmp_path):
    """Return a function that makes settings of a search in what `extract` wrote."""
    return lambda **values: SearchSettings(**({"folder": tmp_path / "out", "checkpoint": checkpoint} | values))


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
def test_an_image_is_found_by_itself(extract, asked, colors, by):
    extract(data=str(colors), adaptors=["teacher_a"])
    query = str(colors / "test" / "cold" / "blue.png")
    hits = search(asked(query=query, by=by, top=3))
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


def test_a_vector_of_zeros_has_no_direction(extract, asked, colors, checkpoint, tmp_path):
    model = RadioModel.from_pretrained(checkpoint)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model.save_pretrained(tmp_path / "zeros")
    extract(checkpoint=tmp_path / "zeros", data=str(colors))
    query = str(colors / "test" / "cold" / "blue.png")
    hits = search(asked(checkpoint=tmp_path / "zeros", query=query, top=3))
    assert [hit.cosine for hit in hits] == [0, 0, 0]


def test_a_text_is_compared_in_the_space_of_the_tower(extract, asked, colors, zero_shot_folder):
    extract(checkpoint=zero_shot_folder, data=str(colors), adaptors=["siglip2-g"], shard_images=3)
    hits = search(asked(checkpoint=zero_shot_folder, query="a photo of a cat", top=8))
    model = RadioFeatures.open(zero_shot_folder)
    text = model.embed_texts(["a photo of a cat"])[0]
    for hit in hits:
        with Image.open(colors / hit.row["id"]) as picture:
            pixels = model.preprocess(torch.from_numpy(np.array(picture)).movedim(-1, 0))
        summary = model.encode(pixels[None], ["siglip2-g"]).adaptors["siglip2-g"].summary[0]
        assert hit.cosine == pytest.approx(torch.cosine_similarity(summary, text, dim=0).item(), abs=1e-5)
    assert [hit.cosine for hit in hits] == sorted((hit.cosine for hit in hits), reverse=True)
    longer_than_a_path = "a red cat, " * 500
    others = search(asked(checkpoint=zero_shot_folder, query=longer_than_a_path, top=8))
    assert [hit.cosine for hit in others] != [hit.cosine for hit in hits]
    with pytest.raises(ValueError, match="`by`"):
        search(asked(checkpoint=zero_shot_folder, query="grass", by="other"))


def test_labels_outside_of_the_classes_stay_numbers(extract, asked, colors, tmp_path):
    names = ["cold", "warm"]
    paths = [str(colors / "test" / "cold" / f"{name}.png") for name in ("blue", "green", "gray")]
    columns = {"image": ImageColumn(), "label": ClassLabel(names=names)}
    images = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    rows = Dataset.from_dict({"image": images, "label": [-1, 1, None]}, features=Features(columns))
    rows.to_parquet(tmp_path / "rows" / "train.parquet")
    extract(data=str(tmp_path / "rows"))
    hits = search(asked(query=paths[0], top=3))
    assert {hit.number: hit.row["label"] for hit in hits} == {0: -1, 1: "warm", 2: None}
    assert "| -1" in to_table(hits)


def test_searches_that_cannot_be_made_are_refused(extract, asked, colors, zero_shot_folder, tmp_path):
    query = str(colors / "test" / "cold" / "blue.png")

    def refuse(name, **values):
        with pytest.raises(ValueError, match=name):
            search(asked(**{"query": query, **values}))

    refuse("no data set", query="cat")
    extract(data=str(colors))
    refuse("`query` .*text tower", query="a cat")
    refuse(r"`query` .*missing\.png", query="missing.png")
    refuse("`folder` .*'teacher_a/summary'", by="teacher_a")
    refuse("`checkpoint`", checkpoint=zero_shot_folder)
    (tmp_path / "out" / FeatureFolder(tmp_path / "out").shards[1].path).unlink()
    refuse("`folder` .* 1 of 2 files")


def test_the_page_shows_what_was_found(extract, asked, colors, tmp_path):
    extract(data=str(colors))
    query = str(colors / "train" / "warm" / "red.png")
    page_asked = asked(data=str(colors), query=query, top=3, page=tmp_path / "found.html")
    hits = search(page_asked)
    write_found_page(page_asked, hits)
    page = (tmp_path / "found.html").read_text()
    assert page.count("data:image/webp;base64,") == 4  # the query and three others
    assert "1.000 train/warm/red.png" in page
    assert "Measurements" not in page
    search(page_asked)  # a page of ours is replaced
    other = shutil.copytree(colors, tmp_path / "other")
    (other / "test" / "warm" / "red.png").unlink()
    elsewhere = asked(data=str(other), query=query, page=tmp_path / "found.html")
    refused("data", lambda: write_found_page(elsewhere, hits))
    (tmp_path / "notes.html").write_text("mine")
    refused("page", lambda: search(asked(data=str(colors), query=query, page=tmp_path / "notes.html")))
