"""Contents of a saved folder: entries of `config.json` that name our classes, and the source files beside it.

`RadioConfig.save_pretrained` calls `copy_source_files`.
"""

import copy
import filecmp
import importlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import AutoBackbone, AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module, get_relative_imports
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

DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
"""Of `from_pretrained`: how files are fetched."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HERE = Path(__file__).parent
_origin: tuple[str, dict[str, Any]] | None = None
_unavailable: set[str] = set()
_logger = logging.getLogger(__name__)


def remember_origin(folder: Any, options: Mapping[str, Any]) -> None:
    """Remember the folder or repository that was opened last: where the source files that are not here yet lie.

    All that share a running copy of this file have the same source files.

    Args:
        folder: First argument of `from_pretrained`.
        options: The others.
    """
    global _origin
    if folder:
        names = (*DOWNLOAD_OPTIONS, "subfolder")
        _origin = (str(folder), {name: options[name] for name in names if options.get(name) is not None})


def import_sibling(name: str) -> ModuleType:
    """Return another source file, which only some models need: that of this package, or beside the running copy.

    Args:
        name: Without ".py", one of `SOURCE_FILES`.

    Raises:
        ImportError: If this is a copy of a folder or repository that does not have the file, or has others by now.
    """
    _fetch(f"{name}.py")
    return importlib.import_module(f"{__package__}.{name}")


def _fetch(file: str) -> None:
    """Copy a source file beside this one, after those that it imports, unless it is there."""
    if (_HERE / file).is_file():
        return
    path = _file_of_origin(file)
    if path is None:
        raise ImportError(
            f"{file!r} is missing. It is not beside {__file__!r}, and the folder that was opened last, "
            f"{_origin and _origin[0]!r}, lacks it or has other source files than those that run. Open the model "
            "again in a new process."
        )
    for name in get_relative_imports(path):
        if f"{name}.py" in SOURCE_FILES:
            _fetch(f"{name}.py")
    _put(path, _HERE / file)
    importlib.invalidate_caches()


def register_parts(config_class: type) -> None:
    """Let remote code's configurations be parts of other models: LLaVA, UperNet or DETR then build what they describe.

    transformers would take its own `RadioModel` by the class's name, and knows no backbone.
    """
    if (__package__ or "").startswith("transformers_modules."):
        for auto_class in (AutoModel, AutoBackbone):
            auto_class.register(config_class, _part(auto_class.__name__), exist_ok=True)


def _part(auto_class: str) -> type:
    """Return a class that builds and opens models by the class that `AUTO_MAP` names, whose file it fetches first."""

    def find(folder: str | None) -> Any:
        (name, options), commit = _origin or ("", {}), (__package__ or "").rpartition(".")[2]
        arguments: dict[str, Any] = options | ({"code_revision": commit} if _COMMIT.fullmatch(commit) else {})
        return get_class_from_dynamic_module(AUTO_MAP[auto_class], folder or name, **arguments)

    class Part:
        @staticmethod
        def _from_config(config: Any, **kwargs: Any) -> Any:
            return find(config.name_or_path)._from_config(config, **kwargs)

        @staticmethod
        def from_pretrained(folder: Any, *args: Any, **kwargs: Any) -> Any:
            return find(str(folder)).from_pretrained(folder, *args, **kwargs)

    return Part


def copy_source_files(folder: str | Path) -> None:
    """Copy into a folder the source files that `trust_remote_code` runs.

    Those that are neither here nor where this copy comes from are left out, and then the classes in them are not named
    in `config.json`.
    """
    for file in SOURCE_FILES:
        path = _HERE / file if (_HERE / file).is_file() else _file_of_origin(file)
        if path is None:
            _unavailable.add(file)
            continue
        _unavailable.discard(file)
        if path.resolve() != Path(folder, file).resolve():
            shutil.copyfile(path, Path(folder) / file)
    if _unavailable:
        _logger.warning(
            f"{str(folder)!r} lacks {sorted(_unavailable)}, which could not be found: classes in them are left out."
        )


def write_modules(folder: str | Path, *, has_text_tower: bool) -> None:
    """Write into a folder what sentence-transformers reads: it embeds by `get_image_features` and `get_text_features`.

    Without these files it would take the mean over all tokens, class tokens and registers too.
    """
    kinds = ("image", "text")[: 1 + has_text_tower]
    methods = {kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"} for kind in kinds}
    files = {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": methods,
            "module_output_name": "sentence_embedding",
        },
    }
    for name, content in files.items():
        Path(folder, name).write_text(json.dumps(content, indent=2) + "\n")


def _file_of_origin(file: str) -> Path | None:
    """Return a source file of the folder or repository that was opened; `None` where it has none, or other code."""
    if _origin is None or file not in SOURCE_FILES:
        return None
    name, options = _origin
    folder = Path(name, options.get("subfolder") or "")
    if folder.is_dir():
        running = [each for each in SOURCE_FILES if (_HERE / each).is_file() and (folder / each).is_file()]
        is_same = all(filecmp.cmp(_HERE / each, folder / each, shallow=False) for each in running)
        return folder / file if is_same and (folder / file).is_file() else None
    commit = (__package__ or "").rpartition(".")[2]
    if not _COMMIT.fullmatch(commit):
        return None
    try:
        found = cached_file(name, file, revision=commit, **options)
    except OSError:
        return None
    return None if found is None else Path(found)


def _put(source: Path, target: Path) -> None:
    """Copy a file in one step, since other processes may read the folder."""
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copyfile(source, partial)
    partial.replace(target)
