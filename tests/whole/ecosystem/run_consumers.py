"""Libraries that call a model as they call CLIP: their vectors of images and texts must equal ours.

Usage: run_consumers.py make FOLDER     with this repository: writes tiny models, pictures and our own vectors
       run_consumers.py check FOLDER    with the libraries, without this repository: one line for each
       run_consumers.py embed FOLDER    with both: the code of docs/how-to/batches.md, and FiftyOne's in tools.md

`make consumers` does all three, with the libraries from PyPI in an environment of their own.
"""

import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


os.environ |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "true", "FIFTYONE_DO_NOT_TRACK": "true"}
os.environ |= {"PYSPARK_PYTHON": sys.executable}  # else the first `python3` of PATH
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

import numpy as np
import torch
from PIL import Image


REPOSITORY = Path(__file__).parents[3]
MODELS = ("plain", "sentences", "siglip", "pairs")
"""Without texts; with a sentence encoder; with SigLIP's tower, which wants padding; with NVIDIA's pairs of outputs."""
TEXTS = ["a cat", "a photo of a dog", "This is a photo of ice cream"]
SIZES = ((64, 64), (60, 90), (128, 64))  # rows and columns in pixels; the first is the models' own
TOLERANCE = 1e-5

Vectors = dict[str, Any]


def unit(vectors: Any) -> np.ndarray:
    """Return unit vectors, `(count, width)`."""
    rows = np.stack([np.asarray(row, dtype=np.float64) for row in vectors])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def read_pictures(root: Path) -> list[Image.Image]:
    """Return the pictures in order."""
    return [Image.open(path).convert("RGB") for path in sorted((root / "pictures").glob("*.png"))]


# With this repository


def make(root: Path) -> None:
    """Write the models, the pictures and our own vectors of both."""
    sys.path[:0] = [str(REPOSITORY / part) for part in ("", "tests/support", "tests/support/models")]
    from tiny_folders import TEXT_WIDTH, build_radio, save_radio, save_words
    from tiny_texts import build_dual_encoder, build_word_tokenizer

    from modeling_radio import RadioForZeroShotImageClassification, RadioImageProcessor, RadioModel
    from modeling_radio.conversion.text_tower import canonicalizing

    save_radio(root / "plain")
    save_words(root / "sentences")
    radio = build_radio()
    siglip = RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder("siglip2", TEXT_WIDTH), "words")
    siglip.save_pretrained(root / "siglip")
    canonicalizing(build_word_tokenizer(), 16).save_pretrained(root / "siglip")
    RadioImageProcessor.from_model_config(radio.config).save_pretrained(root / "siglip")
    RadioModel.from_pretrained(root / "plain", nvidia_outputs=True, adaptor_names=[]).save_pretrained(root / "pairs")
    RadioImageProcessor.from_model_config(radio.config).save_pretrained(root / "pairs")
    (root / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / "pictures" / f"{number}.png")
    processor = RadioImageProcessor.from_model_config(radio.config, size=(64, 64))
    pixels = processor(read_pictures(root), return_tensors="pt")["pixel_values"]
    for name in MODELS:
        with torch.no_grad():
            if name in ("plain", "pairs"):
                vectors = {"images": RadioModel.from_pretrained(root / name).eval()(pixels, return_dict=True).summary}
            else:
                model = RadioForZeroShotImageClassification.from_pretrained(root / name).eval()
                from transformers import AutoTokenizer

                texts = model.embed_texts(AutoTokenizer.from_pretrained(root / name), TEXTS)
                vectors = {"images": model.get_image_features(pixels).pooler_output, "texts": texts}
        backbone, own = RadioModel.from_pretrained(root / name).eval(), RadioImageProcessor.from_pretrained(root / name)
        with torch.no_grad():  # each picture in its own shape
            pixels_of_each = [own(picture, return_tensors="pt")["pixel_values"] for picture in read_pictures(root)]
            vectors["summary"] = torch.cat([backbone(each, return_dict=True).summary for each in pixels_of_each])
        np.savez(root / f"{name}.npz", **{kind: unit(each) for kind, each in vectors.items()})


# With the libraries


def sentence_transformers(folder: Path, pictures: list[Image.Image], texts: list[str]) -> Vectors:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    images = model.encode(pictures)
    assert images.shape[1] == model.get_embedding_dimension()
    model.save_pretrained(str(folder) + "-again")
    again = SentenceTransformer(str(folder) + "-again", trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(pictures), images, atol=TOLERANCE)
    return {"images": images, "texts": model.encode(texts) if texts else None}


def daft(folder: Path, pictures: list[Image.Image], texts: list[str]) -> Vectors:
    import daft
    from daft.functions import decode_image, download, embed_image

    frame = daft.from_glob_path(f"{folder.parent}/pictures/*.png").sort("path")
    frame = frame.with_column("image", decode_image(download(daft.col("path"))))
    frame = frame.with_column("vector", embed_image(daft.col("image"), provider="transformers", model=str(folder)))
    return {"images": frame.select("vector").to_pydict()["vector"]}


