"""Folders that should not be published are refused, with the name of the file at fault."""

import hashlib
import json
import pickle
import uuid

import pytest
import torch
from datasets import Dataset, Features, List, Value
from safetensors.torch import load_file, save_file

from modeling_radio.extraction.shards import SUMS, lines_of_sums
from modeling_radio.extraction.store import Store
from modeling_radio.publishing import checks, reopen
from modeling_radio.publishing.checks import (
    UnfitError,
    check_card,
    check_code,
    check_files,
    check_opens,
    check_publication,
)
from modeling_radio.publishing.publication import CARD, read_folder


def published(folder):
    return read_folder(folder, "org/name")


def refused(check, folder, match, **options):
    with pytest.raises(UnfitError, match=match):
        check(published(folder), **options)


@pytest.fixture(autouse=True)
def fresh_processes(elsewhere, monkeypatch):
    monkeypatch.setattr(checks.subprocess, "run", elsewhere.run_command)


def test_a_good_checkpoint_passes_without_a_token_in_reach(model_folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    environments, run = [], reopen.subprocess.run
    monkeypatch.setattr(
        reopen.subprocess, "run", lambda *a, **options: environments.append(options["env"]) or run(*a, **options)
    )
    check_publication(published(model_folder))
    (environment,) = environments
    assert "HF_TOKEN" not in environment
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_a_good_adapter_passes_without_running_code_of_its_base(adapter_folder, monkeypatch):
    started = []
    monkeypatch.setattr(checks.subprocess, "run", lambda *command, **_: started.append(command))
    check_publication(read_folder(adapter_folder, "org/lora", "org/c-radiov4"))
    assert started == []


LICENSE, TAG = "license: apache-2.0\n", "pipeline_tag: image-feature-extraction\n"
SECRETS = [
    *("http://me:S3CRET@host/x.tar", "https://host/x.tar?X-Amz-Signature=S3CRET", "https://host/?a=b&sig=S3CRET"),
    *("hf_" + 34 * "a", "-----BEGIN OPENSSH PRIVATE KEY-----"),
]
PATHS = ["/srv/me/base", "/data/x.json", "C:\\\\models", "~/base", "file:///x", "/tmp"]


@pytest.mark.parametrize(
    ("check", "old", "new", "named"),
    [
        *((check_card, LICENSE, new, name) for new, name in (("", "license"), ("license: other\n", "license_name"))),
        (check_card, LICENSE, "license: [\n", "metadata"),
        (check_card, TAG, "", "pipeline_tag"),
        (check_card, "```python", "```", "code"),
        *((check_files, LICENSE, f"{LICENSE}# --data {secret}\n", "^README.md .*secret") for secret in SECRETS),
        *((check_files, LICENSE, f"{LICENSE}# run in `{path}`\n", "^README.md .*path") for path in PATHS),
    ],
)
def test_a_card_that_lacks_or_tells_something_is_refused(model_folder, check, old, new, named):
    card = model_folder / CARD
    card.write_text(card.read_text().replace(old, new))
    refused(check, model_folder, named)


@pytest.mark.parametrize("path", PATHS)
def test_paths_of_this_machine_are_refused(model_folder, path):
    config = json.loads((model_folder / "config.json").read_text())
    labels = {"id2label": {"0": "/m/01g317"}, "label2id": {"/m/01g317": 0}}
    nvidia = {"nvidia_source": {"args": {"output": "/lustre/runs/radio"}}}
    (model_folder / "config.json").write_text(json.dumps(config | labels | nvidia))
    check_files(published(model_folder))
    (model_folder / "config.json").write_text(json.dumps(config | {"source": path}))
    refused(check_files, model_folder, r"^config\.json .*path")


def test_pickles_are_refused_by_their_content(model_folder):
    torch.save({"a": torch.zeros(1)}, model_folder / "vocab.txt")
    refused(check_files, model_folder, r"^vocab\.txt")
    (model_folder / "vocab.txt").write_bytes(pickle.dumps([1]))
    refused(check_files, model_folder, r"^vocab\.txt")


MODULES = "modules.json"


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"custom_pipelines": {"image-feature-extraction": {"impl": "evil/evil--evil.Pipe"}}}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil/evil--network_radio.Model"}}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.Config"}}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil/evil--evil.Processor"}}),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": "evil/evil--evil.P"}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil/evil--evil.Tokenizer", None]}}),
        ("sentence_bert_config.json", {"model_args": {"trust_remote_code": True, "code_revision": "evil"}}),
        *((MODULES, {"type": name}) for name in ("evil/evil--evil.Module", "antigravity.Module")),
        (MODULES, {"type": "sentence_transformers.models.Pooling"}),
        (MODULES, {"path": "../elsewhere"}),
    ],
)
def test_code_of_others_is_refused_wherever_it_is_named(model_folder, file, fields):
    path = model_folder / file
    before = json.loads(path.read_text()) if path.exists() else {}
    if file == MODULES:
        path.write_text(json.dumps(before[:1]))
        check_code(published(model_folder))
    path.write_text(json.dumps([before[0] | fields] if file == MODULES else before | fields))
    refused(check_code, model_folder, rf"^{file} .*--trust-remote-code")
    check_code(published(model_folder), trusts_remote_code=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(model_folder, value):
    path = model_folder / "model.safetensors"
    weights = load_file(path)
    weights["radio_model.model.blocks.0.attn.qkv.weight"][0, 0] = value
    save_file(weights | {"eight_bits": torch.ones(2).to(torch.float8_e4m3fn)}, path)
    refused(check_files, model_folder, r"^model\.safetensors .*finite weights, but 1 .*blocks\.0\.attn\.qkv\.weight")


def test_weights_must_be_floating_point_numbers_unless_they_are_quantized(model_folder):
    path, config = model_folder / "model.safetensors", model_folder / "config.json"
    key = "radio_model.model.blocks.0.attn.qkv.weight"
    weights = load_file(path)
    save_file({**weights, key: weights[key].int()}, path)
    refused(check_files, model_folder, rf"^model\.safetensors: .*floating-point.* {key} of I32")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "torchao"}}))
    check_files(published(model_folder))


