"""Zero-shot folders in `clip-benchmark`, on a webdataset of its layout, beside our own count."""

import io
import json
import tarfile

import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

from modeling_radio import RadioForZeroShotImageClassification
from modeling_radio.evaluation.harnesses.clip_benchmark_runner import load_zero_shot, main
from modeling_radio.tokenizer import open_tokenizer


@torch.no_grad()
def test_loading_gives_the_vectors_of_the_model(zero_shot_folder):
    model, transform, tokenize = load_zero_shot(str(zero_shot_folder), "-", None, "cpu")
    whole = RadioForZeroShotImageClassification.from_pretrained(zero_shot_folder).eval()
    pixels, names = transform(to_pil_image(torch.rand(3, 40, 60)))[None], ["a photo of a cat.", "dog"]
    torch.testing.assert_close(model.encode_image(pixels), whole.get_image_features(pixels).pooler_output)
    texts = torch.nn.functional.normalize(model.encode_text(tokenize(names)), dim=1)
    torch.testing.assert_close(texts, whole.embed_texts(open_tokenizer(zero_shot_folder), names))


def test_its_command_measures_a_folder(zero_shot_folder, tmp_path, monkeypatch):
    pytest.importorskip("clip_benchmark", reason="needs `pip install clip-benchmark`")
    names, root, output = ["cat", "dog", "grass"], tmp_path / "data", tmp_path / "result.json"
    (root / "test").mkdir(parents=True)
    (root / "classnames.txt").write_text("\n".join(names))
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
    monkeypatch.setattr("sys.argv", ["runner"])
    words = ["--model_type", "radio", "--model", zero_shot_folder, "--pretrained", "-", "--no_amp"]
    words += ["--task", "zeroshot_classification", "--dataset", "wds/mine", "--dataset_root", root]
    words += ["--output", output, "--num_workers", 0, "--batch_size", 4]
    assert main(["eval", *map(str, words)]) == 0
    whole = RadioForZeroShotImageClassification.from_pretrained(zero_shot_folder).eval()
    classes = whole.embed_classes(open_tokenizer(zero_shot_folder), names, ["a photo of a {}.", "{}"])
    _, transform, _ = load_zero_shot(str(zero_shot_folder), "-", None, "cpu")
    with torch.no_grad():
        vectors = whole.get_image_features(torch.stack([transform(image) for image in images])).pooler_output
    right = ((vectors @ classes.T).argmax(1) == torch.arange(9) % 3).double().mean().item()
    assert json.loads(output.read_text())["metrics"]["acc1"] == pytest.approx(right)
    assert 0 < right < 1
