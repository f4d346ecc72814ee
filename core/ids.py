"""Ids of models and data sets: one spelling, whatever the user wrote."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


HUB_PREFIX = "hub:"
LIBRARY_PREFIXES = ("timm:", "transformers:")
"""Beginnings of ids that name a network of a library."""
_TIMM_ON_HUB = re.compile(r"timm/([\w.-]+)")


def standard_id(source: str) -> str:
    """Return the documented spelling of an id: `ORG/NAME` of `hub:ORG/NAME`, and `timm:NAME` of `timm/NAME`.

    Anything else stays as it is, such as a folder on this machine, whatever its name.
    """
    if Path(source).expanduser().exists():
        return source
    name = source.removeprefix(HUB_PREFIX)
    network = _TIMM_ON_HUB.fullmatch(name)
    return name if network is None else f"timm:{network[1]}"


ModelId = Annotated[str, AfterValidator(standard_id)]
"""A setting that names a model."""
