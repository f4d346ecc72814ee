"""Labels by words are the pipeline's regions or SAM3's masks, and `radio finetune` reads them."""

import json
from shutil import copytree

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet, table
from tiny_folders import overflow
from tiny_sam3 import build_sam3
from transformers import Sam3ImageProcessor, Sam3Model, Sam3Processor

from modeling_radio.api import label
from modeling_radio.core.opening import open_model
from modeling_radio.data.labeled.coco import read_coco
from modeling_radio.pipelines_radio import RadioZeroShotObjectDetectionPipeline
from modeling_radio.prediction.answers import NOT_FINITE, box_of, mask_of
from modeling_radio.prediction.label import main
from modeling_radio.prediction.settings import LabelSettings
from modeling_radio.prediction.words import label_all


@pytest.fixture
def photographs(tmp_path):
    """Images of two sizes in folders whose names are those of splits, and a damaged one."""
    folder = tmp_path / "photographs"
    generator = np.random.default_rng(0)
    for name, (width, height) in {"train/a.png": (70, 50), "validation/a.png": (40, 90)}.items():
        (folder / name).parent.mkdir(parents=True)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    (folder / "train" / "damaged.png").write_bytes(b"\x89PNG")
    return folder


def objects_of(output):
    """Label, score and box of the objects of each image."""
    lines = (output / "predictions.jsonl").read_text().splitlines()
    return {row["image"]: row.get("objects") for row in map(json.loads, lines)}


def test_regions_of_words(words, photographs, tmp_path, capsys):
    output = tmp_path / "labels"
    command = [str(photographs), "--words", "cat, dog", "--around", "grass", "--checkpoint", str(words)]
    command += ["--output", str(output), "--device", "cpu"]
    assert main(command) == 0
    assert "2 images" in capsys.readouterr().out
    opened = open_model(str(words), device="cpu")
    parts = {"image_processor": opened.processor, "tokenizer": opened.tokenizer}
    pipe = RadioZeroShotObjectDetectionPipeline(model=opened.model, **parts)
    found = objects_of(output)
    assert [*found] == ["train/a.png", "validation/a.png"]
    num_objects = 0
    for name in ("train/a.png", "validation/a.png"):
        image = Image.open(photographs / name)
        expected = pipe(image, ["cat", "dog", "grass"])
        expected = [each for each in expected if each["label"] != "grass"]
        assert [each["label"] for each in found[name]] == [each["label"] for each in expected]
        assert [each["box"] for each in found[name]] == [[*each["box"].values()] for each in expected]
        for each in found[name]:
            assert each["mask"]["size"] == [image.height, image.width]
            assert np.abs(np.subtract(box_of(mask_of(each["mask"])), each["box"])).max() <= 1
        num_objects += len(expected)
    assert num_objects
    tables, names = read_coco(output, with_masks=True)
    assert names == ("cat", "dog")
    assert sum(len(row["objects"]["bbox"]) for row in tables["train"].remove_columns("image")) == num_objects
    assert {image.size for image in tables["train"]["image"]} == {(70, 50), (40, 90)}

    before = (output / "annotations.json").read_bytes()
    moved = photographs.rename(tmp_path / "moved")
    assert main([str(moved), *command[1:]]) == 0
    assert (output / "annotations.json").read_bytes() == before
    assert (output / "images").resolve() == moved.resolve()
    moved.rename(photographs)
    (output / "images").unlink()
    (output / "images").mkdir()
    assert main(command) == 1
    assert "`output`" in capsys.readouterr().err


@pytest.fixture
def sam3(word_tokenizer, tmp_path):
    """The folder of a tiny SAM3."""
    torch.manual_seed(0)
    build_sam3().save_pretrained(tmp_path / "sam3")
    Sam3Processor(Sam3ImageProcessor(), word_tokenizer).save_pretrained(tmp_path / "sam3")
    return tmp_path / "sam3"


@pytest.mark.parametrize("is_sam3", [False, True])
def test_outputs_that_overflow_are_errors(is_sam3, sam3, words, photographs, tmp_path):
    checkpoint = overflow(sam3 if is_sam3 else copytree(words, tmp_path / "words"))
    options = {"words": ["cat", "dog"], "checkpoint": str(checkpoint), "output": tmp_path / "labels", "device": "cpu"}
    done = label(data=photographs, **options)
    found = list(done.answers())
    assert done.num_images == 0
    assert [row["error"] for row in found] == [NOT_FINITE.values["error"]] * 2
    assert json.loads((tmp_path / "labels" / "annotations.json").read_text())["annotations"] == []


def test_objects_of_sam3(photographs, sam3, tmp_path):
    folder, output = sam3, tmp_path / "labels"
    options = {"words": ["cat", "dog"], "threshold": 0.0, "checkpoint": str(folder), "output": output, "device": "cpu"}
    label(data=photographs, **options)
    model, processor = Sam3Model.from_pretrained(folder).eval(), Sam3Processor.from_pretrained(folder)
    side, image = model.config.vision_config.image_size, Image.open(photographs / "train" / "a.png")
    expected = []
    for word in options["words"]:
        inputs = processor(image, word, size={"height": side, "width": side}, return_tensors="pt")
        sizes = inputs.pop("original_sizes").tolist()
        with torch.no_grad():
            (objects,) = processor.post_process_instance_segmentation(model(**inputs), 0.0, target_sizes=sizes)
        scores, masks = objects["scores"].tolist(), objects["masks"]
        expected += [score for score, mask in zip(scores, masks, strict=True) if mask.any()]
    found = [each["score"] for each in objects_of(output)["train/a.png"]]
    assert found
    assert found == pytest.approx(sorted(expected, reverse=True), abs=1e-4)


def test_a_model_without_texts_is_refused(model, photographs, tmp_path):
    settings = LabelSettings(data=str(photographs), words=["cat"], checkpoint=str(model), output=tmp_path / "labels")
    with pytest.raises(ValueError, match="`checkpoint`"):
        label_all(settings)
    assert not (tmp_path / "labels").exists()


def test_images_in_tables_are_refused(words, photographs, tmp_path):
    content = (photographs / "train" / "a.png").read_bytes()
    (tmp_path / "table").mkdir()
    parquet.write_table(table({"image": [{"bytes": content, "path": "a.png"}]}), tmp_path / "table" / "train.parquet")
    with pytest.raises(ValueError, match="`data`"):
        label(data=tmp_path / "table", words=["cat"], checkpoint=str(words), output=tmp_path / "labels")
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize(
    ("words", "around", "name"),
    [(["cat", "cat"], ["sky"], "words"), (["cat", ""], ["sky"], "words"), (["cat", "sky"], ["sky"], "around")],
)
def test_words_that_cannot_be(words, around, name, photographs, tmp_path):
    settings = LabelSettings(
        data=str(photographs), words=words, around=around, checkpoint="none", output=tmp_path / "labels"
    )
    with pytest.raises(ValueError, match=f"`{name}`"):
        label_all(settings)
