"""Runs the worker in processes of its own, one model after the other, and says what went wrong in one."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from conversion.release.agreement import ParityError
from conversion.release.cases import Cases
from core.interruption import raised_signals
from core.trust import clean_environment


_WORKER = Path(__file__).parent / "worker.py"
_ERROR = re.compile(r"[\w.]*(?:Error|Exception)\b.*")
_MISSING = re.compile(r"packages that were not found in your environment: ([\w, -]+)\.")


@dataclass(frozen=True)
class Question:
    """What one model is asked.

    Attributes:
        name: For messages.
        source: Folder, with its code.
        is_theirs: Whether it is NVIDIA's model, with NVIDIA's code.
        adaptors: To run, by name.
        device: Where.
        dtype: Of weights and pixels.
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
class Answers:
    """What one model said.

    Attributes:
        outputs: Under `SIZE/WINDOW/NAME/KIND`.
        costs: Seconds and peak memory of each case.
        left_out: By window, why it could not be run.
        notes: What a reader of differences should know.
    """

    outputs: dict[str, Tensor]
    costs: list[dict[str, Any]]
    left_out: dict[str, str]
    notes: list[str]


def ask(question: Question, images: dict[str, Tensor]) -> Answers:
    """Run a model on images in a new process that can import nothing of this repository.

    Args:
        question: What is asked.
        images: By size, `(images, 3, height, width)` in 0 ... 255.

    Raises:
        ParityError: If the process fails; the message is the last line of what it said.
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
        return Answers(ordered, **report)


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
