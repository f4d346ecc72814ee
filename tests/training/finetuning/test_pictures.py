"""Examples run through models, and the figure that shows several models side by side."""

import pytest
import torch
from matplotlib.figure import Figure
from tiny_tuning import TINY_DETECTOR, TINY_DPT, tuning_settings

from modeling_radio import RadioConfig
from training.finetuning.data import build_transform, load_images
from training.finetuning.error_analysis import draw_predictions, predict_examples
from training.finetuning.tasks.base import Examples
from training.finetuning.tasks.registry import build_task


FOLDERS = {
    "image-classification": "class_folders",
    "semantic-segmentation": "voc_folder",
    "depth-estimation": "depth_folder",
    "object-detection": "coco_folder",
}


def open_examples(name, data):
    settings = tuning_settings(name, data=data, size=(32, 48), validation_share=0.5)
    task = build_task(settings, load_images(settings))
    transform = build_transform(settings, (32, 48), is_training=False)
    return task, Examples(task.images.validation, task, transform, seed=0, name="validation image")


def build_model(task, seed):
    torch.manual_seed(seed)
    return task.model_class(
        RadioConfig.from_preset("radio-test", **TINY_DPT, **TINY_DETECTOR, **task.config_fields())
    ).train()


@pytest.mark.parametrize("name", FOLDERS)
def test_each_model_has_a_row_below_the_truth(name, request, tmp_path):
    task, examples = open_examples(name, request.getfixturevalue(FOLDERS[name]))
    first, second = (predict_examples(task, build_model(task, seed), examples) for seed in (0, 1))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.references, second.references)
    assert not torch.equal(first.predictions, second.predictions)
    columns = {"frozen": first.predictions, "adapted": second.predictions}
    figure = draw_predictions(task, first.images, first.references, columns)
    titles = [ax.get_title() for ax in figure.axes[:: len(examples)]]
    assert len(figure.axes) == len(titles) * len(examples)
    assert titles[-2:] == ["frozen", "adapted"]
    assert titles[:-3] == (["image"] if name == "depth-estimation" else [])
    figure.savefig(tmp_path / "picture.png")


def test_a_classification_names_the_true_class_and_shows_shares(class_folders):
    task, examples = open_examples("image-classification", class_folders)
    shares = torch.tensor([[2.0, 0.0]]).expand(len(examples), 2)
    images = torch.rand(len(examples), 3, 32, 48)
    figure = draw_predictions(task, images, torch.ones(len(examples)), {"model": shares})
    truth, chart = figure.axes[0], figure.axes[len(examples)]
    assert truth.get_title() == "dog"
    assert [label.get_text() for label in chart.get_yticklabels()] == ["dog", "cat"]
    assert [bar.get_width() for bar in chart.patches] == pytest.approx([0.119, 0.881], abs=1e-3)


@pytest.mark.parametrize(
    ("scores", "drawn"), [((0.9, 0.1, 0.4), (0.9, 0.4)), ((0.2, 0.1, 0.1), (0.2,)), ((0.1, 0.1, 0.05), (0.1, 0.1))]
)
def test_of_uncertain_boxes_the_most_certain_is_drawn(coco_folder, scores, drawn):
    task, _ = open_examples("object-detection", coco_folder)
    ax = Figure().add_subplot()
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5, 0.0, score] for score in scores])
    task.draw_prediction(ax, torch.zeros(32, 48, 3), boxes, boxes)
    *shown, last = (text.get_text() for text in ax.texts)
    is_certain = max(scores) > 0.3
    assert [float(text.split()[-1]) for text in (*shown, last) if "above" not in text] == list(drawn)
    assert ("nothing above 0.3" in last) == (not is_certain)


def test_models_run_in_evaluation_mode_on_as_many_images_as_there_are(class_folders):
    task, examples = open_examples("image-classification", class_folders)
    model = build_model(task, 0)
    few, all_of_them = (predict_examples(task, model, examples, count) for count in (2, 9))
    assert not model.training
    assert not few.predictions.requires_grad
    assert len(few.images) == 2
    assert len(all_of_them.images) == len(examples) == 3
    torch.testing.assert_close(all_of_them.predictions[:2], few.predictions)


def test_images_are_spread_over_the_split(class_folders):
    task, examples = open_examples("image-classification", class_folders)
    found = predict_examples(task, build_model(task, 0), examples, count=2)
    for image, index in zip(found.images, (0, len(examples) // 2), strict=True):
        assert torch.equal(image, examples[index]["pixel_values"])
    assert len(predict_examples(task, build_model(task, 0), examples, count=100).images) == len(examples)


def test_a_map_names_its_classes(voc_folder):
    task, examples = open_examples("semantic-segmentation", voc_folder)
    image, mask = examples[0]["pixel_values"].movedim(0, -1), torch.tensor([[2, 2, 255], [2, 0, 255]])
    ax = Figure().add_subplot()
    task.draw_truth(ax, image, mask)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ground", "sky"]
