"""README prints what a network of the published size answers."""

import json
import re

import torch
from documentation import ROOT
from PIL import Image
from reference_cases import REFERENCE

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel


WIDTHS = {"dino_v3": 4096, "sam3": 1024}
"""Of the features of DINOv3-7B and of SAM3's trunk."""


def published_config() -> RadioConfig:
    """Return that of C-RADIOv4-H: the reference case, whose layout is the Hub's, in the published size."""
    values = json.loads((REFERENCE / "c_radio_v4_tiny" / "hf" / "config.json").read_text())
    values["args"] |= {
        "model": "vit_huge_patch16_224",
        "model_kwargs": {},
        "cpe_max_size": 2048,
        "register_multiple": 10,
    }
    values["preferred_resolution"] = [512, 512]
    for name, heads in values["adaptor_configs"].items():
        heads["feature"]["upsample_factor"] = 1
        for head in heads.values():
            if isinstance(head, dict):
                head |= {"input_dim": 1280, "output_dim": WIDTHS[name]}
    return RadioConfig.from_dict(values)


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
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```\n(torch\.Size.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert shown == ["\n".join(lines) + "\n"]
