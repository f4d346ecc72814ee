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
from markdown_it import MarkdownIt
from PIL import Image
from tiny_radio1d import build_radio1d

from model_cards.build import build_card, check_model_id, main, write_card
from model_cards.heritage import Heritage
from model_cards.licenses import License
from model_cards.rendering import count_parameters
from model_cards.results import Measurement, Results, Source
from modeling_radio import RadioConfig, RadioModel


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


def test_metadata_describes_the_checkpoint(checkpoint):
    data = build_card(checkpoint, RESULTS, model_id="org/radio-tiny").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert data.license is None  # nobody chose one
    assert (data.base_model, data.base_model_relation) == (["org/teacher-a"], "finetune")
    assert data.metrics == ["accuracy", "mean_iou"]
    found = {(result.task_type, result.metric_value, result.dataset_name) for result in data.eval_results}
    assert found == {("image-classification", 0.4567, "stamps"), ("image-segmentation", 0.3001, "scenes")}


def test_numbers_come_from_the_configuration(checkpoint):
    text = build_card(checkpoint).content
    model = RadioModel.from_pretrained(checkpoint)
    total = sum(parameter.numel() for parameter in model.parameters())
    counts = count_parameters(model.config)
    assert counts.backbone + counts.position_table + sum(counts.adaptors.values()) == total
    assert f"| Parameters of the backbone | {counts.backbone:,} + {8 * 8 * 16:,} in the position table |" in text
    assert "| Width, depth, attention heads | 16, 2, 2 |" in text
    assert "Not measured." in text
    assert "is a RADIO vision backbone: one plain vision transformer.\n" in text


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


def test_a_radio1d_says_that_it_merges_and_decodes(tmp_path):
    model = build_radio1d(preferred_resolution=[64, 96])
    model.save_pretrained(tmp_path)
    text = build_card(tmp_path).content
    merging = (
        "one RADIO1D, a vision transformer that merges patches into global tokens, with a decoder back to one token"
    )
    assert f"{merging} a patch.\n" in text
    taught = build_card(tmp_path, dataclasses.replace(RESULTS, teachers=RESULTS.teachers[:1])).content
    assert f"{merging} a patch, distilled, without labels, from 1 frozen teachers" in taught
    assert "plain vision transformer" not in text
    assert "prefix tokens, which merges patches into global tokens, and a decoder back to one token a patch." in text
    assert "| Mergings of 2 x 2 tokens | before block 1, counted from 0 |" in text
    assert "| Global tokens | at most 6 of an image of 64 x 96 px, each 32 wide |\n| Decoder | 2 blocks; " in text
    assert "tokens are split before block 1, counted from 0 |\n| Class tokens, registers |" in text
    with torch.no_grad():
        output = model(torch.zeros(1, 3, 64, 96))
    assert f"| `global_tokens` | {tuple(output.global_tokens.shape)} |" in text
    assert f"| `global_summary` | {tuple(output.global_summary.shape)} |" in text
    model.config.num_tokens = 4
    model.save_pretrained(tmp_path)
    assert "| `global_tokens` | (1, 4, 32) |" in build_card(tmp_path).content


def test_results_sources_and_remarks_are_listed(checkpoint):
    text = build_card(checkpoint, RESULTS).content
    assert "| model | knn accuracy | segmentation_probe mIoU |" in text
    assert "| **student** (this checkpoint) | 0.457 | 0.300 |" in text
    assert "| raw pixels | 0.251 | 0.100 |" in text
    assert "| stamps | kNN | 99 images of 14 classes | GPL-2.0-or-later | package c 3.0 |" in text
    assert "The kNN test set has 99 images" in text
    assert "| seconds | distil 12.0 |" in text
    assert "### How it was made" in text
    assert "12.0 s in all.\n" in text
    assert "energy" not in text.lower()  # nothing was measured


def test_intervals_are_explained_where_there_are_any(checkpoint):
    bounded = [dataclasses.replace(each, low=each.value - 0.1, high=each.value + 0.1) for each in RESULTS.measurements]
    explained = "In brackets: 95 % intervals over resampled images."
    assert explained in build_card(checkpoint, dataclasses.replace(RESULTS, measurements=bounded)).text
    assert explained not in build_card(checkpoint, RESULTS).text


def test_code_comes_before_everything_that_is_measured(checkpoint):
    headings = re.findall("^## (.*)", build_card(checkpoint, RESULTS).text, re.MULTILINE)
    assert headings[:3] == ["Model overview", "Usage", "Teachers"]


