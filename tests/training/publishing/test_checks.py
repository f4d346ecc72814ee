import json
import pickle

import pytest
import torch
from datasets import Dataset
from huggingface_hub import DatasetCard

from training.publishing import checks
from training.publishing.checks import UnfitError, check_card, check_code, check_files, check_opens, check_publication
from training.publishing.publication import CARD, read_folder
from training.student import reopen


def published(folder):
    return read_folder(folder, "org/name")


@pytest.fixture(autouse=True)
def fresh_processes(elsewhere, monkeypatch):
    monkeypatch.setattr(checks.subprocess, "run", elsewhere.run_command)


def test_a_good_folder_passes(model_folder):
    check_publication(published(model_folder))


def test_a_good_adapter_passes(adapter_folder):
    check_publication(read_folder(adapter_folder, "org/lora", "org/c-radiov4"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license: apache-2.0\n", "", "lacks license"),
        ("license: apache-2.0\n", "license: other\n", "`license_name` and `license_link` must be given"),
        ("pipeline_tag: image-feature-extraction\n", "", "lacks pipeline_tag"),
        ("```python", "```", "lacks code to use it"),
        ("license: apache-2.0\n", "license: [\n", "metadata that cannot be read"),
    ],
)
def test_a_card_that_is_not_complete_is_refused(model_folder, old, new, message):
    card = model_folder / CARD
    card.write_text(card.read_text().replace(old, new))
    with pytest.raises(UnfitError, match=message):
        check_card(published(model_folder))


def test_pickles_are_refused_by_what_is_inside(model_folder):
    torch.save({"a": torch.zeros(1)}, model_folder / "vocab.txt")
    with pytest.raises(UnfitError, match=r"vocab\.txt is, or may hold, a pickle"):
        check_files(published(model_folder))
    (model_folder / "vocab.txt").write_bytes(pickle.dumps([1]))
    with pytest.raises(UnfitError, match=r"vocab\.txt is, or may hold, a pickle"):
        check_files(published(model_folder))


@pytest.mark.parametrize(
    "secret",
    [
        "http://me:S3CRET@host/x.tar",
        "https://host/x.tar?X-Amz-Signature=S3CRET",
        "https://host/?a=b&sig=S3CRET",
        "hf_" + 34 * "a",
    ],
)
def test_secrets_are_refused(model_folder, secret):
    (model_folder / CARD).write_text((model_folder / CARD).read_text() + f"\n`--data {secret}`\n")
    with pytest.raises(UnfitError, match=r"README\.md holds what opens an account"):
        check_files(published(model_folder))


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"custom_pipelines": {"image-feature-extraction": {"impl": "evil/evil--evil.Pipe"}}}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil/evil--network_radio.Model"}}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.Config"}}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil/evil--evil.Processor"}}),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": "evil/evil--evil.P"}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil/evil--evil.Tokenizer", None]}}),
    ],
)
def test_code_of_others_is_refused_wherever_it_is_named(model_folder, file, fields):
    path = model_folder / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | fields))
    with pytest.raises(
        UnfitError, match=rf"{file} names code that is not of modeling_radio, evil.*--trust-remote-code"
    ):
        check_code(published(model_folder))
    check_code(published(model_folder), trusts_remote_code=True)


def test_no_token_is_in_reach_of_what_is_opened(model_folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    environments = []
    run = reopen.subprocess.run
    monkeypatch.setattr(
        reopen.subprocess, "run", lambda *a, **options: environments.append(options["env"]) or run(*a, **options)
    )
    check_opens(published(model_folder))
    (seen,) = environments
    assert "HF_TOKEN" not in seen
    assert seen["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("path", ["/srv/me/base", "/data/x.json", "C:\\\\models", "~/base", "file:///x", "/tmp"])
def test_paths_of_this_machine_are_refused(model_folder, path):
    check_files(published(model_folder))
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps(config | {"source": path}))
    with pytest.raises(UnfitError, match=r"config\.json names a path of this machine"):
        check_files(published(model_folder))
    (model_folder / "config.json").write_text(json.dumps(config))
    (model_folder / CARD).write_text((model_folder / CARD).read_text() + f"\nrun in `{path}`\n")
    with pytest.raises(UnfitError, match=r"README\.md names a path of this machine"):
        check_files(published(model_folder))


@pytest.mark.parametrize(
    "fields",
    [
        {"nvidia_source": {"args": {"output": "/lustre/runs/radio"}}},
        {"id2label": {"0": "/m/01g317"}, "label2id": {"/m/01g317": 0}},
    ],
)
def test_what_looks_like_a_path_in_labels_and_in_what_nvidia_wrote_is_none(model_folder, fields):
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps(config | fields))
    check_files(published(model_folder))


