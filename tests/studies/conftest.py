"""The toy study on the tiny distillation's teachers and images."""

import pytest
from toy_studies import toy_held_out, write_study

from modeling_radio.studies.held_out import HeldOut
from modeling_radio.studies.raw_results import StudyResults, load_results
from modeling_radio.studies.study import OpenedStudy, open_study


@pytest.fixture(autouse=True)
def _apart(one_thread: None) -> None:
    """Use one thread in all tests of this folder."""


@pytest.fixture
def opened(tiny_world: None, recipe_file: str) -> OpenedStudy:
    return open_study(write_study(recipe_file))


@pytest.fixture
def held_out(opened: OpenedStudy) -> HeldOut:
    return toy_held_out(opened)


@pytest.fixture
def load():
    """Return all results of a study that has some."""

    def load(opened: OpenedStudy) -> StudyResults:
        results = load_results(opened)
        assert results is not None
        return results

    return load
