"""Views of images, and maps of tiles that are joined."""

from functools import partial

import pytest
import torch
from refusals import refused, wrong
from task_models import build, images, tiny_config

from modeling_radio import RadioModel
from modeling_radio.checks_radio import Resolution
from modeling_radio.views_radio import Tiles, ViewOptions, encode_tiles


def places(size, **options):
    views = ViewOptions(**options).take(tiny_config(), images(1, size))
    height, width = size
    return [
        (round(left * width), round(top * height), round(right * width), round(bottom * height))
        for _, (left, top, right, bottom), _ in views
    ]


def test_tiles_cover_the_image_and_the_last_ones_end_with_it():
    found = places((64, 112), tile_size=64, tile_overlap=0.5)
    assert found == [(0, 0, 64, 64), (32, 0, 96, 64), (48, 0, 112, 64)]
    assert places((48, 64), tile_size=64) == [(0, 0, 64, 48)]  # a side that is shorter is one tile


def test_scales_and_mirror_images_are_looks_of_their_own():
    views = list(ViewOptions(scales=(0.5, 1), flip=True).take(tiny_config(), images(1, (64, 96))))
    assert [(tuple(view.pixel_values.shape[-2:]), view.is_flipped) for view in views] == [
        ((32, 48), False),
        ((32, 48), True),
        ((64, 96), False),
        ((64, 96), True),
    ]
    assert torch.equal(views[3].pixel_values, views[2].pixel_values.flip(-1))


@wrong(tile_size=[0, 50], tile_overlap=[1.0], scales=[(), (1, -1)])
def test_options_that_cannot_be(name, value):
    refused(name, lambda: list(ViewOptions(**{name: value}).take(tiny_config(), images(1, (64, 96)))))


def test_tiles_leave_no_gaps_and_begin_at_a_cell_of_each_map():
    for stride in (0, 49):
        refused("stride", lambda stride=stride: Tiles(SIZE, 48, stride))
    refused("tile_overlap", lambda: Tiles(SIZE, 48, 32).join(lambda *place: [torch.ones(1, 1, 2, 2)]))


SIZE = Resolution(80, 112)
GRIDS = [Tiles(SIZE, 48, 32), Tiles(SIZE, 48, 16), Tiles(SIZE, 48, 48), Tiles(SIZE, 96, 64), Tiles(SIZE, 16, 16)]


@pytest.mark.parametrize("tiles", GRIDS)
@pytest.mark.parametrize("cell", [1, 16])
def test_parts_of_a_map_are_joined_to_it(tiles, cell):
    whole = torch.randn(2, 3, SIZE.height // cell, SIZE.width // cell)
    seen = torch.zeros(SIZE)

    def cut(top, left, height, width):
        seen[top : top + height, left : left + width] += 1
        rows, cols = (slice(start // cell, (start + side) // cell) for start, side in ((top, height), (left, width)))
        return [whole[..., rows, cols], 2 * whole[:1, :, rows, cols]]

    joined, doubled = tiles.join(cut)
    torch.testing.assert_close(joined, whole)
    torch.testing.assert_close(doubled, 2 * whole[:1])
    assert seen.min() >= 1


def test_no_step_at_a_seam_is_larger_than_the_share_of_a_place():
    tiles = Tiles(Resolution(64, 160), 64, 48)  # tiles begin at 0, 48 and 96, and share 16 pixels
    (joined,) = tiles.join(lambda top, left, height, width: [torch.full((1, 1, height, width), left / 48)])
    line = joined[0, 0, 0]
    assert line.diff().max() <= 1 / 16 + 1e-6
    assert line[:48].unique().tolist() == [0.0]
    assert line[-48:].unique().tolist() == [2.0]


def test_strips_are_complete_as_soon_as_no_tile_reaches_them():
    tiles, read = Tiles(SIZE, 48, 32), []

    def run(top, left, height, width):
        read.append(top)
        return [torch.ones(1, 1, height, width)]

    found = [(strip.shape[2], max(read)) for (strip,) in tiles.strips(run)]
    assert found == [(32, 0), (48, 32)]


@pytest.mark.parametrize("name", ["linear segmenter", "DPT segmenter", "depth"])
def test_one_tile_is_the_whole_image(name):
    model, batch = build(name), images(2, (48, 64))
    for options in ({}, {"flip": True}):
        whole, tiled = (model.predict(batch, **options, **more).to_tuple()[0] for more in ({}, {"tile_size": 64}))
        assert torch.equal(whole, tiled)


@pytest.fixture
def encode():
    """A model of one adaptor; its outputs have maps."""
    adaptors = [{"name": "dino_v3", "summary_dim": 8, "feature_dim": 8, "hidden_size": 8}]
    model = RadioModel(tiny_config(adaptors=adaptors)).eval()
    return partial(model, feature_format="NCHW", adaptor_names=["dino_v3"])


def test_features_of_one_tile_are_those_of_the_model(encode):
    batch = images(2, (48, 64))
    found, expected = encode_tiles(tiny_config(), batch, encode, ViewOptions(64)), encode(batch)
    for left, right in ((found, expected), (found.adaptors["dino_v3"], expected.adaptors["dino_v3"])):
        assert torch.equal(left.summary, right.summary)
        assert torch.equal(left.features, right.features)


def test_features_of_tiles_are_those_of_their_crops_where_no_other_reaches(encode):
    batch = images(1, (64, 160))
    found = encode_tiles(tiny_config(), batch, encode, ViewOptions(64))
    first, last = encode(batch[..., :64]), encode(batch[..., -64:])
    torch.testing.assert_close(found.features[..., :3], first.features[..., :3])
    torch.testing.assert_close(found.features[..., -3:], last.features[..., -3:])
    assert found.features.shape[2:] == (4, 10)
