"""The code of the page on large images runs on a raster and a photograph of nine tiles."""

import numpy as np
import pytest
import torch
from documentation import blocks
from PIL import Image
from tiny_tuning import TINY_DETECTOR

from modeling_radio import RadioForInstanceSegmentation, RadioForSemanticSegmentation
from modeling_radio.image_processing_radio import OWN_SIZE, RadioImageProcessor


SMALLER = (("512", "64"), ("384", "48"), ("128", "16"), ("threshold=0.4", "threshold=0.0"))
"""Sizes of tiles that fit the tiny models."""
SIZE = (160, 176)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A function that runs the block of the page that imports a package, in a folder; returns its variables."""
    monkeypatch.chdir(tmp_path)

    def run(package):
        pytest.importorskip(package)
        (text,) = [
            block.text
            for block in blocks("python")
            if block.page == "docs/how-to/large-images.md" and f"import {package}" in block.text
        ]
        for old, new in SMALLER:
            text = text.replace(old, new)
        names = {}
        exec(text, names)
        return names

    return run


def test_a_raster_becomes_a_raster_of_classes_in_the_same_place(page, save_tuned, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    (tmp_path / "runs" / "roads").mkdir(parents=True)
    save_tuned(RadioForSemanticSegmentation).rename(tmp_path / "runs" / "roads" / "merged")
    pixels = np.random.default_rng(0).integers(0, 256, (4, *SIZE), dtype=np.uint8)  # the fourth is infrared
    place = {"crs": "EPSG:32617", "transform": rasterio.Affine(0.1, 0, 404211.9, 0, -0.1, 3285142.9)}
    facts = {"driver": "GTiff", "height": SIZE[0], "width": SIZE[1], "count": 4, "dtype": "uint8", "nodata": 255}
    with rasterio.open("survey.tif", "w", **facts, **place) as survey:
        survey.write(pixels)
    model = page("rasterio")["model"]
    with rasterio.open("roads.tif") as roads:
        assert (roads.crs, roads.transform, roads.shape) == (rasterio.CRS.from_epsg(32617), place["transform"], SIZE)
        found = torch.from_numpy(roads.read(1)).long()
    image = Image.fromarray(pixels[:3].transpose(1, 2, 0))
    inputs = RadioImageProcessor()(image, return_tensors="pt", **OWN_SIZE)["pixel_values"]
    expected = model.predict(inputs, tile_size=64).logits.argmax(1)[0]
    assert (found == expected).float().mean() > 0.999  # of two equally probable classes either may be taken
    assert len(expected.unique()) > 1


def test_instances_of_slices_are_those_of_the_photograph(page, save_tuned, tmp_path):
    (tmp_path / "runs" / "parts").mkdir(parents=True)
    save_tuned(RadioForInstanceSegmentation, **TINY_DETECTOR).rename(tmp_path / "runs" / "parts" / "merged")
    photograph = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(photograph).save("large.png")
    names = page("supervision")
    objects, find = names["objects"], names["find"]
    assert objects.mask.shape == (len(objects), *SIZE)
    assert len(objects)
    last = find(photograph[-64:, -64:])
    shown = {tuple((np.array(box) + [SIZE[1] - 64, SIZE[0] - 64] * 2).tolist()) for box in last.xyxy}
    assert shown & {tuple(box.tolist()) for box in objects.xyxy}
