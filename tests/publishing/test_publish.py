"""The command, and what strangers find: names opened in a fresh process, with empty caches."""

import os
import re
import subprocess
import sys
import uuid

import huggingface_hub
import pytest
from local_hub import TOKEN, VISIT, hub_in_place
from PIL import Image
from tiny_tuning import save_model_and_adapter

from modeling_radio.extraction import store as stores
from modeling_radio.extraction.extract import main as extract
from modeling_radio.extraction.store import Store
from modeling_radio.publishing.publish import main


run_process = subprocess.run  # before tests put something in its place
OPEN = """
import torch
from PIL import Image
from transformers import AutoModel, AutoImageProcessor, pipeline

model = AutoModel.from_pretrained("org/c-radiov4", trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules.org."), type(model).__module__
extract = pipeline(model="org/c-radiov4", trust_remote_code=True)
print("pipeline", torch.tensor(extract("photo.jpg")).shape, type(extract).__name__)
adapted = AutoModel.from_pretrained("org/lora", trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained("org/lora", trust_remote_code=True)
image = processor(Image.open("photo.jpg"), return_tensors="pt")
with torch.no_grad():
    print("adapter", sorted(adapted.peft_config), (adapted(**image).summary - model(**image).summary).abs().max() > 0)
model.push_to_hub("org/pushed")
again = AutoModel.from_pretrained("org/pushed", trust_remote_code=True)
print("pushed", type(again).__module__.split(".")[1])
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint, and an adapter for it."""
    return save_model_and_adapter(tmp_path_factory.mktemp("published"))


@pytest.fixture(autouse=True)
def quick_processes(elsewhere, monkeypatch):
    monkeypatch.setattr(subprocess, "run", elsewhere.run_command)


@pytest.fixture
def hub(monkeypatch):
    with hub_in_place(monkeypatch, TOKEN) as server:
        yield server


def usage_of(files):
    """The code of a published card."""
    return "\n".join(re.findall(r"```python\n(.*?)```", files["README.md"].decode(), re.DOTALL))


@pytest.fixture
def visit(elsewhere, hub, tmp_path):
    """Return a function that runs code in a new process that asks our Hub, with empty caches below `tmp_path`."""
    begin = VISIT.format(endpoint=hub.endpoint, home=str(tmp_path / "home"), token=TOKEN)

    def run(code):
        done = elsewhere.run(begin + code, tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.mark.tour
def test_published_names_open_elsewhere(folders, hub, visit, tmp_path, capsys):
    model, adapter = folders
    assert main([str(model), "org/c-radiov4"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.endpoint}/org/c-radiov4/tree/v1"
    assert main([str(adapter), "org/lora", "--base", "org/c-radiov4", "--private"]) == 0
    Image.new("RGB", (90, 60), (200, 120, 40)).save(tmp_path / "photo.jpg")
    repository = hub.repositories["models/org/c-radiov4"]
    shown = visit(OPEN + usage_of(repository.commits[repository.branches["main"]]))
    assert "RadioImageFeatureExtractionPipeline" in shown
    assert "adapter ['default'] tensor(True)" in shown
    assert "pushed org" in shown
    cached = {path.name for path in (tmp_path / "home" / "hub").iterdir()}
    assert {f"models--org--{name}" for name in ("c-radiov4", "lora", "pushed")} <= cached
    assert hub.unknown == []


@pytest.mark.slow
def test_a_process_that_knows_the_hub_from_its_environment_opens_the_name(folders, hub, tmp_path):
    """As the test before, but for all that is imported in the process itself."""
    assert main([str(folders[0]), "org/c-radiov4"]) == 0
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "NO_PROXY": "*"}
    code = "from transformers import AutoModel; AutoModel.from_pretrained('org/c-radiov4', trust_remote_code=True)"
    command = [sys.executable, "-I", "-c", code]
    done = run_process(command, cwd=tmp_path, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_published_features_open_elsewhere(folders, hub, visit, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for number in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (40, 32), (80 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    command = [str(folders[0]), "--data", str(tmp_path / "images"), "--output", str(tmp_path / "features")]
    assert (
        extract([*command, "--dense", "--pca", "4", "--vector-dtype", "int8", "--size", "32", "--num-workers", "0"])
        == 0
    )
    assert main([str(tmp_path / "features"), "org/features"]) == 0
    repository = hub.repositories["datasets/org/features"]
    files = repository.commits[repository.tags["v1"]]
    assert {"README.md", "extraction.json", "pca.safetensors", "data/train-00000-of-00001.parquet"} <= files.keys()
    assert visit(usage_of(files)).splitlines()[0].startswith("0.png (")
    assert not hub.unknown


@pytest.mark.parametrize("large", [(), (".parquet", ".safetensors")])
def test_features_are_published_from_an_address_with_one_copy_at_a_time(
    folders, hub, large, tmp_path, monkeypatch, capsys
):
    hub.large = large
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # our Hub knows the older way only
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 32), (80 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    address = f"memory://{uuid.uuid4().hex}/features"
    command = [str(folders[0]), "--data", str(tmp_path / "images"), "--output", address, "--shard-images", "2"]
    assert extract([*command, "--dense", "--pca", "4", "--size", "32", "--num-workers", "0"]) == 0
    copies, most = [], []
    create = stores.tempfile.TemporaryDirectory

    class Counted(create):
        def __enter__(self):
            copies.append(self)
            most.append(len(copies))
            return super().__enter__()

        def __exit__(self, *error):
            copies.remove(self)
            super().__exit__(*error)

    monkeypatch.setattr(stores.tempfile, "TemporaryDirectory", Counted)
    assert main([address, "org/features"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.endpoint}/datasets/org/features/tree/v1"
    files = hub.repositories["datasets/org/features"].commits[hub.repositories["datasets/org/features"].tags["v1"]]
    store = Store(address)
    assert files.keys() - {".gitattributes"} == store.sizes().keys()
    assert {"README.md", "SHA256SUMS", "pca.safetensors", "data/train-00001-of-00002.parquet"} <= files.keys()
    assert all(files[name] == store.read(name) for name in store.sizes().keys() - {"README.md"})
    assert b'"org/features"' in files["README.md"]
    assert len(hub.stored) == (3 if large else 0)
    assert max(most) == 1
    assert copies == hub.unknown == []


def test_a_dry_run_asks_nothing_of_the_hub(folders, hub, capsys):
    assert main([str(folders[0]), "org/name", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown
    assert "nothing was sent" in shown
    assert hub.requests == []


def test_mistakes_are_one_line_and_wrong_folders_are_found_before_the_hub_is_asked(
    folders, hub, tmp_path, monkeypatch, capsys
):
    assert main([str(tmp_path), "org/name"]) == 1
    assert main([str(folders[0]), "no-org"]) == 1
    assert main([str(folders[1]), "org/lora"]) == 1
    errors = capsys.readouterr().err.splitlines()
    names = [line.split("error: ")[1].split(" must be")[0] for line in errors]
    assert names == ["`checkpoint`", "`model_id`", "`base`"]
    assert hub.requests == []
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main([str(folders[0]), "org/name"]) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("radio publish: error: ")]
    assert "401" in error
    assert hub.repositories == {}
