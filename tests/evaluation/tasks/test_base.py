import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from refusals import refused, wrong

from modeling_radio.core.settings import SettingsError
from modeling_radio.evaluation.data_tables import TableData
from modeling_radio.evaluation.features import FeatureStore, Wanted
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.tasks.base import DENSE, Evaluation
from modeling_radio.evaluation.tasks.settings import TaskSettings


@wrong(consistency_sizes_px=[[], [64], [64, 64], [0, 64]], switching_sizes_px=[[-8, 64]])
def test_bad_settings_are_named(name, value):
    refused(name, lambda: TaskSettings(**{name: value}), SettingsError)


@pytest.fixture
def passes(monkeypatch) -> list[tuple[str, Wanted]]:
    """The passes over images that are made."""
    made = []
    extract = FeatureStore.extract

    def noted(store, model, images, fingerprint, wanted, **options):
        made.append((options["description"], wanted))
        return extract(store, model, images, fingerprint, wanted, **options)

    monkeypatch.setattr(FeatureStore, "extract", noted)
    return made


def test_one_pass_serves_all_tasks(tiny_model, data, passes):
    evaluation = Evaluation(RadioFeatures(tiny_model, size_px=16), data)
    adaptor = Wanted(adaptors=frozenset(["teacher_a"]))
    evaluation.expect("labels", adaptor)
    evaluation.expect("labels", DENSE)
    for _ in range(2):
        assert evaluation.features("labels").map(0).shape == (16, 2, 2)
        assert evaluation.features("labels", wanted=adaptor).summary("teacher_a") is not None
    assert passes == [("toy objects, test", adaptor | DENSE)]
    evaluation.features("labels", "gallery")
    evaluation.features("labels", size_px=32)
    assert [description for description, _ in passes[1:]] == ["toy objects, gallery", "toy objects, test, 32 px"]


def test_labels_and_captions_of_the_same_images_share_one_pass(tiny_model, tmp_path, passes):
    shades = [Image.new("RGB", (20, 20), (40 * number, 0, 0)) for number in range(4)]
    rows = {"image": shades, "label": ["a", "b", "a", "b"], "caption": ["one", "two", "three", "four"]}
    Dataset.from_dict(rows).cast_column("image", ImageFeature()).to_parquet(tmp_path / "x.parquet")
    evaluation = Evaluation(RadioFeatures(tiny_model, size_px=16), TableData(str(tmp_path / "x.parquet")))
    evaluation.expect("labels", Wanted())
    evaluation.expect("captions", Wanted(adaptors=frozenset(["teacher_a"])))
    evaluation.expect("images", DENSE)
    summary = evaluation.features("labels").summary()
    assert evaluation.features("captions").summary("teacher_a").shape == (4, 6)
    assert evaluation.features("images").map(1).shape == (16, 2, 2)
    assert torch.equal(evaluation.features("captions").summary(), summary)
    assert [wanted for _, wanted in passes] == [Wanted(dense=True, adaptors=frozenset(["teacher_a"]))]
