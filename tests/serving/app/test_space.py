"""The folder of a Space: it has all that its page needs, and nothing of this machine."""

import ast
import json
import re

import pytest
import torch
import yaml
from releases import needs_heads
from tiny_tuning import tuning_settings

from modeling_radio import RadioConfig, RadioForImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.core.files import PHOTOGRAPH
from modeling_radio.core.opening import open_model
from modeling_radio.serving.app.space import carried_files, write_space
from modeling_radio.tuning.adapters import add_adapter, save_adapter


START = """
import sys
sys.modules.pop("modeling_radio", None)  # the Space has its own
sys.path.insert(0, ".")
import app, modeling_radio, pathlib
assert pathlib.Path(modeling_radio.__file__).parent == pathlib.Path("modeling_radio").resolve()
features = [fn for fn in app.demo.fns.values() if fn.api_name == "features"][0].fn
pictures, said = features(str(app.EXAMPLES[0]), 64, "off")
print([caption for _, caption in pictures], app.demo.title, sep="|")
"""


@pytest.fixture
def space(tmp_path):
    return tmp_path / "space"


def front_matter(space):
    return yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---")[1])


def requirements(space):
    return (space / "requirements.txt").read_text().split()


@pytest.mark.tour
def test_a_space_runs_by_itself(texts, space, run_elsewhere):
    write_space(space, str(texts), examples=(PHOTOGRAPH,))
    captions = ["backbone, 32 dimensions", "siglip2-g, 16 dimensions", "dino_v2, 24 dimensions"]
    assert run_elsewhere(START, space) == f"{captions}|{texts.parent.name}/texts\n"


def test_its_card_and_its_packages(texts, space):
    write_space(space, str(texts))
    card = front_matter(space)
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    assert re.fullmatch(r"6\.\d+\.\d+", card["sdk_version"])
    assert len(card["short_description"]) <= 60, "which the Hub refuses otherwise"
    assert "models" not in card
    assert f"\n# {card['title']}\n" in (space / "README.md").read_text(encoding="utf-8")
    assert all(re.fullmatch(r"\w+~=\d+\.\d+", line) for line in requirements(space))
    assert not {"peft", "gradio", "timm"} & {line.split("~")[0] for line in requirements(space)}
    text = "".join(path.read_text() for path in [space / "app.py", space / "README.md"])
    assert not [path for path in (space.parent, texts.parent.parent) if str(path) in text]
    assert (space / "LICENSE").is_file()


def test_the_code_is_closed():
    """Imports of carried files are carried, and nothing needs more than the named packages."""
    carried = {f"modeling_radio/{name}": path for name, path in carried_files().items()}
    assert "modeling_radio/serving/app/page.py" in carried
    inside = ("modeling_radio/evaluation", "modeling_radio/core")
    assert [name for name in carried if name.startswith(inside)] == [
        "modeling_radio/core/errors.py",
        "modeling_radio/core/hub.py",
        "modeling_radio/core/ids.py",
        "modeling_radio/core/machine.py",
        "modeling_radio/core/opening.py",
        "modeling_radio/core/tables.py",
        "modeling_radio/core/trust.py",
    ]
    packages = set()
    for name, path in carried.items():
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for module in modules:
                place = module.replace(".", "/")
                if module.startswith("modeling_radio"):
                    assert {f"{place}.py", f"{place}/__init__.py"} & carried.keys(), f"{name} imports {module}"
                packages.add(module.partition(".")[0])
    assert not packages & {"yaml", "accelerate", "datasets", "tqdm"}  # Gradio brings pydantic


def test_a_name_on_the_hub_is_left_there(space):
    write_space(space, "nvidia/C-RADIOv4-H", dtype="bfloat16", num_global=2)
    assert front_matter(space)["models"] == ["nvidia/C-RADIOv4-H"]
    assert not (space / "checkpoint").exists()
    start = (space / "app.py").read_text()
    assert "CHECKPOINT = 'nvidia/C-RADIOv4-H'" in start
    assert "dtype='bfloat16', num_global=2, title='nvidia/C-RADIOv4-H'" in start
    assert [line for line in requirements(space) if line.startswith(("peft~=", "timm~="))], "it may be an adapter"


@needs_heads
def test_an_adapter_brings_its_base(space, tmp_path):
    torch.manual_seed(0)
    base = tmp_path / "a base"
    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(base)
    model = RadioForImageClassification.from_pretrained(base, num_labels=3)
    adapted = add_adapter(model, tuning_settings(checkpoint=str(base), tune="lora"))
    save_adapter(adapted, RadioImageProcessor(), tmp_path / "adapter", str(base))
    (base / "credentials").write_text("S3CRET")
    write_space(space, str(tmp_path / "adapter"), base=str(base))
    assert not (space / "base" / "credentials").exists()
    base.rename(tmp_path / "elsewhere")
    config = json.loads((space / "checkpoint" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../base"
    assert [line for line in requirements(space) if line.startswith("peft~=")]
    opened = open_model(str(space / "checkpoint"), device="cpu", base=str(space / "base"))
    assert opened.model.peft_config.keys() == {"default"}
    assert opened.has_head


@pytest.mark.parametrize("name", ["{tmp}/secret", "../secret"])
def test_an_adapter_decides_no_folder_that_is_copied(space, tmp_path, name):
    RadioConfig.from_preset("radio-test").save_pretrained(tmp_path / "adapter")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "id_rsa").write_text("S3CRET")
    settings = {"base_model_name_or_path": name.format(tmp=tmp_path), "peft_type": "LORA", "r": 2}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    for base, message in ((None, "`base` .* got none"), (str(tmp_path / "secret"), "`base`")):
        with pytest.raises(ValueError, match=message):
            write_space(space, str(tmp_path / "adapter"), base=base)
    assert not space.exists()


def test_only_a_model_is_copied(space, tmp_path):
    model = tmp_path / "model"
    RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1)).save_pretrained(model)
    (model / "checkpoint-10").mkdir()
    for name in (".env", "secrets.toml", "training_args.bin", "checkpoint-10/model.safetensors"):
        (model / name).write_text("S3CRET")
    (model / "notes.txt").symlink_to(model / ".env")
    write_space(space, str(model))
    copied = {path.name for path in (space / "checkpoint").rglob("*") if not path.name.endswith("_radio.py")}
    assert copied == {"config.json", "model.safetensors", "modules.json", "sentence_bert_config.json"}
    (model / "merges.txt").symlink_to(model / ".env")
    with pytest.raises(ValueError, match=r"merges\.txt"):
        write_space(tmp_path / "again", str(model))


def test_folders_that_are_no_checkpoints_are_refused_and_nothing_is_written(space, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    for checkpoint in ("/nowhere/at all", str(tmp_path)):
        with pytest.raises(ValueError, match="`checkpoint`"):
            write_space(space, checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
