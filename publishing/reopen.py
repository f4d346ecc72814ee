"""Test of a checkpoint folder: open it as its users will, in a new process, elsewhere, with transformers alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from modeling_radio.core.interruption import raised_signals
from modeling_radio.core.opening import open_model
from modeling_radio.core.trust import clean_environment
from modeling_radio.native import native_differences


TOLERANCE = 1e-5
"""Largest accepted difference: it is zero on the same machine, and a few 1e-6 with another order of summation."""

OPENING_SCRIPT = """
import sys
from PIL import Image
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, pipeline

checkpoint, photograph, answers, *natively = sys.argv[1:]
image = Image.open(photograph)
processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=True)
model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
pixels = processor(image, return_tensors="pt")
extract = pipeline("image-feature-extraction", model=checkpoint, trust_remote_code=True)
with torch.no_grad():
    output = model(**pixels, return_dict=True)
    native = AutoModel.from_pretrained(checkpoint).eval()(**pixels) if natively else None
found = {"summary": output.summary, "features": output.features, "pipeline": extract(image, return_tensors=True)}
if native is not None:
    found |= {"native summary": native.summary, "native features": native.features}
for name, adaptor in output.adaptors.items():
    found |= {f"{name} summary": adaptor.summary, f"{name} features": adaptor.features}
save_file({name: tensor.contiguous() for name, tensor in found.items() if tensor is not None}, answers)
"""


class ReopenError(ValueError):
    """A checkpoint folder did not open elsewhere, or gave other outputs; the message is one line."""


def reopen_elsewhere(checkpoint: Path, image: Image.Image) -> float:
    """Open a folder through the Auto classes and the pipeline in a new process, and compare with ours.

    The process runs in an empty folder, isolated from this repository and from the network. It also opens the
    folder without `trust_remote_code`, as transformers' native model, if that gives equal outputs by
    `modeling_radio.native.native_differences`.

    Args:
        checkpoint: The folder.
        image: Any RGB image.

    Returns:
        The largest absolute difference from the outputs in this process.

    Raises:
        ReopenError: If the folder does not open or a difference exceeds `TOLERANCE`.
    """
    expected = _outputs_here(checkpoint, image)
    found = _outputs_elsewhere(checkpoint.resolve(), image, natively="native features" in expected)
    differences = {name: (found[name] - tensor).abs().max().item() for name, tensor in expected.items()}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:  # not a number either
            raise ReopenError(f"{checkpoint} reopened elsewhere gives another {name}, by {difference:.2g}")
    return max(differences.values())


@torch.no_grad()
def _outputs_here(checkpoint: Path, image: Image.Image) -> dict[str, Tensor]:
    opened = open_model(checkpoint, device="cpu", dtype=None)
    model, inputs = opened.backbone, opened.processor(image, return_tensors="pt")
    output = model(**inputs, return_dict=True)
    expected = {"summary": output.summary, "features": output.features, "pipeline": output[0]}
    if not native_differences(model.config):
        expected |= {"native summary": output.summary, "native features": output.features}
    for name, adaptor in output.adaptors.items():
        expected |= {f"{name} summary": adaptor.summary, f"{name} features": adaptor.features}
    return {name: tensor for name, tensor in expected.items() if tensor is not None}


def _outputs_elsewhere(checkpoint: Path, image: Image.Image, *, natively: bool) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        photograph, answers = Path(folder) / "photograph.png", Path(folder) / "answers.safetensors"
        image.save(photograph)
        environment = clean_environment(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=str(Path(folder) / "modules"))
        # -I: neither the working directory nor PYTHONPATH nor the user's own packages are searched.
        command = [sys.executable, "-I", "-c", OPENING_SCRIPT, str(checkpoint), str(photograph), str(answers)]
        command += ["natively"] if natively else []
        with raised_signals():
            process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ReopenError(f"{checkpoint} does not open in a new process: {reason}")
        return load_file(answers)
