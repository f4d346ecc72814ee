import re

import pytest
from torchvision.models import mobilenet_v2

from training.teachers.embedded.mobilenet_v2 import torchvision_key


def test_the_key_map_reaches_every_weight_of_the_network():
    mobilenet = set(mobilenet_v2().features.state_dict())
    flat = [f"features.{i}.conv.{j}.weight" for i in range(2, 18) for j in (0, 1, 3, 4, 6, 7)]
    flat += [f"features.1.conv.{j}.weight" for j in (0, 1, 3, 4)]
    flat += [f"features.{i}.{j}.weight" for i in (0, 18) for j in (0, 1)]
    assert {torchvision_key(key) for key in flat} == {key for key in mobilenet if re.search(r"weight$", key)}
    with pytest.raises(ValueError, match=r"Unexpected weight 'classifier\.1\.weight'"):
        torchvision_key("classifier.1.weight")
