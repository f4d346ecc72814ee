"""Runs transformers' own pipelines on saved folders as a stranger would; run by `test_stock_pipelines.py`.

Usage: run_stock_pipelines.py CHECKPOINTS_DIR PHOTOGRAPH URL OUTPUT.pt

CHECKPOINTS_DIR holds one folder for each kind of model. The script imports nothing of this repository.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers import Pipeline, pipeline


# By name of the run: task, folder and options.
RUNS = {
    "image-feature-extraction": ("image-feature-extraction", "backbone", {}),
    "pooled": ("image-feature-extraction", "backbone", {"pool": True}),
    "image-classification": ("image-classification", "classifier", {}),
    "image-segmentation": ("image-segmentation", "segmenter", {}),
    "depth-estimation": ("depth-estimation", "depth", {}),
    "object-detection": ("object-detection", "detector", {"threshold": 0.0}),
    "boxes of instances": ("object-detection", "instances", {"threshold": 0.0}),
    "masks of instances": ("image-segmentation", "instances", {"threshold": 0.0}),
}


def as_tensor(result: Any, labels: dict[str, int]) -> torch.Tensor:
    """Return what a pipeline says of one image as one tensor."""
    if isinstance(result, dict):
        return result["predicted_depth"]
    if isinstance(result[0], dict) and "box" in result[0]:
        return torch.tensor([[part["score"], *(side / 640 for side in part["box"].values())] for part in result])
    if isinstance(result[0], dict) and "mask" in result[0] and result[0]["score"] is not None:
        masks = torch.stack([tvF.pil_to_tensor(part["mask"])[0] / 255 for part in result])
        scores = torch.tensor([part["score"] for part in result])
        return torch.cat([scores[:, None], F.adaptive_avg_pool2d(masks, 2).flatten(1)], dim=1)
    if isinstance(result[0], dict) and "mask" in result[0]:
        return sum(labels[part["label"]] * (tvF.pil_to_tensor(part["mask"])[0] > 0).long() for part in result)
    if isinstance(result[0], dict):
        return torch.tensor([part["score"] for part in sorted(result, key=lambda part: labels[part["label"]])])
    return torch.tensor(result)


def run(pipe: Pipeline, photograph: str, url: str, **options: Any) -> dict[str, torch.Tensor]:
    """Return the result for each way to give images; lists and generators must agree with themselves."""
    image = Image.open(photograph)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    labels = pipe.model.config.label2id
    results = {
        "path": [pipe(photograph, **options)],
        "url": [pipe(url, **options)],
        "image": [pipe(image, **options)],
        "list": pipe([image, mirrored, image], **options),
        "batches": pipe([image, mirrored, image], batch_size=2, **options),
        "generator": list(pipe((entry for entry in (image, mirrored, image)), batch_size=2, **options)),
    }
    return {kind: torch.stack([as_tensor(one, labels) for one in several]) for kind, several in results.items()}


def run_unequal(pipe: Pipeline, photograph: str, **options: Any) -> dict[str, list[torch.Tensor]]:
    """Return the results for images of different sizes, in batches and one by one."""
    pipe.image_processor.size = {"shortest_edge": 48}
    wide = Image.open(photograph)
    images = [wide, wide.transpose(Image.Transpose.ROTATE_90), wide, wide.crop((0, 0, 400, 300))]
    labels = pipe.model.config.label2id
    results = {"batches": pipe(images, batch_size=3, **options), "alone": [pipe(image, **options) for image in images]}
    return {kind: [as_tensor(one, labels) for one in several] for kind, several in results.items()}


def main(checkpoints: Path, photograph: str, url: str) -> dict[str, dict[str, Any]]:
    """Run every pipeline."""
    outputs = {}
    for name, (task, folder, options) in RUNS.items():
        pipe = pipeline(task, model=str(checkpoints / folder), trust_remote_code=True)
        if not type(pipe.model).__module__.startswith("transformers_modules."):
            raise RuntimeError(f"Not the folder's own code: {type(pipe.model)}")
        outputs[name] = run(pipe, photograph, url, **options)
        outputs[f"{name}, unequal"] = run_unequal(pipe, photograph, **options)
    return outputs


if __name__ == "__main__":
    torch.save(main(Path(sys.argv[-4]), sys.argv[-3], sys.argv[-2]), sys.argv[-1])
