"""What a stranger's folder may decide."""

import json

import pytest

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from modeling_radio.core.opening import open_model
from modeling_radio.core.trust import (
    allowed_files,
    check_named_code,
    clean_environment,
    copy_model,
    foreign_code,
    has_name,
)
from modeling_radio.model_cards.build import build_card
from modeling_radio.tuning.models import open_config


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=1)
    RadioModel(config).save_pretrained(folder)
    RadioImageProcessor.from_model_config(config).save_pretrained(folder)
    return folder


def change(path, **fields):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


def test_a_pattern_stands_for_files_of_its_own_folder():
    assert has_name("model-00001-of-00002.safetensors", ["model*.safetensors"])
    assert has_name(".eval_results/a.yaml", [".eval_results/*.yaml"])
    for name in ("checkpoint-3/model.safetensors", "model/x.safetensors", "Model.safetensors"):
        assert not has_name(name, ["model*.safetensors"])


def test_links_are_followed_nowhere(model, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "a.yaml").write_text("x")
    (model / ".eval_results").symlink_to(tmp_path / "secrets")
    assert ".eval_results/a.yaml" not in allowed_files(model, ["config.json"])
    (model / "vocab.txt").symlink_to(tmp_path / "secrets" / "a.yaml")
    with pytest.raises(ValueError, match=r"got links: vocab\.txt"):
        copy_model(model, tmp_path / "copy")


def test_our_own_folders_name_our_own_code(model):
    check_named_code(model)
    assert foreign_code(json.loads((model / "config.json").read_text()), ()) != []


@pytest.mark.parametrize("open_folder", [open_model, lambda folder: open_config(str(folder)), build_card])
@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil/evil--evil.Model"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "evil/evil--evil.Tokenizer"]}}),
        ("video_preprocessor_config.json", {"auto_map": {"AutoVideoProcessor": "evil/evil--evil.Processor"}}),
    ],
)
def test_commands_open_no_folder_that_names_code_of_others(model, open_folder, file, fields):
    open_folder(model)
    change(model / file, **fields)
    with pytest.raises(ValueError, match=r"`checkpoint` .*'evil/evil--"):
        open_folder(model)


OWN = "sentence_transformers.models.Transformer"


@pytest.mark.parametrize(
    "content",
    [
        '[{"type": "evil.Module"}]',
        "{",
        '["evil.Module"]',
        *(json.dumps([{"type": OWN, "path": path}]) for path in ("../other", "/etc", 1)),
    ],
)
def test_sentence_transformers_is_told_of_no_code_of_others(model, content):
    (model / "modules.json").write_text(content)
    with pytest.raises(ValueError, match=r"modules\.json"):
        check_named_code(model)


def test_nvidias_own_names_are_not_ours_to_run(tmp_path):
    change(tmp_path / "config.json", args={}, auto_map={"AutoModel": "hf_model.RADIOModel"})
    check_named_code(tmp_path)


def test_the_environment_of_a_check_opens_no_account(monkeypatch):
    secrets = (
        *("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "AWS_ACCESS_KEY_ID", "SSH_AUTH_SOCK", "PGPASSWORD"),
        *("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CLIENT_SECRET", "WANDB_API_KEY", "OPENAI_API_KEY"),
    )
    for name in (*secrets, "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    environment = clean_environment(HF_HUB_OFFLINE="1")
    assert not environment.keys() & set(secrets)
    assert environment.keys() >= {"TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "PATH"}
    assert environment["HF_HUB_OFFLINE"] == environment["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"
