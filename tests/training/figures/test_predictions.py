"""Every kind of folder opens as what it is and nothing else does; photographs are read; each task has its answer."""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from local_hub import Repository, hub_in_place
from PIL import Image
from reference_cases import write_hub_folder
from releases import needs_heads
from tiny_checkpoints import CLASSES
from tiny_tuning import tuning_settings

from modeling_radio import (
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioForUniversalSegmentation,
    RadioImageProcessor,
    RadioModel,
)
from training.figures import predictions
from training.figures.predictions import READERS, devices, open_model, predict, read_photograph, shown
from training.finetuning.adapters import add_adapter, save_adapter


PROCESSOR = RadioImageProcessor()
OBJECT_MODELS = [RadioForObjectDetection, RadioForInstanceSegmentation, RadioForUniversalSegmentation]


@pytest.fixture
def backbone(tmp_path):
    torch.manual_seed(0)
    RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=6)).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def test_a_model_with_texts_brings_its_tokenizer_and_its_spaces(opened):
    assert opened.zero_shot is opened.model
    assert opened.tokenizer("cat").input_ids
    assert opened.dense_adaptors == ["siglip2-g", "dino_v2"]
    assert not opened.has_head
    assert opened.backbone.radio_model is opened.model.radio_model


def test_a_plain_backbone_needs_no_processor_in_its_folder(backbone):
    opened = open_model(str(backbone), "cpu")
    assert opened.backbone is opened.model
    assert (opened.tokenizer, opened.zero_shot, opened.has_head, opened.dense_adaptors) == (None, None, False, [])
    assert opened.processor.patch_size == 16
    assert not opened.model.training


def test_a_tuned_model_opens_with_its_head_and_its_processor(save_tuned):
    folder = save_tuned(RadioForObjectDetection)
    RadioImageProcessor(size={"height": 32, "width": 48}).save_pretrained(folder)
    opened = open_model(str(folder), "cpu")
    assert type(opened.model) is RadioForObjectDetection
    assert opened.has_head
    assert opened.processor.size["width"] == 48
    pixels = torch.rand(1, 3, 32, 48)
    assert torch.equal(opened.backbone(pixels).features, opened.model.base_model(pixels).features)


