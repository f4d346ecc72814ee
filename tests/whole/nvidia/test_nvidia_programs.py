"""The calls of RADSeg, RayFronts and probe3d on models by `torch.hub` and on folders that `AutoModel` opens.

In our own words: those programs are written for NVIDIA's repository. Summary, features and heads are NVIDIA's own for
the same weights; the rest is computed anew from the parts of the network.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference_cases import REFERENCE
from safetensors.torch import load_file
from tiny_texts import build_dual_encoder, build_word_tokenizer
from torch import Tensor, nn
from transformers import AutoModel

from modeling_radio.conversion.convert import main


pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[3]
CASE = REFERENCE / "c_radio_v4_tiny"
SIZE, TOLERANCE = "128x192", 1e-5
LANGUAGE = "siglip2-g"


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(CASE / "expected.safetensors")


@pytest.fixture(scope="module")
def images(stored) -> Tensor:
    return stored[f"{SIZE}/image_uint8"] / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory, stored) -> Path:
    """The case with a text tower of the width of its language adaptor."""
    root = tmp_path_factory.mktemp("programs")
    teacher = root / "teacher"
    width = stored[f"{SIZE}/global/{LANGUAGE}/summary"].shape[1]
    build_dual_encoder("siglip2", width).save_pretrained(teacher)
    build_word_tokenizer().save_pretrained(teacher)
    source, output = str(CASE / "checkpoint.pth.tar"), root / "folder"
    assert main([source, str(output), "--text-tower", str(teacher)]) == 0
    return output


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def load(folder: Path, **arguments) -> nn.Module:
    """What all of these programs begin with."""
    names = {"version": str(folder), "progress": True, "skip_validation": True, **arguments}
    return torch.hub.load(str(ROOT), "radio_model", source="local", **names).eval().to("cpu")


def open_auto(folder: Path) -> nn.Module:
    return AutoModel.from_pretrained(folder, trust_remote_code=True, adaptor_names=[]).eval()


@pytest.fixture(params=[load, open_auto], ids=["torch.hub", "AutoModel"])
def model(request, folder) -> nn.Module:
    return request.param(folder)


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    return (actual - expected).abs().max().item()


class SwappedAttention(nn.Module):
    """Stands in the place of the last block's attention; `self_correlating` attends by queries to queries.

    Args:
        attention: The one whose weights it takes.
        self_correlating: Which of the two.
    """

    def __init__(self, attention: nn.Module, self_correlating: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = attention.qkv, attention.proj, attention.num_heads
        self.attn_drop, self.proj_drop, self.scale = attention.attn_drop, attention.proj_drop, attention.scale
        self.q_norm, self.k_norm, self.fused = attention.q_norm, attention.k_norm, attention.fused_attn
        self.self_correlating = self_correlating

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        assert attn_mask is None
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        query, key = self.q_norm(query), self.k_norm(key)
        scores = query @ (query if self.self_correlating else key).transpose(-2, -1) * self.scale
        mixed = (self.attn_drop(scores.softmax(dim=-1)) @ value).transpose(1, 2).reshape(batch, length, width)
        return self.proj_drop(self.proj(mixed))


def swap(model: nn.Module, self_correlating: bool) -> None:
    last = model.model.blocks[-1]
    last.attn = SwappedAttention(last.attn, self_correlating)


def self_correlated(model: nn.Module, images: Tensor) -> Tensor:
    """Return the tokens of a network whose last block attends by queries to queries, from its parts."""
    tokens = model.model.patch_generator(model.input_conditioner(images))
    *blocks, last = model.model.blocks
    for block in blocks:
        tokens = block(tokens)
    query, _, value = last.attn.qkv(last.norm1(tokens)).unflatten(-1, (3, last.attn.num_heads, -1)).unbind(2)
    query, value = query.transpose(1, 2), value.transpose(1, 2)
    mixed = F.scaled_dot_product_attention(query, query, value).transpose(1, 2).flatten(2)
    tokens = tokens + last.attn.proj(mixed)
    return model.model.norm(tokens + last.mlp(last.norm2(tokens)))


@pytest.mark.parametrize("by_hub", [True, False], ids=["torch.hub", "AutoModel"])
def test_radseg(by_hub, folder, images, stored):
    """Labels on patches: swapped attention, the summary head on features, texts by the adaptor; no adaptor runs."""
    model = load(folder, adaptor_names=[LANGUAGE]) if by_hub else open_auto(folder)
    adaptor = model.adaptors[LANGUAGE]
    model.adaptors = None
    swap(model, self_correlating=False)
    summary, features = (model(images)[name] for name in ((0, 1) if by_hub else ("summary", "features")))
    assert largest_difference(summary, stored[f"{SIZE}/global/backbone/summary"]) <= TOLERANCE
    assert largest_difference(features, stored[f"{SIZE}/global/backbone/features"]) <= TOLERANCE
    expected = self_correlated(load(folder), images)[:, model.num_summary_tokens :]
    model.model.blocks[-1].attn.self_correlating = True
    rows, cols = (side // model.patch_size for side in images.shape[-2:])
    maps = model(images).features.permute(0, 2, 1).reshape(1, model.model.embed_dim, rows, cols)
    assert largest_difference(maps.flatten(2).transpose(1, 2), expected) <= TOLERANCE
    prompts = [template.format(name) for name in ("cat", "dog") for template in ("a {}", "a photo of a {}")]
    tokens = adaptor.tokenizer(prompts).to("cpu")
    texts = adaptor.encode_text(tokens, normalize=True).reshape(2, 2, -1).mean(dim=1)
    aligned = adaptor.head_mlp(maps.permute(0, 2, 3, 1))
    assert (F.normalize(aligned, dim=-1) @ texts.t()).shape == (1, rows, cols, 2)


def test_heads_of_the_language_adaptor(folder, images, stored):
    """RayFronts aligns the global vector and each patch with texts by the adaptor's heads."""
    model = load(folder, adaptor_names=LANGUAGE)
    adaptor = model.adaptors[LANGUAGE]
    out = model(images)
    class_tokens = out["backbone"].summary.unflatten(1, (-1, model.model.embed_dim))
    summary = adaptor.head_mlp(class_tokens[:, adaptor.head_idx])
    for actual in (summary, out[LANGUAGE].summary):
        assert largest_difference(actual, stored[f"{SIZE}/global/{LANGUAGE}/summary"]) <= TOLERANCE
    features = adaptor.feat_mlp(out["backbone"].features)
    for actual in (features, out[LANGUAGE].features):
        assert largest_difference(actual, stored[f"{SIZE}/global/{LANGUAGE}/features"]) <= TOLERANCE


