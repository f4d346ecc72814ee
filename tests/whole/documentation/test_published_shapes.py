"""README prints what a network of the published size answers."""

import re

import torch
from documentation import ROOT
from PIL import Image

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel


WIDTHS = {"dino_v3_7b": 4096, "sam3": 1024}
"""Widths of the features of DINOv3-7B and of SAM3's trunk."""


def published_config() -> RadioConfig:
    """Return that of C-RADIOv4-H with these adaptors."""
    adaptors = [
        {"name": name, "token_index": index, "summary_dim": width, "feature_dim": width, "hidden_size": 2560}
        for index, (name, width) in enumerate(WIDTHS.items(), start=1)
    ]
    return RadioConfig.from_preset("c-radio_v4-h", adaptors=adaptors)


def test_shapes_are_those_of_the_published_size():
    config = published_config()
    photograph = Image.open(ROOT / "docs" / "photograph.jpg")
    pixels = RadioImageProcessor.from_model_config(config)(photograph, return_tensors="pt")["pixel_values"]
    with torch.device("meta"):
        model = RadioModel(config).eval()
    assert sum(parameter.numel() for parameter in model.radio_model.model.parameters()) == 651_645_440
    out = model(pixels.to("meta"), feature_format="NCHW")
    lines = [f"{out.summary.shape} {out.features.shape}"]
    lines += [f"{name} {adaptor.summary.shape} {adaptor.features.shape}" for name, adaptor in out.adaptors.items()]
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## NVIDIA's models")[2]
    shown = re.findall(r"^```\n(torch\.Size.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert shown == ["\n".join(lines) + "\n"]
