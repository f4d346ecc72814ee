"""Runs transformers' own pipelines on saved folders as a stranger would; run by `test_stock_pipelines.py`.

Usage: run_stock_pipelines.py CHECKPOINTS_DIR PHOTOGRAPH URL OUTPUT.pt

CHECKPOINTS_DIR holds one folder for each task. The script imports nothing of this repository.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers import Pipeline, pipeline


TASKS = ("image-feature-extraction", "image-classification", "image-segmentation", "depth-estimation")


def as_tensor(result: Any, labels: dict[str, int]) -> torch.Tensor:
    """Return what a pipeline says of one image as one tensor."""
    if isinstance(result, dict):
        return result["predicted_depth"]
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


def main(checkpoints: Path, photograph: str, url: str) -> dict[str, dict[str, torch.Tensor]]:
    """Run every task's pipeline, features also pooled."""
    outputs = {}
    for task in TASKS:
        pipe = pipeline(task, model=str(checkpoints / task), trust_remote_code=True)
        if not type(pipe.model).__module__.startswith("transformers_modules."):
            raise RuntimeError(f"Not the folder's own code: {type(pipe.model)}")
        outputs[task] = run(pipe, photograph, url)
        if task == "image-feature-extraction":
            outputs["pooled"] = run(pipe, photograph, url, pool=True)
    return outputs


if __name__ == "__main__":
    torch.save(main(Path(sys.argv[-4]), sys.argv[-3], sys.argv[-2]), sys.argv[-1])
