"""A folder as it will stand on the Hub: its kind, its files, and its card with the repository's name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub.constants import EVAL_RESULTS_FOLDER
from transformers.utils import ADAPTER_CONFIG_NAME

from foundation.errors import first_few
from foundation.trust import COPIED_FILES, allowed_files
from model_cards.build import RESULTS, WEIGHTS
from model_cards.kinds.adapters import BASE_PLACEHOLDER, is_adapter
from model_cards.metadata import HUB_ID
from model_cards.rendering import PLACEHOLDER, UNPUBLISHED, read_card


CARD = "README.md"
Kind = Literal["model", "adapter", "dataset"]
PUBLISHED_FILES = (*COPIED_FILES, f"{EVAL_RESULTS_FOLDER}/*.yaml", "*.onnx", "*.onnx.*.data")
FEATURE_FILES = (
    *(CARD, "*.parquet", "*/*.parquet", "index/*.faiss", "pca.safetensors", "extraction.json", "made.json"),
    *("SHA256SUMS", "LICENSE", "LICENSE.*"),
)
"""What `training.extract` writes, or another program that writes Parquet."""
_MAX_NAMES = 4
_CODE_BLOCKS = re.compile(r"```python\n(.*?)```", re.DOTALL)
_OPENED = re.compile(r"""(?:from_pretrained\(|load_dataset\(|model=)(["'])(.*?)\1""")


@dataclass(frozen=True)
class Publication:
    """What will be uploaded.

    Attributes:
        folder: Where it lies.
        kind: What it is.
        repo_id: `ORG/NAME`.
        files: Files by their path in the repository: of the folder, or the new content of those that name repositories.
    """

    folder: Path
    kind: Kind
    repo_id: str
    files: dict[str, Path | bytes]

    @property
    def repo_type(self) -> str:
        """Return the kind of repository on the Hub."""
        return "dataset" if self.kind == "dataset" else "model"

    @property
    def card(self) -> str:
        """Return the text of the card."""
        content = self.files[CARD]
        return content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")

    def num_bytes(self) -> int:
        """Return the size of all files together."""
        sizes = (len(each) if isinstance(each, bytes) else each.stat().st_size for each in self.files.values())
        return sum(sizes)


def read_folder(folder: Path, repo_id: str, base: str | None = None) -> Publication:
    """Return what a folder becomes on the Hub; the folder stays as it is.

    Args:
        folder: A checkpoint, an adapter, or features in Parquet files.
        repo_id: `ORG/NAME`; takes its place in the card's code.
        base: Of an adapter: the repository of its base, which may be a folder here.

    Raises:
        ValueError: If it is none of these, holds what is no part of it or links, has no card, or the card's code opens
            something else.
    """
    kind = _kind(folder)
    files: dict[str, Path | bytes] = {**_published_files(folder, kind)}
    if CARD not in files:
        how = (
            "training.extract`, with its options as before,"
            if kind == "dataset"
            else f"model_cards.build {folder} --license ID`"
        )
        raise ValueError(f"{folder} has no card. `python -m {how} writes it.")
    card = (folder / CARD).read_text(encoding="utf-8").replace(UNPUBLISHED, "").replace(PLACEHOLDER, repo_id)
    if kind == "adapter":
        named, files[ADAPTER_CONFIG_NAME] = _adapter_config(folder, base)
        card = _with_base(card, named)
    elif base is not None:
        raise ValueError(f"`base` must be left out where the folder holds no adapter, got {base!r}.")
    files[CARD] = card.encode()
    others = sorted({name for block in _CODE_BLOCKS.findall(card) for _, name in _OPENED.findall(block)} - {repo_id})
    if others:
        raise ValueError(
            f"The card's code opens {', '.join(others)}, not {repo_id}: write it again without `--model-id`."
        )
    return Publication(folder, kind, repo_id, files)


def _kind(folder: Path) -> Kind:
    if is_adapter(folder):
        return "adapter"
    if (folder / "config.json").is_file() and any((folder / name).is_file() for name in WEIGHTS):
        return "model"
    if any(folder.rglob("*.parquet")):
        return "dataset"
    raise ValueError(
        f"`checkpoint` must be a folder with a model (config.json, {WEIGHTS[0]}), an adapter ({ADAPTER_CONFIG_NAME}) "
        f"or features (*.parquet), got {str(folder)!r}."
    )


def _published_files(folder: Path, kind: Kind) -> dict[str, Path]:
    """Return the files for others to see, by their place in the folder.

    These are no caches, nothing hidden but the Hub's own, and no results that the card was written from: it shows them,
    and they name the command that measured and its folders. Whatever else is no part of such a folder is refused.
    """
    found = allowed_files(folder, FEATURE_FILES if kind == "dataset" else PUBLISHED_FILES)
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir()]
    seen = [name for name in names if name.name != RESULTS and not _is_passed_over(name)]
    strangers = [name.as_posix() for name in seen if name.as_posix() not in found]
    if strangers:
        raise ValueError(
            f"{str(folder)!r} must hold what belongs to a {kind} alone, got {first_few(strangers, _MAX_NAMES)}: move "
            "such files away; what is published stays public."
        )
    return found


def _is_passed_over(name: Path) -> bool:
    return any(part == "__pycache__" or part.startswith(".") for part in name.parts)


def _adapter_config(folder: Path, base: str | None) -> tuple[str, bytes]:
    """Return an adapter's base as a repository, and the file that names it."""
    config = json.loads((folder / ADAPTER_CONFIG_NAME).read_text(encoding="utf-8"))
    named = base or str(config.get("base_model_name_or_path"))
    if not HUB_ID.fullmatch(named):
        raise ValueError(f"`base` must be the repository of the adapter's base, got {named!r}. Give `--base ORG/NAME`.")
    text = json.dumps(config | {"base_model_name_or_path": named}, indent=2, sort_keys=True) + "\n"
    return named, text.encode()


def _with_base(card: str, base: str) -> str:
    found = read_card(card.replace(BASE_PLACEHOLDER, base))
    found.data.__dict__.update(base_model=[base], base_model_relation="adapter")
    return str(found)
