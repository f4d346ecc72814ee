import re
import shutil
import subprocess
import sys
from pathlib import Path

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from modeling_radio.version_radio import MINIMUM


ROOT = Path(__file__).parents[2]
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForDepthEstimation", "AutoImageProcessor", "AutoVideoProcessor")
READ_FIRST = ("configuration", "image_processing", "processing", "video_processing")
"""Files that `auto_map` of a folder's JSON files lead to before any other."""

OPEN = """
import sys, transformers
transformers.__version__ = "5.9.0"
for name in sys.argv[2:]:
    try:
        getattr(transformers, name).from_pretrained(sys.argv[1], trust_remote_code=True)
    except ImportError as error:
        print(error)
"""
IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(error)
import modeling_radio_cli
sys.exit(modeling_radio_cli.main(["export", "folder", "file.onnx"]))
"""


def test_each_auto_class_names_both_versions(elsewhere, tmp_path):
    config = RadioConfig.from_preset("radio-test")
    RadioModel(config).save_pretrained(tmp_path / "folder")
    RadioImageProcessor.from_model_config(config).save_pretrained(tmp_path / "folder")
    run = elsewhere.run(OPEN, tmp_path, tmp_path / "folder", *AUTO_CLASSES)
    assert_names_versions(run.stdout.splitlines(), "5.9.0", len(AUTO_CLASSES))


def test_versions_are_compared_before_anything_else_of_transformers_is_imported(tmp_path):
    """transformers 4.57 here has no part but its version: a file that imports more of it first would fail by that."""
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("__version__ = '4.57.1'\n")
    (tmp_path / "saved").mkdir()
    for name in (*READ_FIRST, "version"):
        shutil.copy(ROOT / "modeling_radio" / f"{name}_radio.py", tmp_path / "saved")
    modules = ["modeling_radio", *(f"saved.{name}_radio" for name in READ_FIRST)]
    run = subprocess.run(
        [sys.executable, "-c", IMPORT, *modules],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert_names_versions(run.stdout.splitlines(), "4.57.1", len(modules))
    assert run.returncode == 1
    assert_names_versions(run.stderr.splitlines(), "4.57.1", 1)


def assert_names_versions(lines, found, number):
    assert len(lines) == number
    assert all(f"transformers {MINIMUM[0]}.{MINIMUM[1]}" in line and found in line for line in lines)


def test_requirements_state_the_same_minimum():
    paths = [ROOT / "pyproject.toml", *(ROOT / "notebooks" / "scripts").glob("*.py")]
    stated = {each for path in paths for each in re.findall(r'"transformers>=([^"]*)"', path.read_text())}
    assert stated == {f"{MINIMUM[0]}.{MINIMUM[1]},<{MINIMUM[0] + 1}"}
