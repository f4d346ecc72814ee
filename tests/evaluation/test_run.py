"""A saved folder is opened, measured beside its baselines and described, on the user's images and on the demo's."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

import modeling_radio.metrics
from modeling_radio import RadioImageProcessor
from modeling_radio.core.files import RUN_FILE
from modeling_radio.demo.evaluation_data import DemoData
from modeling_radio.evaluation import run as evaluation_run
from modeling_radio.evaluation.models.pretrained import RANDOM_NETWORK, RAW_PIXELS
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.models.teachers import TeacherFeatures
from modeling_radio.evaluation.run import build_references, find_recipe, measured_model, run_evaluations
from modeling_radio.evaluation.settings import EvaluationSettings
from modeling_radio.metrics.results import STUDENT, Results
from modeling_radio.training.recipes.recipe import RECIPE_FILE, RecipeError, load_recipe
from modeling_radio.training.teachers.base import DEFAULT_GRID_STRIDE


def evaluate(settings: EvaluationSettings) -> Results:
    return run_evaluations(settings)[0]


@pytest.fixture
def settings(tiny_model, noisy_folders, tmp_path) -> EvaluationSettings:
    processor = RadioImageProcessor.from_model_config(tiny_model.config, size={"shortest_edge": 16})
    for part in (tiny_model, processor):
        part.save_pretrained(tmp_path / "model")
    return EvaluationSettings(
        checkpoint=tmp_path / "model",
        data=str(noisy_folders),
        tasks=["knn", "image_retrieval", "effective_rank"],
        baselines=["pixels", "random"],
        cache=tmp_path / "features",
        num_workers=0,
    )


@torch.no_grad()
def test_the_first_channels_alone_are_measured(settings):
    pixels, (whole, cut) = (
        torch.rand(1, 3, 16, 16),
        (measured_model(settings.model_copy(update={"truncate_dim": count})) for count in (None, 8)),
    )
    assert torch.equal(cut.encode(pixels).features, whole.encode(pixels).features[:, :8])


def test_a_folder_of_images_is_measured_and_described(settings, capsys, monkeypatch, tmp_path):
    results = evaluate(settings)
    knn = [found for found in results.measurements if found.task == "knn"]
    assert [found.model for found in knn] == [RAW_PIXELS, RAW_PIXELS, RANDOM_NETWORK, RANDOM_NETWORK, STUDENT, STUDENT]
    assert {found.task for found in results.measurements} == {"knn", "image_retrieval", "effective_rank"}
    assert {found.dataset for found in results.measurements} == {"noisy"}
    assert all(found.low <= found.value <= found.high for found in knn)
    assert set(results.fingerprints) == {"labels of noisy", "images of noisy", RAW_PIXELS, RANDOM_NETWORK, STUDENT}
    assert results.run["settings"]["neighbors"] == 20
    assert {"torch", "scikit-learn"} <= set(results.run["versions"])
    assert [source.name for source in results.datasets] == ["noisy"]
    assert "21 images measured, 42 to learn from" in results.remarks[0]
    assert f"  {knn[0].model}: {knn[0].metric} {knn[0].value:.3f}" in capsys.readouterr().out
    path = tmp_path / "results.json"
    results.save(path)
    content = json.loads(path.read_text())
    schema = json.loads((Path(modeling_radio.metrics.__file__).parent / "results.schema.json").read_text())
    jsonschema.validate(content, schema)
    assert Results.load(path).measurements == results.measurements
    content["measurements"][0]["value"] = "much"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)
    monkeypatch.delattr(RadioFeatures, "encode")  # a second time the features are on disk
    assert evaluate(settings).measurements == results.measurements


def test_bad_settings_are_refused_before_anything_is_extracted(settings, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(Path(str(settings.data)) / "test" / "ant", flat)
    for changes, message in [
        ({"tasks": ["knn", "segmentation_probe"]}, "`data` .* must have masks"),
        ({"data": str(flat), "tasks": None}, "`data` .* must have labels"),
        ({"size": 30}, "`size`"),
        ({"compare": ["nobody/nothing"]}, "`compare` 'nobody/nothing'"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate(settings.replace(**changes))
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("name", ["there.txt", "model/config.json", "model"])
def test_only_results_are_replaced_by_results(settings, name, tmp_path):
    (tmp_path / "there.txt").write_text("precious")
    path = tmp_path / name
    before = path.read_text() if path.is_file() else None
    with pytest.raises(ValueError, match=f"`output` .*{name}"):
        evaluate(settings.replace(output=path))
    assert path.is_dir() if before is None else path.read_text() == before


def test_the_images_of_a_recipe_are_the_default(settings, data, monkeypatch):
    sizes = []
    monkeypatch.setattr(DemoData, "load", lambda source, size: sizes.append((source, size)) or data)
    chosen = settings.replace(data=None, tasks=["knn", "knn"], size=32, baselines=["pixels"], neighbors=4)
    results = evaluate(chosen.replace(recipe="demo"))
    assert sizes == [("demo", 32)]
    assert {found.model for found in results.measurements} == {RAW_PIXELS, STUDENT}
    assert len(set(results.measurements)) == len(results.measurements)
    assert list(results.run["seconds"]) == ["knn"]
    words = shlex.split(results.run["command"])
    assert words[:3] == ["radio", "evaluate", settings.checkpoint.name]
    assert {'tasks=["knn", "knn"]', "size=32", "neighbors=4", "recipe=demo"} <= set(words)
    assert results.remarks == data.remarks(4)


def test_a_set_of_ones_own_is_named_by_its_function(settings):
    results = evaluate(settings.replace(data="own_set:open_colors", tasks=["knn"], baselines=["pixels"], neighbors=1))
    assert {found.value for found in results.measurements if found.model == RAW_PIXELS} == {1.0}
    assert [source.name for source in results.datasets] == ["colors"]
    assert results.remarks == ["Eight squares."]
    for data in ("own_set:open_nothing", "own_set:torch", "own_set:missing", "no_set:open_colors"):
        with pytest.raises(ValueError, match=f"`data`.*'{data}'"):
            evaluate(settings.replace(data=data))


def test_other_models_stand_in_the_same_table(settings, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dino")
    BitImageProcessor(size={"shortest_edge": 40}, crop_size=32).save_pretrained(tmp_path / "dino")
    names = [str(tmp_path / "dino"), "timm-random:test_vit"]
    chosen = settings.replace(compare=names, tasks=["knn", "resolution_consistency"], consistency_sizes_px=[32, 64])
    results = evaluate(chosen)
    assert 'compare=["dino", "timm-random:test_vit"]' in shlex.split(results.run["command"])
    measured = results.measurements
    of_task = {task: [found.model for found in measured if found.task == task] for task in chosen.tasks}
    assert list(dict.fromkeys(of_task["knn"])) == [RAW_PIXELS, RANDOM_NETWORK, *names, STUDENT]
    assert list(dict.fromkeys(of_task["resolution_consistency"])) == [*names, STUDENT]
    values = {found.model: found.value for found in measured if found.task == "knn" and found.metric == "accuracy"}
    assert len(set(values.values())) > 1


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"tasks": ["knn", "adaptor_fidelity"]}, "recipe"),
        ({"data": None}, "recipe"),
        ({"changes": ["seed=3"]}, "changes"),
    ],
)
def test_a_recipe_is_asked_for_where_one_is_needed(settings, changes, argument):
    with pytest.raises(RecipeError, match=f"`{argument}` .*--recipe"):
        evaluate(settings.replace(**changes))


def test_a_recipe_is_only_read_if_it_is_needed(settings):
    folder = settings.checkpoint.parent
    (folder / RECIPE_FILE).write_text("base: demo\nseed: 5\n")
    needy = settings.replace(tasks=["knn", "model_similarity"])
    with pytest.raises(RecipeError, match="`recipe`"):  # of whom it is, nobody knows
        find_recipe(needy)
    (folder / RUN_FILE).touch()
    assert find_recipe(settings) is None
    for chosen in (needy, settings.replace(data=None)):
        assert find_recipe(chosen.replace(changes=["seed=7"])).seed == 7
        assert find_recipe(chosen).seed == 5
    (folder / RECIPE_FILE).write_text("base: demo\nloss: {features: 'own_loss:squared'}\n")
    with pytest.raises(RecipeError, match="--trust-remote-code"):
        find_recipe(needy)


def test_teachers_are_those_of_the_recipe_that_have_an_adaptor(tiny_model, monkeypatch):
    model = RadioFeatures(tiny_model, size_px=16)
    with pytest.raises(RecipeError, match=r"'demo' has no teacher of .*--recipe"):
        build_references(model, load_recipe("demo"))
    first = SimpleNamespace(name="teacher_b")
    asked = []

    def build(entries, grid_stride):
        asked.append((entries, grid_stride))
        return {entry.name: torch.nn.Identity() for entry in entries}

    monkeypatch.setattr(evaluation_run, "build_teachers", build)
    teachers = build_references(model, SimpleNamespace(name="mine", teachers=[first, SimpleNamespace(name="other")]))
    assert list(teachers) == ["teacher_b"]
    assert isinstance(teachers["teacher_b"], TeacherFeatures)
    assert asked == [([first], model.patch_size)]
    assert model.patch_size != DEFAULT_GRID_STRIDE