def test_damaged_weights_are_named(model_folder):
    path = model_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    refused(check_files, model_folder, r"^model\.safetensors cannot be read")


def test_only_the_installed_code_is_published(model_folder):
    check_code(published(model_folder))
    (model_folder / "evil_radio.py").write_text("import os")
    refused(check_code, model_folder, r"evil_radio\.py")
    (model_folder / "evil_radio.py").unlink()
    code = model_folder / "layers_radio.py"
    code.write_text(code.read_text() + "\n")
    (model_folder / "heads_radio.py").unlink()
    refused(check_code, model_folder, r"heads_radio\.py, layers_radio\.py")


def test_an_adapter_that_does_not_open_is_refused(adapter_folder):
    (adapter_folder / "adapter_model.safetensors").write_bytes(b"12345678{")
    publication = read_folder(adapter_folder, "org/lora", "org/c-radiov4")
    for options in ({}, {"trusts_remote_code": True}):
        with pytest.raises(UnfitError, match="does not open"):
            check_opens(publication, **options)


FEATURES = Features({"id": Value("string"), "summary": List(Value("float32"))})
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


def test_features_need_a_card_a_license_and_all_files(tmp_path):
    Dataset.from_dict({"id": ["a"], "summary": [[0.5]]}).to_parquet(tmp_path / "train-00000.parquet")
    with pytest.raises(ValueError, match=r"no card\. .*radio extract"):
        published(tmp_path)
    (tmp_path / CARD).write_text(CARD_OF_FEATURES.replace("license: cc-by-4.0\n", ""))
    refused(check_card, tmp_path, r"license\. .*radio extract")
    (tmp_path / CARD).write_text(CARD_OF_FEATURES)
    assert published(tmp_path).repo_type == "dataset"
    check_publication(published(tmp_path))
    for number in (0, 2):
        Dataset.from_dict({"id": ["a"]}).to_parquet(tmp_path / f"test-0000{number}-of-00003.parquet")
    refused(check_opens, tmp_path, "2 of 3 files of test")
    (tmp_path / "modeling.py").write_text("import os")
    with pytest.raises(ValueError, match=r"modeling\.py"):
        published(tmp_path)


