from pathlib import Path

import pytest
from tiny_adaptors import build_model_with_adaptors
from tiny_folders import save_with_processor


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A saved tiny model with two adaptors, one of them without a summary."""
    model = build_model_with_adaptors("teacher_b", num_hidden_layers=2, preferred_resolution=[32, 48])
    return save_with_processor(model, tmp_path_factory.mktemp("tiny") / "radio-tiny")
