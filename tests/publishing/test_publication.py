"""Which files of a folder are published, and uploads that fail, are repeated, or are refused."""

import itertools
import json

import pytest
from huggingface_hub import HfApi, ModelCard

from modeling_radio.publishing import publication
from modeling_radio.publishing.publication import CARD, PublishError, publish, read_folder


def test_the_card_opens_the_published_name(model_folder):
    found = read_folder(model_folder, "org/c-radiov4")
    card = found.read(CARD).decode()
    assert 'AutoModel.from_pretrained("org/c-radiov4", trust_remote_code=True)' in card
    assert "ORG/NAME" not in card
    assert "stands for the name" not in card
    assert "<!--" not in card
    assert "`ORG/NAME` stands for the name" in (model_folder / CARD).read_text()  # the folder stays as it is
    assert found.kind == found.repo_type == "model"


def test_hidden_files_and_caches_are_left_out(model_folder):
    for name in (".git/config", "__pycache__/x.pyc", ".cache/a", ".eval_results/d.yaml"):
        (model_folder / name).parent.mkdir(exist_ok=True)
        (model_folder / name).write_text("x")
    (model_folder / "results.json").write_text("{}")  # the card was written from it, and shows it
    files = read_folder(model_folder, "org/name").files
    assert {name for name in files if "/" in name} == {".eval_results/d.yaml"}
    assert "results.json" not in files


OTHERS = "credentials id_rsa secrets.env wandb/config.yaml checkpoint-3/model.safetensors run.sh a.bin LICENSE.pem"


@pytest.mark.parametrize("name", OTHERS.split())
def test_other_files_are_refused(model_folder, name):
    (model_folder / name).parent.mkdir(exist_ok=True)
    (model_folder / name).write_text("x")
    with pytest.raises(ValueError, match=name):
        read_folder(model_folder, "org/name")


