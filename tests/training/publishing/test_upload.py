import itertools
import re

import pytest
from huggingface_hub import HfApi

from training.publishing import publication
from training.publishing.publication import PublishError, publish, read_folder


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
"""All that publishing may ask for; the last one huggingface-hub asks by itself."""


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
    with pytest.raises(PublishError, match=r"org/name exists already\. Give `--exist-ok`"):
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
    with pytest.raises(PublishError, match="`revision` must be new, got 'final'"):
        send(exist_ok=True, revision="final")
    assert {" ".join(request) for request in hub.requests} <= ENDPOINTS


def test_visibility_is_never_switched(send, hub):
    send()
    with pytest.raises(PublishError, match="`private` cannot be had: org/name is public already"):
        send(private=True, exist_ok=True)
    assert not hub.repositories["models/org/name"].private
    assert len(hub.repositories["models/org/name"].commits) == 2


def test_a_wrong_token_is_said_and_makes_nothing(send, hub):
    with pytest.raises(PublishError, match=r"refuses the token \(401\).*`hf auth login`.*Nothing was uploaded"):
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
def test_what_fails_in_passing_is_asked_again(send, hub, where, fault):
    hub.faults.append((where, fault))
    assert send().endswith("/v1")
    assert hub.faults == []
    repository = hub.repositories["models/org/name"]
    assert len(repository.commits) == 2  # also where all was done and only the answer was lost
    assert repository.tags == {"v1": repository.branches["main"]}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (ConnectionError("refused"), "refused"),
        (TimeoutError(), "TimeoutError"),
        (OSError("I/O"), "I/O"),
        (RuntimeError("CAS service error"), "CAS service error"),
    ],
)
def test_faults_of_the_upload_itself_pass_too(send, hub, api, monkeypatch, fault, said):
    """As hf_xet raises them: huggingface-hub makes no HTTPError of them."""
    commit, faults = api.create_commit, [fault]

    def create_commit(*arguments, **options):
        if faults:
            raise faults.pop()
        return commit(*arguments, **options)

    monkeypatch.setattr(api, "create_commit", create_commit)
    assert send().endswith("/v1")
    faults += [fault] * 99
    with pytest.raises(PublishError, match=rf"did not let us upload: {said}\. The repository is as it was"):
        send(exist_ok=True)
    assert len(hub.repositories["models/org/name"].commits) == 2


def test_a_file_that_is_gone_is_not_tried_again(send, api, monkeypatch):
    calls = []

    def create_commit(*arguments, **options):
        calls.append(arguments)
        raise FileNotFoundError("model.safetensors is gone")

    monkeypatch.setattr(api, "create_commit", create_commit)
    with pytest.raises(PublishError, match=r"model\.safetensors is gone"):
        send()
    assert len(calls) == 1


def test_a_repository_whose_making_was_not_answered_is_taken_for_anothers(send, hub):
    """It may be: so nothing goes there before it is allowed."""
    hub.faults.append(("repos/create", "lost"))
    with pytest.raises(PublishError, match="org/name exists already"):
        send()
    assert len(hub.repositories["models/org/name"].commits) == 1
    assert send(exist_ok=True).endswith("/v1")


def test_what_fails_for_good_leaves_nothing_half_public(send, hub):
    hub.faults += [("/commit/", "503")] * 99
    with pytest.raises(PublishError, match=r"did not let us upload: it answers 503.*is empty; .*`--exist-ok` goes on"):
        send()
    repository = hub.repositories["models/org/name"]
    assert [set(files) for files in repository.commits.values()] == [{".gitattributes"}]
    assert repository.tags == {}
    hub.faults.clear()
    assert send(exist_ok=True).endswith("/v1")
    hub.faults += [("/tag/", "drop")] * 99
    with pytest.raises(PublishError, match="only the tag 'v2' is missing"):
        send(exist_ok=True)
    assert re.fullmatch("v1", "".join(repository.tags))
