"""Images learn where they stand among fixed texts; what is saved answers to other texts, too."""

import json

import pytest
import torch
from datasets import List, Value
from PIL import Image
from safetensors.torch import load_file
from tiny_tuning import run_settings, save_labels
from transformers import AutoTokenizer

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioImageProcessor
from training.finetuning.adapters import head_names, open_adapter
from training.finetuning.run import FinetuningRun


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TASK = "zero-shot-image-classification"
PROJECTION = "radio_model.adaptors.siglip2-g.head_mlp.final.2"


def tune(base, data, output, **options):
    run = FinetuningRun(run_settings(base, data, output, TASK, **{"head_learning_rate": 0.05, **options}))
    run.run()
    return run


def changed(before, after):
    return {name for name, weight in before.items() if not torch.equal(weight, after[name])}


def test_the_projection_alone_is_the_head_and_the_texts_stay(zero_shot_folder, class_folders, tmp_path):
    run = tune(zero_shot_folder, class_folders, tmp_path / "run")
    assert head_names(run.model) == [PROJECTION]
    before, after = (
        load_file(folder / "model.safetensors") for folder in (zero_shot_folder, tmp_path / "run" / "final")
    )
    assert changed(before, after) == {f"{PROJECTION}.weight", f"{PROJECTION}.bias"}
    assert RadioConfig.from_pretrained(tmp_path / "run" / "final").temperature == 1.0


def test_the_folder_answers_to_other_texts(zero_shot_folder, class_folders, tmp_path):
    tune(zero_shot_folder, class_folders, tmp_path / "run")
    final = tmp_path / "run" / "final"
    model = RadioForZeroShotImageClassification.from_pretrained(final).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(final), RadioImageProcessor.from_pretrained(final)
    assert processor.size == {"height": 32, "width": 32}
    texts = model.embed_classes(tokenizer, ["bird", "fish", "tree"])
    with torch.no_grad():
        assert model(pixel_values=torch.rand(2, 3, 32, 32), text_embeds=texts).logits_per_image.shape == (2, 3)


def test_full_tuning_leaves_the_text_tower_and_other_heads(zero_shot_folder, class_folders, tmp_path):
    run = tune(zero_shot_folder, class_folders, tmp_path / "run", tune="full", learning_rate=0.05)
    before, after = (
        load_file(folder / "model.safetensors") for folder in (zero_shot_folder, tmp_path / "run" / "final")
    )
    moved = changed(before, after)
    assert any(".blocks.0." in name for name in moved)
    assert not [name for name in moved if name.startswith(("text_tower.", "logit_")) or ".feat_mlp." in name]
    assert run.share.trainable < run.share.total


def test_adapters_and_the_projection_are_saved_opened_and_merged(zero_shot_folder, class_folders, tmp_path):
    tune(zero_shot_folder, class_folders, tmp_path / "run", tune="lora", learning_rate=0.05, merge=True)
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


def test_it_learns(zero_shot_folder, tmp_path):
    for number in range(8):
        split = "train" if number < 4 else "validation"
        path = tmp_path / "shades" / split / ("dark" if number % 2 else "light") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 36), (40, 40, 9 * number) if number % 2 else (220, 220, 9 * number)).save(path)
    options = {"steps": 80, "evaluate_every": 80, "batch_size": 4, "head_learning_rate": 0.02}
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
    with pytest.raises(ValueError, match=f"must be one class an image for {TASK}"):
        FinetuningRun(run_settings(zero_shot_folder, data, tmp_path / "run", TASK))
    with pytest.raises(ValueError, match="has no text tower: make a folder with one by"):
        FinetuningRun(run_settings(base, class_folders, tmp_path / "run", TASK))


def test_texts_are_given_once(zero_shot_folder):
    model = RadioForZeroShotImageClassification.from_pretrained(zero_shot_folder)
    pixels = torch.rand(1, 3, 32, 32)
    for texts in ({}, {"input_ids": torch.zeros(1, 16, dtype=torch.long), "text_embeds": torch.rand(1, 16)}):
        with pytest.raises(ValueError, match="Either `input_ids` or `text_embeds` must be given"):
            model(pixel_values=pixels, **texts)
    with pytest.raises(ValueError, match="`pixel_values` must be given"):
        model(text_embeds=torch.rand(1, 16))
