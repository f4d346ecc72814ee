"""A saved folder is opened, measured beside its baselines and described, on anybody's images and on the demo's."""

import json
import shlex
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from killing import run_until
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

import model_cards
from model_cards.results import STUDENT, Results
from modeling_radio import RadioImageProcessor
from training.evaluate import main
from training.evaluation import features
from training.evaluation import run as evaluation_run
from training.evaluation.demo_data import DemoData
from training.evaluation.models.pretrained import RANDOM_VIT, RAW_PIXELS
from training.evaluation.models.radio import RadioFeatures, open_radio
from training.evaluation.models.teachers import TeacherFeatures
from training.evaluation.opening import open_data
from training.evaluation.run import build_references, evaluate
from training.evaluation.settings import EvaluationSettings
from training.recipe import RecipeError, load_recipe
from training.teachers.base import DEFAULT_GRID_STRIDE


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    processor = RadioImageProcessor.from_model_config(tiny_model.config, size={"shortest_edge": 16})
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def settings(folder, noisy_folders, tmp_path) -> EvaluationSettings:
    return EvaluationSettings(
        checkpoint=folder,
        data=str(noisy_folders),
        tasks=["knn", "image_retrieval", "effective_rank"],
        baselines=["pixels", "random"],
        cache=tmp_path / "features",
        num_workers=0,
    )


def test_a_folder_of_images_is_measured_and_described(settings, capsys):
    results = evaluate(settings, load_recipe("demo"))
    assert [found.model for found in results.measurements if found.task == "knn"] == [
        *[RAW_PIXELS] * 2,
        *[RANDOM_VIT] * 2,
        *[STUDENT] * 2,
    ]
    assert {found.task for found in results.measurements} == {"knn", "image_retrieval", "effective_rank"}
    assert {found.dataset for found in results.measurements} == {"noisy"}
    knn = [found for found in results.measurements if found.task == "knn"]
    assert all(found.low <= found.value <= found.high for found in knn)
    assert set(results.fingerprints) == {"labels of noisy", "images of noisy", RAW_PIXELS, RANDOM_VIT, STUDENT}
    assert results.run["settings"]["neighbors"] == 20
    assert results.run["settings"]["random_seed"] == 0
    assert {"torch", "scikit-learn"} <= set(results.run["versions"])
    assert [source.name for source in results.datasets] == ["noisy"]
    assert "21 images measured, 42 to learn from" in results.remarks[0]
    printed = capsys.readouterr().out
    assert "knn" in printed
    assert f"  {knn[0].model}: {knn[0].metric} {knn[0].value:.3f}" in printed


def test_a_second_time_the_features_are_there(settings, monkeypatch):
    first = evaluate(settings, load_recipe("demo"))

    def encode(self, pixels, adaptors=()):
        raise AssertionError("extracted again")

    monkeypatch.setattr(RadioFeatures, "encode", encode)
    assert evaluate(settings, load_recipe("demo")).measurements == first.measurements


def test_the_file_is_as_its_schema_says(settings, tmp_path):
    path = tmp_path / "results.json"
    evaluate(settings, load_recipe("demo")).save(path)
    content = json.loads(path.read_text())
    schema = json.loads((Path(model_cards.__file__).parent / "results.schema.json").read_text())
    jsonschema.validate(content, schema)
    assert {"task", "metric", "value", "low", "high"} <= set(content["measurements"][0])
    content["measurements"][0]["value"] = "much"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)
    assert Results.load(path).measurements


def test_what_the_data_lack_is_refused_before_anything_is_extracted(settings, tmp_path):
    with pytest.raises(ValueError, match=r"must have masks for these tasks, got images, photographs, labels only"):
        evaluate(settings.replace(tasks=["knn", "segmentation_probe"]), load_recipe("demo"))
    flat = tmp_path / "flat"
    shutil.copytree(Path(str(settings.data)) / "test" / "ant", flat)
    with pytest.raises(ValueError, match=r"must have labels for these tasks, got images, photographs only"):
        evaluate(settings.replace(data=str(flat), tasks=None), load_recipe("demo"))
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("name", ["there.txt", "model/config.json", "model"])
def test_only_results_are_replaced_by_results(settings, name, tmp_path):
    (tmp_path / "there.txt").write_text("precious")
    path = tmp_path / name
    before = path.read_text() if path.is_file() else None
    with pytest.raises(
        ValueError, match=rf"`output` must be a new file or earlier results, got '.*{name}', which holds"
    ):
        evaluate(settings.replace(output=path), load_recipe("demo"))
    assert path.is_dir() if before is None else path.read_text() == before


