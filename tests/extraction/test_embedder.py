"""Vectors of batches equal those that `radio extract` writes; what cannot be embedded is refused."""

import io
import pickle

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from modeling_radio.api import Embedder
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.image_processing_radio import OWN_SIZE
from modeling_radio.views_radio import ViewOptions, encode_tiles


def read(pictures):
    return {path.relative_to(pictures).as_posix(): Image.open(path) for path in sorted(pictures.glob("*/*.png"))}


def png(picture):
    content = io.BytesIO()
    picture.save(content, "png")
    return content.getvalue()


def stored(row, column):
    """Return the vectors of a row, dense ones as rows of patches."""
    *_, kind = column.split("/")
    vectors = np.asarray(row[column])
    return vectors.reshape(*row[column.replace("features", "grid")], -1) if kind == "features" else vectors


def test_vectors_equal_those_of_the_command(extract, checkpoint, pictures, tmp_path):
    extract(dense=True, adaptors=["all"])
    rows = {row["id"]: row for row in load_dataset(str(tmp_path / "out"), split="train")}
    batch = {"id": list(read(pictures)), "image": list(read(pictures).values())}
    summaries = Embedder(checkpoint, adaptors="teacher_a", keep=["id"])(batch)
    features = Embedder(checkpoint, "features", adaptors=["all"])(batch)
    assert set(summaries) == {"id", "summary", "teacher_a/summary"}
    assert set(features) == {"features", "teacher_a/features", "teacher-b/features"}
    for number, name in enumerate(summaries["id"]):
        for column, vectors in (features | summaries).items():
            if column != "id":
                np.testing.assert_allclose(vectors[number], stored(rows[name], column), atol=1e-6, err_msg=column)
    assert len({each.shape for each in features["features"]}) == 3
    assert summaries["summary"].ndim == 2


def test_tiles_of_images_in_their_own_size(extract, checkpoint, pictures, tmp_path):
    extract(dense=True, tile_size=32, adaptors=["all"])
    rows = load_dataset(str(tmp_path / "out"), split="train")
    embed = Embedder(checkpoint, "features", tiles=ViewOptions(32), adaptors=["all"])
    whole = RadioFeatures.open(checkpoint)
    for row, (name, picture) in zip(rows, read(pictures).items(), strict=True):
        found = embed({"image": [picture]})
        for column in ("features", "teacher_a/features"):
            np.testing.assert_allclose(stored(row, column), found[column][0], atol=1e-5, err_msg=name)
        own = whole.processor(picture, return_tensors="pt", **OWN_SIZE)["pixel_values"]
        expected = encode_tiles(whole.model.config, own, whole.encode, ViewOptions(32))
        np.testing.assert_allclose(found["features"][0], expected.features[0].movedim(0, -1).detach(), atol=1e-5)


def test_images_come_in_several_forms(checkpoint, pictures):
    embed, picture = (
        Embedder(checkpoint, "features", size=32, vector_dtype="float16"),
        next(iter(read(pictures).values())),
    )
    gray = picture.convert("L")
    vectors = embed({"image": [picture, np.asarray(picture), png(picture), picture.convert("RGBA")]})["features"]
    assert (vectors.dtype, vectors.ndim) == (np.float16, 4)
    assert (vectors == vectors[:1]).all()
    grays = embed({"image": np.stack([np.asarray(gray)] * 2)})["features"]
    assert (grays == embed({"image": [np.asarray(gray)[..., None], gray]})["features"]).all()
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned back
    turned.info["exif"] = exif.tobytes()
    assert (embed({"image": [turned]})["features"] == vectors[:1]).all()


def test_only_the_arguments_travel(checkpoint, pictures):
    embed, batch = Embedder(checkpoint, size=32, device="cpu"), {"image": list(read(pictures).values())[:2]}
    before = pickle.dumps(embed)
    vectors = embed(batch)["summary"]
    assert pickle.dumps(embed) == before
    np.testing.assert_array_equal(pickle.loads(before)(batch)["summary"], vectors)


def test_texts_are_unit_vectors_of_the_tower(zero_shot_folder):
    texts = ["a cat", "a photo of a dog"]
    vectors = Embedder(zero_shot_folder, "texts", column="caption")({"caption": np.array(texts, object)})["texts"]
    np.testing.assert_allclose(vectors, RadioFeatures.open(zero_shot_folder).embed_texts(texts).numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_an_empty_batch_has_vectors_of_the_same_width(checkpoint, zero_shot_folder):
    black = np.zeros((16, 16, 3), np.uint8)
    for embed, cell in (
        (Embedder(checkpoint, adaptors="teacher_a"), black),
        (Embedder(zero_shot_folder, "texts"), "a"),
    ):
        full, empty = embed({embed.column: [cell]}), embed({embed.column: []})
        assert {name: each.shape for name, each in empty.items()} == {
            name: (0, each.shape[1]) for name, each in full.items()
        }


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"what": "vector"}, "`what`"),
        ({"size": 0}, "`size`"),
        ({"vector_dtype": "int8"}, "`vector_dtype`"),
        ({"dtype": "int8"}, "`dtype`"),
        ({"device": "gpu"}, "`device`"),
        ({"what": "texts", "size": 32}, "`size`"),
        ({"what": "texts", "adaptors": ["teacher_a"]}, "`adaptors`"),
    ],
)
def test_wrong_arguments_are_refused_at_once(values, name):
    with pytest.raises(ValueError, match=name):
        Embedder("model", **values)


@pytest.mark.parametrize(
    ("values", "batch", "name"),
    [
        ({}, {"picture": []}, "`column`.*'image'.*picture"),
        ({"keep": ["id"]}, {"image": []}, "`keep`.*'id'"),
        ({}, {"image": [b"no image"]}, "`batch`.*index 0"),
        ({}, {"image": [np.zeros((8, 8, 3), np.uint8), None]}, "`batch`.*index 1"),
        ({}, {"image": [np.zeros((8, 8, 3))]}, "`batch`"),
        ({}, {"image": [np.zeros((8, 8, 7), np.uint8)]}, "`batch`"),
        ({}, {"image": ["photo.jpg"]}, "`batch`"),
        ({"what": "texts"}, {"text": ["a cat"]}, "`checkpoint`"),
        ({"adaptors": ["teacher_c"]}, {"image": [np.zeros((8, 8, 3), np.uint8)]}, "`adaptors`.*teacher_c"),
        ({"adaptors": ["teacher-b"]}, {"image": [np.zeros((8, 8, 3), np.uint8)]}, "`adaptors`.*teacher-b"),
        ({"size": 33}, {"image": [np.zeros((8, 8, 3), np.uint8)]}, "`size`"),
    ],
)
def test_batches_that_cannot_be_embedded_are_refused(checkpoint, values, batch, name):
    with pytest.raises(ValueError, match=name):
        Embedder(checkpoint, **values)(batch)


def test_texts_must_be_texts(zero_shot_folder):
    with pytest.raises(ValueError, match=r"`batch`.*index 1"):
        Embedder(zero_shot_folder, "texts")({"text": ["a cat", None]})
