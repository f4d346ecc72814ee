"""Contents of a saved folder: entries of `config.json` that name our classes, and the source files beside it.

`RadioConfig.save_pretrained` calls `copy_source_files`.
"""

import hashlib
import importlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers
from transformers import AutoBackbone, AutoModel
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports
from transformers.utils import cached_file

from .tasks_radio import AUTO_MAP, PIPELINES, TASKS, pipeline_of, task_of


def own_pipeline(values: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a parsed `config.json` for the pipeline that the folder is for.

    transformers infers a task only where there is no choice: `pipeline(model="ORG/NAME")`.
    """
    own = pipeline_of(values.get("architectures"), values.get("auto_map"))
    return {name: entry for name, entry in values["custom_pipelines"].items() if name == own}


def auto_map_entries(architectures: list[str] | None, *, has_text_tower: bool) -> dict[str, Any]:
    """Return the entries of `config.json` by which transformers finds our classes: `auto_map`, `custom_pipelines`.

    Args:
        architectures: Class of the saved model, as transformers writes it.
        has_text_tower: Whether the folder holds one.
    """
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


_NAMES = (
    "adaptors backbone checks configuration detection eradio heads hub image_processing inputs intermediate layers "
    "library_config loading modeling new_head nvidia_methods nvidia_names outputs peft pipelines post_processing "
    "presets processing radio1d radseg regions sam3 tasks video_processing window_budget wrapped zero_shot"
)
SOURCE_FILES = tuple(f"{name}_radio.py" for name in _NAMES.split())
"""All that lies beside a checkpoint. transformers fetches a class's file and those that its imports name; some are only
imported where a configuration asks for them, and found by `import_sibling`."""

SUMS: dict[str, str] = {}
"""SHA-256 of the other source files by name, in the copy of this file in a saved folder; empty in the package.

A process runs this copy because its user trusts it. So it says which bytes another file must have to run beside it, no
matter which folder the file comes from.
"""

DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
"""Arguments of `from_pretrained` that say how files are fetched."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HERE = Path(__file__).parent
_IS_REMOTE_CODE = (__package__ or "").startswith("transformers_modules.")
_opened: dict[str, dict[str, Any]] = {}
_unavailable: set[str] = set()
_logger = logging.getLogger(__name__)


def remember_folder(folder: Any, options: Mapping[str, Any]) -> None:
    """Remember a folder or repository that is opened: source files that are not here yet may lie there.

    Args:
        folder: First argument of `from_pretrained`.
        options: The others.
    """
    if folder and _IS_REMOTE_CODE:
        name = os.path.realpath(folder) if os.path.isdir(folder) else str(folder)
        given = {key: options[key] for key in (*DOWNLOAD_OPTIONS, "subfolder") if options.get(key) is not None}
        _opened[name] = _opened.get(name, {}) | given


def import_sibling(name: str) -> ModuleType:
    """Return another source file, which only some models need: that of this package, or one that `SUMS` names.

    Args:
        name: Without ".py", one of `SOURCE_FILES`.

    Raises:
        ImportError: If this copy of the code lacks the file, and so do the folders that it opened.
    """
    if _IS_REMOTE_CODE:
        _fetch(f"{name}.py")
    return importlib.import_module(f"{__package__}.{name}")


def _fetch(file: str) -> None:
    """Put a source file and those that it imports beside this one, unless they run or are there."""
    if _runs(file):
        return
    content, path = _read_source(file), _HERE / file
    if content is None:
        raise ImportError(
            f"{file!r} is missing: neither the folder of {__file__!r} nor a folder that was opened has it with the "
            "SHA-256 that `SUMS` in that file states. Open the model by an Auto class in a new process. If you edited "
            "the file, write its new sum there."
        )
    if not path.is_file() or path.read_bytes() != content:
        _write(content, path)
        importlib.invalidate_caches()
    for name in get_relative_imports(path):
        if f"{name}.py" in SOURCE_FILES:
            _fetch(f"{name}.py")


def _runs(file: str) -> bool:
    return f"{__package__}.{file.removesuffix('.py')}" in sys.modules


def _read_source(file: str) -> bytes | None:
    """Return the content of a source file: of the package, of code that runs already, or with the sum in `SUMS`.

    `None` if there is no such file.
    """
    if (_HERE / file).is_file() and (_runs(file) or not _IS_REMOTE_CODE):
        return (_HERE / file).read_bytes()
    for path in _places(file):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == SUMS.get(file):
            return content
    return None


def _places(file: str) -> Iterator[Path]:
    """Yield source files of one name: the one beside this file, then those of the folders that were opened."""
    if (_HERE / file).is_file():
        yield _HERE / file
    commit = (__package__ or "").rpartition(".")[2]
    for name, options in list(_opened.items()):
        if os.path.isdir(name):
            path = Path(name, options.get("subfolder") or "", file)
            if path.is_file():
                yield path
        elif _COMMIT.fullmatch(commit):
            try:
                found = cached_file(name, file, revision=commit, **options)
            except OSError:
                continue
            if found is not None:
                yield Path(found)


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
_registered: dict[str, list[type]] = {}


def register_class(model_class: Any, auto_class: str, config_class: type) -> None:
    """Let saved folders hold the file of a model class of the user's, and an Auto class open it; ours need nothing.

    Args:
        model_class: A subclass of `RadioPreTrainedModel`.
        auto_class: Name of the Auto class.
        config_class: Configuration of the model.

    Raises:
        ValueError: If the class has no file of its own, or a file could not be imported beside a checkpoint.
    """
    package, _, module = model_class.__module__.rpartition(".")
    file, name = f"{module}.py", model_class.__name__
    if package == __package__ and file in SOURCE_FILES:
        return
    if module == "__main__" or file in SOURCE_FILES:
        raise ValueError(f"`{name}` must be in a file with a name of its own, which is saved; got {file!r}.")
    if name in {reference.rpartition(".")[2] for reference in AUTO_MAP.values()}:
        raise ValueError(f"`{name}` must have a name of its own: folders would name it in place of ours.")
    own = OwnClass(auto_class, f"{module}.{name}", _own_files(Path(sys.modules[model_class.__module__].__file__ or "")))
    own_classes[name] = own
    task = task_of([name], {auto_class: own.reference})
    for each in {auto_class, *(task.auto_classes if task is not None and not _IS_REMOTE_CODE else ())}:
        register_model(model_class, each, config_class)


def register_model(model_class: type, auto_class: str, config_class: type) -> None:
    """Let an Auto class build a model; of several the one that a folder names as its architecture, else the first."""
    classes = _registered.setdefault(auto_class, [])
    classes[:] = [each for each in classes if each.__name__ != model_class.__name__] + [model_class]
    known = tuple(classes) if len(classes) > 1 else model_class
    getattr(transformers, auto_class).register(config_class, known, exist_ok=True)


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


def register_parts(config_class: type) -> None:
    """Let remote code's configurations be parts of other models: LLaVA, UperNet or DETR then build what they describe.

    transformers would take its own `RadioModel` by the class's name, and knows no backbone.
    """
    if _IS_REMOTE_CODE:
        for auto_class in (AutoModel, AutoBackbone):
            auto_class.register(config_class, _part(auto_class.__name__), exist_ok=True)


def _part(auto_class: str) -> type:
    """Return a class that builds and opens models by the class that `AUTO_MAP` names, whose file it fetches first."""
    module, _, class_name = AUTO_MAP[auto_class].partition(".")

    class SiblingClass:
        @staticmethod
        def _from_config(config: Any, **kwargs: Any) -> Any:
            remember_folder(config.name_or_path, {})
            return vars(import_sibling(module))[class_name]._from_config(config, **kwargs)

        @staticmethod
        def from_pretrained(folder: Any, *args: Any, **kwargs: Any) -> Any:
            remember_folder(folder, kwargs)
            return vars(import_sibling(module))[class_name].from_pretrained(folder, *args, **kwargs)

    return SiblingClass


def source_files() -> dict[str, bytes]:
    """Return the contents of the source files of a saved folder, by name; those that cannot be found are left out.

    The package's `hub_radio.py` gets the sums of the other files.
    """
    files = {file: content for file in SOURCE_FILES if (content := _read_source(file)) is not None}
    if not _IS_REMOTE_CODE:
        own = Path(__file__).name
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
    own = own_classes.get((architectures or [""])[0])
    files = source_files() | (own.files if own is not None else {})
    for file, content in files.items():
        _write(content, Path(folder, file))
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


def _write(content: bytes, path: Path) -> None:
    """Write a file in one step, since other processes and threads may read it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    partial.write_bytes(content)
    partial.replace(path)
