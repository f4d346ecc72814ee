"""Code that one agreed to run opens and saves folders of others, and runs and copies nothing of theirs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_eradio import build_eradio
from tiny_networks import build_wrapped
from tiny_radio1d import build_radio1d
from transformers.dynamic_module_utils import get_relative_import_files

import modeling_radio
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.hub_radio import SOURCE_FILES
from modeling_radio.saving_radio import source_files


CODE = Path(modeling_radio.__file__).parent
RUNNING = {Path(name).name for name in get_relative_import_files(CODE / "modeling_radio.py")} | {"modeling_radio.py"}
EVIL = f'\nopen({{marker!r}}, "a").write(__file__ + "{chr(92)}n")\n'
COMMIT = "a" * 40

FOREIGN_ELSEWHERE = """
import shutil
import sys
from pathlib import Path
import torch
from transformers import AutoModel

from_hub = sys.argv[1] == "hub"
images = torch.rand(1, 3, 64, 96)
place = ("someone/" if from_hub else "").__add__
options = {"cache_dir": "hub"} if from_hub else {}
reviewed = AutoModel.from_pretrained(place("reviewed"), trust_remote_code=True, **options)
own = type(reviewed)
code = sys.modules[own.__module__]
assert code.__name__.startswith("transformers_modules."), code.__name__
here = Path(code.__file__).parent
shutil.copyfile("evil/eradio_radio.py", here / "eradio_radio.py")  # left by an earlier process
torch.save([own.from_pretrained(place(name), **options)(images).features for name in sys.argv[2:]], "features.pt")
config = own.config_class.from_pretrained(place("plain"), **options)
assert type(AutoModel.from_config(config)) is own
assert type(AutoModel.from_pretrained(place("plain"), config=config, **options)) is own
reviewed.save_pretrained("saved")
own.from_pretrained(place("plain"), **options).save_pretrained("saved_foreign")
if from_hub:
    sys.exit()
try:
    own.from_pretrained("adapter")
    raise AssertionError("it names no base")
except ValueError as error:
    assert "base_model_name_or_path" in str(error), error
shutil.rmtree("reviewed")
try:
    reviewed.choose_window_size(64, 96)
    raise AssertionError("only folders of others have the file")
except ImportError as error:
    assert "window_budget_radio.py" in str(error), error
own.config_class.from_pretrained("honest")
assert reviewed.choose_window_size(64, 96).window_size is None
"""


def save_foreign(model, folder):
    """Save a model whose files do harm, except those that run already when a backbone was opened."""
    model.save_pretrained(folder)
    for name in set(SOURCE_FILES) - RUNNING:
        path = folder / name
        path.write_text(path.read_text() + EVIL.format(marker=str(folder.parent / "PWNED")))


def move_to_hub(folder, name):
    """Put a folder into a cache of the Hub; a foreign one even has the commit of the reviewed one."""
    cache = folder / "hub" / f"models--someone--{name}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(COMMIT)
    shutil.move(folder / name, cache / "snapshots" / COMMIT)


@pytest.mark.parametrize("origin", ["local", "hub"])
def test_folders_of_others_bring_no_code(origin, tmp_path, run_elsewhere):
    torch.manual_seed(0)
    plain = RadioModel(RadioConfig.from_preset("radio-test")).eval()
    models = {
        "plain": plain,
        "eradio": build_eradio(),
        "wrapped": build_wrapped("DINOv2"),
        "radio1d": build_radio1d(),
    }
    for name in ("reviewed", "honest"):
        plain.save_pretrained(tmp_path / name)
    for name, model in models.items():
        save_foreign(model.eval(), tmp_path / name)
    shutil.copytree(tmp_path / "plain", tmp_path / "adapter", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "nowhere/at all"}))
    shutil.copytree(tmp_path / "plain", tmp_path / "evil")
    for name in ("reviewed", *models) if origin == "hub" else ():
        move_to_hub(tmp_path, name)

    run_elsewhere(FOREIGN_ELSEWHERE, tmp_path, origin, *models)

    assert not (tmp_path / "PWNED").exists()
    shapes = [tuple(features.shape) for features in torch.load(tmp_path / "features.pt", weights_only=True)]
    with torch.no_grad():
        assert shapes == [tuple(model(torch.rand(1, 3, 64, 96)).features.shape) for model in models.values()]
    for saved in ("saved", "saved_foreign"):
        found = {path.name: path.read_bytes() for path in (tmp_path / saved).glob("*.py")}
        assert found == source_files()
