import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from documentation import PROJECT
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_radio1d import build_radio1d

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.metrics.results import Measurement, Results, Source
from modeling_radio.model_cards.build import build_card, check_model_id, write_card
from modeling_radio.model_cards.card import main
from modeling_radio.model_cards.licenses import License
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.model_cards.rendering import count_parameters


RESULTS = Results(
    measurements=[
        Measurement("raw pixels", "knn", "accuracy", "stamps", 0.2511),
        Measurement("student", "knn", "accuracy", "stamps", 0.4567),
        Measurement("raw pixels", "segmentation_probe", "mIoU", "scenes", 0.1001),
        Measurement("student", "segmentation_probe", "mIoU", "scenes", 0.3001),
    ],
    teachers=[
        Source("teacher_a", "summary and dense features", "MIT", "package a 1.0", hub_id="org/teacher-a"),
        Source("teacher_b", "dense features", "Apache-2.0", "package b 2.0"),
    ],
    datasets=[Source("stamps", "kNN", "GPL-2.0-or-later", "package c 3.0", "99 images of 14 classes")],
    run={"command": "make demo", "seconds": {"distil": 12.0}},
    remarks=["The kNN test set has 99 images: +-.05."],
)


def usage_code(card: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL))


def test_output_shapes_are_what_the_model_gives(checkpoint):
    text = build_card(checkpoint).content
    with torch.no_grad():
        output = RadioModel.from_pretrained(checkpoint).eval()(torch.zeros(1, 3, 32, 48))
    rows = {
        "summary": output.summary,
        "features": output.features,
        'adaptors["teacher_a"].summary': output.adaptors["teacher_a"].summary,
        'adaptors["teacher_a"].features': output.adaptors["teacher_a"].features,
        'adaptors["teacher_b"].features': output.adaptors["teacher_b"].features,
    }
    for name, tensor in rows.items():
        assert f"| `{name}` | {tuple(tensor.shape)}" in text
    assert 'adaptors["teacher_b"].summary' not in text


def numbers(text: str) -> list[str]:
    return re.findall(r"(?<![\w.-])-?\d+\.\d+", text)


def test_every_figure_is_that_of_the_results_file(checkpoint, tmp_path):
    run = {
        "settings": {"learning_rate": 0.00015, "warmup": 0.05},
        "seconds": {"distil": 12.5},
        "energy_kwh": 0.0042,
        "energy_of": "GPUs",
    }
    measurements = [*RESULTS.measurements, Measurement("student", "shift_error", "one patch", "scenes", 0.123456)]
    results = dataclasses.replace(RESULTS, measurements=measurements, run=run, remarks=[])
    dataclasses.replace(results, by_class={"a|b": {"images": 3, "f1": 0.7654}}).save(tmp_path / "results.json")
    stored = json.loads((tmp_path / "results.json").read_text())
    card = build_card(checkpoint, Results.load(tmp_path / "results.json"))
    assert {result.metric_value for result in card.data.eval_results} == {0.4567, 0.3001}
    tables = card.text.split("## Results")[1].split("### Hardware")[0]
    assert r"| a\|b | 3 | 0.765 |" in tables
    values = [*(row["value"] for row in stored["measurements"]), 0.7654]
    assert sorted(numbers(tables)) == sorted(f"{value:.3f}" for value in values)
    made = card.text.split("### Hardware")[1].split("## Limitations")[0]
    assert {float(found) for found in numbers(made)} == {0.00015, 0.05, 12.5, 0.0042}
    assert "12.5 s in all; 0.0042 kWh, counted by GPUs." in made


