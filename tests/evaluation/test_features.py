"""Features are extracted once, kept, and the same after kills, over ranks and with workers; finer grids."""

import os

import pytest
import torch
from killing import is_killed
from safetensors.torch import load_file

from modeling_radio.core.checked_tensors import DamagedFileError
from modeling_radio.evaluation.data import Stacked
from modeling_radio.evaluation.features import (
    CHUNK,
    CLOSER,
    FeatureStore,
    StoredFeatures,
    Wanted,
    at_night,
    encode_each,
    match_at_night,
    shifted_maps,
    window_of,
)
from modeling_radio.evaluation.models.pretrained import RawPixels
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.tasks.base import DENSE
from modeling_radio.metrics.feature_model import Encoding


NUM_IMAGES = 2 * CHUNK + 5


@pytest.fixture
def images():
    return Stacked(torch.randint(0, 256, (NUM_IMAGES, 3, 16, 16), dtype=torch.uint8))


class Counting(RawPixels):
    """Raw pixels that count their images."""

    def __init__(self) -> None:
        super().__init__(8, 16)
        self.num_images = 0

    def encode(self, pixels, adaptors=()):
        self.num_images += len(pixels)
        return super().encode(pixels, adaptors)


def same(one: StoredFeatures, two: StoredFeatures) -> bool:
    maps = all(torch.equal(one.map(index), two.map(index)) for index in range(len(one)))
    return maps and torch.equal(one.summary(), two.summary())


def test_memory_disk_and_workers_give_the_same(images, tmp_path):
    model = RawPixels(8, 16)
    memory = FeatureStore().extract(model, images, "x", DENSE)
    disk = FeatureStore(tmp_path, batch_size=7).extract(model, images, "x", DENSE)
    assert same(memory, disk)
    assert same(memory, FeatureStore(batch_size=4, num_workers=2).extract(model, images, "x", DENSE))
    assert disk.maps([3, CHUNK]).shape == (2, 192, 2, 2)
    torch.testing.assert_close(disk.mean_features(), disk.maps().mean((2, 3)))
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("*.safetensors"))) == 3
    assert len(load_file(folder / "000000064.safetensors")["summary"]) == CHUNK


