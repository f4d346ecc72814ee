"""Tuning small enough for tests: settings, tasks, tables, and heads as small as the tiny backbone."""

from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import TrainerCallback
from tuning_fixtures import HEIGHT, WIDTH

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from modeling_radio.core.files import sole_run
from modeling_radio.data.labeled.images import LabeledImages, load_images
from modeling_radio.model_cards.build import write_card
from modeling_radio.model_cards.licenses import License
from modeling_radio.tuning.adapters import add_adapter, save_adapter
from modeling_radio.tuning.run import NAME, FinetuningRun
from modeling_radio.tuning.settings import FinetuneSettings
from modeling_radio.tuning.tasks import find_task
from modeling_radio.tuning.trainer import last_checkpoint


TINY_DPT = {"dpt_hidden_size": 8}
TINY_DETECTOR = {"detection_num_queries": 6, "detection_hidden_size": 32, "detection_num_layers": 1}


def tuning_settings(task: str = "image-classification", **options) -> FinetuneSettings:
    """Return settings whose places do not exist, unless the options name others."""
    places = {"checkpoint": "checkpoint", "data": "data", "output": "output"}
    given = {name: str(value) if name in places else value for name, value in options.items()}
    return FinetuneSettings(task=task, **{**places, **given})


def run_settings(
    base: Path, data: Path, output: Path, task: str = "image-classification", **options
) -> FinetuneSettings:
    """Return settings of a run of two steps, which holds out a third of the images."""
    quick = {"batch_size": 2, "steps": 2, "num_workers": 0, "validation_share": 0.34, "lora_rank": 2}
    return tuning_settings(task, checkpoint=base, data=data, output=output, **{**quick, **options})


def build_task(task_class, task: str, names=("a", "b", "c"), train=None, **options):
    """Return a task on a table that both splits share."""
    return task_class(tuning_settings(task, size=(32, 48), **options), LabeledImages(train, train, names, ""))


def load(data: Path, task: str, **options) -> LabeledImages:
    """Open a source."""
    return load_images(tuning_settings(task, data=data, **options), find_task(task).targets)


def picture(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Return a gray image."""
    return Image.fromarray(np.full((height, width, 3), 100, dtype=np.uint8))


def mask_rows(*masks) -> Dataset:
    """Return a table of masks alone."""
    from_arrays = [Image.fromarray(np.array(mask, dtype=np.uint8)) for mask in masks]
    return Dataset.from_dict({"target": from_arrays}, features=Features({"target": ImageFeature()}))


def save_labels(path: Path, feature, labels: list) -> Path:
    """Save a data set of black images with labels of a type."""
    pictures = [Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)) for _ in labels]
    features = Features({"image": ImageFeature(), "label": feature})
    Dataset.from_dict({"image": pictures, "label": labels}, features=features).save_to_disk(path)
    return path


def save_splits(path: Path, feature, train: list, validation: list) -> Path:
    """Save two splits of gray images, number n of level 20 n, with labels of a type."""
    features = Features({"image": ImageFeature(), "label": feature})
    tables = {}
    for name, labels in {"train": train, "validation": validation}.items():
        pictures = [Image.new("RGB", (WIDTH, HEIGHT), (20 * number,) * 3) for number in range(len(labels))]
        tables[name] = Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    DatasetDict(tables).save_to_disk(path)
    return path


def stripes(*classes: int) -> Image.Image:
    """Return a mask with a stripe for each class."""
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for number, each in enumerate(classes):
        ids[:, 8 * number :] = each
    return Image.fromarray(ids)


def objects(*classes: int) -> dict:
    """Return the label of an image with a box for each class, as `object_features` describes it."""
    return {"bbox": [[8 * number, 6, 20, 12] for number in range(len(classes))], "category": list(classes)}


def object_features(classes: ClassLabel) -> dict:
    """Return the type of such labels."""
    return {"bbox": List(List(Value("float32"), 4)), "category": List(classes)}


def save_parquet(path: Path, labels: list) -> None:
    """Save black images in a column `img`, and names or ids in a column `label`."""
    pictures = [Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)) for _ in labels]
    feature = Value("string") if isinstance(labels[0], str) else Value("int64")
    features = Features({"img": ImageFeature(), "label": feature})
    Dataset.from_dict({"img": pictures, "label": labels}, features=features).to_parquet(path)


def save_shards(folder: Path, num_shards: int = 4, images_each: int = 3, label=lambda number: number % 2) -> Path:
    """Save training and validation images as Parquet files: each of a gray level of its own, which `label` is of."""
    folder.mkdir()
    numbers = range(num_shards * images_each)
    shards = {f"train-{shard}": numbers[shard * images_each :][:images_each] for shard in range(num_shards)}
    for name, levels in {**shards, "validation-0": range(4)}.items():
        pictures = [Image.new("RGB", (WIDTH, HEIGHT), (level,) * 3) for level in levels]
        table = Dataset.from_dict({"image": pictures, "label": [label(level) for level in levels]})
        table.cast_column("image", ImageFeature()).to_parquet(folder / f"{name}.parquet")
    return folder


def save_model_and_adapter(parent: Path) -> tuple[Path, Path]:
    """Save a checkpoint, and an adapter for it that changes its outputs, each with a complete card."""
    model, adapter = parent / "model", parent / "adapter"
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=1)
    RadioModel(config).save_pretrained(model)
    processor = RadioImageProcessor.from_model_config(config)
    processor.save_pretrained(model)
    tuned = add_adapter(RadioModel.from_pretrained(model), tuning_settings(checkpoint=model, tune="lora"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    save_adapter(tuned, processor, adapter, str(model))
    for folder in (model, adapter):
        write_card(folder, license=License("apache-2.0"))
    return model, adapter


def stop_after(run: FinetuningRun, step: int) -> None:
    """Train on to the checkpoint of a step, and leave the folder as a kill does then."""
    run.trainer.add_callback(_StopAfter(step))
    with sole_run(run.settings.output, NAME):
        run.train(last_checkpoint(run.settings.output))


class _StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = True