def test_what_the_code_takes_is_what_the_package_does(checkpoint):
    (line,) = re.findall(r"It takes `pip install (.*)`", build_card(checkpoint).text)
    (wanted,) = [each for each in PROJECT["dependencies"] if each.startswith("transformers")]
    assert f'"{wanted}"' in line


def test_a_name_that_is_missing_is_explained_and_only_then(checkpoint):
    assert "`ORG/NAME` stands for the name" in build_card(checkpoint).text
    assert "stands for the name" not in build_card(checkpoint, model_id="org/name").text


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
    dataclasses.replace(RESULTS, measurements=measurements, run=run, remarks=[]).save(tmp_path / "results.json")
    stored = json.loads((tmp_path / "results.json").read_text())
    card = build_card(checkpoint, Results.load(tmp_path / "results.json"))
    assert {result.metric_value for result in card.data.eval_results} == {0.4567, 0.3001}
    tables = card.text.split("## Results")[1].split("### Hardware")[0]
    assert sorted(numbers(tables)) == sorted(f"{row['value']:.3f}" for row in stored["measurements"])
    made = card.text.split("### Hardware")[1].split("## Limitations")[0]
    assert {float(found) for found in numbers(made)} == {0.00015, 0.05, 12.5, 0.0042}
    assert "12.5 s in all; 0.0042 kWh, counted by GPUs." in made


@pytest.mark.parametrize("others", [{"seconds": {"distil (resumed)": 12.0}}, {"seeds": [0, 1]}])
def test_time_and_energy_are_left_out_where_they_are_not_those_of_one_training(checkpoint, others):
    run = {"machine": "a machine", "seconds": {"distil": 12.0}, "energy_kwh": 0.0042, "energy_of": "GPUs"}
    assert "a machine; 12.0 s in all; 0.0042 kWh" in build_card(checkpoint, Results([], run={**run, "seeds": [0]})).text
    text = build_card(checkpoint, Results([], run={**run, **others})).text.partition("### Hardware")[2]
    assert "a machine.\n" in text
    assert not any(word in text for word in ("12.0", "0.0042", "energy"))


def test_a_measuring_run_is_not_presented_as_the_making_of_the_model(checkpoint):
    run = {
        "command": "python -m training.evaluate runs/mine/final --tasks knn",
        "machine": "a machine",
        "seconds": {"knn": 12.0},
        "energy_kwh": 0.0042,
        "energy_of": "GPUs",
    }
    text = build_card(checkpoint, Results([], run=run)).text
    assert "### Hardware" not in text
    assert "How it was made" not in text
    obtained = text.partition("### How the results were obtained\n")[2].partition("## Limitations")[0]
    assert "| command | python -m training.evaluate runs/mine/final --tasks knn |" in obtained
    assert "| seconds | knn 12.0 |" in obtained


def test_what_is_no_number_is_not_published(checkpoint):
    values = {"accuracy": math.nan, "mIoU": math.inf, "AUROC, ViM": 0.5}
    measurements = [Measurement("student", "knn", metric, "stamps", value) for metric, value in values.items()]
    run = {"seconds": {"distil": math.inf}, "energy_kwh": math.nan, "loss": -math.inf}
    card = build_card(checkpoint, Results(measurements, run=run))
    assert card.data.metrics == ["roc_auc"]
    assert [result.metric_value for result in card.data.eval_results] == [0.5]
    assert not re.search(r"\b(nan|inf)\b", str(card), re.IGNORECASE)


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


def test_what_teachers_licenses_ask_is_said(checkpoint):
    permissive = build_card(checkpoint, RESULTS).text
    assert "Their licenses are permissive" in permissive
    teachers = [*RESULTS.teachers, Source("sam3", "dense features", "SAM License", "hub")]
    text = build_card(checkpoint, dataclasses.replace(RESULTS, teachers=teachers)).text
    assert "The terms of sam3 (SAM License) may have a say" in text


