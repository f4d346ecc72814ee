import numpy as np
import pytest
from PIL import Image

from training.demo.images import (
    compose_scene,
    cut_out_on_ground,
    evaluation_bank,
    load_cut_out,
    load_photograph,
    load_pixel_bank,
    random_crop,
    scale_cut_out,
)


def test_a_cut_out_is_cropped_to_its_object_and_shrunk(assets) -> None:
    path = assets.objects[0].path  # 80 x 60 px, the object from 10 to 70 and from 10 to 50
    assert load_cut_out(path, 256).size == (61, 41)
    assert max(load_cut_out(path, 30).size) == 30


def test_a_photograph_is_never_enlarged(assets) -> None:
    path = assets.photographs[0].path  # 300 x 200 px
    assert load_photograph(path).size == (300, 200)
    assert load_photograph(path, 50).size == (75, 50)


@pytest.mark.parametrize("longest", [7.0, 33.5, 100.0])
def test_scaling_keeps_the_shape(assets, longest: float) -> None:
    cut_out = load_cut_out(assets.objects[0].path, 256)
    width, height = scale_cut_out(cut_out, longest).size
    assert width == round(longest)
    assert height == pytest.approx(width * 41 / 61, abs=1)


def test_an_object_alone_leaves_its_margin_free(assets) -> None:
    cut_out = load_cut_out(assets.objects[0].path, 256)
    pixels = np.asarray(cut_out_on_ground(cut_out, 100, 0.2, (1, 2, 3)))
    is_ground = (pixels == (1, 2, 3)).all(-1)
    assert is_ground[:, :20].all()
    assert is_ground[:, 80:].all()
    assert not is_ground[50, 20:80].any()


def test_a_crop_is_a_square_of_the_asked_size() -> None:
    photograph = Image.new("RGB", (300, 200), (9, 9, 9))
    crop = random_crop(photograph, 64, np.random.default_rng(0))
    assert crop.size == (64, 64)
    assert crop.getcolors() == [(64 * 64, (9, 9, 9))]


def test_one_state_gives_the_same_scene_at_every_size(assets) -> None:
    bank = load_pixel_bank(assets, "train")
    masks = [compose_scene(bank, size, 2, np.random.default_rng(5))[1] for size in (64, 128)]
    assert np.unique(masks[0]).tolist() == np.unique(masks[1]).tolist()
    shares = [(mask > 0).mean() for mask in masks]
    assert shares[0] == pytest.approx(shares[1], abs=0.03)
    assert shares[0] > 0.01


def test_a_bank_holds_one_split_and_the_asked_classes(assets) -> None:
    bank = evaluation_bank(assets, "held_out", ("box",))
    assert len(bank.objects) == 2
    assert bank.labels == (0, 0)
    assert bank.emoji == ()
    assert len(bank.photographs) == 2
