from dataclasses import replace

import pytest

from training.demo.__main__ import closing_page
from training.demo.assets import HELD_OUT_PHOTOGRAPHS, Photograph
from training.demo.closing_page import AUTHORS, FREE_LICENSES, republishable_photographs


def test_only_free_and_credited_photographs_that_were_held_out(assets, tmp_path, monkeypatch):
    def photograph(name, license, source, split="held_out"):
        return Photograph(tmp_path / f"{name}.jpg", license, source, split)

    own = (
        photograph("tea-gardens", "CC0-1.0", "budgie-backgrounds"),
        photograph("roman-colosseum", "CC0-1.0", "budgie-backgrounds", "train"),
        photograph("life_by_Aitzol_Berasategi", "CC-BY-4.0", "lomiri-wallpapers-16.04"),
        photograph("Bridge_by_Sander_Klootwijk", "CC-BY-SA-4.0", "lomiri-wallpapers-16.04"),
        photograph("Storm", "GPL-2+", "mate-backgrounds"),
        photograph("unknown", "CC0-1.0", "elsewhere"),
    )
    samples = [photograph("china", "CC-BY-2.0", "scikit-learn"), photograph("grass", "CC0-1.0", "x", "train")]
    monkeypatch.setattr(closing_page, "pypi_photographs", lambda cache: samples)
    found = republishable_photographs(replace(assets, photographs=own))
    assert [each.credit for each in found] == [
        "china, by danielbuechele (Flickr) (CC-BY-2.0, package scikit-learn)",
        "life, by Aitzol Berasategi, 2018 (CC-BY-4.0, package lomiri-wallpapers-16.04)",
        "tea gardens, by Budgie Desktop Developers, 2022-2024 (CC0-1.0, package budgie-backgrounds)",
    ]


def test_who_is_credited_is_held_out():
    assert AUTHORS.keys() <= HELD_OUT_PHOTOGRAPHS


@pytest.mark.packages
@pytest.mark.slow
def test_there_are_enough_of_them():
    from training.demo.assets import load_demo_assets

    found = republishable_photographs(load_demo_assets())
    assert len(found) >= 10
    assert {each.photograph.license for each in found} <= set(FREE_LICENSES)
