import json

import pytest
from huggingface_hub import ModelCard

from training.publishing.publication import CARD, read_folder


def test_the_card_opens_the_published_name(model_folder):
    publication = read_folder(model_folder, "org/c-radiov4")
    assert 'AutoModel.from_pretrained("org/c-radiov4", trust_remote_code=True)' in publication.card
    assert "ORG/NAME" not in publication.card
    assert "`ORG/NAME` stands for the name" in (model_folder / CARD).read_text()  # the folder stays as it is
    assert "stands for the name" not in publication.card
    assert publication.kind == "model"
    assert publication.repo_type == "model"


def test_hidden_files_and_caches_stay_here(model_folder):
    for name in (".git/config", "__pycache__/x.pyc", ".cache/a", ".eval_results/d.yaml"):
        (model_folder / name).parent.mkdir(exist_ok=True)
        (model_folder / name).write_text("x")
    (model_folder / "results.json").write_text("{}")  # what the card was written from, and shows
    files = read_folder(model_folder, "org/name").files
    assert {name for name in files if "/" in name} == {".eval_results/d.yaml"}
    assert "results.json" not in files


@pytest.mark.parametrize(
    "name",
    ["credentials", "id_rsa", "secrets.env", "wandb/config.yaml", "checkpoint-3/model.safetensors", "run.sh", "a.bin"],
)
def test_what_is_no_part_of_a_model_is_refused(model_folder, name):
    (model_folder / name).parent.mkdir(exist_ok=True)
    (model_folder / name).write_text("x")
    with pytest.raises(ValueError, match=f"must hold what belongs to a model alone, got {name}"):
        read_folder(model_folder, "org/name")


def test_links_are_refused(model_folder, tmp_path):
    (tmp_path / "secret").write_text("x")
    (model_folder / "merges.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"must hold files themselves, got links: merges\.txt"):
        read_folder(model_folder, "org/name")


def test_a_card_of_another_name_is_refused(model_folder):
    card = model_folder / CARD
    card.write_text(card.read_text().replace("ORG/NAME", "org/other"))
    with pytest.raises(ValueError, match="The card's code opens org/other, not org/name"):
        read_folder(model_folder, "org/name")


def test_the_base_of_an_adapter_gets_its_name_on_the_hub(adapter_folder):
    with pytest.raises(ValueError, match="`base` must be the repository of the adapter's base"):
        read_folder(adapter_folder, "org/lora")
    publication = read_folder(adapter_folder, "org/lora", "org/c-radiov4")
    assert json.loads(publication.files["adapter_config.json"])["base_model_name_or_path"] == "org/c-radiov4"
    data = ModelCard(publication.card).data
    assert (data.base_model, data.base_model_relation) == (["org/c-radiov4"], "adapter")
    assert "for `org/c-radiov4`" in publication.card


def test_a_folder_of_nothing_known_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`checkpoint` must be a folder with a model"):
        read_folder(tmp_path, "org/name")