def test_a_card_without_results_says_what_the_folder_inherits(checkpoint, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    assert "### What the student inherits" not in build_card(folder).text
    hub_id = "facebook/dinov3-vit7b16-pretrain-lvd1689m"
    dino = Source("dino_v3", "features (4096)", "dinov3-license", "hub", hub_id=hub_id)
    start = Source("start", "weights", "CC-BY-NC-4.0", "org/start", hub_id="org/start")
    images = Source("org/images", "training: images", "see its origin", "hub", hub_id="org/images")
    theirs = Source("org/theirs", "images of radio", "see its origin", "hub", hub_id="org/theirs")
    Heritage([dino], [start], [images, theirs]).save(folder)
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
    assert "Mind start: the license (CC-BY-NC-4.0) is for research" in capsys.readouterr().out


def test_results_and_the_folder_name_each_teacher_and_data_set_once(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    trained_on = [Source(name, "training: images", "MIT", "here") for name in ("packages", "photographs")]
    Heritage([*RESULTS.teachers, Source("one more", "features", "MIT", "here")], [], trained_on).save(folder)
    known = Source("packages", "training and evaluation: images", "MIT", "here")
    text = build_card(folder, dataclasses.replace(RESULTS, datasets=[*RESULTS.datasets, known])).text
    data = text.partition("evaluation data\n")[2].partition("##")[0]
    assert re.findall(r"^\| ([\w]+) \|", data, re.MULTILINE) == ["name", "photographs", "stamps", "packages"]
    table = text.partition("## Teachers")[2].partition("No teacher weights")[0]
    names = re.findall(r"^\| ([\w -]+) \|", table, re.MULTILINE)
    assert names == ["name", "---", *(teacher.name for teacher in RESULTS.teachers), "one more"]


def test_the_license_is_asked_for_once(checkpoint, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    assert main([str(folder)]) == 0
    assert "It names no license yet" in capsys.readouterr().out
    link = "https://example.org/terms"
    words = [str(folder), "--license", "other", "--license-name", "my-terms", "--license-link", link]
    assert main(words) == 0
    assert main([str(folder)]) == 0  # the card that is replaced knew it
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.license_name, data.license_link) == ("other", "my-terms", link)


def test_another_license_keeps_the_results(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    datasets = [Source("stamps", "evaluation", "MIT", "hub", hub_id="org/stamps")]
    write_card(folder, dataclasses.replace(RESULTS, datasets=datasets), name="radio-mine")
    before = (folder / "README.md").read_text()
    assert main([str(folder), "--license", "mit"]) == 0
    after = (folder / "README.md").read_text()
    assert after.partition("### Use cases")[2] == before.partition("### Use cases")[2]
    assert "| **student** (this checkpoint) | 0.457 | 0.300 |" in after
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.model_name) == ("mit", "radio-mine")
    assert "\n# radio-mine\n" in after
    assert [path.name for path in (folder / ".eval_results").iterdir()] == ["org--stamps.yaml"]


def test_a_damaged_card_is_written_anew(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert main([str(folder), "--license", "mit"]) == 0
    assert ModelCard.load(folder / "README.md").data.license == "mit"


def test_what_is_no_number_is_not_kept(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    broken = dataclasses.replace(RESULTS.measurements[0], value=float("nan"))
    write_card(folder, dataclasses.replace(RESULTS, measurements=[broken, *RESULTS.measurements[1:]]))
    assert main([str(folder), "--license", "mit"]) == 0
    assert Results.load(folder / "results.json").measurements == RESULTS.measurements[1:]


def test_results_take_the_place_of_nothing_else(checkpoint, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "results.json").write_text('{"mine": 1}')
    RESULTS.save(tmp_path / "measured.json")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main([str(folder), "--results", str(tmp_path / "measured.json")]) == 1
    assert f"{folder / 'results.json'} is no results file" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--license", "apache"], "`license` must be one of"),
        (["--license", "other"], "`license_name` and `license_link` must be given"),
        (["--license", "mit", "--license-name", "mine", "--license-link", "LICENSE"], "and only there"),
        (["--license-name", "a: b", "--license-link", "LICENSE"], "`license_name` must be lower-case"),
        (["--license-name", "mine", "--license-link", "javascript:alert(1)"], "`license_link` must be an address"),
    ],
)
def test_a_license_that_the_hub_cannot_show_is_refused(checkpoint, options, message, capsys):
    before = set(checkpoint.iterdir())
    assert main([str(checkpoint), *options]) == 1
    assert message in capsys.readouterr().err
    assert set(checkpoint.iterdir()) == before


def test_code_names_the_hub_and_never_a_folder(checkpoint):
    code = usage_code(build_card(checkpoint).text)
    assert set(re.findall(r'(?:from_pretrained\(|model=)"([^"]*)"', code)) == {"ORG/NAME"}
    assert str(checkpoint) not in str(build_card(checkpoint, RESULTS))


def test_a_task_model_is_filed_under_its_task(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    RadioConfig.from_pretrained(folder, architectures=["RadioForDepthEstimation"]).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["RadioForDepthEstimation"]}
    (folder / "config.json").write_text(json.dumps(config))
    card = build_card(folder)
    assert card.data.pipeline_tag == "depth-estimation"
    assert 'pipeline("depth-estimation", model="ORG/NAME", trust_remote_code=True)' in card.text


def test_the_picture_is_shown_where_there_is_one(checkpoint):
    assert "features.png" not in build_card(checkpoint).content
    (checkpoint / "features.png").touch()
    try:
        assert "](features.png)" in build_card(checkpoint).content
    finally:
        (checkpoint / "features.png").unlink()


def test_what_native_transformers_does_otherwise_is_named(checkpoint, tmp_path):
    assert "native `RadioModel` with the same backbone outputs" in build_card(checkpoint).content
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    config = RadioConfig.from_pretrained(folder, pos_embed_align_corners=True, use_final_norm=True)
    config.save_pretrained(folder)
    text = build_card(folder).content
    assert "The reason:\na position table resized with aligned corners; a final norm. Adaptors" in text
    assert "same backbone outputs" not in text


def test_command_writes_a_valid_card_its_results_and_nothing_else(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "radio-tiny")
    before = set(folder.iterdir())
    RESULTS.save(tmp_path / "results.json")
    assert main([str(folder), "--results", str(tmp_path / "results.json")]) == 0
    assert set(folder.iterdir()) - before <= {folder / "README.md", folder / "results.json"}
    assert Results.load(folder / "results.json") == RESULTS
    assert ModelCard.load(folder / "README.md").data.model_name == "radio-tiny"


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert f"{tmp_path} is no checkpoint folder" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "bert"}', "[]", "5", "[" * 100_000])
def test_another_models_configuration_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="is no RADIO checkpoint folder"):
        build_card(tmp_path)


