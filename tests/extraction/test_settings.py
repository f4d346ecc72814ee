"""Settings that do not fit are refused, and the manifest has those that decide the rows."""

import pytest

from modeling_radio.core.settings import SettingsError
from modeling_radio.extraction.settings import ExtractionSettings, SearchSettings


NEEDED = {"checkpoint": "model", "output": "out"}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "`data`"),
        ({"data": "x", "pool": 2}, "`pool`"),
        ({"data": "x", "pool": 2, "pca": 2}, "`pool`.*`pca`"),
        ({"data": "x", "vector_dtype": "float64"}, "`vector_dtype`"),
        ({"data": "x", "vector_dtype": "int8", "format": "lance"}, "`format`.*`vector_dtype`"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(values, name):
    with pytest.raises(SettingsError, match=name):
        ExtractionSettings(**NEEDED, **values)


def test_a_page_of_a_search_needs_the_images():
    with pytest.raises(SettingsError, match="`page`"):
        SearchSettings(folder="out", query="cat", checkpoint="model", page="x.html")
