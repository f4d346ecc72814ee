"""What a source of images may be called in public: no paths of this machine, nor what an address says of who asks."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from training.data.folder_kinds import BUILDERS
from training.recipe_sections.images import DEMO_SOURCES


HUB_PREFIX = "hub:"
_ADDRESS = re.compile(r"\w+://")
_FILE_OF_HUB = re.compile(r"(?:hf://|https?://huggingface\.co/)datasets/(?P<id>[^/?#]+/[^/?#@]+)")


class PublicName(NamedTuple):
    """What is said of a source.

    Attributes:
        name: Last part of a path or an address, or the id on the Hub with its configuration.
        origin: Where it is from, in words.
        hub_id: Its repository on the Hub, or None.
    """

    name: str
    origin: str
    hub_id: str | None = None


def public_name(source: str) -> PublicName:
    """Return what a source, as recipes and `--data` take them, may be called in public."""
    if source in DEMO_SOURCES:
        return PublicName(source, "packages of PyPI, npm and Debian")
    if _ADDRESS.match(source):
        return _of_address(source)
    path = Path(source).expanduser()
    if path.exists() or (path.suffix in BUILDERS and not source.startswith(HUB_PREFIX)):
        name = os.path.basename(os.path.abspath(path))
        return PublicName(name, f"{'folder' if path.is_dir() else 'file'} {name}")
    name = source.removeprefix(HUB_PREFIX)
    return PublicName(name, f"Hugging Face Hub, {name}", name.partition(":")[0])


def _of_address(source: str) -> PublicName:
    address, of_hub = urlsplit(source), _FILE_OF_HUB.match(source)
    name = address.path.rstrip("/").rpartition("/")[2] or "files"
    if of_hub is not None:
        return PublicName(name, f"Hugging Face Hub, {of_hub['id']}", of_hub["id"])
    return PublicName(name, f"file of {address.hostname or address.scheme}")
