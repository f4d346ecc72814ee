"""Runs NVIDIA's model and ours on the same images, each in a process of its own, and compares their outputs."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from modeling_radio import RadioConfig
from modeling_radio.checks_radio import nearest_multiple
from modeling_radio.core.errors import UserError
from modeling_radio.core.files import PHOTOGRAPH
from modeling_radio.core.interruption import raised_signals
from modeling_radio.core.trust import clean_environment
from modeling_radio.image_processing_radio import read_image_file
from modeling_radio.model_cards.parity import Agreement


NOISE = "uniform noise"
_DEFAULT_SIZES = ((224, 224), (384, 640))
"""Sizes besides the preferred one. Our choice: a small square, and an image that is not square."""
_DEFAULT_WINDOWS = (8,)
"""Our choice: the smallest side in NVIDIA's report, which differs most from global attention."""
_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")
_SEED, _NOISE_SIZE = 0, (512, 512)

Cases = list[tuple[int | None, list[str]]]
"""Windows, each with sizes "HEIGHTxWIDTH". None is global attention, or E-RADIO's own windows."""
_WORKER = Path(__file__).parent / "worker.py"
_ERROR = re.compile(r"[\w.]*(?:Error|Exception)\b.*")
_MISSING = re.compile(r"packages that were not found in your environment: ([\w, -]+)\.")


