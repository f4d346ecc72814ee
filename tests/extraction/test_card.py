"""Cards of data sets: their content, their code, their license, and when they are rewritten."""

import json
import re
import shutil

import huggingface_hub
import pytest
from huggingface_hub import DatasetCard

from modeling_radio.extraction import card, run
from modeling_radio.extraction.card import CARD, MADE, finish, inherited_license
from modeling_radio.extraction.columns import PCA_FILE
from modeling_radio.extraction.shards import SUMS, done_shards, hash_in, read_sums
from modeling_radio.extraction.store import Store
from modeling_radio.model_cards.build import write_card
from modeling_radio.model_cards.licenses import License


@pytest.fixture
def made(settings):
    """Return a function that extracts, finishes and returns the card."""

    def call(**values):
        extraction = run.open_extraction(settings(**values))
        finish(extraction, run.extract(extraction))
        return DatasetCard.load(extraction.settings.output / CARD)

    return call


@pytest.fixture
def run_usage(tmp_path, monkeypatch, capsys):
    """Return a function that runs a card's code on the folder in place of the Hub, and returns its output."""
    folder = tmp_path / "out"

    def download(name, file, repo_type):
        assert (name, repo_type) == (str(folder), "dataset")
        return str(folder / file)

    def call(card):
        code = "\n".join(re.findall(r"```python\n(.*?)```", card.content, re.DOTALL))
        exec(compile(code.replace("ORG/NAME", str(folder)), "card", "exec"), {})
        return capsys.readouterr().out.splitlines()

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return call


def test_the_card_describes_the_files(made, tmp_path):
    card = made(dense=True, adaptors=["teacher_a"], vector_dtype="int8", model_id="org/radio-tiny")
    data, text = card.data.to_dict(), card.content
    assert data["base_model"] == "org/radio-tiny"
    assert (data["size_categories"], data["task_categories"]) == (["n<1K"], ["image-feature-extraction"])
    assert data["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    hashed = json.loads((tmp_path / "out" / "extraction.json").read_text())["model"]["weights and processor"]
    for row in (
        "[org/radio-tiny](https://huggingface.co/org/radio-tiny)",
        "| train | 23 |",
        "| `label` | class |  | copied from the source: one of 2 classes |",
        "| `summary` | int8 | (32,) | what the model says of the whole image |",
        r"| `features` | int8 | (rows \* cols \* 16,) |",
        "| `teacher_a/summary` | int8 | (6,) | what the model says of the whole image, by the adaptor for teacher_a |",
        r"| `features_scale` | float32 | (rows \* cols,) | by which features is multiplied to come back |",
        f"| model | {hashed} (hash",
    ):
        assert row in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("values", "printed"),
    [
        ({}, []),
        ({"dense": True, "vector_dtype": "float16"}, ["(4, 4, 16)"]),
        ({"dense": True, "pca": 4, "vector_dtype": "int8"}, ["(4, 4, 4)", "(4, 4, 16)"]),
    ],
)
def test_its_code_runs(made, run_usage, values, printed):
    assert run_usage(made(size=32, **values)) == ["cat/01.png (32,)", *printed]


def test_its_code_finds_similar_images(made, run_usage):
    pytest.importorskip("faiss")
    shown = run_usage(made(index="flat"))
    assert shown[1].startswith("[('cat/01.png', ")
    assert shown[1].count(".png") == 5


def test_the_license_is_inherited(made, checkpoint, tmp_path):
    assert made(output=tmp_path / "without").data.license is None
    licensed = shutil.copytree(checkpoint, tmp_path / "licensed")
    other = License("other", "my-license", "https://example.org/license")
    write_card(licensed, license=other)
    data = made(checkpoint=licensed).data
    assert (data.license, data.license_name, data.license_link) == ("other", other.name, other.link)
    path = tmp_path / "out" / CARD
    path.write_text(path.read_text().replace("my-license", "her-license"))
    assert made(checkpoint=licensed).data.license_name == "her-license"  # that of the existing card
    (tmp_path / "config.json").write_text(json.dumps({"args": {}, "version": "c-radio_v4-h"}))
    of_nvidia = inherited_license(tmp_path, Store(tmp_path))
    assert of_nvidia is not None
    assert of_nvidia.name == "nvidia-open-model-license"


def test_an_edited_card_stays_unless_something_is_new(made, tmp_path):
    made()
    path = tmp_path / "out" / CARD
    path.write_text(path.read_text() + "\nMore.\n")
    assert "More." in made().content
    assert "More." not in made(model_id="org/other").content
    (tmp_path / "out" / "data" / "train-00001-of-00005.parquet").unlink()
    path.write_text(path.read_text() + "\nMore.\n")
    assert "More." not in made().content


def test_all_files_but_the_card_have_checksums(made, tmp_path):
    pytest.importorskip("faiss")
    options, store = {"dense": True, "pca": 2, "index": "flat"}, Store(tmp_path / "out")
    made(**options)
    others = ["extraction.json", "index/train-summary.faiss", MADE, PCA_FILE]
    assert read_sums(store).keys() == {*others, *done_shards(store)}
    for name in others[1:]:
        content = store.read(name)
        store.write(name, content[:-5] + b"x" + content[-4:])
        with pytest.raises(ValueError, match=f"{name}' .*{SUMS}"):
            made(**options)
        store.write(name, content)
    store.remove(others[1])
    made(**(options | {"index": None}))
    assert others[1] not in read_sums(store)
    made(**options)
    assert read_sums(store)[others[1]] == {hash_in(store, others[1])}


def test_a_later_card_tells_what_the_rows_were_made_on(made, tmp_path, monkeypatch):
    before = made().content
    later = {"date": "2099-01-01 00:00 UTC", "machine": "another", "versions": {"torch": "9.9"}}
    monkeypatch.setattr(card, "describe_run", lambda command, clock: later)
    rows = re.findall(r"^\| (?:machine|speed|versions|date) \|.*", before, re.MULTILINE)
    assert len(rows) == 4
    assert all(row in made(model_id="org/radio-tiny").content for row in rows)
    (tmp_path / "out" / MADE).unlink()
    assert not any(word in made(model_id="org/radio-tiny").content for word in ("| date |", "2099", "another"))
