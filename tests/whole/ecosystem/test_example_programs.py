"""The calls of transformers' example programs on a folder: classes, pixels, boxes and instances."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processor_cases import make_pixels
from task_models import tiny_config
from torchvision.transforms.functional import to_pil_image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Trainer,
    TrainingArguments,
)
from transformers.image_transforms import center_to_corners_format

from modeling_radio import RadioImageProcessor, RadioModel


pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = {0: "cat", 1: "dog", 2: "bird"}
LABELS = {"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}
TRUST = {"trust_remote_code": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A backbone's folder, as someone downloads it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone")
    config = tiny_config()
    RadioModel(config).save_pretrained(path)
    RadioImageProcessor.from_model_config(config).save_pretrained(path)
    return str(path)


def training_arguments(path, **options):
    return TrainingArguments(
        output_dir=str(path),
        max_steps=1,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        remove_unused_columns=False,
        eval_do_concat_batches=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )


def side_of(image_processor):
    """How the programs read the size of their crops."""
    if "shortest_edge" in image_processor.size:
        return image_processor.size["shortest_edge"]
    return (image_processor.size["height"], image_processor.size["width"])


def test_semantic_segmentation(folder):
    config = AutoConfig.from_pretrained(folder, **LABELS, **TRUST)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, config=config, **TRUST)
    image_processor = AutoImageProcessor.from_pretrained(folder, do_reduce_labels=True, **TRUST)
    assert image_processor.do_reduce_labels is True
    side = side_of(image_processor)
    image, labels = make_pixels(side, side), np.random.default_rng(0).integers(-1, 3, (side, side))
    labels[labels == -1] = 255
    # Albumentations' normalization.
    mean, std = (
        np.array(values, dtype=np.float32) for values in (image_processor.image_mean, image_processor.image_std)
    )
    pixels = (image.astype(np.float32) - mean * 255.0) / (std * 255.0)
    pixel_values = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    expected = image_processor(to_pil_image(image), size=(side, side), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, expected, rtol=0, atol=1e-6)
    output = model(pixel_values=pixel_values, labels=torch.from_numpy(labels)[None])
    assert output.loss.isfinite()
    assert output.logits.shape[1] == len(NAMES)


# Objects


def detection_examples(image_processor, count=2):
    """Return the output of the program's transform for tall and wide images, without the masks of padding."""
    examples = []
    for index in range(count):
        annotation = {
            "image_id": index,
            "annotations": [
                {
                    "image_id": index,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": 300.0,
                    "bbox": [np.float64(8), 10.0, 20.0, 15.0],
                }
            ],
        }
        image = make_pixels(48, 96) if index % 2 else make_pixels(96, 48)
        result = image_processor(images=[image], annotations=[annotation], return_tensors="pt")
        assert result.pop("pixel_mask", None) is not None
        examples.append({name: values[0] for name, values in result.items()})
    return examples


def collate_objects(batch):
    pixel_values = torch.stack([example["pixel_values"] for example in batch])
    return {"pixel_values": pixel_values, "labels": [example["labels"] for example in batch]}


def test_object_detection(folder, tmp_path):
    config = AutoConfig.from_pretrained(folder, **LABELS, **TRUST)
    model = AutoModelForObjectDetection.from_pretrained(folder, config=config, **TRUST)
    image_processor = AutoImageProcessor.from_pretrained(
        folder,
        do_resize=True,
        size={"max_height": 96, "max_width": 96},
        do_pad=True,
        pad_size={"height": 96, "width": 96},
        use_fast=True,
        **TRUST,
    )
    examples = detection_examples(image_processor)
    seen = []

    def compute_metrics(results):
        for targets, predictions in zip(results.label_ids, results.predictions, strict=True):
            sizes = torch.tensor(np.array([target["orig_size"] for target in targets]))
            for target in targets:
                height, width = target["orig_size"]
                boxes = center_to_corners_format(torch.tensor(target["boxes"])) * torch.tensor([width, height] * 2)
                torch.testing.assert_close(boxes, torch.tensor([[8.0, 10.0, 28.0, 25.0]]))
            output = SimpleNamespace(logits=torch.tensor(predictions[1]), pred_boxes=torch.tensor(predictions[2]))
            seen.extend(image_processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes))
        return {"map": 0.0}

    trainer = Trainer(
        model=model,
        args=training_arguments(tmp_path, metric_for_best_model="map"),
        train_dataset=examples,
        eval_dataset=examples,
        processing_class=image_processor,
        data_collator=collate_objects,
        compute_metrics=compute_metrics,
    )
    assert np.isfinite(trainer.train().training_loss)
    assert trainer.evaluate()["eval_map"] == 0.0
    assert len(seen) == 2
    assert seen[0]["boxes"][:, 2].max() <= 48  # the tall image's width
    trainer.save_model()
    assert AutoModelForObjectDetection.from_pretrained(tmp_path, **TRUST).config.id2label == NAMES


