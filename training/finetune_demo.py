"""LoRA against a frozen backbone on real labels, in minutes on a CPU: `python -m training.finetune_demo --task ...`.

The images are handwritten digits (UCI), and real cut-outs (Tux Paint's stamps) on photographs with exact masks or exact
boxes, whose validation images are made of held-out objects and photographs. Each method runs once for every seed with
equal steps and augmentation, and is measured after the last step. Data, steps, rank and rates were chosen while looking
at these validation images (training/FINETUNING.md says what was tried).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import to_pil_image

from model_cards.results import Table
from training.command import read_seeds, run_command
from training.data.composites import Composite, detection_set
from training.data.demo_assets import Split, load_demo_assets
from training.data.evaluation_sets import segmentation_set
from training.data.packages import fetch_package, package_named
from training.evaluate import format_table
from training.files import write_file, write_folder
from training.finetuning.run import RESULTS, FinetuningRun
from training.finetuning.settings import FinetuneSettings


SIZE = 128  # pixels, as the demo's student was trained
DIGIT_SIZE = 64  # pixels, eight times the digits' own
NUM_MASKED, NUM_BOXED, NUM_VALIDATION = 4000, 800, 400  # training scenes, and validation images; our choice
FOLDERS: dict[Split, str] = {"train": "train", "held_out": "validation"}


@dataclass(frozen=True)
class Experiment:
    """What is compared for one task; all numbers are our choice.

    Attributes:
        write: Writes the images below a folder.
        size: Side of the images in pixels.
        options: Settings that both methods share.
        frozen: Name of the method that trains the head alone.
    """

    write: Callable[[Path], None]
    size: int
    options: dict[str, Any]
    frozen: str


def write_digits(folder: Path) -> None:
    """Write UCI's handwritten digits into `train/DIGIT/` and `validation/DIGIT/`, dark on white and enlarged."""
    archive = fetch_package(package_named("scikit-learn")) / "sklearn/datasets/data/digits.csv.gz"
    rows = np.loadtxt(archive, delimiter=",", dtype=np.uint8)  # 64 grey levels of 0 to 16, and the digit
    for index, row in enumerate(rows):
        levels = 255 - row[:-1].reshape(8, 8) * np.uint8(15)
        split = "train" if index < len(rows) - NUM_VALIDATION else "validation"
        picture = Image.fromarray(levels).resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC)
        _save(picture, folder / split / str(row[-1]) / f"{index}.png")


def write_masks(folder: Path) -> None:
    """Write the scenes of the segmentation probe into `train/` and `validation/`, each with `images/` and `masks/`."""
    scenes = segmentation_set(load_demo_assets(), SIZE, NUM_MASKED, NUM_VALIDATION)
    splits = {
        "train": (scenes.train_images, scenes.train_masks),
        "validation": (scenes.test_images, scenes.test_masks),
    }
    for split, (pictures, masks) in splits.items():
        for index, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            _save(to_pil_image(picture), folder / split / "images" / f"{index}.png")
            _save(Image.fromarray(mask.byte().numpy()), folder / split / "masks" / f"{index}.png")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in scenes.class_names))


def write_boxes(folder: Path) -> None:
    """Write scenes with their boxes as COCO json: `train/_annotations.coco.json`, the images beside it."""
    scenes = detection_set(load_demo_assets(), SIZE, NUM_BOXED, NUM_VALIDATION)
    for split, chosen in (("train", scenes.train), ("validation", scenes.test)):
        for index, scene in enumerate(chosen):
            _save(to_pil_image(scene.image), folder / split / f"{index}.png")
        text = json.dumps(_coco(chosen, scenes.class_names))
        (folder / split / "_annotations.coco.json").write_text(text)


def _coco(scenes: Sequence[Composite], names: Sequence[str]) -> dict[str, Any]:
    annotations = [
        {"image_id": index, "category_id": label, "bbox": box}
        for index, scene in enumerate(scenes)
        for box, label in zip(box_convert(scene.boxes, "xyxy", "xywh").tolist(), scene.labels.tolist(), strict=True)
    ]
    return {
        "images": [{"id": index, "file_name": f"{index}.png"} for index in range(len(scenes))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations)],
    }


