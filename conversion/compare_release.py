"""Runs NVIDIA's own code and ours on the same images, and writes their differences, times and memory.

    radio compare-release nvidia/C-RADIOv4-H

NVIDIA's repository is fetched into the Hub's cache, and its code runs in a process of its own.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from huggingface_hub import snapshot_download
from pydantic import Field
from tqdm import tqdm

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.checks_radio import check_choice, own_names, read_json
from modeling_radio.conversion.from_nvidia import convert, read_label, save
from modeling_radio.conversion.release.comparison import (
    Cases,
    ModelOutputs,
    ParityError,
    Question,
    ask,
    compare_outputs,
    open_images,
    pixels_of,
    plan_cases,
    read_size,
)
from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.errors import first_few
from modeling_radio.core.files import check_output, scratch_folder, write_text
from modeling_radio.core.hub import HUB_ERRORS, explain_failure
from modeling_radio.core.ids import ModelId
from modeling_radio.core.machine import describe_machine, versions_of
from modeling_radio.core.ranks import device_of_process
from modeling_radio.core.settings import DeviceOptions, Spelling, read_names
from modeling_radio.core.tables import markdown
from modeling_radio.core.trust import foreign_code
from modeling_radio.model_cards.parity import FILE, Cost, Parity
from modeling_radio.model_cards.rendering import render_part
from modeling_radio.modeling_radio import ADAPTORS
from modeling_radio.nvidia.stored_tensors import stored_tensors


TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest relative differences that count as equal. Our choice: ten times the effect of another order of sums in a
deep network, far below that of a wrong token."""
ROUNDS = 3
"""Number of timed calls of each case; the fastest counts."""
TEXT = "parity.md"
_PATTERNS = ["*.json", "*.py", "*.safetensors"]
_VERSIONED = ("torch", "torchvision", "transformers", "timm")


class FetchedRelease(NamedTuple):
    """NVIDIA's checkpoint: name, commit and local folder."""

    name: str
    revision: str | None
    folder: Path


def fetch_release(source: str, revision: str | None) -> FetchedRelease:
    """Return a local folder, or fetch weights and code of a Hub repository at one commit.

    Raises:
        ValueError: If it is neither, cannot be fetched, or names code of another repository, which nobody asked to run.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"`revision` must be left out for a folder, got {revision!r}.")
        release = FetchedRelease(read_label(source), None, Path(source))
    else:
        release = _download(source, revision)
    modules = {path.stem for path in release.folder.glob("*.py")}
    foreign = foreign_code(read_json(release.folder / "config.json"), modules)
    if foreign:
        raise ValueError(f"`source` must name code of its own, got {foreign[0]!r:.200} in its config.json.")
    return release


def _download(source: str, revision: str | None) -> FetchedRelease:
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=_PATTERNS))
    except HUB_ERRORS as error:
        raise ValueError(
            f"`source` must be a folder or ORG/NAME on the Hub, got {source!r} of `revision` {revision!r}: it is no "
            f"folder here; {explain_failure(error, source)}"
        ) from error
    return FetchedRelease(source, folder.name, folder)


def adaptors_of(folder: Path) -> tuple[list[str], list[str]]:
    """Return the adaptors that a repository's class can build from its weights, and its other teachers."""
    config = read_json(folder / "config.json")
    teachers = [teacher["name"] for teacher in (config.get("args") or {}).get("teachers") or []]
    stored = {key.split(".")[2] for key in stored_tensors(folder) if key.startswith("radio_model.adaptors.")}
    found = [name for name in config.get("adaptor_configs") or {} if name in stored]
    return found, [name for name in dict.fromkeys(teachers) if name not in found]