def test_padding_is_known_without_its_mask(folder):
    """The program drops `pixel_mask`: boxes, which are shares of the image without padding, would be others."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder, **LABELS, **TRUST)
    model = AutoModelForObjectDetection.from_pretrained(folder, config=config, **TRUST).eval()
    options = {"size": {"max_height": 96, "max_width": 96}, "do_pad": True, "pad_size": {"height": 96, "width": 96}}
    image_processor = AutoImageProcessor.from_pretrained(folder, **options, **TRUST)
    batch = collate_objects(detection_examples(image_processor))
    pixel_mask = torch.zeros(2, 96, 96, dtype=torch.long)
    pixel_mask[0, :, :48] = pixel_mask[1, :48] = 1
    with torch.no_grad():
        expected = model(**batch, pixel_mask=pixel_mask)
        found = model(**batch)
        whole = model(batch["pixel_values"])
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes)
    torch.testing.assert_close(found.loss, expected.loss)
    assert (whole.pred_boxes - expected.pred_boxes).abs().max() > 0.01


# Instances


def instance_examples(image_processor, count=2):
    """Return the output of the program's transform: a quarter each of a dog and a bird, the rest background."""
    examples = []
    for index in range(count):
        instances = np.kron(np.array([[0, 1], [2, 0]]), np.ones((24, 32), int)).astype(np.uint8)
        inputs = image_processor(
            images=[make_pixels(48, 64, seed=index)],
            segmentation_maps=[instances],
            instance_id_to_semantic_id={np.uint8(0): np.uint8(0), np.uint8(1): np.uint8(1), np.uint8(2): np.uint8(2)},
            return_tensors="pt",
        )
        names = ("pixel_values", "mask_labels", "class_labels")
        examples.append({name: inputs[name][0] for name in names})
    return examples


def collate_instances(batch):
    pixel_values = torch.stack([example["pixel_values"] for example in batch])
    lists = {name: [example[name] for example in batch] for name in ("class_labels", "mask_labels")}
    return {"pixel_values": pixel_values, **lists}


def test_instance_segmentation(folder, tmp_path):
    model = AutoModelForUniversalSegmentation.from_pretrained(folder, **LABELS, ignore_mismatched_sizes=True, **TRUST)
    image_processor = AutoImageProcessor.from_pretrained(
        folder, do_resize=True, size={"height": 96, "width": 96}, do_reduce_labels=False, reduce_labels=False, **TRUST
    )
    examples = instance_examples(image_processor)
    assert examples[0]["mask_labels"].shape == (3, 96, 96)
    seen = []

    def compute_metrics(results, compute_result=False):
        predictions, (mask_labels, class_labels) = results.predictions, results.label_ids
        assert [labels.tolist() for labels in class_labels] == [[0, 1, 2]] * 2
        sizes = [masks.shape[-2:] for masks in mask_labels]
        output = SimpleNamespace(class_queries_logits=predictions[0], masks_queries_logits=predictions[1])
        seen.extend(
            image_processor.post_process_instance_segmentation(
                output, threshold=0.0, target_sizes=sizes, return_binary_maps=True
            )
        )
        return {"map": 0.0} if compute_result else None

    trainer = Trainer(
        model=model,
        args=training_arguments(tmp_path, batch_eval_metrics=True),
        train_dataset=examples,
        eval_dataset=examples,
        processing_class=image_processor,
        data_collator=collate_instances,
        compute_metrics=compute_metrics,
    )
    assert np.isfinite(trainer.train().training_loss)
    assert trainer.evaluate()["eval_map"] == 0.0
    assert len(seen) == 2
    for found in seen:
        assert found["segmentation"].shape == (len(found["segments_info"]), 96, 96)
        assert {segment["label_id"] for segment in found["segments_info"]} <= set(NAMES)
    trainer.save_model()
    assert type(AutoModelForUniversalSegmentation.from_pretrained(tmp_path, **TRUST)).__name__ == type(model).__name__