def read_size(text: str) -> tuple[int, int]:
    """Return height and width of "512" or "384x640".

    Raises:
        ValueError: If it is neither.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or not min(int(side) for side in match.groups(match[1])) > 0:
        raise ValueError(f"`sizes` must be like 512 or 384x640 (height x width, px), got {text!r}.")
    height, width = match.groups(match[1])
    return int(height), int(width)


def plan_cases(config: RadioConfig, sizes: Iterable[str], windows: Sequence[int] | None = None) -> Cases:
    """Return the cases: every size with global attention, and with each window.

    Sizes are rounded such that the windows divide the grid of patches, as NVIDIA's code requires. E-RADIO and RADIO1D
    have no ViTDet windows and run without.

    Args:
        config: The model's configuration.
        sizes: Sizes as text, see `read_size`; none for the preferred one and two more.
        windows: Sides of windows in tokens; `None` for 8 where the network has windows.

    Raises:
        ValueError: If the network has no windows, or one is larger than its largest image.
    """
    wanted = [read_size(size) for size in sizes] or [tuple(config.preferred_resolution), *_DEFAULT_SIZES]
    cases: Cases = []
    is_plain = not config.is_foreign and not config.num_mergings
    if windows and not is_plain:
        raise ValueError(f"`windows` must be empty for E-RADIO and RADIO1D, which have no such windows, got {windows}.")
    if windows is None:
        windows = _DEFAULT_WINDOWS if is_plain else ()
    for window in (None, *dict.fromkeys(windows)):
        step, largest = config.resolution_step * (window or 1), config.largest_side
        if step > largest:
            raise ValueError(f"`windows` must be at most {largest // config.patch_size} for this model, got {window}.")
        rounded = [nearest_multiple(height, width, step, largest) for height, width in wanted]
        cases.append((window, list(dict.fromkeys(f"{height}x{width}" for height, width in rounded))))
    return cases


def open_images() -> dict[str, Image.Image]:
    """Return images by name: a photograph, and noise, which excites every channel."""
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randint(0, 256, (3, *_NOISE_SIZE), dtype=torch.uint8, generator=generator)
    return {PHOTOGRAPH.name: read_image_file(PHOTOGRAPH), NOISE: to_pil_image(noise)}


def pixels_of(images: Iterable[Image.Image], cases: Cases) -> dict[str, Tensor]:
    """Return the images at each size, `(images, 3, height, width)` in 0 ... 255."""
    loaded = list(images)
    found: dict[str, Tensor] = {}
    for size in dict.fromkeys(size for _, sizes in cases for size in sizes):
        height, width = read_size(size)
        resized = [image.resize((width, height), Image.Resampling.BICUBIC) for image in loaded]
        found[size] = torch.stack([pil_to_tensor(image) for image in resized])
    return found


class ParityError(UserError):
    """Raised for outputs that cannot be compared or are not equal; the message names them."""


def compare_outputs(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[Agreement]:
    """Compare outputs under `SIZE/WINDOW/NAME/KIND`, in the order of NVIDIA's.

    Raises:
        ParityError: If one side lacks an output, their shapes differ, or numbers are not finite.
    """
    alone = sorted(theirs.keys() ^ ours.keys())
    if alone:
        raise ParityError(f"Only one of the two returns {alone[0]}: {len(alone)} outputs cannot be compared.")
    return [_compare(key, theirs[key].double(), ours[key].double()) for key in theirs]


def _compare(key: str, theirs: Tensor, ours: Tensor) -> Agreement:
    if theirs.shape != ours.shape:
        raise ParityError(f"{key} is {tuple(ours.shape)}, and NVIDIA's {tuple(theirs.shape)}.")
    for whose, value in (("NVIDIA's", theirs), ("Ours", ours)):
        if not torch.isfinite(value).all():
            raise ParityError(f"{whose} {key} is not finite. Choose another `dtype`.")
    size, window, name, kind = key.split("/")
    difference = ours - theirs
    return Agreement(
        size=size,
        window=None if window == "None" else int(window),
        output=kind if name == "backbone" else f"{name} {kind}",
        max_abs=difference.abs().max().item(),
        relative=(difference.norm() / theirs.norm().clamp_min(torch.finfo(torch.float64).tiny)).item(),
        cosine=F.cosine_similarity(theirs, ours, dim=-1, eps=torch.finfo(torch.float64).tiny).min().item(),
    )


@dataclass(frozen=True)
class Question:
    """Request to the process that runs one model.

    Attributes:
        name: Name of the model, for messages.
        source: Folder with its weights and code.
        is_theirs: Whether it is NVIDIA's model, with NVIDIA's code.
        adaptors: Names of the adaptors to run.
        device: Device of the model.
        dtype: Data type of weights and pixels.
        rounds: Timed calls of each case.
        cases: Windows and sizes.
    """

    name: str
    source: str
    is_theirs: bool
    adaptors: list[str]
    device: str
    dtype: str
    rounds: int
    cases: Cases


@dataclass(frozen=True)
class ModelOutputs:
    """Results of the process that ran one model.

    Attributes:
        outputs: Tensors under `SIZE/WINDOW/NAME/KIND`.
        costs: Seconds and peak memory of each case.
        left_out: Reasons why windows could not be run, by window.
        notes: Notes for the reader of differences.
    """

    outputs: dict[str, Tensor]
    costs: list[dict[str, Any]]
    left_out: dict[str, str]
    notes: list[str]


def ask(question: Question, images: dict[str, Tensor]) -> ModelOutputs:
    """Run a model on images in a new process that can import nothing of this repository.

    Args:
        question: The request.
        images: Images by size, `(images, 3, height, width)` in 0 ... 255.

    Raises:
        ParityError: If the process fails; the message is the last line of its errors.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {each: str(folder / f"{each}.safetensors") for each in ("images", "outputs")}
        request = {**asdict(question), **files, "report": str(folder / "report.json")}
        (folder / "request.json").write_text(json.dumps(request))
        save_file(images, files["images"])
        environment = clean_environment(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=str(folder / "modules"))
        # -I: neither the working directory nor PYTHONPATH nor the user's own packages are searched.
        command = [sys.executable, "-I", "-c", _WORKER.read_text(encoding="utf-8"), str(folder / "request.json")]
        with raised_signals():
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ParityError(_reason(question, done.stderr)) from RuntimeError(done.stderr)
        outputs, report = load_file(files["outputs"]), json.loads((folder / "report.json").read_text())
        ordered = {key: outputs[key] for key in report.pop("order")}
        return ModelOutputs(ordered, **report)


def _reason(question: Question, stderr: str) -> str:
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1] if lines else "no reason given")
    whose = f"NVIDIA's code of {question.name}" if question.is_theirs else f"Our code of {question.name}"
    missing = _MISSING.search(said)
    if missing is not None:
        packages = missing[1].replace(",", "")
        return f"{whose} needs packages that are not installed: run `pip install {packages}`."
    hint = " Another `revision` may open with this transformers." if question.is_theirs else ""
    return f"{whose} failed in its process: {said.strip().rstrip('.')}.{hint}"