def describe_weights(release: FetchedRelease) -> str:
    """Return how many tensors and numbers the backbone of a release has, and our preset of the same version.

    Tensors that only one of them has are listed. No weights are loaded: the headers of the files tell their shapes.
    """
    stored = {key: tensor.shape for key, tensor in stored_tensors(release.folder).items()}
    stored = {key: shape for key, shape in stored.items() if not key.startswith(f"{ADAPTORS}.")}
    version = RadioConfig.from_pretrained(release.folder).version
    lines = [f"Backbone of {release.name}: {_count(stored)}."]
    if version not in RadioConfig.presets:
        return f"{lines[0]} No preset has the version {version!r}: nothing to compare these with."
    with torch.device("meta"):
        network = RadioModel(RadioConfig.from_preset(version))
    own = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    lines.append(f"Our preset {version}: {_count(own)}.")
    for title, one, other in (("the release", stored, own), ("our preset", own, stored)):
        alone = [f"{key} ({' x '.join(map(str, one[key]))})" for key in sorted(one.keys() - other.keys())]
        if alone:
            lines.append(f"Only in {title}: {first_few(alone, 3)}.")
    return "\n".join(lines)


def _count(shapes: Mapping[str, Sequence[int]]) -> str:
    return f"{sum(map(math.prod, shapes.values())):,} numbers in {len(shapes)} tensors"


def _read_windows(text: str) -> list[int]:
    return [] if text == "none" else [int(window) for window in text.split(",")]


class CompareReleaseSettings(DeviceOptions):
    """Settings of the comparison.

    Attributes:
        source: Repository of NVIDIA's on the Hub, such as nvidia/C-RADIOv4-H, or a folder with its files and its code.
        converted: Folder that radio convert wrote; by default the command converts it, for the comparison only.
        output: Folder for parity.json and parity.md; by default `converted`, whose card shows them, or
            runs/parity/NAME.
        revision: Branch, tag or commit of the repository; by default its main branch. The commit is recorded.
        sizes: Sizes such as 512 or 384x640 (height x width, px), rounded to multiples of patches and windows; by
            default the preferred one and two more.
        windows: Sides of ViTDet windows in tokens, besides global attention; by default 8, and none for E-RADIO and
            RADIO1D, which have no such windows.
        adaptors: Adaptors to compare; by default all of the repository.
        dtype: Data type of weights and pixels. A relative difference of at most 1e-4 in float32, 5e-2 in bfloat16 and
            1e-2 in float16 counts as equal.
        overwrite: Replace an earlier comparison.
    """

    source: ModelId
    converted: Path | None = None
    output: Path | None = None
    revision: str | None = None
    sizes: list[str] = []
    windows: Annotated[list[Annotated[int, Field(gt=0)]] | None, Spelling(_read_windows, "N,N|none")] = None
    adaptors: Annotated[list[str] | None, Spelling(read_names, "A,B|all|none")] = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    overwrite: bool = False

    @property
    def folder(self) -> Path:
        """Output folder of the comparison."""
        return self.output or self.converted or Path("runs") / "parity" / Path(self.source).name


COMMAND = Command(
    "radio compare-release",
    __doc__,
    CompareReleaseSettings,
    positionals=("source",),
    examples=("radio compare-release nvidia/C-RADIOv4-H",),
)


@one_line_warnings(COMMAND.name)
def _run(settings: CompareReleaseSettings) -> None:
    for name in (FILE, TEXT):
        check_output(settings.folder / name, overwrite=settings.overwrite)
    _check_before_fetching(settings)
    device = str(device_of_process(settings.device))
    images = open_images()
    release = fetch_release(settings.source, settings.revision)
    print(describe_weights(release), flush=True)
    available, others = adaptors_of(release.folder)
    adaptors = available if settings.adaptors is None else own_names("adaptors", settings.adaptors, available)
    for name in adaptors:
        check_choice("adaptors", name, available)
    settings.folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(settings.folder) as scratch:
        ours = settings.converted or scratch / "converted"
        if settings.converted is None:
            save(convert(release.folder), ours, release.name)
        cases = plan_cases(RadioConfig.from_pretrained(ours), settings.sizes, settings.windows)
        question = Question(
            name=release.name,
            source=str(release.folder.resolve()),
            is_theirs=True,
            adaptors=adaptors,
            device=device,
            dtype=settings.dtype,
            rounds=ROUNDS,
            cases=cases,
        )
        commit = "" if release.revision is None else f", commit {release.revision},"
        print(f"Running the code of {release.name}{commit} in a process of its own.", flush=True)
        theirs, own = _ask_both(question, ours.resolve(), pixels_of(images.values(), cases))
    parity = Parity(
        source=release.name,
        revision=release.revision,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        machine=describe_machine(),
        device=device,
        dtype=settings.dtype,
        versions=versions_of(_VERSIONED),
        images=list(images),
        tolerance=TOLERANCES[settings.dtype],
        agreements=compare_outputs(theirs.outputs, own.outputs),
        costs=[_cost(*pair) for pair in zip(theirs.costs, own.costs, strict=True)],
        remarks=_remarks(theirs, others if settings.adaptors is None else []),
    )
    _report(parity, settings.folder)


