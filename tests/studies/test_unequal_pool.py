from collections import Counter

import pyarrow.parquet
import pytest

from modeling_radio.demo import images
from modeling_radio.studies.study import open_study
from modeling_radio.studies.unequal_pool import POOL, write_pool
from modeling_radio.training.data.training_images import build_training_images


@pytest.fixture(autouse=True)
def _drawn(assets, monkeypatch):
    monkeypatch.setattr(images, "load_demo_assets", lambda source: assets)


def test_the_study_shows_the_kinds_of_its_pool_equally_often(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pool(POOL, {"photograph": 20, "object": 5})
    kinds = pyarrow.parquet.read_table(POOL)["kind"].to_pylist()
    assert Counter(kinds) == {"photograph": 20, "object": 5}
    as_it_is, balanced = (
        build_training_images(recipe.data, is_square=False) for recipe in open_study("balance").recipes.values()
    )
    assert len(as_it_is) == 25
    shown = Counter(kinds[row] for row in balanced.rows.numbers)
    assert shown["photograph"] == shown["object"] > 0


def test_kinds_that_the_packages_lack_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"`num_images`.*'emoji': 2"):
        write_pool(tmp_path / "pool.parquet", {"object": 2, "emoji": 2})
    assert not list(tmp_path.iterdir())