WHOLE_IMAGES = {"crop_area_min": 1.0, "color_jitter": 0.0}  # scenes are composed anew, and digits fill their image

EXPERIMENTS = {
    "image-classification": Experiment(
        write_digits,
        DIGIT_SIZE,
        {"steps": 200, "batch_size": 32, "flip_probability": 0.0, **WHOLE_IMAGES},
        "frozen linear probe",
    ),
    "semantic-segmentation": Experiment(
        write_masks,
        SIZE,
        {
            "steps": 800,
            "batch_size": 16,
            "head_learning_rate": 2e-3,
            "learning_rate": 1e-3,
            "lora_rank": 8,
            **WHOLE_IMAGES,
        },
        "frozen linear probe",
    ),
    "object-detection": Experiment(
        write_boxes,
        SIZE,
        {
            "steps": 500,
            "batch_size": 16,
            "head_learning_rate": 5e-4,
            "config": {"detection_num_queries": 20, "detection_hidden_size": 96, "detection_num_groups": 3},
        },
        "decoder on the frozen backbone",
    ),
}


def run_experiment(task: str, checkpoint: Path, output: Path, seeds: Sequence[int]) -> Table:
    """Run both methods for every seed and return their metrics, mean and standard deviation over the seeds.

    Raises:
        ValueError: If the checkpoint cannot be used.
        PackageError: If the images cannot be fetched.
    """
    experiment, data = EXPERIMENTS[task], output / "data"
    if not data.is_dir():
        write_folder(data, experiment.write)
    methods = {"head": experiment.frozen, "lora": "LoRA"}
    results = {
        tune: [_run(task, checkpoint, output / f"{tune}-{seed}", tune, seed) for seed in seeds] for tune in methods
    }
    names = list(results["head"][0]["metrics"])
    rows = [(methods[tune], _row(runs, names)) for tune, runs in results.items()]
    return Table(task, ["trained parameters", "seconds", *names], rows)


def _run(task: str, checkpoint: Path, output: Path, tune: str, seed: int) -> dict[str, Any]:
    """Return what one run measured; a finished one is not repeated."""
    experiment = EXPERIMENTS[task]
    if not (output / RESULTS).is_file():
        settings = FinetuneSettings(
            str(checkpoint),
            task,
            str(output.parent / "data"),
            output,
            tune=tune,
            size=(experiment.size, experiment.size),
            evaluate_every=experiment.options["steps"],
            num_workers=0,
            seed=seed,
            **experiment.options,
        )
        FinetuningRun(settings).run()
    return json.loads((output / RESULTS).read_text())


def _row(runs: list[dict[str, Any]], names: list[str]) -> list[str]:
    seconds = statistics.mean(run["seconds"] for run in runs)
    cells = [f"{runs[0]['trainable_parameters']:,}", f"{seconds:.0f}"]
    for name in names:
        values = [run["metrics"][name] for run in runs]
        spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}")
    return cells


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(arguments)
    return run_command("finetune_demo", lambda: _compare(options), interrupted="interrupted; the same command goes on")


def _compare(options: argparse.Namespace) -> None:
    output = options.output / options.task
    table = format_table(run_experiment(options.task, options.checkpoint, output, options.seeds))
    write_file(output / "table.md", lambda path: path.write_text(table + "\n"))
    print(f"\n{table}\n\nWrote {output}: table.md, and for each run its model and pictures of predictions.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.finetune_demo",
        description="Compare LoRA with a frozen backbone on the demo's student and real labels.",
    )
    parser.add_argument("--task", required=True, choices=tuple(EXPERIMENTS))
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/demo/final"), metavar="DIR", help="of make demo")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune-demo"), metavar="DIR")
    parser.add_argument(
        "--seeds", type=read_seeds, default=[0, 1, 2], metavar="0,1,2", help="one run of each method each"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
