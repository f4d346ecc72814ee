"""The wheel alone, in an environment of its own and an empty folder: every command a user meets, without a clone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from documentation import ROOT, first_minute, photograph_line
from folders import FOLDERS
from packaged import build_packaged
from tiny_folders import save_images

from modeling_radio.core.files import cache_dir


pytestmark = [pytest.mark.tour, pytest.mark.packages]

SOURCES = (*FOLDERS, "modeling_radio")
FILES = ("modeling_radio_cli.py", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")

# One teacher, a narrow student and a few images: what is tested is that everything is found.
SMALL = (
    "teachers=[{name: efficientnet-lite0, kind: efficientnet-lite0}]",
    "student.config={hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, preferred_resolution: [64, 64]}",
    "student.adaptor.hidden_size=32",
    "data.num_images=32",
    "data.image_size_px=64",
    "data.num_workers=0",
    "partitions=[{name: low, sizes_px: [64], batch_size: 8}]",
    "standardization.calibration_steps=1",
)

COMMANDS = """
import itertools
import multiprocessing
import sys
from pathlib import Path
from modeling_radio_cli import main

import modeling_radio
assert Path(sys.prefix) in Path(modeling_radio.__file__).parents, modeling_radio.__file__
for line, method in zip(sys.stdin.read().splitlines(), itertools.cycle(["spawn", "forkserver"])):
    multiprocessing.set_start_method(method, force=True)  # of workers that load data
    print("$ radio", line, flush=True)
    status = main(line.split())
    assert status == 0, f"radio {line}: {status}"
"""

TUNING = "--task image-classification --steps 2 --batch-size 4 --num-workers 1 --size 64"
LINES = f"""\
finetune runs/demo/final --data pictures {TUNING} --output runs/colors
evaluate runs/demo/final --data pictures --tasks knn --neighbors 1 --num-workers 1 --output runs/results.json
convert --to nvidia runs/demo/final student.pth.tar
convert student.pth.tar converted
export runs/demo/final student.onnx --fixed-size 64,64
card converted --license mit
publish converted ORG/NAME --dry-run"""

TWO_RANKS = """
base: {base}
data: {{source: pictures}}
schedule: {{num_steps: 2, warmup_steps: 1}}
"""


class Installed:
    """An environment with the wheel, which borrows all else from this one, and an empty folder to stand in."""

    def __init__(self, folder: Path) -> None:
        self.environment, self.home, self.cwd = folder / "environment", folder / "home", folder / "empty"
        for each in (self.home, self.cwd):
            each.mkdir()
        for name in SOURCES:  # a copy: setuptools writes beside what it builds
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy(ROOT / name, folder / "source")
        build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
        self.run(sys.executable, "-c", build, folder, cwd=folder / "source")
        uv = [sys.executable, "-m", "uv"]
        self.run(*uv, "venv", "--python", sys.executable, self.environment)
        (self.packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        self.before = self.names()
        (wheel,) = folder.glob("*.whl")
        self.run(*uv, "pip", "install", "--no-deps", "--python", self.environment, wheel)
        self.gained = self.names() - self.before

    @property
    def packages(self) -> Path:
        (packages,) = self.environment.glob("lib/python*/site-packages")
        return packages

    def names(self) -> set[str]:
        return {path.name for path in self.packages.iterdir()}

    def run(self, *words: object, cwd: Path | None = None, given: str = "") -> str:
        """Run a program and return what it printed."""
        kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "UV_CACHE_DIR") if name in os.environ}
        variables = {
            "PATH": os.pathsep.join([str(self.environment / "bin"), os.environ["PATH"]]),
            "HOME": str(self.home),
            "RADIO_CACHE": str(cache_dir()),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd or self.cwd,
            env=kept | variables,
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        return done.stdout


def test_every_command_runs_from_a_wheel_in_an_empty_folder(tmp_path):
    build_packaged("efficientnet-lite0")  # or the test is skipped
    installed = Installed(tmp_path)
    distribution = {name for name in installed.gained if name.endswith(".dist-info")}
    assert len(distribution) == 1
    assert installed.gained - distribution == {"modeling_radio", "modeling_radio_cli.py"}

    for name in ("training", "core"):  # a user's own folders are neither imported nor in the way
        (installed.cwd / name).mkdir()
        (installed.cwd / name / "__init__.py").write_text("raise AssertionError")
    installed.run("radio", "demo", "--steps", 2, *SMALL)
    assert sorted(path.name for path in installed.cwd.iterdir()) == ["core", "runs", "training"]
    assert (installed.cwd / "runs" / "demo" / "index.html").is_file()

    installed.run("bash", "-c", photograph_line())
    python = installed.environment / "bin" / "python"
    assert "otter" in installed.run(python, "-c", first_minute().text)

    save_images(installed.cwd / "pictures")
    installed.run(python, "-c", COMMANDS, given=LINES)
    made = {"results.json", "results.html", "colors", "demo"}
    assert {path.name for path in (installed.cwd / "runs").iterdir()} == made
    assert "accuracy" in json.loads((installed.cwd / "runs" / "colors" / "results.json").read_text())["metrics"]
    assert (installed.cwd / "student.onnx").is_file()
    assert "license: mit" in (installed.cwd / "converted" / "README.md").read_text()

    (installed.cwd / "two.yaml").write_text(TWO_RANKS.format(base="runs/demo/recipe.yaml"))
    # `accelerate launch` of that environment; without a GPU its two processes work on the CPU.
    launch = [python, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "-m", "modeling_radio"]
    installed.run(*launch, "distill", "--recipe", "two.yaml", "--output", "runs/two")
    launch = [python, "-m", "torch.distributed.run", "--nproc_per_node", 2, "-m", "modeling_radio"]
    installed.run(*launch, "distill", "--recipe", "two.yaml", "--output", "runs/torchrun")
    for name in ("two", "torchrun"):
        assert (installed.cwd / "runs" / name / "final" / "model.safetensors").is_file()
    written = {
        "core",
        "training",
        "photo.jpg",
        "pictures",
        "runs",
        "two.yaml",
        "student.onnx",
        "student.pth.tar",
        "converted",
    }
    assert {path.name for path in installed.cwd.iterdir()} == written
    assert {path.name for path in installed.home.iterdir()} <= {".cache", ".config"}  # the second is matplotlib's
    assert installed.names() - {"__pycache__"} == installed.before | installed.gained
