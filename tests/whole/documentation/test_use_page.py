"""The commands of the page on tuned models run one after the other in one folder, from tuning to the server."""

import json
import shlex
import shutil
import tarfile
from pathlib import Path

import pytest
from documentation import blocks
from PIL import Image
from tiny_tuning import TINY_DETECTOR
from tuning_fixtures import _short_and_apart, base, save_image, zero_shot_folder

import modeling_radio_cli
from modeling_radio import RadioForObjectDetection
from modeling_radio.metrics.results import STUDENT, Results


__all__ = ["_short_and_apart", "base", "zero_shot_folder"]

pytestmark = pytest.mark.tour


def scores(path):
    """The numbers of the checkpoint in a file of results."""
    return {each.metric: each.value for each in Results.load(Path(path)).measurements if each.model == STUDENT}


def test_every_command_runs(base, zero_shot_folder, save_tuned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, folder in {"demo/final": base, "demo/words": zero_shot_folder}.items():
        shutil.copytree(folder, f"runs/{name}")
    shutil.copytree(save_tuned(RadioForObjectDetection, **TINY_DETECTOR), "runs/coco/merged")
    for number in range(8):
        for folder in ("pets", "pets-test"):
            save_image(Path(folder, ("cat", "dog")[number % 2], f"{number}.png"), number)
        save_image(Path("photos", f"{number}.png"), number)
        save_image(Path("coco-test", f"{number}.png"), number)
    image = [{"id": number, "file_name": f"{number}.png"} for number in range(8)]
    box = {"id": 1, "image_id": 0, "category_id": 5, "bbox": [4, 4, 20, 20]}
    content = {"images": image, "annotations": [box], "categories": [{"id": 5, "name": "dog"}]}
    Path("coco-test/_annotations.coco.json").write_text(json.dumps(content))
    Path("shards").mkdir()
    with tarfile.open("shards/0.tar", "w") as archive:
        archive.add("photos/0.png", "0.png")
    texts = [block.text for block in blocks("bash") if block.page == "docs/how-to/use.md"]
    lines = [shlex.split(line)[1:] for text in texts for line in text.splitlines()]
    for words in [words for words in lines if words[0] != "serve"]:
        if words[0] == "finetune":
            words += ["--steps", "2", "--batch-size", "2", "--num-workers", "0", "--validation-share", "0.5"]
        if words[0] == "evaluate":
            words += ["--num-workers", "0", "--resamples", "100"]
        assert modeling_radio_cli.main(words) == 0, words
    expected = json.loads(Path("runs/pets/results.json").read_text())["metrics"]
    assert {name: scores("held-out.json")[name] for name in expected} == pytest.approx(expected)
    answers = [json.loads(line) for line in Path("answers/predictions.jsonl").read_text().splitlines()]
    labels = {answer["image"]: answer["classes"][0]["label"] for answer in answers}
    is_right = [labels[f"{number}.png"] == ("cat", "dog")[number % 2] for number in range(8)]  # photos are pets-test
    assert scores("test.json")["accuracy"] == pytest.approx(sum(is_right) / 8)
    assert f"{scores('test.json')['accuracy']:.3f}" in Path("runs/pets/final/README.md").read_text()
    assert scores("words.json").keys() >= {"accuracy", "calibration_error"}
    assert "map" in scores("coco.json")
    serving = pytest.importorskip("modeling_radio.serving.serve", reason="needs the extra `app`")
    from starlette.testclient import TestClient

    (words,) = [words for words in lines if words[0] == "serve"]
    with TestClient(serving.build_app(serving.ServeSettings(checkpoint=words[1], device="cpu"))) as client:
        body = Path("photos/3.png").read_bytes()
        assert Image.open("photos/3.png").size == (48, 36)
        assert client.post("/predict", content=body).json()["classes"][0]["label"] == labels["3.png"]
