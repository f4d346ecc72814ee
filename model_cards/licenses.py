"""Licenses as the Hub names them: of what is published, of NVIDIA's checkpoints, and what teachers' licenses ask."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from core.errors import did_you_mean
from model_cards.results import Source


OTHER = "other"
HUB_LICENSES = (
    *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m"),
    *("bigscience-bloom-rail-1.0", "openrail++", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause"),
    *("bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0"),
    *("cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
    *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0"),
    *("eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc"),
    *("lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense"),
    *(
        "zlib",
        "pddl",
        "wtfpl",
        "apple-ascl",
        "apple-amlr",
        "h-research",
        "intel-research",
        "lgpl-lr",
        "llama2",
        "gemma",
    ),
    *("deepfloyd-if-license", OTHER),
)
"""Identifiers of https://huggingface.co/docs/hub/repositories-licenses, but for "unknown", which allows nothing."""
PERMISSIVE = re.compile(r"(?i)mit(-0)?|apache-2\.0|bsd(-[\w-]+)?|isc|zlib|unlicense|cc0-1\.0|ncsa|postgresql|bsl-1\.0")
"""Of teachers, as SPDX writes them: they ask for their notice with copies, and for nothing of what is learned."""
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LINK = re.compile(r"https?://[^\s<>\"'|`()\[\]\\]+|LICENSE(\.md|\.txt)?")


@dataclass(frozen=True)
class License:
    """The license of weights or features.

    Attributes:
        id: Identifier of the Hub.
        name: Where that is "other": lower-case letters, digits and hyphens.
        link: Where that is "other": its text, an address or `LICENSE` in the repository.
    """

    id: str
    name: str | None = None
    link: str | None = None

    def __post_init__(self) -> None:
        if self.id not in HUB_LICENSES:
            raise ValueError(
                "`license` must be one of the Hub's, https://huggingface.co/docs/hub/repositories-licenses, or "
                f"{OTHER!r}, got {self.id!r}.{did_you_mean(self.id.lower(), HUB_LICENSES)}"
            )
        if (self.id == OTHER) != (self.name is not None and self.link is not None):
            raise ValueError(
                f"`license_name` and `license_link` must be given where the license is {OTHER!r}, and only there, got "
                f"{self.id!r} with {self.name!r} and {self.link!r}."
            )
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(f"`license_name` must be lower-case letters, digits and hyphens, got {self.name!r}.")
        if self.link is not None and not _LINK.fullmatch(self.link):
            raise ValueError(f"`license_link` must be an address or LICENSE in the repository, got {self.link!r}.")

    def metadata(self) -> dict[str, Any]:
        """Return its entries of a card's metadata."""
        entries = {"license": self.id, "license_name": self.name, "license_link": self.link}
        return {name: value for name, value in entries.items() if value is not None}


OPEN_MODEL_LICENSE = License(
    OTHER,
    "nvidia-open-model-license",
    "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
)
SOURCE_CODE_LICENSE = License(
    OTHER, "nvidia-source-code-license-nc", "https://github.com/NVlabs/RADIO/blob/main/LICENSE"
)


def nvidia_license(version: str | None) -> License | None:
    """Return the license of a checkpoint of NVIDIA's: C-RADIO's, that of RADIO and E-RADIO, or None if unknown."""
    name = (version or "").lower()
    if name.startswith(("c-radio", "c_radio")):
        return OPEN_MODEL_LICENSE
    return SOURCE_CODE_LICENSE if name.startswith(("radio", "e-radio", "eradio")) else None


def binding_teachers(teachers: Iterable[Source]) -> list[Source]:
    """Return the teachers whose license may have a say in a student: all that are not permissive, or unknown."""
    return [teacher for teacher in teachers if not all(map(_is_permissive, teacher.license.split(";")))]


def _is_permissive(part: str) -> bool:
    """Return whether a license is, also of a part of something: "MIT" as well as "the base is Apache-2.0"."""
    return PERMISSIVE.fullmatch(part.rpartition(" is ")[2].strip()) is not None
