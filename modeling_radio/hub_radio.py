"""Source files beside a checkpoint: a file that is not here yet is fetched, compared with its sum and imported."""

import hashlib
import importlib
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers
from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import get_session
from transformers import AutoBackbone, AutoModel
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, IMAGE_PROCESSOR_NAME, cached_file


_NAMES = (
    "adaptors backbone checks configuration detection eradio heads hub image_processing inputs intermediate layers "
    "library_config loading modeling navit new_head nvidia_methods nvidia_names outputs peft pipelines post_processing "
    "presets processing radio1d radseg regions sam3 saving tasks texts version video_processing views window_budget "
    "wrapped xattn zero_shot"
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
CONNECT_SECONDS = 6
"""Our choice: an error comes within ten seconds, and a connection takes less in any network that works."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HERE = Path(__file__).parent
IS_REMOTE_CODE = (__package__ or "").startswith("transformers_modules.")
_opened: dict[str, dict[str, Any]] = {}
_reached: set[str] = set()
"""Endpoints of a Hub to which a connection was made."""
_logger = logging.getLogger(__name__)


def remember_folder(folder: Any, options: Mapping[str, Any]) -> None:
    """Remember a folder or repository that is opened: source files that are not here yet may lie there.

    Args:
        folder: First argument of `from_pretrained`.
        options: The others.
    """
    if folder and IS_REMOTE_CODE:
        name = os.path.realpath(folder) if os.path.isdir(folder) else str(folder)
        given = {key: options[key] for key in (*DOWNLOAD_OPTIONS, "subfolder") if options.get(key) is not None}
        _opened[name] = _opened.get(name, {}) | given


def is_unreached(source: Any, options: Mapping[str, Any]) -> bool:
    """Return whether a source is a name on the Hub to which no connection is made.

    huggingface-hub tries for half a minute to fetch each file, also those that a repository lacks.

    Args:
        source: First argument of `from_pretrained`.
        options: The others.
    """
    endpoint = constants.ENDPOINT
    is_local = not source or os.path.exists(source) or options.get("local_files_only") or is_offline_mode()
    if is_local or endpoint in _reached:
        return False
    session = get_session()
    try:
        session.head(endpoint, timeout=type(session.timeout)(CONNECT_SECONDS, read=0.1))
    except HTTPError as error:  # a server that is slow to answer was reached
        if type(error).__name__ in ("ConnectError", "ConnectTimeout"):
            return True
    _reached.add(endpoint)
    return False


def need_cached(source: Any, options: Mapping[str, Any]) -> dict[str, bool]:
    """Return `local_files_only` where no connection to the Hub is made, else nothing.

    Raises:
        OSError: If no connection is made, and the cache has none.
    """
    if not is_unreached(source, options):
        return {}
    place = {name: options.get(name) for name in ("cache_dir", "revision")}
    names = (CONFIG_NAME, ADAPTER_CONFIG_NAME, IMAGE_PROCESSOR_NAME)
    paths = [f"{options.get('subfolder') or ''}/{name}".lstrip("/") for name in names]
    if not any(isinstance(try_to_load_from_cache(str(source), path, **place), str) for path in paths):
        raise OSError(
            f"{str(source)!r} is no folder here, {constants.ENDPOINT} cannot be reached, and the cache holds no copy. "
            "Look at the network, or HF_ENDPOINT."
        )
    return {"local_files_only": True}


def import_sibling(name: str) -> ModuleType:
    """Return another source file, which only some models need: that of this package, or one that `SUMS` names.

    Args:
        name: Without ".py", one of `SOURCE_FILES`.

    Raises:
        ImportError: If this copy of the code lacks the file, and so do the folders that it opened.
    """
    if IS_REMOTE_CODE:
        _fetch(f"{name}.py")
    return importlib.import_module(f"{__package__}.{name}")


def _fetch(file: str) -> None:
    """Put a source file and those that it imports beside this one, unless they run or are there."""
    if _runs(file):
        return
    content, path = read_source(file), _HERE / file
    if content is None:
        raise ImportError(
            f"{file!r} is missing: neither the folder of {__file__!r} nor a folder that was opened has it with the "
            "SHA-256 that `SUMS` in that file states. Open the model by an Auto class in a new process. If you edited "
            "the file, write its new sum there."
        )
    if not path.is_file() or path.read_bytes() != content:
        write_whole(content, path)
        importlib.invalidate_caches()
    for name in get_relative_imports(path):
        if f"{name}.py" in SOURCE_FILES:
            _fetch(f"{name}.py")


def _runs(file: str) -> bool:
    return f"{__package__}.{file.removesuffix('.py')}" in sys.modules


def read_source(file: str) -> bytes | None:
    """Return the content of a source file: of the package, of code that runs already, or with the sum in `SUMS`.

    `None` if there is no such file.
    """
    if (_HERE / file).is_file() and (_runs(file) or not IS_REMOTE_CODE):
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


_registered: dict[str, list[type]] = {}


own_models: list[tuple[Any, str, type]] = []
"""Classes of the user's with Auto class and configuration, whose files `saving_radio` still has to read."""


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
    if package == __package__ and f"{module}.py" in SOURCE_FILES:
        return
    own_models.append((model_class, auto_class, config_class))
    if IS_REMOTE_CODE:  # while the user's file is imported, this copy may not know its folder yet
        register_model(model_class, auto_class, config_class)
    else:
        import_sibling("saving_radio").take_own_models()


def register_model(model_class: type, auto_class: str, config_class: type) -> None:
    """Let an Auto class build a model; of several the one that a folder names as its architecture, else the first."""
    classes = _registered.setdefault(auto_class, [])
    classes[:] = [each for each in classes if each.__name__ != model_class.__name__] + [model_class]
    known = tuple(classes) if len(classes) > 1 else model_class
    getattr(transformers, auto_class).register(config_class, known, exist_ok=True)


def register_parts(config_class: type) -> None:
    """Let remote code's configurations be parts of other models: LLaVA, UperNet or DETR then build what they describe.

    transformers would take its own `RadioModel` by the class's name, and knows no backbone.
    """
    if IS_REMOTE_CODE:
        for auto_class in (AutoModel, AutoBackbone):
            auto_class.register(config_class, _part(auto_class.__name__), exist_ok=True)


def _part(auto_class: str) -> type:
    """Return a class that builds and opens models by the class that `AUTO_MAP` names, whose file it fetches first."""

    def opening() -> Any:
        module, _, class_name = import_sibling("tasks_radio").AUTO_MAP[auto_class].partition(".")
        return vars(import_sibling(module))[class_name]

    class SiblingClass:
        @staticmethod
        def _from_config(config: Any, **kwargs: Any) -> Any:
            remember_folder(config.name_or_path, {})
            return opening()._from_config(config, **kwargs)

        @staticmethod
        def from_pretrained(folder: Any, *args: Any, **kwargs: Any) -> Any:
            remember_folder(folder, kwargs)
            return opening().from_pretrained(folder, *args, **kwargs)

    return SiblingClass


def write_whole(content: bytes, path: Path) -> None:
    """Write a file in one step, since other processes and threads may read it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    partial.write_bytes(content)
    partial.replace(path)
