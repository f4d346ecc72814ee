"""Settings of `radio evaluate`, the names of the tasks, and the protocols of the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from modeling_radio.core.files import RUN_FILE
from modeling_radio.core.ids import ModelFolder
from modeling_radio.core.imports import is_object_path
from modeling_radio.core.settings import DeviceOptions, OneOf, TileOptions, require
from modeling_radio.data.settings import LabeledSource, SampleOptions
from modeling_radio.evaluation.tasks.registry import RETRIEVAL, TASKS
from modeling_radio.evaluation.tasks.settings import TaskSettings
from modeling_radio.training.recipes.recipe import RECIPE_FILE, Recipe, RecipeOptions


IMAGENET = "imagenet-1k"

MASK_LAYOUTS = ("ade20k", "voc", "context59", "cityscapes", "coco-stuff")
"""Names of the public sets with class maps, keys of `public_sets.yaml`, which `--help` need not read."""
CLASS_LAYOUTS = (IMAGENET, "imagenet-real", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch")
"""Names of those with classes."""
LAYOUTS = (
    *MASK_LAYOUTS,
    *CLASS_LAYOUTS,
    "spair",
    "navi",
    "nyu",
    "flickr30k",
    "coco",
    "sa-co",
)
"""Names of all public sets."""
TABLES = ("c-radio_v4",)
"""Tables of papers, keys of `published.yaml`."""


class NamedSet(NamedTuple):
    """A set that `data` names.

    Attributes:
        opener: Import path of a function of the size in pixels that returns the `EvaluationData`.
        preset: Protocol if none is given, a key of `PRESETS`.
    """

    opener: str
    preset: str


NAMED_SETS = {
    "demo": NamedSet("modeling_radio.demo.evaluation_data:open_demo", "demo"),
}
"""Sets by name; those of a user's own are named by the import path of their function."""


def is_named_set(source: str) -> bool:
    """Return whether a function opens the set: `data` is one of `NAMED_SETS`, or an import path."""
    return source in NAMED_SETS or is_object_path(source)


class DataOptions(LabeledSource, SampleOptions):
    """Columns, splits and units of a source.

    Attributes:
        label_column: Column of the classes.
        mask_column: Column of the masks of class ids.
        depth_column: Column of the depth maps.
        object_column: Column of the objects, for the answers of a detector.
        caption_column: Column of the texts, one or a list for each image.
        group_column: Column of the source of each image, such as its video: intervals resample whole sources, and
            without a train split images of one source are not compared with each other.
        train_split: Split that probes are trained on and queries are compared with; by default train.
        test_split: Split that is measured; by default the first of validation, valid, val, dev and test.
        train_data: Other data that probes learn from and queries are compared with, if `data` has no train split: for
            the variants of ImageNet, the folder imagenet-1k. Of it the classes that `data` has are taken.
        class_names: File with the name of a class on each line, in the order of their ids; or "imagenet-1k" for the
            names of its thousand classes that OpenAI chose for CLIP.
        reduce_labels: Ignore 0 in masks and lower all other classes by one, as in ADE20k.
        layout: Public set whose official folders `data` has, with its classes and numbers of images; presets set it.
    """

    label_column: str | None = None
    mask_column: str | None = None
    depth_column: str | None = None
    object_column: str | None = None
    caption_column: str | None = None
    group_column: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    train_data: str | None = None
    class_names: str | None = None
    reduce_labels: bool = False
    layout: Annotated[str | None, OneOf(LAYOUTS)] = None


# AM-RADIO, section 4 (https://arxiv.org/abs/2312.06709): batch norm and a linear layer on frozen features, windows of
# 512 px with a stride of 2/3, batches of 16. C-RADIOv4 has ADE20k and VOC (https://arxiv.org/abs/2601.17237, table 1).
# Steps, learning rate and its schedule: the configuration in NVIDIA's repository; AM-RADIO's paper has 160,000 steps.
# The papers do not say that VOC differs.
LINEAR_SEGMENTATION: dict[str, Any] = {
    "tasks": ["segmentation_probe"],
    "size": 512,
    "window_px": 512,
    "probe_steps": 80_000,
    "probe_learning_rate": 1e-3,
    "probe_warmup_steps": 1500,
    "probe_schedule": "linear",
}
# RADSeg (https://arxiv.org/abs/2511.19704), configurations of the middle resolution: windows of 336 px with a stride of
# 224 (VOC: 112), OpenAI's 80 prompts, nothing trained. Names as in the sets; RADSeg writes some in one word.
OPEN_VOCABULARY: dict[str, Any] = {
    "tasks": ["open_vocabulary"],
    "size": 336,
    "window_px": 336,
    "window_stride": 2 / 3,
    "templates": "openai",
}

