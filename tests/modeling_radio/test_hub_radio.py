"""Saved folders name classes that exist, and pipelines only where the stock ones do not fit."""

import json

import pytest
from huggingface_hub import constants
from local_hub import Repository, hub_in_place

import modeling_radio
from modeling_radio import RadioConfig
from modeling_radio.saving_radio import write_modules


@pytest.mark.parametrize("has_text_tower", [False, True])
def test_sentence_transformers_is_told_what_to_call(tmp_path, has_text_tower):
    write_modules(tmp_path, has_text_tower=has_text_tower)
    settings = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    methods = [entry["method"] for entry in settings["modality_config"].values()]
    assert methods == ["get_image_features", "get_text_features"][: 1 + has_text_tower]
    assert all(hasattr(modeling_radio.RadioModel, name) for name in methods)


@pytest.mark.parametrize(
    ("name", "task"), [("RadioModel", "image-feature-extraction"), ("RadioForDepthEstimation", "depth-estimation")]
)
def test_a_pipeline_without_a_task_is_the_folders_own(name, task, tmp_path):
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=1)
    getattr(modeling_radio, name)(config).save_pretrained(tmp_path)
    assert list(RadioConfig.from_pretrained(tmp_path, _from_pipeline=None).custom_pipelines) == [task]
    assert len(RadioConfig.from_pretrained(tmp_path, _from_pipeline="depth-estimation").custom_pipelines) > 1
    assert len(RadioConfig.from_pretrained(tmp_path).custom_pipelines) > 1


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with a model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    modeling_radio.RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1)).save_pretrained(
        tmp_path / "m"
    )
    with hub_in_place(monkeypatch) as found:
        repository = Repository(private=False)
        repository.commit({path.name: path.read_bytes() for path in (tmp_path / "m").iterdir() if path.is_file()})
        found.repositories["models/org/name"] = repository
        yield found


def test_without_a_connection_a_model_opens_from_the_cache_or_not_at_all(hub, tmp_path, monkeypatch):
    hub.faults.append(("^/$", "drop"))  # a server that does not answer was reached all the same
    options = {"cache_dir": tmp_path / "cache"}
    modeling_radio.RadioModel.from_pretrained("org/name", **options)
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: pytest.fail("a second try"))
    modeling_radio.RadioModel.from_pretrained("org/name", **options)
    for model_class in (modeling_radio.RadioModel, RadioConfig):
        with pytest.raises(OSError, match="org/none"):
            model_class.from_pretrained("org/none", **options)
