"""Every Python block of README and docs runs, alone, on tiny models with random weights and a Hub of our own.

Blocks that don't import this repository's packages run as a stranger's do, without them; the others with them.
"""

import re

import pytest
from documentation import ROOT, Block, blocks
from elsewhere import OURS


GIVEN = {
    "evaluate.load": """
        import torch
        from datasets import ClassLabel, Dataset, Features, Image
        from PIL import Image as Pictures
        gallery, gallery_labels = torch.rand(40, 8).tolist(), [0, 1] * 20
        queries, labels = torch.rand(4, 8).tolist(), [0, 1, 0, 1]
        rows = {"image": [Pictures.new("RGB", (48, 48), (60 * k, 99, 9)) for k in range(4)], "label": labels}
        dataset = Dataset.from_dict(rows, Features(image=Image(), label=ClassLabel(names=["LABEL_0", "LABEL_1"])))
    """,
    "BASE": 'BASE = "runs/demo/final"',
    'data_dir="pets"': """
        from pathlib import Path
        from PIL import Image as Pictures
        for number in range(10):
            path = Path("pets") / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Pictures.new("RGB", (48, 48), (25 * number, 99, 9)).save(path)
    """,
    "pets_base": """
        from modeling_radio import RadioForImageClassification as Model
        pets_base, zoo_base = (Model.from_pretrained("runs/demo/final", num_labels=count) for count in (37, 5))
    """,
}
"""What a reader has, by the name in a block that tells it."""

CHECKED = {
    folder: f"""
        import torch
        from transformers import pipeline
        classify = pipeline("image-classification", model="{folder}", trust_remote_code=True)
        assert classify.image_processor.size == {{"height": 224, "width": 224}}
        assert classify.model.config.id2label == {{0: "cat", 1: "dog"}}
        pixels = torch.rand(2, 3, 224, 224)
        with torch.no_grad():
            found, expected = (each(pixels).logits for each in (classify.model, model.eval()))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    """
    for folder in ("runs/by-trainer/final", "runs/by-accelerate")
}
"""What holds after a block, by the folder that it writes: this opens like any other, and answers as the model does."""

OTHER_FOLDERS = {"docs/guides/share/convert.md": "with-nvidia-outputs"}
"""Pages whose code runs in another folder of the world."""

NEVER_INSTALLED = ("supervision",)
"""Packages that a guide names and no extra of ours has; blocks that import them are not run."""

PRELUDE = """
import sys
from huggingface_hub import constants

constants.HF_HUB_OFFLINE, constants.ENDPOINT = False, {endpoint!r}
constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + "/{{repo_id}}/resolve/{{revision}}/{{filename}}"
for name in {ours!r}:
    del sys.modules[name]
sys.path[:0] = {paths!r}
"""


def is_ours(code: str) -> bool:
    return re.search(rf"^(from|import) ({'|'.join(OURS)})\b", code, re.MULTILINE) is not None


def texts_for(code: str, known: dict[str, str]) -> str:
    """Return the texts whose names a block holds."""
    texts = [text for name, text in known.items() if name in code]
    return "".join(re.sub(r"^ {8}", "", text, flags=re.MULTILINE) + "\n" for text in texts)


def program(block: Block, endpoint: str) -> str:
    """Return what runs a block: what is there before it, the block, and what holds after it."""
    given = texts_for(block.text, GIVEN)
    ours = OURS if is_ours(block.text) or is_ours(given) else ()
    prelude = PRELUDE.format(endpoint=endpoint, ours=ours, paths=[str(ROOT)] if ours else [])
    return prelude + given + block.text + texts_for(block.text, CHECKED)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.place, marks=() if block.page == "README.md" else pytest.mark.tour)
        for block in blocks("python", "py")
    ],
)
def test_blocks_run(block, world, elsewhere):
    if any(f"import {name}" in block.text for name in NEVER_INSTALLED):
        pytest.skip("needs a package that is no dependency")
    folder = world.folder / OTHER_FOLDERS.get(block.page, "")
    done = elsewhere.run(program(block, world.hub.endpoint), folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert world.hub.unknown == []


@pytest.mark.parametrize("name", CHECKED)
def test_what_is_checked_is_in_one_block(name):
    assert sum(name in block.text for block in blocks("python", "py")) == 1


def test_a_block_that_fails_is_told(world, elsewhere):
    for text, error in (("import modeling_radio.nothing", "nothing"), ("nothing()", "NameError")):
        done = elsewhere.run(program(Block("README.md", 1, "python", text), world.hub.endpoint), world.folder)
        assert done.returncode == 1
        assert error in done.stderr