def _check_before_fetching(settings: CompareReleaseSettings) -> None:
    for size in settings.sizes:
        read_size(size)
    if settings.converted is not None and not (settings.converted / "config.json").is_file():
        raise ValueError(f"`converted` must be a folder that radio convert wrote, got {str(settings.converted)!r}.")


def _ask_both(theirs: Question, ours: Path, images: dict[str, Any]) -> tuple[ModelOutputs, ModelOutputs]:
    """Run NVIDIA's model, and then ours on the cases that NVIDIA's could run."""
    with tqdm(total=2, desc="models") as bar:
        first = ask(theirs, images)
        bar.update()
        cases: Cases = [case for case in theirs.cases if str(case[0]) not in first.left_out]
        second = ask(replace(theirs, source=str(ours), is_theirs=False, cases=cases), images)
        bar.update()
    return first, second


def _cost(theirs: dict[str, Any], ours: dict[str, Any]) -> Cost:
    return Cost(
        size=theirs["size"],
        window=theirs["window"],
        theirs_seconds=theirs["seconds"],
        ours_seconds=ours["seconds"],
        theirs_mib=theirs["peak_mib"],
        ours_mib=ours["peak_mib"],
    )


def _remarks(theirs: ModelOutputs, others: Sequence[str]) -> list[str]:
    remarks = [f"{note}." for note in theirs.notes]
    remarks += [f"Not compared: windows of {window}, {reason}." for window, reason in theirs.left_out.items()]
    if others:
        remarks.append(
            f"Not compared: adaptors of {', '.join(others)}, which are not in this repository. A .pth.tar may have "
            "them; radio convert --verify compares its outputs."
        )
    return remarks


def _report(parity: Parity, folder: Path) -> None:
    """Print the tables and write both files.

    Raises:
        ParityError: If an output differs by more than the tolerance; both files are written in any case.
    """
    header = ["output", "attention", "max. abs.", "relative", "cosine"]
    print(f"\n{markdown(header, parity.rows(), aligned=True)}\n")
    costs = ["size", "attention", "NVIDIA's, ms", "ours, ms", "NVIDIA's, MiB", "ours, MiB"]
    print("\n".join([markdown(costs, parity.cost_rows(), aligned=True), "", *parity.remarks]))
    parity.save(folder / FILE)
    write_text(folder / TEXT, render_part("parity.md", parity=parity))
    worst = parity.worst
    if not worst.relative <= parity.tolerance:
        window = "global attention" if worst.window is None else f"windows of {worst.window}"
        raise ParityError(
            f"{worst.output} at {worst.size} px with {window} differs by {worst.relative:.1e} of its size, more than "
            f"{parity.tolerance:g}. {folder / FILE} has all."
        )
    if (folder / "config.json").is_file():
        print(f"`radio card {folder}` shows it in the card.")
    print(f"{folder}: equal within {parity.tolerance:g}; the largest relative difference is {worst.relative:.1e}.")


main = partial(COMMAND.run, _run, extra="train")


if __name__ == "__main__":
    sys.exit(main())
