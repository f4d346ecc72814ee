"""Checks of untrusted folders before our commands open them: they may decide nothing but numbers and names.

Which source files may run beside a checkpoint is decided in `modeling_radio/hub_radio.py`, and which code of a recipe
in `training/recipes/recipe.py`.

They cover the files of a RADIO folder, the values that name code, the base that an adapter names, and the environment
of a process that opens such a folder.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, cached_file, find_adapter_config_file

import modeling_radio
from modeling_radio.checks_radio import read_json
from modeling_radio.core.errors import first_few
from modeling_radio.loading_radio import HUB_ID, is_radio_folder
from modeling_radio.saving_radio import own_classes


MODEL_FILES = (
    *(CONFIG_NAME, "generation_config.json", "preprocessor_config.json", "processor_config.json", "README.md"),
    *("video_preprocessor_config.json", "modules.json", "sentence_bert_config.json"),
    *("model*.safetensors", "model.safetensors.index.json", "*_radio.py"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja"),
    *("conversion.json", "parity.json", "parity.md", "features.png", "projector.json", "projector.safetensors"),
)
"""Names of the files that commands write into a model folder; `*` stands for any letters."""
COPIED_FILES = (
    *MODEL_FILES,
    *("adapter_config.json", "adapter_model.safetensors", "learned_from.json"),
    *("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "NOTICE.md"),
)
"""Names of the files that commands copy from a model's or an adapter's folder into one for others, such as a Space."""
_SETTINGS = (
    *(CONFIG_NAME, "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    "tokenizer_config.json",
)
_SECRET = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|_PAT$|^(AWS|AZURE|GOOGLE|GCP|SSH|WANDB)_",
    re.IGNORECASE,
)
_IF_THERE: dict[str, Any] = {
    f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")
}
_MAX_NAMES = 4
_SHOWN = 80


def has_name(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a path within a folder matches a pattern; `*` matches no `/`."""
    parts = name.split("/")
    return any(
        len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
        for wanted in (pattern.split("/") for pattern in patterns)
    )


def allowed_files(folder: Path, patterns: Iterable[str] | None = None) -> dict[str, Path]:
    """Return the files of a folder with certain names, by default all, by their path in it.

    Raises:
        ValueError: If one is a link, which may lead to any file of this machine.
    """
    root, patterns = folder.resolve(), None if patterns is None else tuple(patterns)
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    allowed = {name: path for name, path in paths.items() if patterns is None or has_name(name, patterns)}
    links = [name for name, path in allowed.items() if path.resolve() != root / name]
    if links:
        raise ValueError(
            f"{str(folder)!r} must hold files themselves, got links: {first_few(links, _MAX_NAMES)}. Put copies of the "
            "files in their place."
        )
    return allowed


def copy_model(folder: Path, target: Path) -> None:
    """Copy the files of a model or an adapter into a new folder, without others beside them.

    Raises:
        ValueError: As `allowed_files`.
    """
    target.mkdir(parents=True)
    for name, path in allowed_files(folder, COPIED_FILES).items():
        shutil.copyfile(path, target / name)


def our_modules() -> set[str]:
    """Return the modules that are saved with our checkpoints, those of classes that the user registered too."""
    of_user = {own.reference.rpartition(".")[0] for own in own_classes.values()}
    return _package_modules() | of_user


def _package_modules() -> set[str]:
    return {path.stem for path in Path(modeling_radio.__file__).parent.glob("*_radio.py")}


def code_beside(folder: Path) -> list[str]:
    """Return the names of a folder's files with code of others that its `config.json` names, and that this imports."""
    path = folder / CONFIG_NAME
    named = foreign_code(read_json(path), _package_modules()) if path.is_file() else []
    modules = {name.rpartition(".")[0] for name in named}  # code of another repository has "--" in its name
    files = [folder / f"{module}.py" for module in modules if module.isidentifier()]
    found = {name for file in files if file.is_file() for name in (str(file), *get_relative_import_files(file))}
    return sorted({Path(name).name for name in found} - {f"{module}.py" for module in _package_modules()})