PRESETS: dict[str, dict[str, Any]] = {
    # 5 neighbors are our choice for the demo's sets, some of whose classes have fewer images than the papers' 20.
    "demo": {"neighbors": 5},
    # AM-RADIO, https://arxiv.org/abs/2312.06709; prompts and names of classes of CLIP, https://arxiv.org/abs/2103.00020
    IMAGENET: {
        "tasks": ["knn", "zero_shot"],
        "neighbors": 20,
        "temperature": 0.07,
        "templates": "openai",
        "class_names": IMAGENET,
        "layout": IMAGENET,
    },
    # Zero-shot on its variants, with the names of the classes that they have: CLIP, section 3.3.
    **{
        name: {"tasks": ["zero_shot"], "templates": "openai", "class_names": IMAGENET, "layout": name}
        for name in CLASS_LAYOUTS[1:]
    },
    "ade20k": LINEAR_SEGMENTATION | {"layout": "ade20k"},
    "voc": LINEAR_SEGMENTATION | {"layout": "voc"},
    "context59": LINEAR_SEGMENTATION | {"layout": "context59"},
    # Our choice: the images' own height; at 512 px poles and signs would be thinner than a patch.
    "cityscapes": LINEAR_SEGMENTATION | {"layout": "cityscapes", "shorter_px": 1024},
    "coco-stuff": LINEAR_SEGMENTATION | {"layout": "coco-stuff"},
    "ade20k-words": OPEN_VOCABULARY | {"layout": "ade20k", "shorter_px": 576},
    "voc-words": OPEN_VOCABULARY | {"layout": "voc", "window_stride": 1 / 3},
    "context59-words": OPEN_VOCABULARY | {"layout": "context59", "shorter_px": 576},
    "cityscapes-words": OPEN_VOCABULARY | {"layout": "cityscapes", "shorter_px": 688},
    "coco-stuff-words": OPEN_VOCABULARY | {"layout": "coco-stuff", "shorter_px": 448},
    # Probe3D (https://arxiv.org/abs/2404.08636): the last block's features; its other constants are in `data_pairs`.
    "spair": {"tasks": ["keypoints"], "layout": "spair", "size": 800},
    "navi": {"tasks": ["keypoints"], "layout": "navi", "size": 512},
    # The same paper: 10 epochs of 30,814 frames in batches of 8, 1.5 of them with a rising rate.
    "nyu": {
        "tasks": ["depth_dpt_probe", "normals_dpt_probe"],
        "layout": "nyu",
        "size": 480,
        "probe_steps": 38_520,
        "probe_learning_rate": 5e-4,
        "probe_warmup_steps": 5778,
    },
    # Recall at 1, 5 and 10 on the test splits of https://arxiv.org/abs/1412.2306; texts as they are.
    "flickr30k": {"tasks": ["image_text_retrieval"], "layout": "flickr30k"},
    "coco": {"tasks": ["image_text_retrieval"], "layout": "coco"},
    # SAM 3 (https://arxiv.org/abs/2511.16719); on RADIO: C-RADIOv4, section 3.2. At SAM3's own grid of features.
    "sa-co": {"tasks": ["concept_segmentation"], "layout": "sa-co"},
}
"""Settings by protocol; settings that the user gives replace them."""


