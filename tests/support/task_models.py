"""What tests of the task models share: tiny configurations of them, and images."""

from typing import Any

import torch

from modeling_radio import RadioConfig


SIZE = (48, 80)  # 3 x 5 patches: odd, which DPT rounds up


def tiny_config(**fields: Any) -> RadioConfig:
    """Return the smallest preset with small heads."""
    small = {
        "dpt_hidden_size": 16,
        "detection_hidden_size": 32,
        "detection_num_queries": 12,
        "detection_num_groups": 2,
        "detection_num_layers": 2,
        "detection_window_size": None,
    }
    return RadioConfig.from_preset("radio-test", **{"num_labels": 3, **small, **fields})


def images(count: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Return noise in [0, 1], `(count, 3, height, width)`."""
    return torch.rand(count, 3, *size)