def test_features_at_an_address_are_checked_as_in_a_folder(tmp_path):
    address = f"memory://{uuid.uuid4().hex}/features"
    store = Store(address)
    store.write("config.json", b"{}")
    with pytest.raises(ValueError, match="`checkpoint`"):
        published(address)
    store.remove("config.json")
    for number, ids in enumerate(([], ["a"])):
        table = Dataset.from_dict({"id": ids, "summary": [[0.5]] * len(ids)}, features=FEATURES)
        table.to_parquet(tmp_path / "part.parquet")
        store.write(f"data/train-0000{number}-of-00002.parquet", (tmp_path / "part.parquet").read_bytes())
    with pytest.raises(ValueError, match="no card"):
        published(address)
    store.write(CARD, CARD_OF_FEATURES.encode())
    store.write(".work/claim", b"x")
    check_publication(published(address))
    assert published(address).files.keys() == store.sizes().keys() - {".work/claim"}
    store.write("notes.txt", b"x")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        published(address)
    store.remove("notes.txt")
    store.write("extraction.json", b'{"source": "/srv/me/cats"}')
    refused(check_files, address, r"extraction\.json .*'/srv/me/cats'")
    store.write("data/test-00000-of-00001.parquet", store.read("data/train-00000-of-00002.parquet"))
    refused(check_opens, address, "without rows")
    store.remove("data/train-00001-of-00002.parquet")
    refused(check_opens, address, "1 of 2 files of data/train")


def test_damaged_features_are_refused_by_name(tmp_path):
    (tmp_path / CARD).write_text(CARD_OF_FEATURES)
    path = tmp_path / "train.parquet"
    Dataset.from_dict({"id": ["a"], "number": [1.5]}).to_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"train\.parquet"):
        check_files(published(tmp_path))
    (tmp_path / SUMS).write_bytes(lines_of_sums({path.name: hashlib.sha256(content).hexdigest()}))
    refused(check_files, tmp_path, rf"^train\.parquet .*{SUMS}")
    path.write_bytes(content)
    check_files(published(tmp_path))
    (tmp_path / SUMS).write_bytes(lines_of_sums({"test.parquet": "0"}))
    refused(check_files, tmp_path, r"test\.parquet, which is not there")
    (tmp_path / SUMS).unlink()
    (tmp_path / "pca.safetensors").write_bytes(b"damaged")
    refused(check_files, tmp_path, r"^pca\.safetensors")


def test_paths_and_secrets_in_tables_are_refused(tmp_path):
    (tmp_path / CARD).write_text(CARD_OF_FEATURES)
    rows = {"id": ["cat/1.png", "cat/2.png"], "caption": ["a man and / or a dog in /tmp", None], "number": [1, 2]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    check_files(published(tmp_path))
    Dataset.from_dict(rows | {"id": ["cat/1.png", "/srv/me/cat/2.png"]}).to_parquet(tmp_path / "train.parquet")
    refused(check_files, tmp_path, r"train\.parquet .*'/srv/me/cat/2\.png'")
    for value in ("train.tar?X-Amz-Signature=S3CRET&f=/000", {"from": "https://me:S3CRET@host/"}):
        Dataset.from_dict({"value": [value]}).to_parquet(tmp_path / "train.parquet")
        refused(check_files, tmp_path, r"train\.parquet .*secret")
