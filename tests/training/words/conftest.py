"""Two classes of objects that their color tells apart, and scenes of them."""

import pytest
import torch
from drawn_words import draw_data

from training.evaluation.data.demo import DemoData


@pytest.fixture
def data() -> DemoData:
    """As `draw_data` draws it."""
    torch.manual_seed(0)
    return draw_data()