def test_a_size_that_the_model_does_not_take(settings):
    with pytest.raises(ValueError, match=r"`size` must have sides that are multiples of 8 .* got 30 x 30"):
        evaluate(settings.replace(size=30), load_recipe("demo"))


def test_the_demos_set_is_the_default(settings, data, monkeypatch):
    sizes = []
    monkeypatch.setattr(DemoData, "load", lambda source, size: sizes.append((source, size)) or data)
    chosen = settings.replace(data=None, tasks=["knn", "knn"], size=32, baselines=["pixels"], neighbors=4)
    results = evaluate(chosen, load_recipe("demo"))
    assert sizes == [("demo", 32)]
    assert {found.model for found in results.measurements} == {RAW_PIXELS, STUDENT}
    assert len(set(results.measurements)) == len(results.measurements)
    assert list(results.run["seconds"]) == ["knn"]
    assert results.run["command"] == f"python -m training.evaluate {settings.checkpoint} --tasks knn"
    assert results.remarks == data.remarks(4)


def test_baselines_are_measured_on_the_models_device(settings):
    model = RadioFeatures(open_radio(settings.checkpoint).model.to("meta"), size_px=16)
    assert [each.device.type for each in evaluation_run._baselines(settings, model)] == ["meta", "meta"]


def test_images_of_a_recipe_are_measured_with_the_settings_for_all(folder, noisy_folders, tmp_path):
    """Not with the demo's five neighbors."""
    chosen = EvaluationSettings(
        checkpoint=folder, tasks=["knn"], baselines=[], cache=tmp_path / "features", num_workers=0
    )
    results = evaluate(chosen, load_recipe("demo", [f"data.source={noisy_folders}"]))
    assert results.run["settings"]["neighbors"] == 20


def test_teachers_are_those_of_the_recipe_that_have_an_adaptor(tiny_model, monkeypatch):
    model = RadioFeatures(tiny_model, size_px=16)
    with pytest.raises(RecipeError, match=r"'demo' names none of .* \['teacher_a', 'teacher_b'\]: give the --recipe"):
        build_references(model, load_recipe("demo"))
    first = SimpleNamespace(name="teacher_b")
    recipe = SimpleNamespace(name="mine", teachers=[first, SimpleNamespace(name="other")])
    asked, strides = [], []

    def build(entries, grid_stride):
        asked.extend(entries)
        strides.append(grid_stride)
        return {entry.name: torch.nn.Identity() for entry in entries}

    monkeypatch.setattr(evaluation_run, "build_teachers", build)
    teachers = build_references(model, recipe)
    assert list(teachers) == ["teacher_b"]
    assert isinstance(teachers["teacher_b"], TeacherFeatures)
    assert asked == [first]
    assert strides == [model.patch_size] != [DEFAULT_GRID_STRIDE]


