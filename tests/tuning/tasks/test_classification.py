"""Labels of whole images: one class, several, a measured number, or texts."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, List, Value
from PIL import Image
from safetensors.torch import load_file
from tiny_tuning import build_task, picture, run_settings, save_labels
from transformers import AutoTokenizer

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioImageProcessor
from modeling_radio.tuning.adapters import head_names, open_adapter
from modeling_radio.tuning.run import FinetuningRun
from modeling_radio.tuning.tasks.classification import ClassificationTask, MultiLabelTask, RegressionTask


def label_rows(*labels):
    return Dataset.from_dict({"target": list(labels)})


def build(task_class, **options):
    return build_task(task_class, "image-classification", **options)


def scored(task, outputs, labels):
    """Return predictions, and metrics as numbers."""
    predictions, references = task.compare(SimpleNamespace(logits=torch.tensor(outputs)), {"labels": labels})
    score = task.build_score()
    score.update(predictions, references)
    return predictions, {name: float(value) for name, value in score.compute().items()}


def test_one_label_is_an_id():
    task = build(ClassificationTask)
    sample = task.read({"image": picture(), "target": 2}, "image 0")
    assert task.labels(sample).item() == 2
    _, metrics = scored(task, [[3.0, 0, 0], [0, 3, 0], [3, 0, 0]], torch.tensor([0, 1, 2]))
    assert metrics == pytest.approx({"accuracy": 2 / 3, "balanced_accuracy": 2 / 3, "f1": (2 / 3 + 1 + 0) / 3})


def test_class_weights_reach_the_configuration_or_are_refused():
    one, several = label_rows(0, 0, 0, 1), label_rows([0])
    for task_class, train, given, expected in (
        (ClassificationTask, one, (1.0, 2.0, 3.0), [1.0, 2.0, 3.0]),
        (ClassificationTask, one, "balanced", [4 / 6, 2.0, 1.0]),
        (MultiLabelTask, several, (1.0, 2.0, 3.0), [1.0, 2.0, 3.0]),
    ):
        fields = build(task_class, train=train, class_weights=given).config_fields()
        assert fields["class_weights"] == pytest.approx(expected)
    for task_class, train in ((MultiLabelTask, several), (RegressionTask, one)):
        with pytest.raises(ValueError, match="`class_weights`"):
            build(task_class, train=train, class_weights="balanced").config_fields()


@pytest.fixture
def multi_label():
    return build(MultiLabelTask, train=label_rows([0]))


def test_several_labels_become_ones(multi_label):
    for classes, expected in (([0, 2], [1, 0, 1]), ([], [0, 0, 0])):
        sample = multi_label.read({"image": picture(), "target": classes}, "image 0")
        assert multi_label.labels(sample).tolist() == expected
    with pytest.raises(ValueError, match="`validation_share`"):  # nothing to measure
        build(MultiLabelTask, train=label_rows([], []))


@pytest.mark.filterwarnings("ignore:No positive samples:UserWarning")
def test_mean_average_precision_by_hand(multi_label):
    # Class a is found above the others, b's second image is a miss, and c occurs nowhere.
    logits = torch.tensor([[0.9, 2.0, -3.0], [0.1, -1.0, -3.0], [0.2, 1.0, -3.0]])  # all of a would pass for shares
    labels = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]])
    predictions, references = multi_label.compare(SimpleNamespace(logits=logits), {"labels": labels})
    torch.testing.assert_close(predictions, logits.sigmoid())
    score = multi_label.build_score()
    for _ in range(2):
        score.update(predictions[:2], references[:2])
        score.update(predictions[2:], references[2:])
        result = score.compute()
        assert result["mean_average_precision"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
        assert result["f1"] == pytest.approx((2 / 4 + 2 / 4) / 2)
        score.reset()
    of_one = build(MultiLabelTask, names=("a",), train=label_rows([0]))
    _, metrics = scored(of_one, [[2.0], [1.0], [-1.0]], torch.tensor([[0.0], [1], [0]]))
    assert metrics == pytest.approx({"mean_average_precision": 1 / 2, "f1": 2 / 3})


def test_regression():
    task = build(RegressionTask, names=())
    assert task.config_fields()["id2label"] == {0: "value"}
    sample = task.read({"image": picture(), "target": 2.5}, "image 0")
    _, metrics = scored(task, [[2.0], [1.0]], torch.stack([task.labels(sample), torch.tensor(0.0)]))
    assert metrics == pytest.approx({"mean_absolute_error": (0.5 + 1.0) / 2})


TASK = "zero-shot-image-classification"
PROJECTION = "radio_model.adaptors.siglip2-g.head_mlp.final.2"
RENAMING = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def tune(base, data, output, **options):
    run = FinetuningRun(run_settings(base, data, output, TASK, **{"head_learning_rate": 0.05, **options}))
    run.run()
    before, after = (load_file(folder / "model.safetensors") for folder in (base, output / "final"))
    return run, {name for name, weight in before.items() if not torch.equal(weight, after[name])}


def test_texts_train_the_projection_alone_and_the_folder_accepts_other_texts(zero_shot_folder, class_folders, tmp_path):
    run, changed = tune(zero_shot_folder, class_folders, tmp_path / "run")
    final = tmp_path / "run" / "final"
    assert head_names(run.model) == [PROJECTION]
    assert changed == {f"{PROJECTION}.weight", f"{PROJECTION}.bias"}
    assert RadioConfig.from_pretrained(final).temperature == 1.0
    model = RadioForZeroShotImageClassification.from_pretrained(final).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(final), RadioImageProcessor.from_pretrained(final)
    assert processor.size == {"height": 32, "width": 32}
    texts, pixels = model.embed_classes(tokenizer, ["bird", "fish", "tree"]), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert model(pixel_values=pixels, text_embeds=texts).logits_per_image.shape == (2, 3)
    for given in ({}, {"input_ids": torch.zeros(1, 16, dtype=torch.long), "text_embeds": texts}):
        with pytest.raises(ValueError, match="`input_ids` or `text_embeds`"):
            model(pixel_values=pixels, **given)
    with pytest.raises(ValueError, match="`pixel_values`"):
        model(text_embeds=texts)


def test_full_tuning_leaves_the_text_tower_and_other_heads(zero_shot_folder, class_folders, tmp_path):
    run, changed = tune(zero_shot_folder, class_folders, tmp_path / "run", tune="full", learning_rate=0.05)
    assert any(".blocks.0." in name for name in changed)
    assert not [name for name in changed if name.startswith(("text_tower.", "logit_")) or ".feat_mlp." in name]
    assert run.num_trained < run.num_parameters


@RENAMING
def test_adapters_and_the_projection_are_saved_opened_and_merged(zero_shot_folder, class_folders, tmp_path):
    options = {"tune": "lora", "learning_rate": 0.05, "head_learning_rate": 0.05, "merge": True}
    FinetuningRun(run_settings(zero_shot_folder, class_folders, tmp_path / "run", TASK, **options)).run()
    final, merged = tmp_path / "run" / "final", tmp_path / "run" / "merged"
    assert json.loads((final / "adapter_config.json").read_text())["modules_to_save"] == [PROJECTION]
    base = RadioForZeroShotImageClassification.from_pretrained(zero_shot_folder)
    pixels = torch.rand(2, 3, 32, 32)
    texts = base.eval().embed_classes(AutoTokenizer.from_pretrained(final), ["cat", "dog"])
    with torch.no_grad():
        untuned = base(pixel_values=pixels, text_embeds=texts).logits_per_image
        tuned = open_adapter(base, final).eval()(pixel_values=pixels, text_embeds=texts).logits_per_image
        plain = RadioForZeroShotImageClassification.from_pretrained(merged).eval()
        found = plain(pixel_values=pixels, text_embeds=texts).logits_per_image
    assert not torch.allclose(tuned, untuned, atol=1e-3)
    torch.testing.assert_close(found, tuned, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(merged) is not None


def test_texts_are_learned(zero_shot_folder, tmp_path):
    for number in range(8):
        split = "train" if number < 4 else "validation"
        path = tmp_path / "shades" / split / ("dark" if number % 2 else "light") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 36), (40, 40, 9 * number) if number % 2 else (220, 220, 9 * number)).save(path)
    options = {"steps": 40, "evaluate_every": 40, "batch_size": 4, "head_learning_rate": 0.04}
    untuned, run = (
        FinetuningRun(run_settings(zero_shot_folder, tmp_path / "shades", tmp_path / output, TASK, **options))
        for output in ("untuned", "run")
    )
    untuned.task.text_embeds = run.task.text_embeds = torch.eye(16)[:2]  # those of a random tower are almost equal
    before = untuned.trainer.evaluate()["eval_loss"]
    metrics = run.run()
    after = [entry["eval_loss"] for entry in run.trainer.state.log_history if "eval_loss" in entry][-1]
    assert after < 0.9 * before
    assert metrics["accuracy"] == 1


def test_several_labels_and_folders_without_texts_are_refused(zero_shot_folder, class_folders, base, tmp_path):
    data = save_labels(tmp_path / "data", List(Value("string")), [["a"], ["b", "a"], ["a"], ["b"]])
    for checkpoint, source, name in ((zero_shot_folder, data, TASK), (base, class_folders, "`checkpoint`")):
        with pytest.raises(ValueError, match=name):
            FinetuningRun(run_settings(checkpoint, source, tmp_path / "run", TASK))
