"""Image classification: what is pooled, and losses and labels of each problem type."""

import pytest
import torch
import torch.nn.functional as F
from task_models import images, tiny_config
from torch import nn
from transformers import Trainer, TrainingArguments

from modeling_radio import RadioForImageClassification, RadioModel


def build(num_labels=3, **overrides):
    return RadioForImageClassification(tiny_config(num_labels=num_labels, **overrides)).eval()


@pytest.mark.parametrize("pooling", ["summary", "summary_and_features"])
def test_reads_the_summary_and_if_wanted_the_mean_features(pooling):
    model, batch = build(classifier_pooling=pooling), images()
    radio = RadioModel(model.config).eval()
    radio.radio_model = model.radio_model
    with torch.no_grad():
        out = radio(batch)
        pooled = [out.summary] if pooling == "summary" else [out.summary, out.features.mean(dim=1)]
        expected = model.classifier(torch.cat(pooled, dim=1))
        torch.testing.assert_close(model(batch).logits, expected, rtol=0, atol=1e-6)
    width = 32 * (2 if pooling == "summary" else 3)
    assert model.classifier.in_features == model.classifier[1].in_features == width
    assert model.classifier.out_features == 3


def test_another_head_fits_in_place_of_the_classifier():
    model, batch = build(), images()
    model.classifier = nn.Linear(model.classifier.in_features, 7)
    model.config.num_labels = 7
    out = model(batch, labels=torch.tensor([6, 0]))
    assert out.logits.shape == (2, 7)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, torch.tensor([6, 0])))


def test_integers_are_single_labels():
    model, batch = build(), images()
    out = model(batch, labels=torch.tensor([2, 0]))
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, torch.tensor([2, 0])))
    assert model.config.problem_type == "single_label_classification"


def test_floats_are_multiple_labels():
    model, batch, labels = build(), images(), torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    out = model(batch, labels=labels)
    torch.testing.assert_close(out.loss, F.binary_cross_entropy_with_logits(out.logits, labels))
    assert model.config.problem_type == "multi_label_classification"
    torch.testing.assert_close(model(batch, labels=labels.long()).loss, out.loss)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_one_output_is_regression(shape):
    model, batch, labels = build(num_labels=1), images(), torch.rand(shape)
    out = model(batch, labels=labels)
    torch.testing.assert_close(out.loss, F.mse_loss(out.logits, labels.view(2, 1)))
    assert model.config.problem_type == "regression"


def test_several_outputs_can_be_regression():
    model, batch, labels = build(problem_type="regression"), images(), torch.rand(2, 3)
    out = model(batch, labels=labels)
    torch.testing.assert_close(out.loss, F.mse_loss(out.logits, labels))


def test_a_label_of_minus_100_does_not_count():
    model, batch = build(), images()
    both = model(batch, labels=torch.tensor([2, -100])).loss
    torch.testing.assert_close(both, model(batch[:1], labels=torch.tensor([2])).loss, rtol=0, atol=1e-5)


def test_unknown_problem_type():
    message = r"`problem_type` must be one of \['regression', 'single_label_.*\], got 'multi'"
    model = build()
    vars(model.config)["problem_type"] = "multi"  # some releases of huggingface_hub check what is set
    with pytest.raises(ValueError, match=message):
        model(images(), labels=torch.tensor([0, 1]))


@pytest.mark.parametrize("label", [3, -1])
def test_labels_outside_the_classes(label):
    with pytest.raises(
        ValueError, match=rf"`labels` must lie in \[0, 3\), .* or be -100, which is ignored, got {label}"
    ):
        build()(images(), labels=torch.tensor([0, label]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.tensor([0]),
            r"`labels` must be integers of the shape \(2,\) for single labels, got torch.int64 of \(1,\)",
        ),
        (torch.tensor([[0, 1, 0], [1, 1, 0]]), "set `problem_type` to 'multi_label_classification'"),
        (
            torch.rand(2, 4),
            r"`labels` must have the shape \(2, 3\) for `problem_type` 'multi_label_classification', got",
        ),
    ],
)
def test_labels_of_another_shape(labels, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        model(images(), labels=labels)
    assert model.config.problem_type is None  # labels that were refused decide nothing


LABELS = {
    "single_label_classification": torch.tensor([2, -100]),
    "multi_label_classification": torch.tensor([[1.0, 0, 1], [0, 0, 0]]),
    "regression": torch.rand(2, 3),
}


@pytest.mark.parametrize("problem_type", list(LABELS))
def test_the_loss_of_a_step_of_several_batches_is_a_sum(problem_type):
    model, batch, labels = build(problem_type=problem_type), images(), LABELS[problem_type]
    mean = model(batch, labels=labels).loss
    counted = labels.ne(-100).sum()
    torch.testing.assert_close(model(batch, labels=labels, num_items_in_batch=counted).loss, mean)
    torch.testing.assert_close(model(batch, labels=labels, num_items_in_batch=2 * int(counted)).loss, mean / 2)


def weights_after_a_step(folder, batch_size, **fields):
    """Train on four images, of which one has no label, in one step of one or several batches."""
    torch.manual_seed(0)
    model = build(use_cropped_positions=False, **fields)
    examples = [
        {"pixel_values": image, "labels": label} for image, label in zip(images(4), [2, -100, 0, 1], strict=True)
    ]
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=4 // batch_size,
        max_steps=1,
        learning_rate=1.0,
        optim="sgd",
        max_grad_norm=0,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=examples)
    trainer.train()
    return trainer, model.classifier[1].weight.detach()


def test_trainer_learns_the_same_from_several_batches_as_from_one(tmp_path):
    trainer, several = weights_after_a_step(tmp_path, batch_size=2)
    assert trainer.model_accepts_loss_kwargs
    _, one = weights_after_a_step(tmp_path, batch_size=4)
    torch.testing.assert_close(several, one, rtol=0, atol=1e-5)


def test_trainer_divides_weighted_losses_itself():
    """It counts labels, and not what they weigh."""
    assert build().accepts_loss_kwargs
    assert not build(class_weights=[1.0, 2.0, 3.0]).accepts_loss_kwargs
    assert not RadioModel(tiny_config()).accepts_loss_kwargs


def test_labels_of_a_list_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"`labels` must be a tensor, got a list\. Use `torch\.tensor\(labels\)`\."):
        build()(images(), labels=[0, 1])