def foreign_code(values: Any, modules: Collection[str]) -> list[str]:
    """Return the classes outside of given modules that a JSON value lets transformers import.

    Args:
        values: Content of a file such as `config.json`.
        modules: Allowed modules beside that file; code of another repository is written `ORG/NAME--module.Class`.
    """
    if isinstance(values, list):
        return [name for entry in values for name in foreign_code(entry, modules)]
    if not isinstance(values, Mapping):
        return []
    named = [name for key in ("auto_map", "impl") for name in _texts(values.get(key))]
    within = [name for entry in values.values() for name in foreign_code(entry, modules)]
    return [name for name in named if name.rpartition(".")[0] not in modules] + within


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)


def check_named_code(checkpoint: str | Path) -> None:
    """Refuse a folder whose settings name foreign code, which models written from it would name too.

    No code is run here. A folder in the layout of NVIDIA's repositories names NVIDIA's code, which is never copied.

    Args:
        checkpoint: Folder or Hub id.

    Raises:
        ValueError: If there is any; the message names file and class.
    """
    for name in _SETTINGS:
        path = cached_file(str(checkpoint), name, **_IF_THERE)
        values = {} if path is None else read_json(Path(path))
        if name == CONFIG_NAME and "args" in values:
            return
        foreign = foreign_code(values, our_modules())
        if foreign:
            raise ValueError(
                f"`checkpoint` must name no code but that of modeling_radio, got {_shown(foreign)} in {path!r}. "
                "Remove these entries of the file, or take a folder that you trust."
            )
    _check_modules(checkpoint)


def _check_modules(checkpoint: str | Path) -> None:
    """Refuse a `modules.json`, by which sentence-transformers opens a folder, with foreign classes or folders."""
    path = cached_file(str(checkpoint), "modules.json", **_IF_THERE)
    if path is None:
        return
    try:
        modules = json.loads(Path(path).read_text(encoding="utf-8"))
        named = [(str(module["type"]), PurePosixPath(module.get("path", ""))) for module in modules]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path!r} is no list of modules, as sentence-transformers writes it: {error}.") from error
    foreign = [name for name, _ in named if not name.startswith("sentence_transformers.")]
    foreign += [str(part) for _, part in named if part.is_absolute() or ".." in part.parts]
    if foreign:
        raise ValueError(
            f"`checkpoint` must name no classes but those of sentence-transformers and no folders but its own in "
            f"{path!r}, got {_shown(foreign)}. Remove the file, or take a folder that you trust."
        )


def _shown(names: list[str]) -> str:
    return first_few([repr(name[:_SHOWN]) for name in names], _MAX_NAMES)


def check_parts(checkpoint: str, word: str | None = None) -> str | None:
    """Refuse a model that names foreign code, and an adapter whose base does, or is any folder of this machine.

    Args:
        checkpoint: Folder or Hub id of a model or an adapter.
        word: The base as the user names it; None for the one that the adapter names, which must be on the Hub.

    Returns:
        Folder or Hub id of an adapter's base; None where there is no adapter.

    Raises:
        ValueError: As `check_named_code`, or if the user must name the base, or it is no RADIO model.
    """
    check_named_code(checkpoint)
    base = _base_of_adapter(checkpoint, word)
    if base is not None:
        check_named_code(base)
    return base


def _base_of_adapter(checkpoint: str, word: str | None) -> str | None:
    path = find_adapter_config_file(checkpoint)
    if path is None:
        if word is not None:
            raise ValueError(f"`base` must be left out where the checkpoint is no adapter, got {word!r}.")
        return None
    named = str(read_json(Path(path)).get("base_model_name_or_path"))
    is_here = any(candidate.exists() for candidate in (Path(named), Path(checkpoint, named)))
    if word is None and (is_here or not HUB_ID.fullmatch(named)):
        raise ValueError(
            f"`base` must name the folder of the adapter's base, got none. {path!r} names {named[:_SHOWN]!r}, a "
            "path on this machine, which is not followed. Give `--base FOLDER` or `--base ORG/NAME`."
        )
    base = word or named
    if not (is_radio_folder(base) if Path(base).exists() else HUB_ID.fullmatch(base)):
        raise ValueError(f"`base` must be the folder of a RADIO model or ORG/NAME on the Hub, got {base!r}.")
    return base


def clean_environment(**changes: str) -> dict[str, str]:
    """Return the environment for a process that opens an untrusted folder: without this user's secrets.

    Args:
        changes: Variables to set.
    """
    kept = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    return {**kept, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", **changes}
