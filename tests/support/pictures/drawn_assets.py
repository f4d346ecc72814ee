from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from modeling_radio.demo.assets import CutOut, DemoAssets, Photograph


COLORS = {("disc", "train"): (255, 0, 0), ("disc", "held_out"): (0, 0, 255)}
COLORS |= {("box", "train"): (255, 0, 64), ("box", "held_out"): (0, 64, 255)}


def draw_cut_out(path: Path, label: str, split: str) -> CutOut:
    picture = Image.new("RGBA", (80, 60), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    shape = draw.ellipse if label == "disc" else draw.rectangle
    shape((10, 10, 70, 50), fill=(*COLORS[label, split], 255))
    picture.save(path)
    return CutOut(path, label, True, split)


def draw_photograph(path: Path, split: str, license: str) -> Photograph:
    shade = 40 if split == "train" else 220
    picture = Image.linear_gradient("L").resize((300, 200)).point(lambda value: shade + value // 16)
    Image.merge("RGB", (picture, picture, picture)).save(path)
    return Photograph(path, license, "drawn", split)


@pytest.fixture(scope="session")
def assets(tmp_path_factory) -> DemoAssets:
    """Drawn assets whose colors tell the split: objects red or blue, photographs dark or light."""
    folder = tmp_path_factory.mktemp("assets")
    objects, photographs = [], []
    for split in ("train", "held_out"):
        for label in ("disc", "box"):
            objects += [draw_cut_out(folder / f"{split}_{label}_{i}.png", label, split) for i in range(2)]
        photographs.append(draw_photograph(folder / f"{split}.png", split, "CC0-1.0"))
    photographs.append(draw_photograph(folder / "copyleft.png", "held_out", "GPL-2+"))
    return DemoAssets(tuple(objects), (), tuple(photographs), ("disc", "box"), ("disc", "box"), "drawn for tests")