class EvaluationSettings(RecipeOptions, DataOptions, TaskSettings, TileOptions, DeviceOptions):
    """Settings of an evaluation.

    Attributes:
        checkpoint: Folder with config.json and weights, or Hub id.
        data: Folder with a sub-folder of images for each class, or `images/` and `masks/` or `depth/`, with or without
            `train/` and `test/` above; `.parquet` or `.tar` files; a data set that `datasets` saved; one of
            the Hub, `ORG/NAME`; demo; or the import path of a function that opens a set of your own,
            "my_package.my_module:open_mine". By default the data of the recipe.
        base: Folder or Hub id of an adapter's base; by default the one on the Hub that the adapter names.
        streaming: Read the images in order, without a copy on the disk: for the answers of classifiers, of Parquet or
            webdataset files or the Hub.
        recipe: Name of a recipe, or a file of your own that ends in .yaml, for the data if `data` is left out, and for
            tasks that compare with teachers. By default the one in the folder of the checkpoint's run, if it is needed.
        tasks: Tasks to measure; by default the answers of a tuned model's own head on `data`, of a backbone knn and
            segmentation_probe, as far as the data allow. The import path of a `Task` of your own is one too,
            "my_package.my_module:MY_TASK".
        preset: Protocol with defaults of other settings; for the demo's images, by default the demo's.
        table: Table of a paper to measure in place of tasks: all of its sets that are below `data_root`.
        data_root: Folder with the folders of public sets.
        size: Shorter side of the images in pixels; by default that of the checkpoint's processor.
        truncate_dim: Experimental. Number of channels of the checkpoint's features, and of each class token of its
            summary, that are measured, the first ones; by default all. Only a NaViT with matryoshka widths has learned
            to do with fewer.
        output: JSON file for the numbers; earlier results in it are replaced.
        baselines: Baselines in the tables of tasks that have any: the pixels themselves, or a network of the same
            architecture with random weights.
        compare: Other models in the same table: folders of ours, of NVIDIA's layout, of transformers or timm;
            `ORG/NAME` of the Hub; `timm:NAME`; `teacher:KIND` or `teacher:KIND:SOURCE`.
        report: Whether to write a page of the numbers with images, one HTML file, beside `output`.
        cache: Folder of extracted features, so that a stopped run goes on and later runs are faster; by default
            `evaluation` in the cache folder (`RADIO_CACHE`).
        batch_size: Images for each pass.
        num_workers: Processes that decode images if there are many.
        dtype: Type in which the checkpoint computes.
    """

    checkpoint: ModelFolder
    data: str | None = None
    base: str | None = None
    recipe: str | None = None
    tasks: Annotated[list[str] | None, OneOf((*TASKS, RETRIEVAL), imports=True)] = Field(None, min_length=1)
    preset: Annotated[str | None, OneOf(PRESETS)] = None
    table: Annotated[str | None, OneOf(TABLES)] = None
    data_root: Path | None = None
    size: int | None = Field(None, gt=0)
    truncate_dim: int | None = Field(None, gt=0)
    output: Path | None = None
    baselines: list[Literal["pixels", "random"]] = ["pixels"]
    compare: list[str] = []
    report: bool = True
    cache: Path | None = None
    batch_size: int = Field(32, gt=0)
    num_workers: int = Field(2, ge=0)
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        """Add the settings of a preset."""
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(str(values.get("preset")), {}), **values}

    @model_validator(mode="after")
    def _check_table(self) -> EvaluationSettings:
        if self.table is None:
            require(self.data_root is None, "data_root", self.data_root, "left out without `table`")
            return self
        require(self.data_root is not None, "data_root", None, "a folder, with `table`")
        protocol = {*TaskSettings.model_fields, *DataOptions.model_fields, "data", "tasks", "preset", "size", "compare"}
        given = sorted(
            (protocol - {"sam3"}) & {name for name in self.model_fields_set if getattr(self, name) is not None}
        )
        require(not given, "table", self.table, f"given without settings of a protocol ({', '.join(given)})")
        return self

    def load_recipe(self) -> Recipe | None:
        """Return the recipe that is given, with the changes; None if none is given."""
        return None if self.recipe is None else self.read_recipe(self.recipe)

    def load_recipe_of_run(self) -> Recipe | None:
        """Return the recipe of the run in whose folder the checkpoint lies, with the changes; None if there is none."""
        folder = self.checkpoint.expanduser().parent
        is_of_run = all((folder / name).is_file() for name in (RUN_FILE, RECIPE_FILE))  # whose code is not trusted
        return self.read_recipe(str(folder / RECIPE_FILE)) if is_of_run else None

    def for_source(self, source: str) -> EvaluationSettings:
        """Return these settings, with the preset of a named set, such as the demo's, if no preset is given.

        Args:
            source: `data`, or the recipe's data if it is left out.
        """
        if self.preset is not None or source not in NAMED_SETS:
            return self
        given: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**given | {"preset": NAMED_SETS[source].preset})

    def of_tasks(self) -> dict[str, Any]:
        """Return the settings that decide the numbers, for the results file."""
        decisive = {*TaskSettings.model_fields, *DataOptions.model_fields, "preset", "size", "dtype"}
        decisive |= set() if self.tile_size is None else TileOptions.model_fields.keys()
        return {name: value for name, value in self.to_dict().items() if name in decisive}