def test_the_command_prints_and_writes(folder, noisy_folders, tmp_path, capsys):
    output = tmp_path / "out" / "results.json"
    arguments = ["--data", str(noisy_folders), "--tasks", "knn", "--output", str(output), "--num-workers", "0"]
    assert main([str(folder), *arguments, "--cache", str(tmp_path / "cache"), "--neighbors", "3"]) == 0
    printed = capsys.readouterr().out
    assert "| student" in printed
    assert " images measured, " in printed or " images without a split" in printed
    assert printed.endswith(f"\n\nWrote {output} and {output.with_suffix('.html')}.\n")
    assert Results.load(output).run["settings"]["neighbors"] == 3
    assert main([str(folder), *arguments, "--label-column", "lable"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"evaluate: error: {str(noisy_folders)!r} has no column 'lable'. Did you mean 'label'?")


@pytest.fixture
def dino_folder(tmp_path) -> Path:
    """A tiny DINOv2 as transformers saves one, whose processor cuts off borders."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dino")
    BitImageProcessor(size={"shortest_edge": 40}, crop_size=32).save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


def test_other_models_stand_in_the_same_table(settings, dino_folder):
    names = [str(dino_folder), "timm-random:test_vit"]
    chosen = settings.replace(compare=names, tasks=["knn", "resolution_consistency"], consistency_sizes_px=[32, 64])
    results = evaluate(chosen, load_recipe("demo"))
    assert shlex.split(results.run["command"])[-2:] == ["--compare", ",".join(names)]
    measured = results.measurements
    of_task = {task: [found.model for found in measured if found.task == task] for task in chosen.tasks}
    assert list(dict.fromkeys(of_task["knn"])) == [RAW_PIXELS, RANDOM_VIT, *names, STUDENT]
    assert list(dict.fromkeys(of_task["resolution_consistency"])) == [*names, STUDENT]
    values = {found.model: found.value for found in measured if found.task == "knn" and found.metric == "accuracy"}
    assert len(set(values.values())) > 1


def test_a_model_that_cannot_be_opened_is_named(settings):
    with pytest.raises(ValueError, match="`compare` 'nobody/nothing' does not open"):
        evaluate(settings.replace(compare=["nobody/nothing"]), load_recipe("demo"))


def test_the_command_writes_a_page_beside_the_numbers(folder, noisy_folders, dino_folder, tmp_path):
    output = tmp_path / "out" / "results.json"
    words = [str(folder), "--data", str(noisy_folders), "--compare", str(dino_folder)]  # classes: kNN alone
    words += ["--output", str(output), "--cache", str(tmp_path / "features"), "--num-workers", "0"]
    assert main(words) == 0
    page = output.with_suffix(".html").read_text()
    assert page.count("<img ") == 4 * (1 + 3) + 4 * 3 * (1 + 5)  # colors and neighbors of three models
    assert str(dino_folder) in page
    assert main(words) == 0  # replaces its own page
    output.with_suffix(".html").write_text("precious")
    assert main(words) == 1
    assert output.with_suffix(".html").read_text() == "precious"
    output.with_suffix(".html").unlink()
    assert main([*words, "--no-report"]) == 0
    assert not output.with_suffix(".html").exists()


def test_what_evaluate_saves_agrees_with_the_results_file(settings, folder, tmp_path):
    evaluate_package = pytest.importorskip("evaluate")
    metrics = Path(evaluation_run.__file__).parent / "metrics"
    path = tmp_path / "results.json"
    chosen = settings.replace(neighbors=5, tasks=["knn", "image_retrieval"], baselines=[], recall_at=[2])
    evaluate(chosen, load_recipe("demo")).save(path)
    model, data = open_radio(folder), open_data(str(chosen.data), chosen, size_px=16, seed=0)
    part = data.part("labels")
    with torch.no_grad():
        queries, gallery = (
            torch.stack(
                [model.encode(model.preprocess(images[index])[None]).summary[0] for index in range(len(images))]
            )
            for images in (part.test.images, part.gallery.images)
        )
    rows = {"predictions": queries.numpy(), "references": part.test.labels.numpy()}
    stored = {"gallery": gallery, "gallery_labels": part.gallery.labels}
    answers = {
        **evaluate_package.load(str(metrics / "knn_accuracy.py")).compute(**rows, **stored, k=5),
        **evaluate_package.load(str(metrics / "image_retrieval.py")).compute(**rows, **stored, ranks=[2]),
    }
    saved = json.loads(evaluate_package.save(tmp_path / "saved.json", **answers).read_text())
    measured = {(found.task, found.metric): found.value for found in Results.load(path).measurements}
    assert saved["knn_accuracy"] == pytest.approx(measured["knn", "accuracy"])
    for metric in ("mAP", "hit rate@2", "recall@2"):
        # One image at a time is rounded otherwise than a batch: what is nearly equally alike may change places.
        assert saved[metric] == pytest.approx(measured["image_retrieval", metric], rel=1e-3)
    assert 0.34 < saved["knn_accuracy"] < 1


def test_a_command_that_is_killed_twice_goes_on_and_says_the_same(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 8)
    settings = settings.replace(tasks=["knn"], baselines=[])
    undisturbed = evaluate(settings.replace(cache=tmp_path / "undisturbed"), load_recipe("demo"))
    encode, encoded = RadioFeatures.encode, []

    def slow(self, pixels, adaptors=()):
        encoded.append(len(pixels))
        time.sleep(0.02)
        return encode(self, pixels, adaptors)

    monkeypatch.setattr(RadioFeatures, "encode", slow)
    for num_chunks in (2, 5):
        chunks = lambda n=num_chunks: len(list((tmp_path / "features").glob("*/*.safetensors"))) >= n  # noqa: E731
        assert run_until(lambda: evaluate(settings, load_recipe("demo")), chunks) == 9
    assert evaluate(settings, load_recipe("demo")).measurements == undisturbed.measurements
    assert 0 < sum(encoded) <= 21 + 42 - 5 * 8 + 3  # what five chunks hold was there; the last of a split has 5 images