def test_nothing_is_computed_twice(images, tmp_path):
    model, store = Counting(), FeatureStore(tmp_path)
    counts = []
    for fingerprint, wanted, size_px in [
        ("x", Wanted(), None),
        ("x", Wanted(), None),
        ("x", DENSE, None),  # maps were not kept
        ("x", Wanted(), None),
        ("other images", Wanted(), None),
        ("x", Wanted(), 24),
    ]:
        store.extract(model, images, fingerprint, wanted, size_px=size_px)
        counts.append(model.num_images // NUM_IMAGES)
    assert counts == [1, 1, 2, 2, 3, 4]


def test_stored_features_stay_when_more_are_wanted(tiny_model, images, tmp_path):
    model, store = RadioFeatures(tiny_model, size_px=16), FeatureStore(tmp_path)
    store.extract(model, images, "x", Wanted(adaptors=frozenset(["teacher_a"])))
    store.extract(model, images, "x", Wanted(dense=True, adaptors=frozenset(["teacher_b"])))
    both = store.extract(model, images, "x", Wanted(adaptors=frozenset(["teacher_a"])))
    assert both.summary("teacher_a").shape == (NUM_IMAGES, 6)
    assert both.summary("teacher_b") is None
    assert both.map(4, "teacher_b").shape == (10, 2, 2)


def test_a_damaged_chunk_is_refused(images, tmp_path):
    FeatureStore(tmp_path).extract(RawPixels(8, 16), images, "x", DENSE)
    (path,) = tmp_path.glob("*/000000064.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    stored = FeatureStore(tmp_path).extract(RawPixels(8, 16), images, "x", DENSE)
    with pytest.raises(DamagedFileError) as error:
        [stored.summary(), stored.mean_features(), stored.maps()]
    assert error.value.path == path


def test_two_kills_change_nothing(images, tmp_path):
    undisturbed = FeatureStore().extract(RawPixels(8, 16), images, "x", DENSE)
    store = FeatureStore(tmp_path, batch_size=8)
    for num_chunks in (1, 2):
        work = lambda: store.extract(RawPixels(8, 16), images, "x", DENSE)  # noqa: E731
        finished = lambda n=num_chunks: len(list(tmp_path.glob("*/*.safetensors"))) >= n  # noqa: E731
        assert is_killed(work, finished)
    model = Counting()
    resumed = store.extract(model, images, "x", DENSE)
    assert 0 < model.num_images <= NUM_IMAGES - 2 * CHUNK
    assert same(undisturbed, resumed)
    assert not list(tmp_path.glob("*/.partial*"))


def test_images_of_many_shapes_keep_their_order_and_their_grid(tiny_model):
    model = RadioFeatures(tiny_model)
    pixels = [torch.rand(3, *shape) for shape in [(16, 24), (32, 16), (16, 24), (8, 8)]]
    for image, features in zip(pixels, encode_each(model, pixels, DENSE), strict=True):
        torch.testing.assert_close(features["summary"], model.encode(image[None]).summary[0])
        assert features["grids"].tolist() == [side // 8 for side in image.shape[1:]]

    class ImageList(list):
        def size(self, index):
            return tuple(self[index].shape[1:])

    images = ImageList((image * 255).to(torch.uint8) for image in pixels)
    stored = FeatureStore().extract(RawPixels(8, 8), images, "x", DENSE)
    assert [tuple(stored.map(index).shape[1:]) for index in range(4)] == [(1, 2), (2, 1), (1, 2), (1, 1)]
    with pytest.raises(ValueError, match="of one size"):
        stored.maps()


def test_dense_features_keep_their_type_on_disk(tiny_model, images, tmp_path):
    model = RadioFeatures(tiny_model, size_px=16, dtype=torch.bfloat16)
    stored = FeatureStore(tmp_path).extract(model, images, "x", DENSE)
    pixels = torch.stack([model.preprocess(images[index]) for index in range(2)])
    expected = model.encode(pixels).features
    assert load_file(next(tmp_path.glob("*/*.safetensors")))["features"].dtype == expected.dtype
    assert stored.map(0).dtype == torch.float32


def test_no_images_and_infinite_features_are_refused(images):
    class Broken(RawPixels):
        def encode(self, pixels, adaptors=()):
            return Encoding(None, pixels / 0)

    with pytest.raises(ValueError, match="'raw pixels'"):
        FeatureStore().extract(Broken(8, 16), images, "x", Wanted())
    with pytest.raises(ValueError, match="`data` must have images"):
        FeatureStore().extract(RawPixels(8, 16), Stacked(torch.zeros(0, 3, 8, 8)), "x", Wanted())


def test_two_ranks_share_the_work(images, tmp_path):
    """Each makes half of the chunks, and both read all."""

    def work(rank: int) -> None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=rank, world_size=2
        )
        model = Counting()
        stored = FeatureStore(tmp_path / "features").extract(model, images, "x", DENSE)
        torch.save({"maps": stored.maps(), "count": model.num_images}, tmp_path / f"{rank}.pt")
        torch.distributed.destroy_process_group()

    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            try:
                work(rank)
            finally:
                os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert sorted(each["count"] for each in found) == [CHUNK, CHUNK + 5]
    alone = FeatureStore().extract(RawPixels(8, 16), images, "x", DENSE).maps()
    assert all(torch.equal(each["maps"], alone) for each in found)


class MeanColors:
    """The mean color of each patch, and through an adaptor its double."""

    patch_size, device = 8, torch.device("cpu")

    def preprocess(self, image, size_px=None):
        return image.float()

    def encode(self, pixels, adaptors=()):
        means = torch.nn.functional.avg_pool2d(pixels, 8)
        return Encoding(None, means, {name: Encoding(None, means * 2) for name in adaptors})


@pytest.mark.parametrize("shifts", [1, 2, 4, 8])
def test_each_position_is_the_patch_around_it(shifts):
    ramp = torch.arange(40) * 6
    images = torch.stack([ramp[:, None].expand(40, 40), ramp[None].expand(40, 40), torch.zeros(40, 40).long()])
    maps = shifted_maps(MeanColors(), images[None].byte(), size_px=32, shifts=shifts, adaptors=["twice"])
    assert maps[""].shape == (1, 3, 4 * shifts, 4 * shifts)
    centers = (torch.arange(4 * shifts) + 0.5) * 8 / shifts  # in pixels of the middle 32
    expected = (centers + 4 - 0.5) * 6 - (3 if shifts == 8 else 0)  # steps of one pixel begin half a pixel off
    torch.testing.assert_close(maps[""][0, 0, :, 0], expected)
    torch.testing.assert_close(maps[""][0, 1, 0], expected)
    assert torch.equal(maps["twice"], 2 * maps[""])


def test_one_shift_is_the_model_itself(tiny_model):
    model = RadioFeatures(tiny_model, size_px=32)
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    once, twice = (shifted_maps(model, images, size_px=32, shifts=shifts)[""] for shifts in (1, 2))
    pixels = torch.stack([model.preprocess(image, 32) for image in window_of(images, 32, model.patch_size)])
    with torch.no_grad():
        assert torch.equal(once, model.encode(pixels).features)
    assert not torch.equal(twice[..., ::2, ::2], once)


@pytest.mark.parametrize(("size_px", "shifts", "name"), [(32, 3, "shifts"), (24, 2, "images")])
def test_images_and_shifts_that_do_not_fit_are_refused(size_px, shifts, name):
    with pytest.raises(ValueError, match=f"`{name}` must"):
        shifted_maps(MeanColors(), torch.zeros(1, 3, 40, 40, dtype=torch.uint8), size_px=size_px, shifts=shifts)


def test_places_are_found_again_in_a_mirrored_closer_view():
    side, generator = 12, torch.Generator().manual_seed(0)
    features = torch.randn(2, 64, side, side, generator=generator)
    middle, positions = (side - 1) / 2, torch.arange(side)
    rows = (middle + (positions - middle) * CLOSER).round().long()
    others = features[:, :, rows][:, :, :, (side - 1) - rows]
    matches = match_at_night(features, others, within=2)
    assert matches.is_seen.sum() == 8 * 8
    assert matches.share > 0.5  # the closer view repeats some places and has no others
    assert match_at_night(features, others.roll(6, dims=-1), within=1).share < 0.1
    photograph = torch.zeros(3, 8, 8, dtype=torch.uint8)
    photograph[:, :, 2] = 200
    changed = at_night(photograph)
    assert changed[:, :, 4:].float().mean() > changed[:, :, :4].float().mean(), "mirrored"
    assert changed.amax() < 200, "darker"
