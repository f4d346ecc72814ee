"""SAM3 on RADIO's features finds what phrases name: SA-Co/Gold from its files to cgF1."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_sam3 import build_sam3
from transformers import Sam3ImageProcessor, Sam3Processor

from modeling_radio import attach_to_sam3
from modeling_radio.evaluation import data_concepts
from modeling_radio.evaluation.data_tables import open_data
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.settings import EvaluationSettings
from modeling_radio.evaluation.tasks import concept_segmentation
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.concept_segmentation import ConceptSegmenter, measure_concept_segmentation
from modeling_radio.post_processing_radio import fill_run_lengths


def runs_of(row: int, col: int, side: int) -> dict:
    mask = np.zeros((40, 50), np.uint8, order="F")
    mask[row : row + side, col : col + side] = 1
    runs = coco_mask.encode(mask)
    return {"size": [40, 50], "counts": runs["counts"].decode()}


@pytest.fixture
def saco(tmp_path, monkeypatch):
    """SA-Co/Gold with an image and four phrases in each subset, which is all that it has then.

    The annotators see two cats; a dog, which the last one does not see; no grass; and ice that cannot be told apart.
    """
    folder = tmp_path / "SACo-Gold"
    for subset in data_concepts.SUBSETS:
        images = folder / ("sa1b_images" if subset == "sa1b" else "metaclip_images") / "1"
        images.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(images / f"{subset}.jpg")
        for number, letter in enumerate("abc"):
            pairs = [
                {"id": index, "file_name": f"1/{subset}.jpg", "text_input": text, "height": 40, "width": 50}
                | {"is_instance_exhaustive": int(text != "ice" or letter != "b")}
                for index, text in enumerate(["cat", "dog", "grass", "ice"])
            ]
            masks = [(0, (2 + number, 2, 12)), (0, (20, 20, 15)), (3, (0, 0, 30))] + [(1, (9, 30, 10))] * (
                letter != "c"
            )
            objects = [{"id": 1, "image_id": index, "segmentation": runs_of(*place)} for index, place in masks]
            objects.append({"id": 9, "image_id": 2, "segmentation": runs_of(0, 0, 9), "iscrowd": 1})
            file = folder / f"gold_{subset}_merged_{letter}_release_test.json"
            file.write_text(json.dumps({"images": pairs, "annotations": objects, "categories": []}))
    monkeypatch.setattr(data_concepts, "SUBSETS", dict.fromkeys(data_concepts.SUBSETS, 4))
    return folder


@pytest.fixture
def sam3_folder(word_tokenizer, tmp_path):
    torch.manual_seed(0)
    build_sam3().save_pretrained(tmp_path / "sam3")
    Sam3Processor(Sam3ImageProcessor(), word_tokenizer).save_pretrained(tmp_path / "sam3")
    return tmp_path / "sam3"


@pytest.fixture
def radio(reference) -> RadioFeatures:
    return RadioFeatures(reference, size_px=64)


@pytest.fixture
def evaluation(saco, sam3_folder, radio) -> Evaluation:
    settings = EvaluationSettings(checkpoint=saco, data=str(saco), preset="sa-co", sam3=str(sam3_folder))
    return Evaluation(radio, open_data(str(saco), settings, size_px=64), settings)


def measured(evaluation) -> dict[str, float]:
    return {each.metric: each.value for each in measure_concept_segmentation(evaluation)}


def test_sa_co_runs_to_the_end(evaluation, monkeypatch):
    phrases = evaluation.examples("phrases").phrases
    assert [(each.text, [len(masks) for masks in each.masks]) for each in phrases[:3]] == [
        ("cat", [2, 2, 2]),
        ("dog", [1, 1, 0]),
        ("grass", [0, 0, 0]),
    ]
    assert (len(phrases), len(evaluation.examples("phrases"))) == (21, 7)
    monkeypatch.setattr(concept_segmentation, "SCORE", 0)  # random weights are never sure
    found = measured(evaluation)
    names = [f"cgF1, {name}" for name in data_concepts.SUBSETS]
    assert list(found) == ["cgF1", "positive micro F1", "IL_MCC", *names]
    assert found["cgF1"] == found["IL_MCC"] == 0  # all phrases are found
    assert 0 <= found["positive micro F1"] < 1


def test_the_masks_of_an_annotator_are_right(evaluation, monkeypatch):
    def second(self, image, phrases):
        runs = [[fill_run_lengths(each, phrase.size).bool() for each in phrase.masks[1]] for phrase in phrases]
        return [torch.stack(each) if each else torch.zeros(0, 40, 50, dtype=torch.bool) for each in runs]

    monkeypatch.setattr(ConceptSegmenter, "masks", second)
    found = measured(evaluation)
    assert found["cgF1"] == pytest.approx(1, abs=1e-3)
    assert found["cgF1, sa1b"] == pytest.approx(1, abs=1e-3)


def test_masks_are_those_of_sam3_on_radio(evaluation, sam3_folder, radio, monkeypatch):
    monkeypatch.setattr(concept_segmentation, "SCORE", 0)
    examples = evaluation.examples("phrases")
    found = ConceptSegmenter(radio, str(sam3_folder)).masks(examples.images[0], examples.phrases[:2])
    sam3 = attach_to_sam3(concept_segmentation.Sam3Model.from_pretrained(sam3_folder), radio.model)
    processor, side = Sam3Processor.from_pretrained(sam3_folder), sam3.config.vision_config.image_size
    for masks, phrase in zip(found, examples.phrases, strict=False):
        inputs = processor(examples.images[0], phrase.text, size={"height": side, "width": side}, return_tensors="pt")
        sizes = inputs.pop("original_sizes").tolist()
        with torch.no_grad():
            output = sam3(**inputs)
        (expected,) = processor.post_process_instance_segmentation(output, threshold=0, target_sizes=sizes)
        assert masks.shape == expected["masks"].shape == (5, 40, 50)
        assert (masks == expected["masks"]).float().mean() > 0.99  # transformers resizes after the sigmoid


@pytest.mark.parametrize("damage", ["an image", "a pair", "a mask's size", "runs", "a path", "a file"])
def test_a_part_of_sa_co_is_refused(saco, evaluation, radio, damage):
    file = saco / "gold_sa1b_merged_b_release_test.json"
    content = json.loads(file.read_text())
    if damage == "an image":
        (saco / "sa1b_images" / "1" / "sa1b.jpg").unlink()
    elif damage == "a file":
        file.unlink()
    elif damage == "a path":
        file = saco / "gold_sa1b_merged_a_release_test.json"
        content["images"][0]["file_name"] = "../../x.jpg"
    elif damage == "a pair":
        del content["images"][3], content["annotations"][2]
    elif damage == "runs":
        content["annotations"][0]["segmentation"]["counts"] = "11"
    else:
        content["annotations"][0]["segmentation"]["size"] = [9, 9]
    if damage not in ("an image", "a file"):
        file.write_text(json.dumps(content))
    message = {"an image": r"`data` .*sa1b\.jpg", "a pair": "4 pairs .* got 3", "runs": "`data` .*sa1b"}
    settings = evaluation.settings
    with pytest.raises(ValueError, match=message.get(damage, file.name)):
        measure_concept_segmentation(Evaluation(radio, open_data(str(saco), settings, size_px=64), settings))


@pytest.mark.parametrize(
    ("argument", "sam3"),
    [("sam3", "nothing"), ("sam3", "saco"), ("adaptor_name", "sam3")],
)
def test_what_is_missing_is_named(saco, sam3_folder, tiny_model, argument, sam3):
    sam3 = str({"saco": saco, "sam3": sam3_folder}.get(sam3, "nobody/nothing"))
    settings = EvaluationSettings(checkpoint=saco, data=str(saco), preset="sa-co", sam3=sam3)
    evaluation = Evaluation(RadioFeatures(tiny_model, size_px=64), open_data(str(saco), settings, size_px=64), settings)
    with pytest.raises(ValueError, match=f"`{argument}`"):
        measure_concept_segmentation(evaluation)