class RayEmbedder:
    """The class of Ray Data's tutorial about CLIP."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModel, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        inputs = self.processor(images=list(batch["image"]), return_tensors="pt")
        with torch.inference_mode():
            vectors = self.model.get_image_features(**inputs).pooler_output.numpy()
        return {"path": batch["path"], "vector": vectors}


def ray(folder: Path, pictures: list[Image.Image], texts: list[str]) -> Vectors:
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    images = ray.data.read_images(str(folder.parent / "pictures"), include_paths=True, mode="RGB")
    options: dict[str, Any] = {"fn_constructor_args": (str(folder),), "batch_size": 4, "concurrency": 1}
    rows = images.map_batches(RayEmbedder, **options).take_all()
    return {"images": [row["vector"] for row in sorted(rows, key=lambda row: row["path"])]}


def fiftyone(folder: Path, pictures: list[Image.Image], texts: list[str]) -> Vectors:
    import fiftyone.utils.transformers as fout

    trust = {"trust_remote_code": True}
    options = {"name_or_path": str(folder), "entrypoint_args": trust, "transforms_args": trust}
    images = fout.FiftyOneTransformer(fout.FiftyOneTransformerConfig(dict(options))).embed_all(pictures)
    if not texts:
        return {"images": images}
    settings = fout.FiftyOneZeroShotTransformerForImageClassificationConfig({**options, "classes": ["cat", "dog"]})
    model = fout.FiftyOneZeroShotTransformerForImageClassification(settings)
    model.predict(pictures[0])
    return {"images": model.embed_all(pictures), "texts": model.embed_prompts(texts)}


def mteb(folder: Path, pictures: list[Image.Image], texts: list[str]) -> Vectors:
    from mteb.models.model_implementations.radio_models import RADIOModel

    model = RADIOModel(str(folder), revision=None)
    own_size = {"image": pictures[:1]}  # it has a filter of its own for others
    return {"images": model.get_image_embeddings([own_size], show_progress_bar=False).float()}


# With both: the code of the pages that use `Embedder`, and of FiftyOne's source of models


def run_block(page: str, package: str, work: Path, model: Path) -> None:
    """Run a page's block that imports a package, where readers have a model and pictures."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    [block] = [block for block in blocks if re.search(rf"^(import|from) {package}\b", block, re.MULTILINE)]
    for link, target in (("runs/demo/final", model), ("pets/all", model.parent / "pictures")):
        (work / link).parent.mkdir(parents=True, exist_ok=True)
        (work / link).symlink_to(target)
    (work / "block.py").write_text(block)
    subprocess.run([sys.executable, "block.py"], cwd=work, check=True, timeout=900)


def embed_in(package: str, column: str) -> Callable[..., Vectors]:
    def run(folder: Path, pictures: list[Image.Image], texts: list[str]) -> Vectors:
        from pyarrow.dataset import dataset

        work = folder.parent / "work" / package
        run_block("docs/how-to/batches.md", package, work, folder)
        files = [str(path) for path in (work / "vectors").rglob("*.parquet")]
        rows = sorted(dataset(files).to_table().to_pylist(), key=lambda row: row["path"])
        return {"summary": [row[column] for row in rows]}

    return run


def fiftyone_source(folder: Path, pictures: list[Image.Image], texts: list[str]) -> Vectors:
    page = (REPOSITORY / "docs/how-to/tools.md").read_text(encoding="utf-8")
    zoo = folder.parent / "zoo"
    shutil.copytree(folder, zoo / "radio")
    for name, language in (("manifest.json", "json"), ("__init__.py", "python")):
        found = re.search(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        assert found is not None
        (zoo / "radio" / name).write_text(found[1])
    import fiftyone
    from fiftyone import zoo as models

    fiftyone.config.model_zoo_dir = str(zoo)
    return {"images": models.load_zoo_model("my-radio").embed_all(pictures)}


CONSUMERS: dict[Callable[..., Vectors], tuple[str, tuple[str, ...]]] = {
    sentence_transformers: ("sentence-transformers", MODELS),
    daft: ("daft", MODELS),
    ray: ("ray", MODELS),
    fiftyone: ("fiftyone", ("plain", "sentences", "siglip")),
    mteb: ("mteb", ("pairs",)),  # which unpacks a pair
}
"""Each with its package, and the models that it opens."""
EMBEDDERS: dict[Callable[..., Vectors], tuple[str, tuple[str, ...]]] = {
    embed_in("daft", "vector"): ("daft", ("plain",)),
    embed_in("ray", "summary"): ("ray", ("plain",)),
    embed_in("pyspark", "vector"): ("pyspark", ("plain",)),
    fiftyone_source: ("fiftyone", ("plain",)),
}


def check(root: Path, consumers: dict[Callable[..., Vectors], tuple[str, tuple[str, ...]]]) -> int:
    """Compare all vectors with ours; print a line for each library and model, and return how many differ."""
    pictures, failed = read_pictures(root), 0
    for consumer, (package, models) in consumers.items():
        for name in models:
            expected = np.load(root / f"{name}.npz")
            try:
                found = consumer(root / name, pictures, TEXTS if "texts" in expected else [])
                differences = {
                    kind: float(np.abs(unit(each) - expected[kind][: len(each)]).max())
                    for kind, each in found.items()
                    if each is not None
                }
                is_equal, shown = max(differences.values()) <= TOLERANCE, str(differences)
            except Exception as error:  # noqa: BLE001  (libraries raise anything)
                traceback.print_exc()
                is_equal, shown = False, f"{type(error).__name__}: {error}"[:300]
            failed += not is_equal
            word = "ok  " if is_equal else "FAIL"
            sys.stdout.write(f"{word} {package} {version(package)} {name}: {shown}\n")
            sys.stdout.flush()
    return failed


if __name__ == "__main__":
    mode, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if mode == "make":
        make(folder)
    else:
        sys.exit(check(folder, EMBEDDERS if mode == "embed" else CONSUMERS))
