"""Contents of a saved folder: entries of `config.json` that name our classes, and the source files beside it.

`RadioConfig.save_pretrained` calls `copy_source_files`.
"""

import copy
import hashlib
import importlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import AutoBackbone, AutoModel
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import cached_file


AUTO_MAP = {
    "AutoConfig": "configuration_radio.RadioConfig",
    "AutoModel": "modeling_radio.RadioModel",
    "AutoBackbone": "backbone_radio.RadioBackbone",
    "AutoModelForImageClassification": "heads_radio.RadioForImageClassification",
    "AutoModelForZeroShotImageClassification": "zero_shot_radio.RadioForZeroShotImageClassification",
    "AutoModelForSemanticSegmentation": "heads_radio.RadioForSemanticSegmentation",
    "AutoModelForImageSegmentation": "heads_radio.RadioForSemanticSegmentation",
    "AutoModelForDepthEstimation": "heads_radio.RadioForDepthEstimation",
    "AutoModelForObjectDetection": "detection_radio.RadioForObjectDetection",
    "AutoModelForInstanceSegmentation": "detection_radio.RadioForInstanceSegmentation",
    "AutoModelForUniversalSegmentation": "detection_radio.RadioForUniversalSegmentation",
    "AutoModelForVideoClassification": "heads_radio.RadioForImageClassification",
    "AutoVideoProcessor": "video_processing_radio.RadioVideoProcessor",
    "AutoProcessor": "processing_radio.RadioProcessor",
}
"""Written in full into every saved `config.json`: `save_pretrained` alone writes only the saved class."""

INSTANCE_SEGMENTER = "RadioForInstanceSegmentation"
INSTANCE_SEGMENTERS = (INSTANCE_SEGMENTER, "RadioForUniversalSegmentation")
"""One model under two interfaces."""

INSTANCE_AUTO_MAP = {
    **AUTO_MAP,
    "AutoModelForObjectDetection": f"detection_radio.{INSTANCE_SEGMENTER}",
    "AutoModelForImageSegmentation": f"detection_radio.{INSTANCE_SEGMENTER}",
}
"""For folders of instance segmenters: with `AUTO_MAP` these Auto classes would build another class with a new head."""


def _pipeline(name: str, auto_class: str, kind: str = "image") -> dict[str, Any]:
    return {"impl": f"pipelines_radio.{name}", "pt": [auto_class], "type": kind}


PIPELINES = {
    "image-feature-extraction": _pipeline("RadioImageFeatureExtractionPipeline", "AutoModel"),
    "image-classification": _pipeline("RadioImageClassificationPipeline", "AutoModelForImageClassification"),
    "image-segmentation": _pipeline("RadioImageSegmentationPipeline", "AutoModelForImageSegmentation"),
    "depth-estimation": _pipeline("RadioDepthEstimationPipeline", "AutoModelForDepthEstimation"),
    "object-detection": _pipeline("RadioObjectDetectionPipeline", "AutoModelForObjectDetection"),
    "video-classification": _pipeline("RadioVideoClassificationPipeline", "AutoModelForVideoClassification", "video"),
}
"""Written into every folder too: transformers' own join images of one size only with `batch_size=`."""

INSTANCE_PIPELINES = {
    **PIPELINES,
    "image-segmentation": _pipeline("RadioInstanceSegmentationPipeline", "AutoModelForInstanceSegmentation"),
}
"""Written into instance segmenters' folders: masks of instances may overlap, and come with their own options."""

_WITH_TEXTS = ("AutoModelForZeroShotImageClassification", "multimodal")
TEXT_PIPELINES = {
    **PIPELINES,
    "zero-shot-image-classification": _pipeline("RadioZeroShotImageClassificationPipeline", *_WITH_TEXTS),
    "image-segmentation": _pipeline("RadioWordSegmentationPipeline", *_WITH_TEXTS),
    "zero-shot-object-detection": _pipeline("RadioZeroShotObjectDetectionPipeline", *_WITH_TEXTS),
}
"""For folders with a text tower: transformers' own pipeline recognizes SigLIP's towers by the model's name."""


FEATURE_EXTRACTION = "image-feature-extraction"
TASK_OF_CLASS = {
    "RadioForImageClassification": "image-classification",
    "RadioForZeroShotImageClassification": "zero-shot-image-classification",
    "RadioForSemanticSegmentation": "image-segmentation",
    "RadioForInstanceSegmentation": "image-segmentation",
    "RadioForUniversalSegmentation": "image-segmentation",
    "RadioForDepthEstimation": "depth-estimation",
    "RadioForObjectDetection": "object-detection",
}
"""The pipeline of a folder, by the class that wrote it; all others extract features."""


def task_of(architectures: list[str] | None) -> str:
    """Return the pipeline that a folder is for, by its class as `config.json` names it."""
    return TASK_OF_CLASS.get((architectures or [""])[0], FEATURE_EXTRACTION)


def own_pipeline(values: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a parsed `config.json` for the pipeline that the folder is for.

    transformers infers a task only where there is no choice: `pipeline(model="ORG/NAME")`.
    """
    task = task_of(values.get("architectures"))
    return {name: entry for name, entry in values["custom_pipelines"].items() if name == task}


def auto_map_entries(architectures: list[str] | None, *, has_text_tower: bool) -> dict[str, Any]:
    """Return the entries of `config.json` by which transformers finds our classes: `auto_map`, `custom_pipelines`.

    Args:
        architectures: Class of the saved model, as transformers writes it.
        has_text_tower: Whether the folder holds one.
    """
    auto_map, pipelines = AUTO_MAP, TEXT_PIPELINES if has_text_tower else PIPELINES
    if architectures and architectures[0] in INSTANCE_SEGMENTERS:
        auto_map, pipelines = INSTANCE_AUTO_MAP, INSTANCE_PIPELINES
    return {
        "auto_map": {name: reference for name, reference in auto_map.items() if _is_there(reference)},
        "custom_pipelines": {
            task: copy.deepcopy(entry) for task, entry in pipelines.items() if _is_there(entry["impl"])
        },
    }


def _is_there(reference: str) -> bool:
    """Return whether the file of a class, written `module.Class`, could be had when files were copied."""
    return f"{reference.rpartition('.')[0]}.py" not in _unavailable


_NAMES = (
    "adaptors backbone checks configuration detection eradio heads hub image_processing inputs layers loading modeling "
    "new_head nvidia_methods nvidia_names outputs peft pipelines post_processing presets processing radio1d radseg "
    "regions sam3 video_processing window_budget wrapped zero_shot"
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


def copy_source_files(folder: str | Path) -> None:
    """Write into a folder the source files that `trust_remote_code` runs.

    Those that belong to this copy of the code but cannot be found are left out, and then the classes in them are not
    named in `config.json`.
    """
    files = source_files()
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