def test_data_sets_of_the_hub_are_named_and_have_results_in_files(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    stale = folder / ".eval_results" / "other.yaml"
    stale.parent.mkdir()
    stale.touch()
    datasets = [
        Source("stamps", "evaluation", "MIT", "hub", hub_id="org/stamps"),
        Source("photographs", "training images", "MIT", "hub", hub_id="org/photographs"),
    ]
    write_card(folder, dataclasses.replace(RESULTS, datasets=datasets), license=License("mit"))
    data = ModelCard.load(folder / "README.md").data
    assert data.datasets == ["org/photographs"]
    assert {result.dataset_type for result in data.eval_results} == {"org/stamps", "scenes"}
    (path,) = stale.parent.iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("org/stamps", "knn", 0.4567)
    assert entry.notes == "knn accuracy"


def test_a_card_without_results_says_what_the_folder_inherits(checkpoint, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    assert "### What the student inherits" not in build_card(folder).text
    hub_id = "facebook/dinov3-vit7b16-pretrain-lvd1689m"
    dino = Source("dino_v3", "features (4096)", "dinov3-license", "hub", hub_id=hub_id)
    start = Source("start", "weights", "CC-BY-NC-4.0", "org/start", hub_id="org/start")
    images = Source("org/images", "training: images", "see its origin", "hub", hub_id="org/images")
    theirs = Source("org/theirs", "images of radio", "see its origin", "hub", hub_id="org/theirs")
    Lineage([dino], [start], [images, theirs]).save(folder)
    card = build_card(folder)
    assert "| org/images | training: images |" in card.text.partition("evaluation data\n")[2].partition("##")[0]
    assert card.data.datasets == ["org/images"]
    assert "distilled, without labels, from 1 frozen teachers (dino_v3)" in card.text
    assert "| start | weights |" in card.text
    assert "it is a derivative of them" in card.text
    _, _, warnings = card.text.partition("### What the student inherits\n")
    assert re.findall(r"^- (\w+): the license", warnings, re.MULTILINE) == ["dino_v3", "start"]
    assert card.data.base_model == [hub_id]
    assert main([str(folder), "--license", "apache-2.0"]) == 0
    assert "Please note start: the license (CC-BY-NC-4.0) is for research" in capsys.readouterr().out


def test_results_and_the_folder_name_each_teacher_and_data_set_once(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    trained_on = [Source(name, "training: images", "MIT", "here") for name in ("packages", "photographs")]
    Lineage([*RESULTS.teachers, Source("one more", "features", "MIT", "here")], [], trained_on).save(folder)
    known = Source("packages", "training and evaluation: images", "MIT", "here")
    text = build_card(folder, dataclasses.replace(RESULTS, datasets=[*RESULTS.datasets, known])).text
    data = text.partition("evaluation data\n")[2].partition("##")[0]
    assert re.findall(r"^\| ([\w]+) \|", data, re.MULTILINE) == ["name", "photographs", "stamps", "packages"]
    table = text.partition("## Teachers")[2].partition("This checkpoint holds no teacher weights")[0]
    names = re.findall(r"^\| ([\w -]+) \|", table, re.MULTILINE)
    assert names == ["name", "---", *(teacher.name for teacher in RESULTS.teachers), "one more"]


def test_usage_code_runs_as_pasted_outside_the_repository(checkpoint, tmp_path, run_elsewhere):
    Image.new("RGB", (90, 60), (200, 120, 40)).save(tmp_path / "photo.jpg")
    (tmp_path / "model").symlink_to(checkpoint)
    card = build_card(checkpoint, model_id="./model").content
    code = usage_code(card)
    printed = run_elsewhere(code, tmp_path)
    assert "torch.Size([1, 32]) torch.Size([1, 16, 4, 6])" in printed
    assert "teacher_b None" in printed
    assert not (Path.cwd() / "photo.jpg").exists()


def test_metadata_and_sections_follow_from_configuration_and_results(checkpoint):
    card = build_card(checkpoint, RESULTS, model_id="org/radio-tiny")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert card.data.license is None  # nobody chose one
    assert (card.data.base_model, card.data.base_model_relation) == (["org/teacher-a"], "finetune")
    assert card.data.metrics == ["accuracy", "mean_iou"]
    counts = count_parameters(RadioConfig.from_pretrained(checkpoint))
    for line in (
        f"| Parameters of the backbone | {counts.backbone:,} + {8 * 8 * 16:,} in the position table |",
        "| Width, depth, attention heads | 16, 2, 2 |",
        "| **student** (this checkpoint) | 0.457 | 0.300 |",
        "| stamps | kNN | 99 images of 14 classes | GPL-2.0-or-later | package c 3.0 |",
        "The kNN test set has 99 images",
        "Their licenses are permissive",
    ):
        assert line in card.text
    headings = re.findall("^## (.*)", card.text, re.MULTILINE)
    assert headings[:3] == ["Usage", "Use cases", "Teachers"]
    (install,) = re.findall(r"It takes `pip install (.*)`", card.text)
    assert f'"{next(each for each in PROJECT["dependencies"] if each.startswith("transformers"))}"' in install


def test_a_radio1d_says_that_it_merges_and_decodes(tmp_path):
    model = build_radio1d(preferred_resolution=[64, 96])
    model.save_pretrained(tmp_path)
    text = build_card(tmp_path).content
    assert "plain vision transformer" not in text
    assert "| Mergings of 2 x 2 tokens | before block 1, counted from 0 |" in text
    assert "| Global tokens | at most 6 of an image of 64 x 96 px, each 32 wide |\n| Decoder | 2 blocks; " in text
    with torch.no_grad():
        output = model(torch.zeros(1, 3, 64, 96))
    assert f"| `global_tokens` | {tuple(output.global_tokens.shape)} |" in text
    assert f"| `global_summary` | {tuple(output.global_summary.shape)} |" in text
    model.config.num_tokens = 4
    model.save_pretrained(tmp_path)
    assert "| `global_tokens` | (1, 4, 32) |" in build_card(tmp_path).content


RUN = {"machine": "a machine", "seconds": {"distil": 12.0}, "energy_kwh": 0.0042, "energy_of": "GPUs"}


@pytest.mark.parametrize(
    ("others", "cost"),
    [
        ({"seeds": [0]}, "a machine; 12.0 s in all; 0.0042 kWh, counted by GPUs."),
        ({"seeds": [0, 1]}, "a machine."),
        ({"seconds": {"distil (resumed)": 12.0}}, "a machine."),
        ({"seconds": {"knn": 12.0}}, None),  # of an evaluation
    ],
)
def test_time_and_energy_are_those_of_one_whole_training(checkpoint, others, cost):
    text = build_card(checkpoint, Results([], run={**RUN, **others})).text
    assert (cost is None) == ("### Hardware" not in text) == ("How it was made" not in text)
    assert cost is None or cost in text.partition("### Hardware")[2]
    assert cost is not None or "### How the results were obtained\n" in text


def test_what_is_no_number_is_neither_published_nor_kept(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    values = {"accuracy": math.nan, "mIoU": math.inf, "f1, macro": 0.5}
    measurements = [Measurement("student", "knn", metric, "stamps", value) for metric, value in values.items()]
    run = {"seconds": {"distil": 1.0}}
    write_card(folder, Results(measurements, run=run))
    card = ModelCard.load(folder / "README.md")
    assert card.data.metrics == ["f1"]
    assert [result.metric_value for result in card.data.eval_results] == [0.5]
    assert not re.search(r"\b(nan|inf)\b", str(card), re.IGNORECASE)
    assert Results.load(folder / "results.json").measurements == measurements[2:]
    run = {"seconds": {"distil": math.inf}, "energy_kwh": math.nan, "loss": -math.inf}
    assert not re.search(r"\b(nan|inf)\b", build_card(folder, Results([], run=run)).text, re.IGNORECASE)


def test_the_command_keeps_name_results_and_license_of_the_card_it_replaces(checkpoint, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    datasets = [Source("stamps", "evaluation", "MIT", "hub", hub_id="org/stamps")]
    results = dataclasses.replace(RESULTS, datasets=datasets)
    results.save(tmp_path / "measured.json")
    assert main([str(folder), "--results", str(tmp_path / "measured.json"), "--name", "radio-mine"]) == 0
    assert "It names no license yet" in capsys.readouterr().out
    assert Results.load(folder / "results.json") == results
    before = (folder / "README.md").read_text()
    link = "https://example.org/terms"
    words = ["--license", "other", "--license-name", "my-terms", "--license-link", link]
    assert main([str(folder), *words]) == 0
    assert main([str(folder)]) == 0
    after, data = (folder / "README.md").read_text(), ModelCard.load(folder / "README.md").data
    usages = [text.partition("## Usage")[2].rpartition("<!--")[0] for text in (before, after)]
    assert usages[0] == usages[1] != ""
    assert (data.license, data.license_name, data.license_link) == ("other", "my-terms", link)
    assert (data.model_name, [path.name for path in (folder / ".eval_results").iterdir()]) == (
        "radio-mine",
        ["org--stamps.yaml"],
    )
    for others in ("---\nlicense: [\n---\n", "", "My own words.", after.replace("## Usage", "My words.\n\n## Usage")):
        (folder / "README.md").write_text(others)
        assert main([str(folder), "--license", "mit"]) == 1
        assert "--overwrite" in capsys.readouterr().err
        assert (folder / "README.md").read_text() == others
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert main([str(folder), "--license", "mit", "--overwrite"]) == 0
    assert ModelCard.load(folder / "README.md").data.license == "mit"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--license", "apache"], "`license`"),
        (["--license", "other"], "`license_name` and `license_link`"),
        (["--license", "mit", "--license-name", "mine", "--license-link", "LICENSE"], "`license_name`"),
        (["--license-name", "a: b", "--license-link", "LICENSE"], "`license_name`"),
        (["--license-name", "mine", "--license-link", "javascript:alert(1)"], "`license_link`"),
        *(
            ([f"--model-id={model_id}"], "`model_id`")
            for model_id in ('a/b"); import evil #', "name", "org/name/more", "org/", "org/a--b", "org/a.")
        ),
    ],
)
def test_what_the_hub_cannot_have_is_refused_and_nothing_is_written(checkpoint, options, message, capsys):
    before = set(checkpoint.iterdir())
    assert main([str(checkpoint), *options]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert message in errors
    assert set(checkpoint.iterdir()) == before
    for model_id in ("nvidia/C-RADIOv4-H", "a_b/c.d_e-f", None):
        check_model_id(model_id)
    with pytest.raises(ValueError, match="`model_id`"):
        check_model_id("org/a\n")


@pytest.mark.parametrize("text", [None, "{", "{}", '{"model_type": "bert"}', "[]", "[" * 100_000])
def test_another_folder_is_refused_in_one_line(text, tmp_path, capsys):
    if text is not None:
        (tmp_path / "model.safetensors").touch()
        (tmp_path / "config.json").write_text(text)
    assert main([str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert f"{tmp_path} is no " in errors
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize(
    ("change", "rule"), [(lambda weight: weight * torch.nan, "finite"), (torch.Tensor.int, "floating-point")]
)
def test_a_folder_with_unfit_weights_gets_no_card(change, rule, checkpoint, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "unfit")
    (folder / "README.md").unlink(missing_ok=True)
    weights = load_file(folder / "model.safetensors")
    key = "radio_model.model.blocks.0.attn.qkv.weight"
    save_file({**weights, key: change(weights[key])}, folder / "model.safetensors", {"format": "pt"})
    assert main([str(folder)]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert rule in errors
    assert key in errors
    assert not (folder / "README.md").exists()


def test_results_take_the_place_of_nothing_else(checkpoint, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "results.json").write_text('{"mine": 1}')
    RESULTS.save(tmp_path / "measured.json")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main([str(folder), "--results", str(tmp_path / "measured.json")]) == 1
    assert "results.json" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
