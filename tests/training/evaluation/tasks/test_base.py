import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from training.evaluation.data_tables import TableData
from training.evaluation.features import FeatureStore, Wanted
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.tasks.base import Evaluation, Task, dense


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
    evaluation.expect("labels", Wanted(adaptors=frozenset(["teacher_a"])))
    evaluation.expect("labels", dense(evaluation.model))
    for _ in range(2):
        assert evaluation.features("labels").map(0).shape == (16, 2, 2)
        assert (
            evaluation.features("labels", wanted=Wanted(adaptors=frozenset(["teacher_a"]))).summary("teacher_a")
            is not None
        )
    assert passes == [("toy objects, test", Wanted(dense=True, adaptors=frozenset(["teacher_a"])))]
    evaluation.features("labels", "gallery")
    evaluation.features("labels", size_px=32)
    assert [description for description, _ in passes[1:]] == ["toy objects, gallery", "toy objects, test, 32 px"]


def test_measurements_know_their_place_and_their_interval(pixels, data):
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


def test_sources_of_images_make_intervals_wider(pixels):
    evaluation = pixels()
    scores = (torch.arange(6) // 3).float()
    alone = evaluation.mean("task", "metric", scores, "labels")
    together = evaluation.mean("task", "metric", scores, "labels", groups=torch.arange(6) // 3)
    assert together.high - together.low > alone.high - alone.low


def test_a_task_wants_nothing_by_default(pixels):
    assert Task(lambda evaluation: [], "labels").wanted(pixels().model) == Wanted()


def test_labels_and_captions_of_the_same_images_share_one_pass(tiny_model, tmp_path, passes):
    shades = [Image.new("RGB", (20, 20), (40 * number, 0, 0)) for number in range(4)]
    rows = {"image": shades, "label": ["a", "b", "a", "b"], "caption": ["one", "two", "three", "four"]}
    features = Features({"image": ImageFeature(), "label": Value("string"), "caption": Value("string")})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    evaluation = Evaluation(RadioFeatures(tiny_model, size_px=16), TableData(str(tmp_path / "x.parquet")))
    evaluation.expect("labels", Wanted())
    evaluation.expect("captions", Wanted(adaptors=frozenset(["teacher_a"])))
    evaluation.expect("images", Wanted(dense=True))
    summary = evaluation.features("labels").summary()
    assert evaluation.features("captions").summary("teacher_a").shape == (4, 6)
    assert evaluation.features("images").map(1).shape == (16, 2, 2)
    assert torch.equal(evaluation.features("captions").summary(), summary)
    assert [wanted for _, wanted in passes] == [Wanted(dense=True, adaptors=frozenset(["teacher_a"]))]
