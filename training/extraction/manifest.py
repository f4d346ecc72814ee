"""What a data set was begun with, so that nothing else is ever added to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.errors import first_few
from foundation.files import remove_abandoned, write_text
from foundation.output_lock import LOCK
from foundation.settings import differences
from training.extraction.shards import FOLDER, Shard


MANIFEST = "extraction.json"
MAX_NAMED = 4
"""Our choice: as many differences are named."""


def begin(output: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a new data set, or compare it with that of one that was begun.

    One that has nothing but its manifest yet is begun anew: what stopped it may have been a wrong setting.

    Args:
        output: Folder of the data set.
        facts: Plain data: settings, model and images.

    Raises:
        ValueError: If `output` holds something else, or was begun with something else.
    """
    if _holds_at_most_a_manifest(output):
        write_text(output / MANIFEST, json.dumps(facts, indent=2) + "\n")
    elif not (output / MANIFEST).is_file():
        raise ValueError(
            f"`output` must be a new folder or a data set that was begun, got {str(output)!r}, which holds "
            "something else. Name another."
        )
    found = differences(read_manifest(output), json.loads(json.dumps(facts)))
    if found:
        raise ValueError(
            f"`output` must be a new folder or one that was begun with the same settings, weights and images, got "
            f"{str(output)!r} with other ones ({first_few(found, MAX_NAMED)}). Name another, or give the old ones."
        )
    remove_abandoned(output / FOLDER)


def read_manifest(output: Path) -> dict[str, Any]:
    """Return what a data set was begun with.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    path = output / MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`output` must be a folder of training.extract, got {str(output)!r}: {error}.") from error
    if not isinstance(facts, dict) or not {"settings", "images", "source", "model"} <= facts.keys():
        raise ValueError(
            f"`output` must be a folder of training.extract, got {str(output)!r}, whose {MANIFEST} is none."
        )
    return facts


def _holds_at_most_a_manifest(output: Path) -> bool:
    if not output.exists():
        return True
    return output.is_dir() and {path.name for path in output.rglob("*")} <= {MANIFEST, FOLDER, LOCK}


def missing_shards(output: Path, shards: list[Shard]) -> list[Shard]:
    """Return the files that are not there; one that has its name is whole."""
    return [shard for shard in shards if not (output / shard.path).is_file()]
