"""Files and entries of `config.json` that are written beside a checkpoint, by which transformers finds our classes.

Only saving needs it: `hub_radio.import_sibling` fetches it then.
"""

import hashlib
import json
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from .hub_radio import IS_REMOTE_CODE, SOURCE_FILES, SUMS, own_models, read_source, register_model, write_whole
from .tasks_radio import AUTO_MAP, PIPELINES, TASKS, task_of


_unavailable: set[str] = set()
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnClass:
    """A model class in a file of the user's, which is saved beside ours.

    Attributes:
        auto_class: Name of the Auto class that opens it.
        reference: The class, `module.Class`, as `config.json` names it.
        files: Contents of its file, and of those that this imports from its folder, by name.
    """

    auto_class: str
    reference: str
    files: dict[str, bytes]


own_classes: dict[str, OwnClass] = {}
"""Classes of the user's by name. Only code that runs in this process adds to them, never a folder that is opened."""


def auto_map_entries(architectures: list[str] | None, *, has_text_tower: bool) -> dict[str, Any]:
    """Return the entries of `config.json` by which transformers finds our classes: `auto_map`, `custom_pipelines`.

    Args:
        architectures: Class of the saved model, as transformers writes it.
        has_text_tower: Whether the folder holds one.
    """
    take_own_models()
    own = own_classes.get((architectures or [""])[0])
    task = task_of(architectures, None if own is None else {own.auto_class: own.reference})
    if task is None and has_text_tower:
        task = TASKS["zero-shot-image-classification"]
    auto_map, pipelines = dict(AUTO_MAP), dict(PIPELINES)
    if task is not None:
        auto_map, pipelines = auto_map | task.own_auto_map, pipelines | task.own_pipelines
    if own is not None:
        replaced = None if task is None else task.model  # which would have a new head here
        auto_map = {name: own.reference if model == replaced else model for name, model in auto_map.items()}
        auto_map[own.auto_class] = own.reference
    return {
        "auto_map": {name: reference for name, reference in auto_map.items() if _is_there(reference)},
        "custom_pipelines": {
            name: {"impl": entry.impl, "pt": [entry.auto_class], "type": entry.kind}
            for name, entry in pipelines.items()
            if _is_there(entry.impl)
        },
    }


def _is_there(reference: str) -> bool:
    """Return whether the file of a class, written `module.Class`, could be had when files were copied."""
    return f"{reference.rpartition('.')[0]}.py" not in _unavailable


def take_own_models() -> None:
    """Read the files of the classes that were registered since the last call into `own_classes`.

    Raises:
        ValueError: If a class has no file of its own, or a file could not be imported beside a checkpoint.
    """
    while own_models:
        model_class, auto_class, config_class = own_models.pop(0)
        module, name = model_class.__module__.rpartition(".")[2], model_class.__name__
        if module == "__main__" or f"{module}.py" in SOURCE_FILES:
            raise ValueError(f"`{name}` must be in a file with a name of its own, which is saved; got '{module}.py'.")
        if name in {reference.rpartition(".")[2] for reference in AUTO_MAP.values()}:
            raise ValueError(f"`{name}` must have a name of its own: folders would name it in place of ours.")
        path = Path(sys.modules[model_class.__module__].__file__ or "")
        own_classes[name] = own = OwnClass(auto_class, f"{module}.{name}", _own_files(path))
        task = task_of([name], {auto_class: own.reference})
        for each in {auto_class, *(task.auto_classes if task is not None and not IS_REMOTE_CODE else ())}:
            register_model(model_class, each, config_class)


_OUR_IMPORT = re.compile(rb"^(\s*from )modeling_radio(\.(\w+) import )", re.MULTILINE)
_ANY_IMPORT = re.compile(rb"^\s*(?:from|import) modeling_radio\b.*", re.MULTILINE)


def _own_files(path: Path) -> dict[str, bytes]:
    """Return a file of the user's and those that it imports from its folder, with imports as beside a checkpoint."""
    files = {}
    for each in (path, *map(Path, get_relative_import_files(path))):
        if each.name in SOURCE_FILES:
            continue
        content = _OUR_IMPORT.sub(
            lambda found: found[1] + found[2] if f"{found[3].decode()}.py" in SOURCE_FILES else found[0],
            each.read_bytes(),
        )
        if wrong := _ANY_IMPORT.search(content):
            raise ValueError(
                f"{str(each)!r} must import only what lies beside a checkpoint, such as "
                f"`from modeling_radio.heads_radio import RadioTaskModel`, got `{wrong[0].decode().strip()}`. Put "
                "other code into another file."
            )
        files[each.name] = content
    return files


def source_files() -> dict[str, bytes]:
    """Return the contents of the source files of a saved folder, by name; those that cannot be found are left out.

    The package's `hub_radio.py` gets the sums of the other files.
    """
    files = {file: content for file in SOURCE_FILES if (content := read_source(file)) is not None}
    if not IS_REMOTE_CODE:
        own = "hub_radio.py"
        sums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items() if file != own}
        before, after = (f"\nSUMS: dict[str, str] = {json.dumps(each, indent=4)}\n".encode() for each in (SUMS, sums))
        assert files[own].count(before) == 1
        files[own] = files[own].replace(before, after)
    return files


def copy_source_files(folder: str | Path, architectures: list[str] | None = None) -> None:
    """Write into a folder the source files that `trust_remote_code` runs.

    Those that belong to this copy of the code but cannot be found are left out, and then the classes in them are not
    named in `config.json`.

    Args:
        folder: The folder.
        architectures: Class of the saved model: with one of `own_classes` its files are written too.
    """
    take_own_models()
    own = own_classes.get((architectures or [""])[0])
    files = source_files() | (own.files if own is not None else {})
    for file, content in files.items():
        write_whole(content, Path(folder, file))
    _unavailable.clear()
    _unavailable.update(set(SOURCE_FILES) - files.keys())
    if _unavailable:
        _logger.warning(
            f"{str(folder)!r} lacks {sorted(_unavailable)}, which could not be found: classes in them are left out."
        )


def module_files(*, has_text_tower: bool) -> dict[str, Any]:
    """Return the contents of sentence-transformers' files; it embeds by `get_image_features`, `get_text_features`.

    Without these files it would take the mean over all tokens, class tokens and registers too.
    """
    kinds = ("image", "text")[: 1 + has_text_tower]
    methods = {kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"} for kind in kinds}
    return {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": methods,
            "module_output_name": "sentence_embedding",
        },
    }


def write_modules(folder: str | Path, *, has_text_tower: bool) -> None:
    """Write `module_files` into a folder."""
    for name, content in module_files(has_text_tower=has_text_tower).items():
        Path(folder, name).write_text(json.dumps(content, indent=2) + "\n")
