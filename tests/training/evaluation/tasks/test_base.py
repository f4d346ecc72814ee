import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from modeling_radio.core.settings import SettingsError
from modeling_radio.training.evaluation.data_tables import TableData
from modeling_radio.training.evaluation.features import FeatureStore, Wanted
from modeling_radio.training.evaluation.models.radio import RadioFeatures
from modeling_radio.training.evaluation.settings import TaskSettings
from modeling_radio.training.evaluation.tasks.base import DENSE, Evaluation


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("consistency_sizes_px", sizes) for sizes in ([], [64], [64, 64], [0, 64])],
        ("switching_sizes_px", [-8, 64]),
        ("recall_at", [0, 5]),
    ],
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(SettingsError, match=f"`{name}`"):
        TaskSettings(**{name: value})


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


def test_measurements_have_their_row_and_their_interval(pixels):
    evaluation = pixels()
    evaluation.seed = 4
    scores = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    found = evaluation.mean("task", "metric", scores, "labels")
    assert (found.model, found.dataset, found.seed) == ("raw pixels", "toy objects", 4)
    assert found.value == pytest.approx(4 / 6)
    assert found.low < found.value < found.high
    sums = torch.stack([scores, torch.ones(6)], dim=1)
    ratio = evaluation.of_sums("task", "metric", sums, lambda each: each[..., 0] / each[..., 1], "labels")
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((found.value, found.low, found.high))


def test_a_few_images_over_the_whole_set_are_shown(pixels):
    assert pixels().shown("labels") == [0, 2, 3, 5]
    assert pixels().shown("masks") == [0, 1, 2, 3]
