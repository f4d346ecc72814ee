"""LoRA against the frozen linear probe on real labels, in minutes on a CPU: `python -m training.finetune_demo --task ...`.

The data are those of the evaluation: stamps of Tux Paint by class, and scenes composed of them with exact masks or
boxes; objects and photographs of the validation images are held out. Each method runs once for every seed with equal
steps and augmentation, and is measured once, after the last step: nothing is chosen on the validation images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from model_cards.results import Table
from training.data.demo_assets import load_demo_assets
from training.data.evaluation_sets import classification_set, segmentation_set
from training.distill import EXIT_INTERRUPTED, USER_ERRORS
from training.evaluate import format_table
from training.files import write_file, write_folder
from training.finetuning.run import RESULTS, FinetuningRun
from training.finetuning.settings import FinetuneSettings


SIZE = 128  # pixels, as the demo's student was trained
NUM_SCENES = (600, 150)  # training and validation; our choice


@dataclass(frozen=True)
class Experiment:
    """What is compared for one task; all numbers are our choice, found in a few runs on another seed.

    Attributes:
        options: Settings that both methods share.
        head: Further settings of the frozen probe.
        lora: Further settings of LoRA.
    """

    options: dict[str, Any]
    head: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)


EXPERIMENTS = {
    "image-classification": Experiment({"steps": 200, "batch_size": 32}),
    "semantic-segmentation": Experiment({"steps": 300, "batch_size": 16}),
}
METHODS = {"head": "frozen linear probe", "lora": "LoRA"}


def write_class_folders(folder: Path) -> None:
    """Write the stamps on a plain ground into `train/CLASS/` and `validation/CLASS/`."""
    images = classification_set(load_demo_assets(), SIZE)
    splits = {
        "train": (images.gallery_images, images.gallery_labels),
        "validation": (images.query_images, images.query_labels),
    }
    for split, (pictures, labels) in splits.items():
        for index, (picture, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
            _save(picture, folder / split / images.class_names[label] / f"{index}.png")


def write_mask_folders(folder: Path) -> None:
    """Write scenes into `train/` and `validation/`, each with `images/` and `masks/`."""
    scenes = segmentation_set(load_demo_assets(), SIZE, *NUM_SCENES)
    splits = {
        "train": (scenes.train_images, scenes.train_masks),
        "validation": (scenes.test_images, scenes.test_masks),
    }
    for split, (pictures, masks) in splits.items():
        for index, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            _save(picture, folder / split / "images" / f"{index}.png")
            _save(mask.byte(), folder / split / "masks" / f"{index}.png")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in scenes.class_names))


WRITERS = {"image-classification": write_class_folders, "semantic-segmentation": write_mask_folders}


def run_experiment(task: str, checkpoint: Path, output: Path, seeds: Sequence[int]) -> Table:
    """Run both methods for every seed and return their metrics, mean and standard deviation over the seeds.

    Raises:
        ValueError: If the checkpoint cannot be used.
        PackageError: If the images cannot be fetched.
    """
    data = output / "data"
    if not data.is_dir():
        write_folder(data, WRITERS[task])
    experiment = EXPERIMENTS[task]
    results = {method: [] for method in METHODS}
    for seed in seeds:
        for method in METHODS:
            options = {**experiment.options, **(experiment.head if method == "head" else experiment.lora)}
            results[method].append(_run(task, checkpoint, output / f"{method}-{seed}", method, seed, data, options))
    names = list(results["head"][0]["metrics"])
    rows = [(METHODS[method], _row(runs, names)) for method, runs in results.items()]
    return Table(task, ["trained parameters", "seconds", *names], rows)


def _run(
    task: str, checkpoint: Path, output: Path, method: str, seed: int, data: Path, options: dict[str, Any]
) -> dict[str, Any]:
    if not (output / RESULTS).is_file():
        settings = FinetuneSettings(
            str(checkpoint),
            task,
            str(data),
            output,
            tune=method,
            size=(SIZE, SIZE),
            evaluate_every=options["steps"],
            num_workers=0,
            seed=seed,
            **options,
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


def _save(pixels: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = to_pil_image(pixels) if pixels.ndim == 3 else Image.fromarray(pixels.numpy())
    picture.save(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(arguments)
    output = options.output / options.task
    try:
        table = format_table(run_experiment(options.task, options.checkpoint, output, options.seeds))
        write_file(output / "table.md", lambda path: path.write_text(table + "\n"))
    except KeyboardInterrupt:
        return _end("interrupted; the same command goes on", EXIT_INTERRUPTED)
    except USER_ERRORS as error:
        return _end(f"error: {' '.join(str(error).split())}", 1)
    print(f"\n{table}\n\nWrote {output}: table.md, and for each run its model and pictures of predictions.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.finetune_demo",
        description="Compare LoRA with the frozen linear probe on the demo's student and real labels.",
    )
    parser.add_argument("--task", required=True, choices=tuple(EXPERIMENTS))
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/demo/final"), metavar="DIR", help="of make demo")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune-demo"), metavar="DIR")
    parser.add_argument("--seeds", type=_seeds, default=[0, 1, 2], metavar="0,1,2", help="one run of each method each")
    return parser


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


def _end(message: str, status: int) -> int:
    print(f"finetune_demo: {message}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