def test_usage_code_runs_as_pasted_outside_the_repository(checkpoint, tmp_path, run_elsewhere):
    Image.new("RGB", (90, 60), (200, 120, 40)).save(tmp_path / "photo.jpg")
    (tmp_path / "model").symlink_to(checkpoint)
    card = build_card(checkpoint, model_id="./model").content
    code = usage_code(card)
    printed = run_elsewhere(code, tmp_path)
    assert "torch.Size([1, 32]) torch.Size([1, 16, 4, 6])" in printed
    assert "teacher_b None" in printed
    assert not (Path.cwd() / "photo.jpg").exists()


@pytest.mark.parametrize(
    "model_id",
    ['a/b"); import evil #', "name", "org/name/more", "org/", "/name", "org/na me", "org/a--b", "org/a.", "./x"],
)
def test_a_name_that_the_hub_cannot_have_is_refused(model_id, checkpoint, capsys):
    (checkpoint / "README.md").unlink(missing_ok=True)
    assert main([str(checkpoint), f"--model-id={model_id}"]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "build: error: `model_id` must be ORG/NAME" in errors
    assert not (checkpoint / "README.md").exists()


@pytest.mark.parametrize("model_id", ["nvidia/C-RADIOv4-H", "a_b/c.d_e-f", None])
def test_names_of_the_hub_pass(model_id):
    check_model_id(model_id)


def test_a_name_of_two_lines_is_refused():
    with pytest.raises(ValueError, match="`model_id` must be ORG/NAME"):
        check_model_id("org/a\n")


def test_texts_of_others_neither_break_tables_nor_add_headings(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "hostile")
    evil = "x|y`\n\n# Injected\n<script>alert(1)</script>"
    config = RadioConfig.from_pretrained(folder, version=evil)
    config.adaptors[0]["name"] = f"{evil} a".replace(".", "")
    config.adaptor_names = None
    config.save_pretrained(folder)
    source = Source(evil, evil, evil, evil, evil)
    results = Results(
        [Measurement(evil, evil, evil, evil, 0.5)],
        [source],
        [source],
        run={evil: [evil, {evil: 1}], "seconds": {f"distil {evil}": 1.0}},
        remarks=[evil],
    )
    teacher = Source("a", "b", "GPL-3.0-only", "c")
    honest = build_card(checkpoint, dataclasses.replace(RESULTS, teachers=[teacher])).text
    text = build_card(folder, results, name=evil).text
    assert re.findall("^#.*", text, re.MULTILINE)[1:] == re.findall("^#.*", honest, re.MULTILINE)[1:]
    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    spans = [child for block in blocks for child in block.children or []]
    assert not [each for each in [*blocks, *spans] if each.type.startswith("html")]