def test_rayfronts(model, images, stored):
    """Maps of the nearest valid size from pixels that the caller normalizes, with the last attention swapped."""
    height, width = (side + 3 for side in images.shape[-2:])
    nearest = model.get_nearest_supported_resolution(height, width)
    assert (nearest.height, nearest.width) == tuple(images.shape[-2:])
    expected = self_correlated(model, images)[:, model.num_summary_tokens :]
    conditioner = model.make_preprocessor_external()
    out = model(conditioner(images), feature_fmt="NCHW")
    features = out.features.flatten(2).transpose(1, 2)
    assert largest_difference(features, stored[f"{SIZE}/global/backbone/features"]) <= TOLERANCE
    swap(model, self_correlating=True)
    out = model(conditioner(images), feature_fmt="NCHW")
    assert largest_difference(out.features.flatten(2).transpose(1, 2), expected) <= TOLERANCE


def test_probe3d(model, images, stored):
    """Maps of several blocks, from a loop over them."""
    conditioner = model.make_preprocessor_external()
    vit = model.model
    assert vit.patch_generator.patch_size == model.patch_size == 16
    prefix = f"{SIZE}/intermediates/sparse"
    wanted = {int(key.split("/")[3]) for key in stored if key.startswith(prefix)}
    x = vit.patch_generator(conditioner(images))
    rows, cols = (side // vit.patch_generator.patch_size for side in images.shape[-2:])
    compared = 0
    for index, block in enumerate(vit.blocks):
        x = block(x)
        if index in wanted:
            patches = x[:, vit.patch_generator.num_skip :].permute(0, 2, 1).unflatten(2, (rows, cols))
            assert largest_difference(patches, stored[f"{prefix}/{index}/features"]) <= TOLERANCE
            compared += 1
    assert compared == len(wanted) >= 2
    x = vit.norm(x)
    features = x[:, vit.patch_generator.num_skip :]
    assert largest_difference(features, stored[f"{SIZE}/global/backbone/features"]) <= TOLERANCE
    assert torch.equal(vit.forward_features(conditioner(images)), x)
