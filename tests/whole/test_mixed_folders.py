"""Folders of good, odd and damaged images: each command names and counts the damaged ones, and uses all others."""

import json

import pytest
from image_files import FILES, PICTURE, encode, turned
from PIL import Image
from tiny_distillation import distil, write_command_recipe

from modeling_radio import RadioForImageClassification
from modeling_radio.evaluation.evaluate import main as evaluate
from modeling_radio.extraction.extract import main as extract
from modeling_radio.figures.predictions import read_photograph
from modeling_radio.prediction.label import main as label
from modeling_radio.prediction.predict import main as predict
from modeling_radio.tuning.finetune import main as finetune


GOOD = {
    "plain.png": encode(PICTURE, "PNG"),
    "cmyk.jpg": FILES["jpeg cmyk"][0],
    "sixteen.png": FILES["png 16 bit"][0],
    "turned.jpg": encode(PICTURE, "JPEG", exif=turned()),
    "dot.png": encode(Image.new("RGB", (1, 1), "red"), "PNG"),
    "wide.png": encode(Image.new("RGB", (5000, 200), "red"), "PNG"),
}
UNOPENED = {"empty.png": b"", "foreign.png": b"%PDF-1.4"}
CUT = {"cut.png": encode(PICTURE, "PNG")[:400]}
"""Its header can be read, so that it is found where it is decoded."""
PLACES = ("first", "middle", "last")


def names_of(place, damaged):
    """Names of good and damaged files in their order."""
    good = list(GOOD)
    start = {"first": 0, "middle": len(good) // 2, "last": len(good)}[place]
    return [*good[:start], *damaged, *good[start:]]


def write_mixed(folder, place, damaged, classes=("cat", "dog")):
    """Write the files to a folder of each class, and return the names within of those that are damaged."""
    contents = {**GOOD, **UNOPENED, **CUT}
    for label_name in classes:
        (folder / label_name).mkdir(parents=True)
        for number, name in enumerate(names_of(place, damaged)):
            (folder / label_name / f"{number:02d}-{name}").write_bytes(contents[name])
        (folder / label_name / "notes.txt").write_text("no image")
        (folder / label_name / "..png").write_bytes(GOOD["plain.png"])
    return [
        f"{label_name}/{number:02d}-{name}"
        for label_name in classes
        for number, name in enumerate(names_of(place, damaged))
        if name in damaged
    ]


def rows_of(folder):
    return {row["image"]: row for row in map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())}


@pytest.fixture(params=PLACES)
def mixed(request, tmp_path, own_datasets_cache):
    """A folder with damaged files in one place, and their names."""
    folder = tmp_path / "mixed"
    return folder, write_mixed(folder, request.param, [*UNOPENED, *CUT])


def test_predict(mixed, save_tuned, tmp_path, capsys, caplog):
    folder, damaged = mixed
    model = str(save_tuned(RadioForImageClassification))
    assert predict([model, str(folder), "--output", str(tmp_path / "out"), "--batch-size", "4"]) == 0
    rows = rows_of(tmp_path / "out")
    assert sum("error" not in row for row in rows.values()) == 2 * len(GOOD)
    said = caplog.text + json.dumps(rows)
    assert all(name in said for name in damaged)
    assert "2 .txt, 2 hidden" in caplog.text
    assert "2 without an answer" in capsys.readouterr().out
    assert predict([model, str(folder), "--output", str(tmp_path / "few"), "--max-images", "5"]) == 0
    assert len(rows_of(tmp_path / "few")) == 5


def test_label(mixed, words, tmp_path, capsys, caplog):
    folder, damaged = mixed
    command = [str(folder), "--words", "cat", "--checkpoint", str(words), "--device", "cpu"]
    assert label([*command, "--output", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out")
    assert sum("error" not in row for row in rows.values()) == 2 * len(GOOD)
    said = caplog.text + json.dumps(rows)
    assert all(name in said for name in damaged)
    assert label([*command, "--output", str(tmp_path / "few"), "--max-images", "5"]) == 0
    assert len(rows_of(tmp_path / "few")) == 5


@pytest.mark.parametrize("classes", [("cat",), ("cat", "dog")])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("own_datasets_cache")
def test_extract(place, classes, model, tmp_path, capsys, caplog):
    """One class has no column to copy."""
    damaged = write_mixed(tmp_path / "mixed", place, UNOPENED, classes)
    command = [str(model), "--data", str(tmp_path / "mixed"), "--num-workers", "0"]
    assert extract([*command, "--output", str(tmp_path / "out")]) == 0
    assert f"{len(classes) * len(GOOD)} images" in capsys.readouterr().out
    assert all(name in caplog.text for name in damaged)
    assert extract([*command, "--output", str(tmp_path / "few"), "--max-images", "5"]) == 0
    assert "5 images" in capsys.readouterr().out


@pytest.fixture(params=["extract", "evaluate", "finetune"])
def run(request, model, tmp_path):
    """A function that runs a command on a folder, and returns its status."""
    main = {"extract": extract, "evaluate": evaluate, "finetune": finetune}[request.param]
    output = tmp_path / ("out.json" if request.param == "evaluate" else "out")
    options = {"evaluate": "--tasks knn --no-report", "finetune": "--task image-classification --size 32"}
    command = [str(model), "--output", str(output), "--num-workers", "0", *options.get(request.param, "").split()]
    return lambda folder, *more: main([*command, "--data", str(folder), *more])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("own_datasets_cache")
def test_files_that_cannot_be_opened_are_left_out(place, run, tmp_path, caplog):
    damaged = write_mixed(tmp_path / "mixed", place, UNOPENED)
    assert run(tmp_path / "mixed") == 0
    assert all(name in caplog.text for name in damaged)
    assert "left out 4 of 16" in caplog.text


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("own_datasets_cache")
def test_a_file_that_cannot_be_decoded_is_named_in_one_line(place, run, tmp_path, capsys):
    damaged = write_mixed(tmp_path / "mixed", place, CUT)
    assert run(tmp_path / "mixed") == 1
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert ": error: " in line
    assert any(name in line for name in damaged)


def test_finetune_leaves_out_what_it_cannot_decode_if_asked(mixed, model, tmp_path, caplog):
    folder, damaged = mixed
    command = [str(model), "--task", "image-classification", "--data", str(folder), "--output", str(tmp_path / "out")]
    assert finetune([*command, "--num-workers", "0", "--size", "32", "--skip-damaged"]) == 0
    assert all(name in caplog.text for name in damaged)


def test_distill(mixed, tmp_path, caplog):
    """Files are decoded when a batch needs them, and those that cannot be are named then."""
    folder, damaged = mixed
    distil(str(write_command_recipe(tmp_path)), str(tmp_path / "run"), f"data.source={folder}", stop_at=2)
    assert all(name in caplog.text for name in damaged if "cut" not in name)


def test_serve_and_app(save_tuned, tmp_path):
    starlette = pytest.importorskip("starlette.testclient", reason="needs the extra `app`")
    from modeling_radio.serving.serve import ServeSettings, build_app

    model = str(save_tuned(RadioForImageClassification))
    with starlette.TestClient(build_app(ServeSettings(checkpoint=model, device="cpu"))) as client:
        for files, status in ((GOOD, 200), ({**UNOPENED, **CUT}, 400)):
            for name, content in files.items():
                (tmp_path / name).write_bytes(content)
                assert client.post("/predict", content=content).status_code == status, name
                if status == 200:
                    assert read_photograph(tmp_path / name).shape[0] == 3
                else:
                    with pytest.raises(ValueError, match="`image`"):
                        read_photograph(tmp_path / name)