def test_only_the_installed_code_travels(model_folder):
    check_code(published(model_folder))
    (model_folder / "evil_radio.py").write_text("import os")
    with pytest.raises(UnfitError, match=r"differ from the installed code: evil_radio\.py\."):
        check_code(published(model_folder))
    (model_folder / "evil_radio.py").unlink()
    code = model_folder / "layers_radio.py"
    code.write_text(code.read_text() + "\n")
    (model_folder / "heads_radio.py").unlink()
    with pytest.raises(UnfitError, match=r"heads_radio\.py, layers_radio\.py"):
        check_code(published(model_folder))


def test_what_does_not_open_is_refused(adapter_folder):
    (adapter_folder / "adapter_model.safetensors").write_bytes(b"12345678{")
    publication = read_folder(adapter_folder, "org/lora", "org/c-radiov4")
    with pytest.raises(UnfitError, match="does not open"):
        check_opens(publication)
    with pytest.raises(UnfitError, match="does not open in a new process"):
        check_opens(publication, trusts_remote_code=True)


def test_a_bases_own_code_runs_only_if_asked_for(adapter_folder, monkeypatch):
    started = []
    monkeypatch.setattr(checks.subprocess, "run", lambda *command, **_: started.append(command))
    check_publication(read_folder(adapter_folder, "org/lora", "org/c-radiov4"))
    assert started == []


CARD_OF_FEATURES = """---
license: cc-by-4.0
tags:
- radio
---
# Features

```python
from datasets import load_dataset
rows = load_dataset("ORG/NAME")
```
"""


def test_features_need_a_card_and_rows(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    Dataset.from_dict({"id": ["a"], "summary": [[0.5]]}).to_parquet(folder / "train-00000.parquet")
    with pytest.raises(ValueError, match=r"has no card\. `python -m training\.extract`"):
        published(folder)
    DatasetCard(CARD_OF_FEATURES).save(folder / CARD)
    publication = published(folder)
    assert publication.repo_type == "dataset"
    check_publication(publication)
    for number in (0, 2):
        Dataset.from_dict({"id": ["a"]}).to_parquet(folder / f"test-0000{number}-of-00003.parquet")
    with pytest.raises(UnfitError, match=r"has 2 of 3 files of test\. `python -m training\.extract`"):
        check_opens(published(folder))
    (folder / "modeling.py").write_text("import os")
    with pytest.raises(ValueError, match=r"belongs to a dataset alone, got modeling\.py"):
        published(folder)


def test_paths_in_tables_are_refused(tmp_path):
    DatasetCard(CARD_OF_FEATURES).save(tmp_path / CARD)
    rows = {"id": ["cat/1.png", "cat/2.png"], "caption": ["a man and / or a dog in /tmp", None], "number": [1, 2]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    check_files(published(tmp_path))
    Dataset.from_dict(rows | {"id": ["cat/1.png", "/srv/me/cat/2.png"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UnfitError, match=r"train\.parquet names a path of this machine, '/srv/me/cat/2\.png'"):
        check_files(published(tmp_path))


def test_features_without_a_license_are_refused(tmp_path):
    card = CARD_OF_FEATURES.replace("license: cc-by-4.0\n", "")
    DatasetCard(card).save(tmp_path / CARD)
    Dataset.from_dict({"id": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UnfitError, match=r"lacks license\. `python -m training\.extract`.*--license ID"):
        check_card(published(tmp_path))
