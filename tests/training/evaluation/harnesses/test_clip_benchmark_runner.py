"""Zero-shot folders in `clip-benchmark`, on a webdataset of its layout, beside our own count."""

import io
import json
import tarfile

import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

from modeling_radio import RadioForZeroShotImageClassification
from training.evaluation.harnesses.clip_benchmark_runner import load_zero_shot, main


NAMES = ["cat", "dog", "grass"]


def test_loading_gives_what_the_model_computes(zero_shot_folder):
    model, transform, tokenize = load_zero_shot(str(zero_shot_folder), "-", None, "cpu")
    whole = RadioForZeroShotImageClassification.from_pretrained(zero_shot_folder).eval()
    image = to_pil_image(torch.rand(3, 40, 60))
    with torch.no_grad():
        vector = model.encode_image(transform(image)[None])
        texts = model.encode_text(tokenize(["a photo of a cat.", "dog"]))
        expected = whole.get_image_features(transform(image)[None]).pooler_output
    torch.testing.assert_close(vector, expected)
    unit = torch.nn.functional.normalize(texts, dim=1)
    torch.testing.assert_close(unit, whole.embed_texts(_tokenizer(zero_shot_folder), ["a photo of a cat.", "dog"]))


def _tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def webdataset(tmp_path):
    """Nine images in a shard, each with its class."""
    root = tmp_path / "data"
    (root / "test").mkdir(parents=True)
    (root / "classnames.txt").write_text("\n".join(NAMES))
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n{c}")
    (root / "test" / "nshards.txt").write_text("1")
    generator = torch.Generator().manual_seed(3)
    images = [to_pil_image(torch.rand(3, 1, 1, generator=generator).expand(3, 32, 32)) for _ in range(9)]
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        for index, image in enumerate(images):
            picture = io.BytesIO()
            image.save(picture, "PNG")
            for suffix, content in (("png", picture.getvalue()), ("cls", str(index % 3).encode())):
                entry = tarfile.TarInfo(f"{index:05}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return root, images


def test_its_command_measures_a_folder(zero_shot_folder, webdataset, tmp_path, monkeypatch):
    pytest.importorskip("clip_benchmark", reason="needs `pip install clip-benchmark`")
    root, images = webdataset
    monkeypatch.setattr("sys.argv", ["runner"])
    output = tmp_path / "result.json"
    options = {
        "model_type": "radio",
        "model": zero_shot_folder,
        "pretrained": "-",
        "task": "zeroshot_classification",
        "dataset": "wds/mine",
        "dataset_root": root,
        "output": output,
        "num_workers": 0,
        "batch_size": 4,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["eval", *words, "--no_amp"]) == 0
    measured = json.loads(output.read_text())["metrics"]
    whole = RadioForZeroShotImageClassification.from_pretrained(zero_shot_folder).eval()
    classes = whole.embed_classes(_tokenizer(zero_shot_folder), NAMES, ["a photo of a {}.", "{}"])
    _, transform, _ = load_zero_shot(str(zero_shot_folder), "-", None, "cpu")
    with torch.no_grad():
        vectors = whole.get_image_features(torch.stack([transform(image) for image in images])).pooler_output
    right = ((vectors @ classes.T).argmax(1) == torch.arange(9) % 3).double().mean().item()
    assert measured["acc1"] == pytest.approx(right)
    assert 0 < right < 1
