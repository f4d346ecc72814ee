"""The net: numbers of short runs and of every public class, public names, and each command's options, as recorded.

`numbers.json` beside this file holds them. What is changed on purpose is recorded anew, a section or all of them, and
the difference in that file is part of the change:

    python tests/nets/test_nets.py --record [runs|classes|names|options ...]

Runs are those of `net_cases.py`, made small by `SMALL`, with 20 steps. Of their last checkpoint the tensors that
`CHOSEN` finds are stored (mean, standard deviation, eight values at equal distances), and of each file how many tensors
and numbers it has, with mean and deviation of all. Numbers must be met within 1e-4, or within 1e-4 of themselves where
they are above 1. An option is stored as its type in words and its default.

What NVIDIA's own code answers is stored in `tests/reference` and met by `tests/conversion/test_from_nvidia.py` and
by `test_eradio_radio.py`, `test_video_processing_radio.py` and `nvidia/test_folder.py` in `tests/modeling_radio`;
configurations are in `tests/reference/configurations.json`, read by `whole/nvidia/test_stored_configurations.py`.
"""

import argparse
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor


ROOT, STORED = Path(__file__).parents[2], Path(__file__).with_name("numbers.json")
if __name__ == "__main__":
    support = [str(ROOT / "tests" / "support" / name) for name in ("", "distillation", "processes")]
    sys.path[:0] = [str(ROOT), *support]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

import net_cases  # noqa: E402
from folders import FOLDERS  # noqa: E402
from training_fixtures import _own_accelerator  # noqa: E402

import modeling_radio  # noqa: E402
from modeling_radio.core.settings import describe_type, list_settings  # noqa: E402
from modeling_radio.training.distill import main as distill  # noqa: E402
from modeling_radio.training.recipes.recipe import Recipe  # noqa: E402


__all__ = ["_own_accelerator"]

TOLERANCE = 1e-4
NUM_STEPS = 20
SMALL = {
    "": ["student.config.hidden_size=48", "student.adaptor.hidden_size=32"],
    "demo": ["partitions.low.batch_size=6"],
    "demo_full": ["partitions.low={token_budget: 170, accumulation_steps: 1}"],
    "demo_1d": ["partitions.low.batch_size=6"],
    "packed": ["partitions.low.token_budget=200", "partitions.high={token_budget: 200, accumulation_steps: 1}"],
    "streamed": ["partitions.low.batch_size=4"],
    "weighed": ["partitions.low.batch_size=4"],
}
"""Changes of all runs and of single ones besides those of `net_cases.py`."""

CHOSEN = {
    "student": (
        r"(embedder\.weight|pos_embed|cls_token\.token)$",
        r"blocks\.(0\.attn\.qkv|3\.mlp\.fc1|5\.attn\.proj)\.(weight|parametrizations\.weight\.original)$",
        r"adaptors\.(efficientnet-lite0|nanodet-g)\.feat_mlp\.final\.2\.weight$",
        r"adaptors\.dinov2-s-saliency\.head_mlp\.fc1\.weight$",
    ),
    "ema": (r"embedder\.weight$", r"blocks\.5\.mlp\.fc2\.(weight|parametrizations\.weight\.original)$"),
    "statistics": (r"features\.efficientnet-lite0\.(mean|outer_total)$", r"summaries\..*\.squared_angle_total$"),
}
"""Patterns of the tensors that are stored, by the file of a checkpoint; of other files only what all numbers are."""


def digest(tensor: Tensor) -> list[float]:
    """Return mean, deviation and up to eight values of a tensor."""
    values = tensor.detach().double().flatten()
    places = torch.linspace(0, len(values) - 1, min(8, len(values))).round().long()
    return [float(f"{value:.7g}") for value in [*moments(values), *values[places].tolist()]]


def moments(values: Tensor) -> list[float]:
    return [values.mean().item(), values.std(correction=0).item()]


