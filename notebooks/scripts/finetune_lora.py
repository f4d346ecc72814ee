# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "peft>=0.20,<1",
#     "pillow>=10.4",
#     "safetensors>=0.5,<1",
#     "torch>=2.6,<3",
#     "torchvision>=0.21,<1",
#     "transformers>=5.17,<6",
# ]
# ///
"""Tune a classifier with LoRA on a folder of classes, and save it as a folder for the stock pipelines.

A fifth of each class is held out; its accuracy is told before and after. `radio finetune` of the project does more:
other tasks, class weights, early stops, fitted thresholds, several GPUs.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoImageProcessor, AutoModelForImageClassification


ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
HELD_OUT = 5  # one image of so many
LAYERS = ["qkv", "proj", "fc1", "fc2"]  # of each block that get an adapter

LabeledPaths = list[tuple[Path, int]]


def read_arguments() -> argparse.Namespace:
    """Return what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a RADIO model, or its name on the Hub")
    parser.add_argument("data", type=Path, help="folder with a folder of images for each class")
    parser.add_argument("output", type=Path, help="folder to write, for pipeline('image-classification')")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, help="height and width in pixels; by default what the model prefers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.output.exists():
        parser.error(f"{given.output} is there already")
    if min(given.steps, given.rank, given.batch_size) < 1:
        parser.error("--steps, --rank and --batch-size must be 1 or more")
    if not given.data.is_dir():
        parser.error(f"{given.data} is no folder")
    given.names = sorted(path.name for path in given.data.iterdir() if path.is_dir())
    given.train, given.held_out = split(given.data, given.names)
    if len(given.names) < 2 or not given.train:
        parser.error(f"{given.data} must hold two or more folders with images, one for each class")
    return given


def split(data: Path, names: list[str]) -> tuple[LabeledPaths, LabeledPaths]:
    """Return the images to learn from and those held out, each with the number of its class."""
    train, held_out = [], []
    for label, name in enumerate(names):
        paths = sorted(path for path in (data / name).rglob("*") if path.suffix.lower() in ENDINGS)
        random.Random(0).shuffle(paths)
        num_held_out = -(-len(paths) // HELD_OUT)
        held_out += [(path, label) for path in paths[:num_held_out]]
        train += [(path, label) for path in paths[num_held_out:]]
    return train, held_out


def main() -> None:
    """Read the arguments, tune, save."""
    given = read_arguments()
    torch.manual_seed(0)
    processor = AutoImageProcessor.from_pretrained(given.model, trust_remote_code=True)
    id2label = dict(enumerate(given.names))
    label2id = {name: label for label, name in id2label.items()}
    base = AutoModelForImageClassification.from_pretrained(
        given.model, id2label=id2label, label2id=label2id, trust_remote_code=True
    )
    height, width = (given.size, given.size) if given.size else base.config.preferred_resolution
    options = {"r": given.rank, "lora_alpha": 2 * given.rank}
    model: Any = get_peft_model(base, LoraConfig(target_modules=LAYERS, modules_to_save=["classifier"], **options))
    model.to(given.device).print_trainable_parameters()

    def batch(examples: LabeledPaths) -> dict[str, torch.Tensor]:
        paths = [path for path, _ in examples]
        inputs = processor(paths, size={"height": height, "width": width}, return_tensors="pt").to(given.device)
        return {**inputs, "labels": torch.tensor([label for _, label in examples], device=given.device)}

    @torch.inference_mode()
    def accuracy() -> float:
        model.eval()
        starts = range(0, len(given.held_out), given.batch_size)
        batches = (batch(given.held_out[start : start + given.batch_size]) for start in starts)  # one at a time
        right = sum((model(**each).logits.argmax(-1) == each["labels"]).sum().item() for each in batches)
        return right / len(given.held_out)

    numbers = f"{len(given.train)} images to learn from, {len(given.held_out)} held out"
    print(f"{numbers}; accuracy before: {accuracy():.3f}")
    optimizer = torch.optim.AdamW((each for each in model.parameters() if each.requires_grad), lr=given.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.learning_rate, total_steps=given.steps)
    order = random.Random(0)
    model.train()
    for step in range(1, given.steps + 1):
        loss = model(**batch(order.choices(given.train, k=given.batch_size))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, given.steps // 10) == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    print(f"accuracy after: {accuracy():.3f}")

    unfinished = given.output.with_name(given.output.name + ".unfinished")
    model.merge_and_unload().save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    unfinished.rename(given.output)
    print(f"Wrote {given.output}: pipeline('image-classification', model='{given.output}', trust_remote_code=True)")


if __name__ == "__main__":
    main()
