"""Opens a checkpoint folder as a stranger would, and stores what comes out; run by `test_remote_code.py`.

Usage: open_checkpoint.py trusted|native CHECKPOINT_DIR WORK_DIR

WORK_DIR holds picture.png and receives MODE.safetensors; a detector lies beside the checkpoint. The script imports
nothing of this repository.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, pipeline


def open_trusted(checkpoint: Path, work: Path) -> dict[str, torch.Tensor]:
    """Open with `trust_remote_code=True`: processor, model, pipelines; save both and open them again."""
    image = Image.open(work / "picture.png")
    processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
    modules = {type(thing).__module__ for thing in (processor, model, model.config)}
    if not all(module.startswith("transformers_modules.") for module in modules):
        raise RuntimeError(f"Not the folder's own code: {modules}")
    inputs = processor(image, return_tensors="pt")
    tensors = {"pixel_values": inputs["pixel_values"], **encode(model, inputs)}

    extract = pipeline("image-feature-extraction", model=str(checkpoint), trust_remote_code=True)
    for pool in (True, False):
        tensors[f"pipeline_pool_{pool}"] = extract(image, pool=pool, return_tensors=True)
    detect = pipeline("object-detection", model=str(checkpoint.with_name("detector")), trust_remote_code=True)
    tensors["pipeline_scores"] = torch.tensor([found["score"] for found in detect(image, threshold=0.0)])

    model.save_pretrained(work / "saved_again")
    processor.save_pretrained(work / "saved_again")
    model = AutoModel.from_pretrained(work / "saved_again", trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(work / "saved_again", trust_remote_code=True)
    again = encode(model, processor(image, return_tensors="pt"))
    return {**tensors, **{f"saved_again_{name}": tensor for name, tensor in again.items()}}


def open_native(checkpoint: Path, work: Path) -> dict[str, torch.Tensor]:
    """Open without trust, as transformers' own `RadioModel`; also store which keys did not match."""
    model, info = AutoModel.from_pretrained(checkpoint, output_loading_info=True)
    if not type(model).__module__.startswith("transformers.models.radio."):
        raise RuntimeError(f"Not the native model: {type(model).__module__}")
    report = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    (work / "loading_info.json").write_text(json.dumps(report))
    with torch.no_grad():
        out = model(load_file(work / "expected.safetensors")["pixel_values"])
    return {"summary": out.summary, "features": out.features, "last_hidden_state": out.last_hidden_state}


def encode(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return all outputs of our own model, with flat names."""
    with torch.no_grad():
        out = model(**inputs)
    tensors = {"summary": out.summary, "features": out.features, "last_hidden_state": out.last_hidden_state}
    for name, adaptor in out.adaptors.items():
        tensors |= {f"{name}_{key}": value for key, value in adaptor.items()}
    return tensors


if __name__ == "__main__":
    mode, checkpoint, work = sys.argv[-3], Path(sys.argv[-2]), Path(sys.argv[-1])
    outputs = {"trusted": open_trusted, "native": open_native}[mode](checkpoint, work)
    save_file({name: tensor.clone() for name, tensor in outputs.items()}, work / f"{mode}.safetensors")
