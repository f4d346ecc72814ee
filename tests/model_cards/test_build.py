import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from model_cards.build import build_card, check_model_id, count_parameters, main
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
    run={"command": "make demo", "seconds": {"train": 12.0}},
    remarks=["The kNN test set has 99 images: +-.05."],
)


def test_metadata_describes_the_checkpoint(checkpoint):
    data = build_card(checkpoint, RESULTS, model_id="org/radio-tiny").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert data.license == "other"
    assert data.base_model == ["org/teacher-a"]
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


def test_results_sources_and_remarks_are_listed(checkpoint):
    text = build_card(checkpoint, RESULTS).content
    assert "| model | knn accuracy | segmentation_probe mIoU |" in text
    assert "| **student** (this checkpoint) | 0.457 | 0.300 |" in text
    assert "| raw pixels | 0.251 | 0.100 |" in text
    assert "| stamps | kNN | 99 images of 14 classes | GPL-2.0-or-later | package c 3.0 |" in text
    assert "The kNN test set has 99 images" in text
    assert "| seconds | train 12.0 |" in text


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


def test_command_writes_a_valid_card_and_nothing_else(checkpoint, tmp_path):
    before = set(checkpoint.iterdir())
    RESULTS.save(tmp_path / "results.json")
    assert main([str(checkpoint), "--results", str(tmp_path / "results.json")]) == 0
    assert set(checkpoint.iterdir()) - before <= {checkpoint / "README.md"}
    assert ModelCard.load(checkpoint / "README.md").data.model_name == "radio-tiny"


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
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL))
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
        [Measurement(evil, evil, evil, evil, 0.5)], [source], [source], run={evil: [evil, {evil: 1}]}, remarks=[evil]
    )
    honest = build_card(checkpoint, RESULTS).text
    text = build_card(folder, results, license=evil).text
    assert re.findall("^#.*", text, re.MULTILINE)[1:] == re.findall("^#.*", honest, re.MULTILINE)[1:]
    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    spans = [child for block in blocks for child in block.children or []]
    assert not [each for each in [*blocks, *spans] if each.type.startswith("html")]