def run_digests(case: str, folder: Path) -> dict[str, list[float]]:
    """Distill in a folder that holds the world, which must be the working one, and return what is stored of it."""
    more = ["checkpoints.keep=1", *SMALL[""], *SMALL.get(case, [])]
    assert distill(net_cases.arguments(case, case, NUM_STEPS, more)) == 0
    (checkpoint,) = (folder / case / "checkpoints").glob("step_*")
    found = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        tensors = load_file(path)
        numbers = torch.cat([tensor.double().flatten() for tensor in tensors.values()])
        found[f"{path.stem}, all"] = [len(tensors), len(numbers), *moments(numbers)]
        patterns = CHOSEN.get(path.stem, ())
        names = [name for name in sorted(tensors) if any(re.search(pattern, name) for pattern in patterns)]
        found |= {f"{path.stem}: {name}": digest(tensors[name]) for name in names}
    return found


def class_digests(name: str) -> dict[str, list[float]]:
    return {key: digest(tensor) for key, tensor in sorted(net_cases.CLASSES[name]().items())}


def command_modules() -> list[str]:
    """Return the modules of all commands but those of `benchmarks`."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    own = [path for path in paths if re.search(r"^COMMAND = ", path.read_text(), re.MULTILINE)]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in own)


def options_of(settings: Any) -> dict[str, str]:
    """Return type and default of each setting by its name."""
    found = {}
    for name, field, _ in list_settings(settings):
        default = f"default {field.default!r}"
        if field.is_required():
            default = "required"
        elif field.default_factory is not None:
            default = "default follows from others"
        found[name] = f"{describe_type(field)}; {default}".replace(f"{ROOT}{os.sep}", "")
    return found


def all_options() -> dict[str, dict[str, str]]:
    commands = {module: importlib.import_module(module).COMMAND for module in command_modules()}
    return {"recipe": options_of(Recipe)} | {name: options_of(each.settings) for name, each in commands.items()}


# Checks --------------------------------------------------------------------------------------------------------------


def stored(section: str) -> dict[str, Any]:
    return json.loads(STORED.read_text())[section]


def assert_same_numbers(actual: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert actual.keys() == expected.keys()
    wrong = {}
    for name, numbers in expected.items():
        pairs = list(zip(actual[name], numbers, strict=True))
        distance = max(abs(one - two) / max(1, abs(two)) for one, two in pairs)
        if not distance < TOLERANCE:
            wrong[name] = distance
    assert wrong == {}, "record them anew if that is on purpose: see the top of this file"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("nets") / "world"
    net_cases.write_world(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        yield folder


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", net_cases.RECIPES)
def test_twenty_steps(case: str, world: Path) -> None:
    assert_same_numbers(run_digests(case, world), stored("runs")[case])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", net_cases.CLASSES)
def test_public_class_answers_as_before(name: str) -> None:
    assert_same_numbers(class_digests(name), stored("classes")[name])


def test_public_names() -> None:
    assert modeling_radio.__all__ == stored("names")


def test_options_of_commands() -> None:
    expected = stored("options")
    actual = all_options()
    assert actual.keys() == expected.keys()
    assert [name for name in expected if actual[name] != expected[name]] == []
    assert actual == expected


def test_nothing_is_stored_that_is_gone() -> None:
    assert stored("runs").keys() == net_cases.RECIPES.keys()
    assert stored("classes").keys() == net_cases.CLASSES.keys()


# Recording -----------------------------------------------------------------------------------------------------------


def record_runs() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder, "world")
        net_cases.write_world(world)
        os.environ["HF_DATASETS_CACHE"] = str(world / "datasets")
        sys.path.insert(0, str(world))
        os.chdir(world)
        found = {case: run_digests(case, world) for case in net_cases.RECIPES}
        os.chdir(ROOT)
        return found


RECORDS = {
    "runs": record_runs,
    "classes": lambda: {name: class_digests(name) for name in net_cases.CLASSES},
    "names": lambda: list(modeling_radio.__all__),
    "options": all_options,
}


def record(sections: Sequence[str]) -> None:
    """Write sections anew: an option, a name and the numbers of a tensor in a line each."""
    torch.set_num_threads(1)
    found = json.loads(STORED.read_text())
    found = {name: RECORDS[name]() if name in sections else found[name] for name in RECORDS}
    text = json.dumps(found, indent=1, ensure_ascii=False)
    text = re.sub(r"\[[-+\d.,e\s]*\]", lambda match: " ".join(match[0].split()), text)
    STORED.write_text(text + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", nargs="*", choices=list(RECORDS), required=True, help="sections; none for all")
    record(parser.parse_args().record or list(RECORDS))