@needs_heads
def test_an_adapter_opens_with_its_base(backbone, tmp_path):
    model = RadioForImageClassification.from_pretrained(backbone, num_labels=5)
    adapted = add_adapter(model, tuning_settings(checkpoint=str(backbone), tune="lora"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(adapted, RadioImageProcessor(), tmp_path / "adapter", str(backbone))
    opened = open_model(str(tmp_path / "adapter"), "cpu")
    pixels = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(opened.model(pixels).logits, adapted.eval()(pixel_values=pixels).logits)
        plain = open_model(str(backbone), "cpu").backbone(pixels).features
        assert not torch.allclose(opened.backbone(pixels).features, plain), "the adapter acts on the features, too"


def test_a_folder_of_nvidias_opens(tmp_path):
    opened = open_model(str(write_hub_folder("c_radio_v4_tiny", tmp_path / "nvidia")), "cpu")
    assert type(opened.model) is RadioModel
    assert opened.processor.patch_size == opened.model.config.patch_size


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return a Hub of our own, and a function that puts a folder there."""
    with hub_in_place(monkeypatch) as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        # The client by which transformers lists a tokenizer's files was made for the Hub that was asked first.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)

        def publish(folder, name):
            repository = server.repositories[f"models/{name}"] = Repository(private=False)
            repository.commit({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})

        yield publish


def test_checkpoints_of_the_hub_open_by_their_names(hub, texts, tmp_path):
    hub(texts, "org/texts")
    hub(write_hub_folder("c_radio_v4_tiny", tmp_path / "nvidia"), "nvidia/C-RADIOv4-H")
    opened = open_model("org/texts", "cpu")
    assert opened.zero_shot is not None
    assert opened.tokenizer("cat").input_ids
    assert opened.processor.size == RadioImageProcessor.from_pretrained(texts).size
    assert type(open_model("nvidia/C-RADIOv4-H", "cpu").model) is RadioModel
    with pytest.raises(OSError, match="org/nothing"):
        open_model("org/nothing", "cpu")


def test_types_and_global_blocks_are_as_asked_for(backbone):
    assert open_model(str(backbone), "cpu", "bfloat16").dtype == "bfloat16"
    assert sum(open_model(str(backbone), "cpu", num_global=1).backbone.radio_model.model.is_global) == 1


def test_no_code_of_a_checkpoint_runs(backbone):
    for path in backbone.glob("*.py"):
        path.write_text("raise SystemExit('code of the checkpoint ran')")
    open_model(str(backbone), "cpu")


def test_what_is_no_radio_model_is_refused(backbone, texts, tmp_path):
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"`checkpoint` must be a RADIO model, got .* with the `model_type` 'vit'"):
        open_model(str(backbone), "cpu")
    (backbone / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    with pytest.raises(ValueError, match=r"missing: radio_model.model.blocks.6"):
        open_model(str(backbone), "cpu")
    with pytest.raises(OSError, match="nowhere"):
        open_model(str(tmp_path / "nowhere"), "cpu")
    towerless = shutil.copytree(texts, tmp_path / "towerless")
    config = json.loads((texts / "config.json").read_text()) | {"text_tower": None}
    (towerless / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="`checkpoint` must have the `text_tower`"):
        open_model(str(towerless), "cpu")
    without = shutil.copytree(texts, tmp_path / "without")
    for path in without.glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"tokenizer of `checkpoint` .* cannot be read"):
        open_model(str(without), "cpu")


def test_devices_and_types_are_checked(backbone):
    assert devices()[-1] == "cpu"
    with pytest.raises(ValueError, match=r"`device` must be one of .*, got 'tpu'"):
        open_model(str(backbone), "tpu")
    with pytest.raises(ValueError, match=r"`dtype` must be one of .*, got 'float8'"):
        open_model(str(backbone), "cpu", "float8")


def test_a_photograph_is_turned_as_its_camera_says(picture):
    image = Image.new("RGB", (30, 20), "red")
    image.paste("blue", (0, 0, 15, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    pixels = read_photograph(picture(image, exif=exif), PROCESSOR)
    assert (pixels.shape, pixels.dtype) == ((3, 30, 20), torch.uint8)
    assert pixels[:, 2, 10].tolist() == [0, 0, 255]
    assert pixels[:, 27, 10].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "I;16"])
def test_any_mode_becomes_rgb(picture, mode):
    image = Image.linear_gradient("L").resize((20, 10))
    image = Image.new("I;16", (20, 10), 65535) if mode == "I;16" else image.convert(mode)
    pixels = read_photograph(picture(image), PROCESSOR)
    assert pixels.shape == (3, 10, 20)
    assert pixels[0, -1, 0] > 230


def test_transparency_is_laid_on_white(picture):
    assert read_photograph(picture(Image.new("RGBA", (4, 4), (0, 0, 0, 0))), PROCESSOR).min() == 255


def test_what_cannot_be_read_is_refused(picture, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"got none\. Choose one first"):
        read_photograph(None, PROCESSOR)
    for name, content in {"text.svg": b"<svg/>", "broken.jpg": b"\xff\xd8\xff\xe0 no picture"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"such as JPEG, PNG or WebP, got '{name}'") as caught:
            read_photograph(tmp_path / name, PROCESSOR)
        assert str(tmp_path) not in str(caught.value), "no path of the server is told"
    whole = picture(Image.effect_noise((64, 64), 90), "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:600])
    with pytest.raises(ValueError, match=r"got 'half\.png', which cannot be read"):
        read_photograph(whole, PROCESSOR)
    monkeypatch.setattr(predictions, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="at most 0 megapixels, got 64 x 64"):
        read_photograph(picture(Image.new("RGB", (64, 64)), "large.png"), PROCESSOR)


def test_photographs_are_shown_small_enough():
    assert shown(torch.zeros(3, 1000, 2000, dtype=torch.uint8)).shape == (3, 384, 768)
    assert shown(torch.zeros(3, 10, 20, dtype=torch.uint8)).shape == (3, 10, 20)
    assert shown(torch.zeros(3, 1, 2000, dtype=torch.uint8)).shape == (3, 1, 768)


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return open_model(str(folder), "cpu")


def read(photograph):
    return read_photograph(photograph, PROCESSOR)


def outputs_of(opened, photograph):
    inputs = opened.processor(Image.open(photograph), return_tensors="pt")
    with torch.no_grad():
        return opened.model(**inputs)


def test_a_classifier_gives_scores_at_its_temperature(save_tuned, photograph):
    folder = save_tuned(RadioForImageClassification)
    opened = change(folder, temperature=2.0)
    found = predict(opened, read(photograph), 0.5)
    logits = outputs_of(opened, photograph).logits[0]
    assert list(found.scores) == CLASSES
    torch.testing.assert_close(torch.tensor(list(found.scores.values())), (logits / 2).softmax(dim=0))
    assert found.told.startswith(max(found.scores, key=found.scores.get))
    several = predict(change(folder, problem_type="multi_label_classification"), read(photograph), 0.5)
    torch.testing.assert_close(torch.tensor(list(several.scores.values())), (logits / 2).sigmoid())
    numbers = predict(change(folder, problem_type="regression"), read(photograph), 0.5)
    assert numbers.scores == {}
    assert (
        numbers.told
        == ", ".join(f"{name} {value:.3g}" for name, value in zip(CLASSES, logits.tolist(), strict=True)) + "."
    )


@pytest.mark.parametrize("padded", [False, True])
def test_a_segmenter_divides_the_photograph(save_tuned, photograph, padded):
    folder = save_tuned(RadioForSemanticSegmentation)
    if padded:
        padding = {"do_pad": True, "pad_size": {"height": 160, "width": 160}}
        RadioImageProcessor(size=64, **padding).save_pretrained(folder)
    found = predict(open_model(str(folder), "cpu"), read(photograph), 0.5)
    assert found.photograph.shape == (3, 360, 640)
    assert {region.label for region in found.regions} <= set(CLASSES)
    assert sum(region.area.astype(int) for region in found.regions).tolist() == np.ones((360, 640), dtype=int).tolist()


def test_depth_is_a_picture(save_tuned, photograph):
    found = predict(open_model(str(save_tuned(RadioForDepthEstimation)), "cpu"), read(photograph), 0.5)
    assert found.depth.shape == (3, 360, 640)
    assert found.depth[0].max() > 200
    assert found.drawn() is found.depth
    assert found.told.startswith("Depth from ")


@pytest.mark.parametrize("model_class", OBJECT_MODELS)
def test_objects_count_from_a_score_on(save_tuned, photograph, model_class):
    opened = open_model(str(save_tuned(model_class)), "cpu")
    every, none = predict(opened, read(photograph), 0.0), predict(opened, read(photograph), 1.0)
    assert none.told == "0 objects."
    assert none.regions == []
    assert torch.equal(none.drawn(), none.photograph)
    assert len(every.regions) > 1
    assert not torch.equal(every.drawn(), every.photograph)
    outputs = outputs_of(opened, photograph)
    logits = outputs.class_queries_logits if "class_queries_logits" in outputs else outputs.logits
    scores, places = logits.flatten().sigmoid().sort(descending=True)
    middle = float(scores[2:4].mean())
    expected = [
        f"{CLASSES[place % 3]} {score:.2f}"
        for score, place in zip(scores[:3].tolist(), places[:3].tolist(), strict=True)
    ]
    assert [each.label for each in predict(opened, read(photograph), middle).regions] == expected
    region = every.regions[0].area
    if model_class is RadioForObjectDetection:
        left, top, right, bottom = region
        assert 0 <= left <= right <= 640
        assert 0 <= top <= bottom <= 360
    else:
        assert region.shape == (360, 640)
        assert region.dtype == bool


def test_each_class_may_have_a_score_of_its_own(save_tuned, photograph):
    folder = save_tuned(RadioForObjectDetection)
    opened = change(folder, score_thresholds=[0.0, 1.0, 1.0])
    labels = {each.label.split()[0] for each in predict(opened, read(photograph), "tuned").regions}
    assert labels == {"cat"}
    with pytest.raises(ValueError, match="needs `score_thresholds` of the 3 classes"):
        predict(change(folder, score_thresholds=None), read(photograph), "tuned")
    with pytest.raises(ValueError, match=r"`threshold` must be a number in \[0, 1\]"):
        predict(opened, read(photograph), 1.5)


def test_the_most_certain_objects_are_drawn(save_tuned, photograph, monkeypatch):
    monkeypatch.setattr(predictions, "MAX_OBJECTS", 2)
    found = predict(open_model(str(save_tuned(RadioForObjectDetection)), "cpu"), read(photograph), 0.0)
    assert len(found.regions) == 2
    assert ", of which 2 are drawn" in found.told


@pytest.mark.parametrize("model_class", [model_class for model_class, _ in READERS])
def test_half_precision_answers(save_tuned, photograph, model_class):
    assert predict(open_model(str(save_tuned(model_class)), "cpu", "bfloat16"), read(photograph), 0.1).told


def test_a_backbone_has_no_task(opened, photograph):
    with pytest.raises(ValueError, match="must be a model tuned for a task"):
        predict(opened, read(photograph), 0.5)
