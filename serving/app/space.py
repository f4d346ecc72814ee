"""The app as a folder for a Space: its files, the network, and the checkpoint or its Hub id.

The Space opens checkpoints with the classes that it carries, as the app does here: it runs no code of a checkpoint.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import ADAPTER_CONFIG_NAME

import modeling_radio
from modeling_radio.core.files import FolderKind, write_folder
from modeling_radio.core.images import copy_image
from modeling_radio.core.opening import read_radio_config
from modeling_radio.core.trust import check_parts, copy_model
from modeling_radio.loading_radio import HUB_ID


NETWORK = Path(modeling_radio.__file__).parent
CARRIED = (
    *("serving.app.page", "figures.predictions", "figures.features"),
    *("core.errors", "core.hub", "core.ids", "core.machine", "core.opening", "core.tables", "core.trust"),
)
"""Modules of `modeling_radio` in a Space beside the network: the page and its imports."""
PACKAGES = ("torch", "torchvision", "transformers", "safetensors", "pillow", "numpy", "matplotlib")
PYTHON = "3.12"
"""Python of the Space; our choice among the versions that all packages have wheels for."""
CHECKPOINT, BASE, EXAMPLES = "checkpoint", "base", "examples"
SPACE = FolderKind(
    "Spaces of this app",
    (
        *("app.py", "README.md", "requirements.txt", "LICENSE", "modeling_radio", "__pycache__"),
        *(CHECKPOINT, BASE, EXAMPLES),
    ),
    lambda folder: all((folder / each).is_file() for each in ("app.py", "modeling_radio/serving/app/page.py")),
)

START = '''"""The page of this Space, in Gradio. `python app.py` shows it on this machine."""

from pathlib import Path

from modeling_radio.serving.app.page import App, build_page, launch_options


FOLDER = Path(__file__).parent
CHECKPOINT = {checkpoint}
EXAMPLES = sorted((FOLDER / "examples").glob("*"))

app = App(CHECKPOINT, dtype={dtype!r}, num_global={num_global!r}, title={title!r}, base={base})
demo = build_page(app, EXAMPLES)

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
alike a patch that you click, words where it knows any, what windows cost, and its task where it was tuned for one.

`python app.py` shows it on your machine, after `pip install "gradio=={gradio}" -r requirements.txt`. The Space carries
the code of the network (`modeling_radio/`) and of the page, Apache-2.0; the weights have the license
of their own card.
"""


def write_space(
    folder: Path,
    checkpoint: str,
    dtype: str = "float32",
    num_global: int | None = None,
    examples: Sequence[Path] = (),
    base: str | None = None,
) -> None:
    """Write the folder of a Space.

    Args:
        folder: Written atomically, in place of an older one.
        checkpoint: Folder, which is copied, or Hub id, which is opened there.
        dtype: Type that the model computes in.
        num_global: See `open_model`.
        examples: Photographs, which are encoded anew without EXIF data.
        base: An adapter's base: RADIO folder, which is copied, or Hub id; see `check_parts`.

    Raises:
        ValueError: If the checkpoint is neither a RADIO folder nor a Hub id, or has links for files; or as
            `check_parts`.
        WriteError: If it cannot be written.
    """
    is_copied = Path(checkpoint).is_dir()
    needs_timm = True  # perhaps, on the Hub
    if is_copied:
        needs_timm = (read_radio_config(checkpoint).get("wrapped") or {}).get("source") == "timm"
    elif not HUB_ID.fullmatch(checkpoint):
        raise ValueError(f"`checkpoint` must be a folder or a Hub id (ORG/NAME), got {checkpoint!r}.")
    base = check_parts(checkpoint, base)
    name = Path(checkpoint).resolve() if is_copied else Path(checkpoint)
    title = "/".join(name.parts[-2:])

    def write(temporary: Path) -> None:
        for name, source in carried_files().items():
            target = temporary / "modeling_radio" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        (temporary / EXAMPLES).mkdir()
        for number, path in enumerate(examples):
            copy_image(path, temporary / EXAMPLES / f"{number:02d}-{path.stem}")
        if is_copied:
            copy_model(Path(checkpoint), temporary / CHECKPOINT)
        has_base = base is not None and Path(base).is_dir()
        if base is not None and has_base:
            copy_model(Path(base), temporary / BASE)
        if is_copied and base is not None:  # the copied adapter names its base at the new place
            path = temporary / CHECKPOINT / ADAPTER_CONFIG_NAME
            config = json.loads(path.read_text(encoding="utf-8"))
            config["base_model_name_or_path"] = f"../{BASE}" if has_base else base
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        may_be_adapter = base is not None or not is_copied
        packages = (*PACKAGES, *(["peft"] if may_be_adapter else []), *(["timm"] if needs_timm else []))
        start = START.format(
            checkpoint=f'str(FOLDER / "{CHECKPOINT}")' if is_copied else repr(checkpoint),
            dtype=dtype,
            num_global=num_global,
            title=title,
            base=f'str(FOLDER / "{BASE}")' if has_base else repr(base),
        )
        card = CARD.format(
            title=title,
            quoted=json.dumps(title, ensure_ascii=False),
            gradio=importlib.metadata.version("gradio"),
            python=PYTHON,
            models="" if is_copied else f"models:\n- {checkpoint}\n",
            named="the checkpoint in this repository" if is_copied else f"`{checkpoint}`",
        )
        requirements = "".join(f"{_requirement(each)}\n" for each in packages)
        files = {"app.py": start, "README.md": card, "requirements.txt": requirements, "LICENSE": _license()}
        for file, text in files.items():
            (temporary / file).write_text(text, encoding="utf-8")

    write_folder(folder, write)


def carried_files() -> dict[str, Path]:
    """Return the files of the package in a Space by their place in it: the network, and the page with its imports."""
    network = [
        *(path for path in NETWORK.glob("*.py") if path.name != "__main__.py"),
        *(NETWORK / "nvidia").glob("*.py"),
    ]
    files = {path.relative_to(NETWORK).as_posix(): path for path in network}
    return files | {f"{name.replace('.', '/')}.py": _file_of(name) for name in CARRIED}


def _file_of(module: str) -> Path:
    spec = importlib.util.find_spec(f"modeling_radio.{module}")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def _license() -> str:
    path = NETWORK.parent / "LICENSE"  # of a clone
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return importlib.metadata.distribution("modeling-radio").read_text("licenses/LICENSE") or ""


def _requirement(package: str) -> str:
    """Return the range of a package from the installed version up to the next major one."""
    found = re.match(r"\d+\.\d+", importlib.metadata.version(package))
    assert found is not None
    return f"{package}~={found[0]}"
