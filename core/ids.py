"""Ids of models and data sets: one spelling, whatever the user wrote."""

import functools
import re
import sys
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from modeling_radio.checks_radio import find_builtin


HUB_PREFIX = "hub:"
LIBRARY_PREFIXES = ("timm:", "transformers:")
"""Beginnings of ids that name a network of a library."""
_TIMM_ON_HUB = re.compile(r"timm/([\w.-]+)")
FINAL, MERGED = "final", "merged"
"""Folders of a run with its model: of the best or last state, and of an adapter merged into its base."""
MODELS_OF_RUNS = (MERGED, FINAL)
"""Folders of a run with its model, in the order of preference: a merged adapter needs no base."""
PICTURES, EXAMPLES = "pictures", "examples"
"""Folder of a run with its figures, and the folder in it with some validation images, none of which are published."""
_CONFIGS = ("config.json", "adapter_config.json")


def model_folder(folder: Path) -> Path:
    """Return a folder, or the folder of its model if it is that of a run, which a line on stderr says.

    `builtin:NAME` is the folder of a model in this package.
    """
    folder = Path(find_builtin(folder))
    place = folder.expanduser()
    if not place.is_dir() or _has_config(place):
        return folder
    for name in MODELS_OF_RUNS:
        if _has_config(place / name):
            _say_once(f"{folder} is the folder of a run: its model {folder / name} is used.")
            return folder / name
    return folder


def name_of_folder(folder: str | Path) -> str:
    """Return the name of a model's folder for readers: of the folders of a run's model, that of the run."""
    path = Path(folder).expanduser().resolve()
    return (path.parent.name if path.name in MODELS_OF_RUNS else "") or path.name


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _has_config(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _CONFIGS)


def standard_id(source: str) -> str:
    """Return the documented spelling of an id: `ORG/NAME` of `hub:ORG/NAME`, and `timm:NAME` of `timm/NAME`.

    `builtin:NAME` becomes the folder of a model in this package. Anything else stays as it is, such as a folder on this
    machine, whatever its name; see also `model_folder`.
    """
    source = find_builtin(source)
    if Path(source).expanduser().exists():
        folder = model_folder(Path(source))
        return source if folder == Path(source) else str(folder)
    name = source.removeprefix(HUB_PREFIX)
    network = _TIMM_ON_HUB.fullmatch(name)
    return name if network is None else f"timm:{network[1]}"


ModelId = Annotated[str, AfterValidator(standard_id)]
"""A setting that names a model."""
ModelFolder = Annotated[Path, AfterValidator(model_folder)]
"""A setting that names the folder of a model, or its id on the Hub."""
