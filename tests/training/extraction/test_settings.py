import pytest

from core.settings import SettingsError
from training.extraction.settings import ExtractionSettings


NEEDED = {"checkpoint": "model", "output": "out"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "`data` has no value"),
        ({"data": "x", "pool": 2}, "`pool` is about dense features"),
        ({"data": "x", "pca": 2, "layout": "nested"}, "`pca` is about.*`layout` is about"),
        ({"data": "x", "page": "x.html"}, "`page` is about a search"),
        ({"data": "x", "top": 3}, "`top` is about a search"),
        ({"search": "cat", "index": "flat"}, "`index` is written by an extraction"),
        ({"search": "cat", "page": "x.html"}, "`page` shows images"),
        ({"data": "x", "dtype": "float64"}, "`dtype` must be"),
    ],
)
def test_what_does_not_fit_together_is_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        ExtractionSettings(**NEEDED, **values)


def test_shards_of_dense_features_have_fewer_images():
    assert ExtractionSettings(**NEEDED, data="x").images_of_shard == 1000
    assert ExtractionSettings(**NEEDED, data="x", dense=True).images_of_shard == 100
    assert ExtractionSettings(**NEEDED, data="x", dense=True, shard_images=7).of_rows()["shard_images"] == 7


def test_the_manifest_knows_what_decides_the_rows():
    of_rows = ExtractionSettings(**NEEDED, data="x").of_rows()
    assert {"dtype", "adaptors", "size", "precision", "keep", "random_seed"} <= of_rows.keys()
    assert not {"data", "output", "batch_size", "num_workers", "index", "license"} & of_rows.keys()
