"""Repositories and files in which NVIDIA publishes its releases."""

from typing import NamedTuple


class HubRelease(NamedTuple):
    """Location of a release on the Hub.

    Attributes:
        repository: The repository whose folder opens as a model; None where there is only a training file.
        archive: Name of the training file, with all adaptors; None where there is only a folder.
        archive_in: Repository of the training file; None where it is `repository`.
    """

    repository: str | None
    archive: str | None = None
    archive_in: str | None = None


_ALL = "nvidia/RADIO"
HUB_RELEASES = {
    "radio_v1": HubRelease(None, "radio_v1.pth.tar", _ALL),
    "radio_v2": HubRelease(None, "radio_v2.pth.tar", _ALL),
    "radio_v2.1": HubRelease(_ALL, "radio_v2.1_bf16.pth.tar"),
    "radio_v2.5-b": HubRelease("nvidia/RADIO-B", "radio-v2.5-b_half.pth.tar", _ALL),
    "radio_v2.5-l": HubRelease("nvidia/RADIO-L", "radio-v2.5-l_half.pth.tar", _ALL),
    "radio_v2.5-h": HubRelease("nvidia/RADIO-H", "radio_v2.5-h.pth.tar", _ALL),
    "radio_v2.5-h-norm": HubRelease(None, "radio_v2.5-h-norm.pth.tar", _ALL),
    "radio_v2.5-g": HubRelease("nvidia/RADIO-g", "radio_v2.5-g.pth.tar", _ALL),
    "e-radio_v2": HubRelease("nvidia/E-RADIO", "eradio_v2.pth.tar", _ALL),
    "c-radio_v2-g": HubRelease("nvidia/C-RADIOv2-g", "c-radio_v2-g_half.pth.tar"),
    "c-radio_v2-vlm-h": HubRelease("nvidia/C-RADIOv2-VLM-H", "c-radio_v2-vlm-h.pth.tar"),
    "c-radio_v3-b": HubRelease("nvidia/C-RADIOv3-B", "c-radio_v3-b_half.pth.tar"),
    "c-radio_v3-l": HubRelease("nvidia/C-RADIOv3-L", "c-radio-v3_l_half.pth.tar"),
    "c-radio_v3-h": HubRelease("nvidia/C-RADIOv3-H", "c-radio_v3-h_half.pth.tar"),
    "c-radio_v3-g": HubRelease("nvidia/C-RADIOv3-g", "c-radio_v3-g_half.pth.tar"),
    "c-radio_v4-so400m": HubRelease("nvidia/C-RADIOv4-SO400M", "c-radio_v4-so400m_half.pth.tar"),
    "c-radio_v4-h": HubRelease("nvidia/C-RADIOv4-H", "c-radio_v4-h_half.pth.tar"),
    "c-radio_v4-1d-h": HubRelease("nvidia/C-RADIOv4-1D-H"),
}
"""By version. Training files: radio/common.py of NVlabs/RADIO c0f3701, read on 2026-12-01."""
DEFAULT_VERSION = "c-radio_v4-h"
"""The release that NVIDIA's entry of `torch.hub` opens if none is named (radio/common.py)."""
