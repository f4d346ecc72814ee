"""The app as a folder for a Space: its own files, the network, and the checkpoint or where it is on the Hub.

The Space opens with the classes that it carries: it runs no code of a checkpoint, and opens what the app opens here.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import ADAPTER_CONFIG_NAME

import modeling_radio
from foundation.files import write_folder
from modeling_radio.peft_radio import HUB_ID, find_adapter_base
from training.app.opening import read_radio_config


ROOT = Path(modeling_radio.__file__).parents[1]
PAGE = "training/app/page.py"
CARRIED = ("training", "foundation")
"""Packages of which the Space has the files that the page imports; of `modeling_radio` it has all."""
PACKAGES = ("torch", "torchvision", "transformers", "safetensors", "pillow", "numpy", "matplotlib")
ADAPTER_PACKAGES = ("peft",)
PYTHON = "3.12"
"""Of the Space; our choice among those that all packages have wheels for."""
CHECKPOINT, BASE, EXAMPLES = "checkpoint", "base", "examples"
_SKIPPED = shutil.ignore_patterns("__pycache__", ".*", "optimizer*", "*.log")

START = '''"""The page of this Space, in Gradio. `python app.py` shows it on this machine."""

from pathlib import Path

from training.app.page import App, build_page, launch_options


FOLDER = Path(__file__).parent
CHECKPOINT = {checkpoint}
EXAMPLES = sorted((FOLDER / "examples").glob("*"))

demo = build_page(App(CHECKPOINT, dtype={dtype!r}, num_global={num_global!r}, title={title!r}), EXAMPLES)

if __name__ == "__main__":
    demo.launch(**launch_options())
'''

CARD = """---
title: {quoted}
emoji: 🔭
colorFrom: green
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
pinned: false
{models}short_description: Features, teachers' spaces and windows of a RADIO model
---

# {title}

A page about {named}, a RADIO vision backbone: its features and those in its teachers' spaces as colors, what is
alike a place that you click, words where it knows any, what windows cost, and its task where it was tuned for one.

`python app.py` shows it on your machine, after `pip install "gradio=={gradio}" -r requirements.txt`. The Space carries
the code of the network (`modeling_radio/`) and of the page (`training/app/`), Apache-2.0; the weights have the license
of their own card.
"""


@dataclass(frozen=True)
class Space:
    """What a Space shows.

    Attributes:
        checkpoint: Folder, which is copied, or Hub id, which is opened there.
        dtype: What the model computes in.
        num_global: As of `open_model`.
        examples: Photographs, which are copied.
    """

    checkpoint: str
    dtype: str = "float32"
    num_global: int | None = None
    examples: tuple[Path, ...] = ()

    @property
    def is_copied(self) -> bool:
        """Whether the checkpoint is a folder of this machine."""
        return Path(self.checkpoint).is_dir()


def write_space(space: Space, folder: Path) -> None:
    """Write the folder of a Space.

    Args:
        space: What it shows.
        folder: Written as a whole, in place of an older one.

    Raises:
        ValueError: If the checkpoint is neither a RADIO folder nor a Hub id.
        WriteError: If it cannot be written.
    """
    if not space.is_copied and not HUB_ID.fullmatch(space.checkpoint):
        raise ValueError(f"`checkpoint` must be a folder or a Hub id (ORG/NAME), got {space.checkpoint!r}.")
    if space.is_copied:
        read_radio_config(space.checkpoint)
    write_folder(folder, lambda temporary: _write(space, temporary))


def _write(space: Space, folder: Path) -> None:
    for source in carried_files():
        target = folder / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (folder / EXAMPLES).mkdir()
    for number, path in enumerate(space.examples):
        shutil.copyfile(path, folder / EXAMPLES / f"{number:02d}-{path.name}")
    has_adapter = space.is_copied and _copy_checkpoint(Path(space.checkpoint), folder)
    packages = (*PACKAGES, *(ADAPTER_PACKAGES if has_adapter or not space.is_copied else ()))
    (folder / "requirements.txt").write_text("".join(f"{_requirement(each)}\n" for each in packages), encoding="utf-8")
    name = Path(space.checkpoint).resolve() if space.is_copied else Path(space.checkpoint)
    title = "/".join(name.parts[-2:])
    where = f'str(FOLDER / "{CHECKPOINT}")' if space.is_copied else repr(space.checkpoint)
    start = START.format(checkpoint=where, dtype=space.dtype, num_global=space.num_global, title=title)
    (folder / "app.py").write_text(start, encoding="utf-8")
    card = CARD.format(
        title=title,
        quoted=json.dumps(title, ensure_ascii=False),
        gradio=importlib.metadata.version("gradio"),
        python=PYTHON,
        models="" if space.is_copied else f"models:\n- {space.checkpoint}\n",
        named="the checkpoint in this repository" if space.is_copied else f"`{space.checkpoint}`",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def carried_files() -> list[Path]:
    """Return the source files that the page needs: the whole network, and of other packages what it imports."""
    found: set[Path] = set()
    waiting = [ROOT / PAGE]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [each for name in _imported(path) for each in _files_of(name)]
    return sorted(found | set((ROOT / "modeling_radio").glob("*.py")) | {ROOT / "LICENSE"})


def _imported(path: Path) -> Iterator[str]:
    """Yield the names of modules, and of what may be modules, that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def _files_of(name: str) -> Iterator[Path]:
    """Yield the file of a module of `CARRIED` and those of the packages around it."""
    parts = name.split(".")
    if parts[0] not in CARRIED:
        return
    for length in range(1, len(parts) + 1):
        place = ROOT.joinpath(*parts[:length])
        yield from (each for each in (place / "__init__.py", place.with_suffix(".py")) if each.is_file())


def _requirement(package: str) -> str:
    """Return the range of a package from the installed version on to the next major one."""
    found = re.match(r"\d+\.\d+", importlib.metadata.version(package))
    assert found is not None
    return f"{package}~={found[0]}"


def _copy_checkpoint(checkpoint: Path, folder: Path) -> bool:
    """Copy a checkpoint, of an adapter also the base if that is a folder here; return whether it is an adapter."""
    base = find_adapter_base(checkpoint)
    shutil.copytree(checkpoint, folder / CHECKPOINT, ignore=_SKIPPED)
    if base is None:
        return False
    if Path(base).is_dir():
        shutil.copytree(base, folder / BASE, ignore=_SKIPPED)
        path = folder / CHECKPOINT / ADAPTER_CONFIG_NAME
        config = json.loads(path.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = f"../{BASE}"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return True
