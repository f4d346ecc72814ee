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
from training.app.space import ROOT, carried_files, write_space
from training.figures.predictions import open_model
from training.finetuning.adapters import add_adapter, save_adapter


START = """
import sys
for name in ("modeling_radio", "training"):
    sys.modules.pop(name, None)  # the Space has its own
sys.path.insert(0, ".")
import app, modeling_radio, pathlib
assert pathlib.Path(modeling_radio.__file__).parent == pathlib.Path("modeling_radio").resolve()
features = [fn for fn in app.demo.fns.values() if fn.api_name == "features"][0].fn
pictures, said = features(str(app.EXAMPLES[0]), 64, "off")
print([caption for _, caption in pictures], app.demo.title, sep="|")
"""


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])


def requirements(folder):
    return (folder / "requirements.txt").read_text().split()


@pytest.mark.tour
def test_a_space_runs_by_itself(texts, photograph, tmp_path, run_elsewhere):
    folder = tmp_path / "space"
    write_space(folder, str(texts), examples=(ROOT / "docs" / "photograph.jpg",))
    assert run_elsewhere(START, folder) == (
        f"['backbone, 32 dimensions', 'siglip2-g, 16 dimensions', 'dino_v2, 24 dimensions']|{texts.parent.name}/texts\n"
    )


def test_its_card_and_its_packages(texts, tmp_path):
    folder = tmp_path / "space"
    write_space(folder, str(texts))
    card = front_matter(folder)
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    assert re.fullmatch(r"6\.\d+\.\d+", card["sdk_version"])
    assert len(card["short_description"]) <= 60, "which the Hub refuses otherwise"
    assert "models" not in card
    assert f"\n# {card['title']}\n" in (folder / "README.md").read_text(encoding="utf-8")
    assert all(re.fullmatch(r"\w+~=\d+\.\d+", line) for line in requirements(folder))
    assert not {"peft~=0", "gradio"} & {line.split("~")[0] for line in requirements(folder)}
    text = "".join(path.read_text() for path in [folder / "app.py", folder / "README.md"])
    assert str(tmp_path) not in text
    assert str(texts.parent.parent) not in text
    assert (folder / "LICENSE").is_file()


def test_the_code_is_closed(texts):
    """Whatever a carried file imports of ours is carried, and nothing needs more than the packages that are named."""
    carried = {str(path.relative_to(ROOT)) for path in carried_files()}
    assert "training/app/page.py" in carried
    assert not [
        name for name in carried if name.startswith(("training/evaluation", "tests", "conversion", "foundation"))
    ]
    packages = set()
    for name in carried - {"LICENSE"}:
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for module in modules:
                place = module.replace(".", "/")
                if (ROOT / module.partition(".")[0]).is_dir():
                    assert {f"{place}.py", f"{place}/__init__.py"} & carried, f"{name} imports {module}"
                packages.add(module.partition(".")[0])
    assert not packages & {"pydantic", "accelerate", "datasets", "tqdm", "timm"}


def test_a_name_on_the_hub_is_left_there(tmp_path):
    folder = tmp_path / "space"
    write_space(folder, "nvidia/C-RADIOv4-H", dtype="bfloat16", num_global=2)
    assert front_matter(folder)["models"] == ["nvidia/C-RADIOv4-H"]
    assert not (folder / "checkpoint").exists()
    start = (folder / "app.py").read_text()
    assert "CHECKPOINT = 'nvidia/C-RADIOv4-H'" in start
    assert "dtype='bfloat16', num_global=2, title='nvidia/C-RADIOv4-H'" in start
    assert [line for line in requirements(folder) if line.startswith("peft~=")], "it may be an adapter"


@needs_heads
def test_an_adapter_brings_its_base(tmp_path):
    torch.manual_seed(0)
    base = tmp_path / "a base"
    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(base)
    model = RadioForImageClassification.from_pretrained(base, num_labels=3)
    adapted = add_adapter(model, tuning_settings(checkpoint=str(base), tune="lora"))
    save_adapter(adapted, RadioImageProcessor(), tmp_path / "adapter", str(base))
    folder = tmp_path / "space"
    with pytest.raises(ValueError, match="`base` must name the folder of the adapter's base, got none"):
        write_space(folder, str(tmp_path / "adapter"))
    (base / "credentials").write_text("S3CRET")
    write_space(folder, str(tmp_path / "adapter"), base=str(base))
    assert not (folder / "base" / "credentials").exists()
    base.rename(tmp_path / "elsewhere")
    config = json.loads((folder / "checkpoint" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../base"
    assert [line for line in requirements(folder) if line.startswith("peft~=")]
    opened = open_model(str(folder / "checkpoint"), "cpu")
    assert opened.model.peft_config.keys() == {"default"}
    assert opened.has_head


@pytest.mark.parametrize("name", ["{tmp}/secret", "../secret"])
def test_an_adapter_decides_no_folder_that_is_copied(tmp_path, name):
    """The second attack's s2_space.sh."""
    RadioConfig.from_preset("radio-test").save_pretrained(tmp_path / "adapter")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "id_rsa").write_text("S3CRET")
    named = name.format(tmp=tmp_path)
    settings = {"base_model_name_or_path": named, "peft_type": "LORA", "r": 2}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    for word, message in ((None, "got none"), (str(tmp_path / "secret"), "`base` must be the folder of a RADIO model")):
        with pytest.raises(ValueError, match=message):
            write_space(tmp_path / "space", str(tmp_path / "adapter"), base=word)
    assert not (tmp_path / "space").exists()


def test_only_a_model_is_copied(tmp_path):
    model = tmp_path / "model"
    RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1)).save_pretrained(model)
    for name in (
        ".env",
        "secrets.toml",
        "training_args.bin",
        "checkpoint-10/optimizer.pt",
        "checkpoint-10/model.safetensors",
    ):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("S3CRET")
    (model / "notes.txt").symlink_to(model / ".env")
    write_space(tmp_path / "space", str(model))
    copied = {
        path.name for path in (tmp_path / "space" / "checkpoint").rglob("*") if not path.name.endswith("_radio.py")
    }
    assert copied == {"config.json", "model.safetensors"}
    (model / "merges.txt").symlink_to(model / ".env")
    with pytest.raises(ValueError, match=r"got links: merges\.txt"):
        write_space(tmp_path / "again", str(model))


def test_what_is_no_checkpoint_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="`checkpoint` must be a folder or a Hub id"):
        write_space(tmp_path / "space", "/nowhere/at all")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="`checkpoint` must be a RADIO model"):
        write_space(tmp_path / "space", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
