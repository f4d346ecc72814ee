"""What NVIDIA's file of this name tells of published versions, as far as it is asked for."""

from dataclasses import dataclass


@dataclass
class Resource:
    """Which blocks of a version attend in windows."""

    vitdet_num_windowed: int | None = None
    vitdet_num_global: int | None = None


RESOURCE_MAP = {"c-radio_v4-h": Resource(), "radio_v2.5-b": Resource(vitdet_num_global=4)}
