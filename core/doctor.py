"""Print what a report of a problem needs: versions, devices, what each extra lacks, disk, caches, and the Hub.

Nothing is loaded that a broken installation could not load: what fails is printed. `radio doctor FOLDER` prints instead
which engines hold the network of a folder: transformers without trust, vLLM, SGLang, llama.cpp, TensorRT-Edge-LLM.
"""

import importlib.metadata as metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from packaging.requirements import Requirement
from pydantic import Field

from modeling_radio.core.command_line import Command, run_command
from modeling_radio.core.files import cache_dir
from modeling_radio.core.ids import ModelFolder
from modeling_radio.core.settings import Settings


PROJECT = "modeling-radio"
VERSIONS = (PROJECT, "torch", "torchvision", "transformers", "accelerate", "huggingface-hub", "numpy", "pillow")


class DoctorSettings(Settings):
    """Options of the command.

    Attributes:
        checkpoint: Folder of a model of ours, or its name on the Hub: print what engines do with it.
        timeout: Seconds to wait for the Hub's answer.
    """

    checkpoint: ModelFolder | None = None
    timeout: float = Field(3.0, gt=0)


COMMAND = Command(
    "radio doctor",
    __doc__,
    DoctorSettings,
    positionals=("checkpoint",),
    examples=(
        "radio doctor",
        "radio doctor builtin:lite",
        "radio doctor --timeout 20",
        "HF_HUB_OFFLINE=1 radio doctor",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    return run_command(COMMAND.name, lambda: _print(COMMAND.read(words)), show_traceback="--traceback" in words)


def _print(settings: DoctorSettings) -> None:
    if settings.checkpoint is not None:
        print(*_engines(settings.checkpoint), sep="\n")
        return
    for title, lines in (
        ("Versions", _versions()),
        ("Devices", _devices()),
        ("Extras", _extras()),
        ("Folders", _folders()),
        ("Hub", _hub(settings.timeout)),
    ):
        print(f"{title}:", *(f"  {line}" for line in lines), sep="\n", flush=True)


def _engines(checkpoint: Path) -> Iterator[str]:
    """Yield a line for each engine.

    Raises:
        ValueError: If it is no folder of ours, one in NVIDIA's layout included: engines read that as it is, and our
            configuration tells of the network as we would convert it.
    """
    from modeling_radio import RadioConfig
    from modeling_radio.core.hub import find_folder
    from modeling_radio.core.opening import read_config
    from modeling_radio.engines import engine_verdicts

    folder = find_folder(checkpoint, "checkpoint")
    fields = read_config(folder)
    if fields.get("model_type") != RadioConfig.model_type or "args" in fields:
        raise ValueError(f"`checkpoint` must be a folder of ours, got {str(checkpoint)!r}. `radio convert` writes one.")
    yield from (verdict.line for verdict in engine_verdicts(RadioConfig.from_pretrained(folder)))


def _versions() -> Iterator[str]:
    yield f"python {platform.python_version()} at {sys.executable}, {platform.platform()}"
    for name in VERSIONS:
        yield f"{name} {installed_version(name) or 'is not installed'}"
    yield f"code of this command: {Path(__file__).parent}"


def installed_version(name: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return metadata.version(name)
    except PackageNotFoundError:
        return None


def _devices() -> Iterator[str]:
    yield f"{os.cpu_count()} processors, {platform.machine()}"
    try:
        import torch
    except Exception as error:  # noqa: BLE001 - a broken installation fails in any way, and is what is looked for
        yield f"torch cannot be imported: {type(error).__name__}: {error}"
        return
    yield f"torch uses {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    if torch.cuda.device_count() == 0:
        yield f"no GPU with CUDA; torch was built for {torch.version.cuda or 'CPU'}"
    if torch.backends.mps.is_available():
        yield "mps: Apple's GPU"


def _extras() -> Iterator[str]:
    try:
        distribution = metadata.distribution(PROJECT)
    except PackageNotFoundError:
        yield f"unknown: {PROJECT} is not installed, this is a clone; `pip install -e .` there installs it"
        return
    requirements = [Requirement(text) for text in distribution.requires or []]
    for extra in ("", *(distribution.metadata.get_all("Provides-Extra") or [])):
        missing = lacking(requirements, extra)
        advice = f"lacks {', '.join(missing)}: pip install '{PROJECT}{f'[{extra}]' if extra else ''}'"
        yield f"{extra or 'none'}: {advice if missing else 'complete'}"


def lacking(requirements: Iterable[Requirement], extra: str) -> list[str]:
    """Return the requirements of an extra that are not installed, or in a version that does not fit.

    Args:
        requirements: The project's requirements; an extra may require other extras.
        extra: Its name; empty for what every installation needs.
    """
    found, requirements = [], list(requirements)
    for each in requirements:
        if each.marker is not None and not each.marker.evaluate({"extra": extra}):
            continue
        if each.marker is None and extra:
            continue  # needed without the extra, too
        if each.name == PROJECT:
            found += [name for other in sorted(each.extras) for name in lacking(requirements, other)]
            continue
        version = installed_version(each.name)
        if version is None:
            found.append(each.name)
        elif not each.specifier.contains(version, prereleases=True):
            found.append(f"{each.name}{each.specifier} (has {version})")
    return list(dict.fromkeys(found))


def _folders() -> Iterator[str]:
    from huggingface_hub import constants

    for title, folder in (
        ("here", Path.cwd()),
        ("cache of radio (RADIO_CACHE)", cache_dir()),
        ("cache of the Hub (HF_HOME)", Path(constants.HF_HOME)),
    ):
        existing = next(each for each in (folder, *folder.parents) if each.is_dir())
        yield f"{title}: {folder}, {shutil.disk_usage(existing).free / 1e9:.1f} GB free"


def _hub(timeout: float) -> Iterator[str]:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        yield f"{constants.ENDPOINT} is not asked: HF_HUB_OFFLINE is set"
        return
    try:
        status = get_session().head(constants.ENDPOINT, timeout=timeout).status_code
    except Exception as error:  # noqa: BLE001 - names, proxies and certificates fail in many ways
        yield f"{constants.ENDPOINT} cannot be reached: {' '.join(str(error).split()) or type(error).__name__}"
        return
    yield f"{constants.ENDPOINT} answers with status {status}"


if __name__ == "__main__":
    sys.exit(main())