def test_other_folders_links_and_names_are_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match="`base`"):
        read_folder(model_folder, "org/name", "org/base")
    (tmp_path / "secret").write_text("x")
    (model_folder / "merges.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"merges\.txt"):
        read_folder(model_folder, "org/name")
    (model_folder / "merges.txt").unlink()
    (model_folder / CARD).write_text((model_folder / CARD).read_text().replace("ORG/NAME", "org/other"))
    with pytest.raises(ValueError, match="org/other"):
        read_folder(model_folder, "org/name")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`checkpoint`"):
        read_folder(tmp_path / "empty", "org/name")


def test_the_base_of_an_adapter_gets_its_name_on_the_hub(adapter_folder):
    with pytest.raises(ValueError, match="`base`"):
        read_folder(adapter_folder, "org/lora")
    path = adapter_folder / "adapter_config.json"
    named = {"auto_mapping": {"base_model_class": "X", "parent_library": "antigravity"}}  # which peft may import
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    found = read_folder(adapter_folder, "org/lora", "org/c-radiov4")
    written = json.loads(found.read("adapter_config.json"))
    assert (written["base_model_name_or_path"], written["auto_mapping"]) == ("org/c-radiov4", None)
    card = ModelCard(found.read(CARD).decode())
    assert (card.data.base_model, card.data.base_model_relation) == (["org/c-radiov4"], "adapter")
    assert "for `org/c-radiov4`" in card.text


ENDPOINTS = {
    "POST /api/repos/create",
    "POST /api/validate-yaml",
    "POST /api/models/org/name/preupload/main",
    "POST /api/models/org/name/commit/main",
    "POST /api/models/org/name/tag/main",
    "GET /api/models/org/name/refs",
    "GET /api/models/org/name",
    "GET /api/agent-harnesses",
}
"""All requests that publishing may make; the last one huggingface-hub makes by itself."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(publication, "WAITS_S", (0.0, 0.0))


@pytest.fixture
def send(model_folder, api):
    """Return a function that publishes the folder as it is now."""

    def call(api=api, **options):
        defaults = {"private": False, "revision": None, "exist_ok": False}
        return publish(read_folder(model_folder, "org/name"), api, **(defaults | options))

    return call


def test_all_files_go_in_one_commit_with_a_tag(send, hub, model_folder):
    assert send(private=True) == f"{hub.endpoint}/org/name/tree/v1"
    repository = hub.repositories["models/org/name"]
    assert repository.private
    assert len(repository.commits) == 2  # the Hub makes the first
    assert repository.tags == {"v1": repository.branches["main"]}
    files = repository.commits[repository.branches["main"]]
    assert files.keys() - {".gitattributes"} == {path.name for path in model_folder.iterdir()}
    assert files["model.safetensors"] == (model_folder / "model.safetensors").read_bytes()
    assert b'"org/name"' in files["README.md"]
    assert {" ".join(request) for request in hub.requests} <= ENDPOINTS
    assert not hub.unknown


def test_a_repository_that_exists_is_left_alone_unless_asked(send, hub, model_folder):
    send()
    before = dict(hub.repositories["models/org/name"].branches)
    with pytest.raises(PublishError, match="--exist-ok"):
        send()
    assert hub.repositories["models/org/name"].branches == before
    (model_folder / "README.md").write_text((model_folder / "README.md").read_text() + "\nMore.\n")
    (model_folder / "NOTICE.txt").write_text("new")
    assert send(exist_ok=True).endswith("/v2")
    (model_folder / "NOTICE.txt").unlink()
    assert send(exist_ok=True, revision="final").endswith("/final")
    repository = hub.repositories["models/org/name"]
    assert "NOTICE.txt" in repository.commits[repository.tags["v2"]]
    assert "NOTICE.txt" not in repository.commits[repository.tags["final"]]
    with pytest.raises(PublishError, match="`revision`"):
        send(exist_ok=True, revision="final")
    assert {" ".join(request) for request in hub.requests} <= ENDPOINTS


def test_visibility_is_never_switched(send, hub):
    send()
    with pytest.raises(PublishError, match="`private`"):
        send(private=True, exist_ok=True)
    assert not hub.repositories["models/org/name"].private
    assert len(hub.repositories["models/org/name"].commits) == 2


def test_a_wrong_token_is_said_and_makes_nothing(send, hub):
    with pytest.raises(PublishError, match="401"):
        send(HfApi(endpoint=hub.endpoint, token="hf_wrong"))
    assert hub.repositories == {}
    assert len(hub.requests) == 1  # what cannot pass is not asked again


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        *itertools.product(["repos/create", "preupload", "/commit/", "/tag/"], ["drop", "503"]),
        *itertools.product(["preupload", "/commit/", "/tag/"], ["lost"]),
    ],
)
def test_temporary_failures_are_repeated(send, hub, where, fault):
    hub.faults.append((where, fault))
    assert send().endswith("/v1")
    assert hub.faults == []
    repository = hub.repositories["models/org/name"]
    assert len(repository.commits) == 2  # also where all was done and only the answer was lost
    assert repository.tags == {"v1": repository.branches["main"]}


@pytest.mark.parametrize(
    "fault", [ConnectionError("refused"), TimeoutError(), OSError("I/O"), RuntimeError("CAS service error")]
)
def test_failed_uploads_are_repeated(send, hub, api, monkeypatch, fault):
    """As hf_xet raises them: huggingface-hub makes no HTTPError of them."""
    commit, faults = api.create_commit, [fault]

    def create_commit(*arguments, **options):
        if faults:
            raise faults.pop()
        return commit(*arguments, **options)

    monkeypatch.setattr(api, "create_commit", create_commit)
    assert send().endswith("/v1")
    faults += [fault] * 99
    with pytest.raises(PublishError, match=str(fault) or "TimeoutError"):
        send(exist_ok=True)
    assert len(hub.repositories["models/org/name"].commits) == 2


def test_an_upload_without_its_file_is_not_repeated(send, api, monkeypatch):
    calls = []

    def create_commit(*arguments, **options):
        calls.append(arguments)
        raise FileNotFoundError("model.safetensors is gone")

    monkeypatch.setattr(api, "create_commit", create_commit)
    with pytest.raises(PublishError, match=r"model\.safetensors is gone"):
        send()
    assert len(calls) == 1


def test_a_repository_of_a_lost_response_is_taken_for_that_of_others(send, hub):
    """It may be: so nothing goes there before it is allowed."""
    hub.faults.append(("repos/create", "lost"))
    with pytest.raises(PublishError, match="--exist-ok"):
        send()
    assert len(hub.repositories["models/org/name"].commits) == 1
    assert send(exist_ok=True).endswith("/v1")


def test_a_lasting_failure_leaves_nothing_half_public(send, hub):
    hub.faults += [("/commit/", "503")] * 99
    with pytest.raises(PublishError, match="503"):
        send()
    repository = hub.repositories["models/org/name"]
    assert [set(files) for files in repository.commits.values()] == [{".gitattributes"}]
    assert repository.tags == {}
    hub.faults.clear()
    assert send(exist_ok=True).endswith("/v1")
    hub.faults += [("/tag/", "drop")] * 99
    with pytest.raises(PublishError, match="'v2'"):
        send(exist_ok=True)
    assert list(repository.tags) == ["v1"]
