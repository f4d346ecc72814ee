"""A twin of NVIDIA's Hub: its repositories by their real names, small, with random weights.

Each has the files, names of tensors, fields of `config.json`, adaptors and omissions of the real one, as far as one
who holds it, or NVIDIA's own code, says so: `SOURCES` names who. What nobody says is in `ASSUMED`. Only width and depth
of the trunk and the widths of heads are smaller; architectures, tables of positions and tokens are the real ones.

    with hub_in_place(monkeypatch) as hub:
        serve_twin(hub)                                    # or serve_twin(hub, "nvidia/C-RADIOv4-H")
        RadioModel.from_pretrained("nvidia/C-RADIOv4-H")

    write_repository("nvidia/C-RADIOv4-H", folder)         # the same files in a folder, without a server
"""

import functools
import json
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from local_hub import LocalHub, Repository
from reference_cases import STAND_IN, hub_tensors
from safetensors.torch import save_file
from tiny_sam3 import TRUNK_WIDTH, build_sam3
from tiny_texts import build_dual_encoder, build_word_tokenizer
from torch import Tensor
from transformers import Sam3ImageProcessor

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.to_nvidia import training_file_content
from modeling_radio.nvidia.recognition import MATTERING
from modeling_radio.presets_radio import RELEASES


WIDTH, DEPTH, HEADS = 32, 8, 2  # more than the 4 blocks that stay global with ViTDet windows
HALF = "_half"
"""Archives with this in their names have half precision."""


@dataclass(frozen=True)
class Teacher:
    """An entry of `args.teachers`, and the widths of its heads here; None where there is none."""

    name: str
    type: str
    model: str
    summary_dim: int | None
    feature_dim: int
    options: dict[str, Any] = field(default_factory=dict)


CLIP = Teacher("clip", "open_clip", "ViT-H-14-378-quickgelu", 16, 20, {"pretrained": "dfn5b"})
SIGLIP = Teacher("siglip", "open_clip", "ViT-SO400M-14-SigLIP-384", 18, 18, {"pretrained": "webli"})
SIGLIP2 = Teacher("siglip2", "siglip2", "siglip2-so400m", 18, 18)
SIGLIP2_G = Teacher("siglip2-g", "siglip2", "siglip2-g-384", 24, 24, {"spatial_mlp_version": "attn"})
DINO_V2 = Teacher("dino_v2", "dino_v2", "dinov2_vitg14_reg", 24, 24)
DINO_V3 = Teacher("dino_v3_7b", "dino_v3", "dinov3_vit7b16", 64, 64)
SAM = Teacher("sam", "sam", "vit-h", None, 20, {"use_summary": False})
SAM3 = Teacher("sam3", "sam3", "sam3", TRUNK_WIDTH, TRUNK_WIDTH, {"use_summary": False})

V25 = (CLIP, SIGLIP, DINO_V2, SAM)
V3 = (CLIP, SIGLIP2, DINO_V2, SAM)
V4 = (SIGLIP2_G, DINO_V3, SAM3)


@dataclass(frozen=True)
class Twin:
    """A published checkpoint.

    Attributes:
        version: NVIDIA's name for it.
        model: `args.model`.
        teachers: Those of `args`, all of which have adaptors in the archive.
        archive: File with the whole training state; None where no source names one.
        archive_in: Repository of the archive, where that is another one.
        hub_adaptors: Those in `model.safetensors` and `adaptor_configs`.
        layer_scale: Whether its blocks have LayerScale.
        reg_token: Whether timm's unused registers are among the tensors.
        has_processor: Whether there is a `preprocessor_config.json`.
        positions: Whether keys of heads say the position of the teacher in place of its name.
        args: Further training arguments.
        fields: Further fields of `RadioConfig`.
    """

    version: str
    model: str
    teachers: tuple[Teacher, ...]
    archive: str | None = None
    archive_in: str | None = None
    hub_adaptors: tuple[str, ...] = ()
    layer_scale: bool = False
    reg_token: bool = False
    has_processor: bool = False
    positions: bool = False
    args: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


_V25: dict[str, Any] = {
    "teachers": V25,
    "archive_in": "nvidia/RADIO",
    "hub_adaptors": tuple(teacher.name for teacher in V25),
    "positions": True,
    "args": {"register_multiple": 8},
}
_V2: dict[str, Any] = {**_V25, "hub_adaptors": (), "archive_in": None}
_V3: dict[str, Any] = {"teachers": V3, "args": {"register_multiple": 8}}
_V4: dict[str, Any] = {"teachers": V4, "args": {"register_multiple": 10}}
_SCALED = {"layer_scale": True, "reg_token": True, "has_processor": True}
_DINO_FIELDS = {"use_swiglu_ffn": True, "use_final_norm": True, "use_patch_bias": True, "patch_size": 14}

TWINS = {
    "nvidia/RADIO": Twin(
        "radio_v2.1",
        "vit_huge_patch16_224",
        (CLIP, DINO_V2, SAM),
        "radio_v2.1_bf16.pth.tar",
        has_processor=True,
        positions=True,
        args={"mlp_version": "v1", "register_multiple": None},
    ),
    "nvidia/RADIO-B": Twin(
        "radio_v2.5-b", "vit_base_patch16_224", archive="radio-v2.5-b_half.pth.tar", has_processor=True, **_V25
    ),
    "nvidia/RADIO-L": Twin("radio_v2.5-l", "vit_large_patch16_224", archive="radio-v2.5-l_half.pth.tar", **_V25),
    "nvidia/RADIO-H": Twin(
        "radio_v2.5-h", "vit_huge_patch16_224", archive="radio_v2.5-h.pth.tar", has_processor=True, **_V25
    ),
    "nvidia/RADIO-g": Twin(
        "radio_v2.5-g",
        "dino_v2_g_student",
        archive="radio_v2.5-g.pth.tar",
        layer_scale=True,
        fields=_DINO_FIELDS,
        **{**_V25, "args": {"register_multiple": None, "cpe_max_size": 1792}},
    ),
    "nvidia/C-RADIOv2-g": Twin("c-radio_v2-g", "vit_giant_patch16_224", archive="c-radio_v2-g_half.pth.tar", **_V2),
    "nvidia/C-RADIOv2-VLM-H": Twin(
        "c-radio_v2-vlm-h", "vit_huge_patch16_224", archive="c-radio_v2-vlm-h.pth.tar", has_processor=True, **_V2
    ),
    "nvidia/C-RADIOv3-B": Twin(
        "c-radio_v3-b", "vit_base_patch16_v2_224", archive="c-radio_v3-b_half.pth.tar", **_V3, **_SCALED
    ),
    "nvidia/C-RADIOv3-L": Twin(
        "c-radio_v3-l", "vit_large_patch16_v2_224", archive="c-radio-v3_l_half.pth.tar", **_V3, **_SCALED
    ),
    "nvidia/C-RADIOv3-H": Twin(
        "c-radio_v3-h", "vit_huge_patch16_224", archive="c-radio_v3-h_half.pth.tar", has_processor=True, **_V3
    ),
    "nvidia/C-RADIOv3-g": Twin("c-radio_v3-g", "vit_giant_patch16_224", archive="c-radio_v3-g_half.pth.tar", **_V3),
    "nvidia/C-RADIOv4-SO400M": Twin(
        "c-radio_v4-so400m", "vit_so400m_patch16_224", archive="c-radio_v4-so400m_half.pth.tar", **_V4
    ),
    "nvidia/C-RADIOv4-H": Twin("c-radio_v4-h", "vit_huge_patch16_224", archive="c-radio_v4-h_half.pth.tar", **_V4),
    "nvidia/C-RADIOv4-1D-H": Twin(
        "c-radio_v4-1d-h",
        "radio1d_huge_patch16_224",
        V4,
        fields={
            "num_cls_tokens": 4,
            "num_registers": 6,
            "downscale_levels": [3],
            "decoder_depth": 4,
            "decoder_upscale_levels": [2],
            "filler_grid_size": 4,
            "max_img_size": 2048,
        },
    ),
}
"""By repository."""

TOWERS: dict[str, tuple[str, int]] = {
    "google/siglip2-giant-opt-patch16-384": ("siglip2", 24),
    "google/siglip2-so400m-patch16-naflex": ("siglip2", 18),
    "google/siglip-so400m-patch14-384": ("siglip", 18),
    "apple/DFN5B-CLIP-ViT-H-14-378": ("clip", 16),
}
"""Repositories with the text towers of teachers: kind, and width of the embeddings here."""

COMMON, HF_MODEL = "radio/common.py of NVlabs/RADIO c0f3701", "radio/hf_model.py of NVlabs/RADIO c0f3701"
HOLDER_SO400M = "a holder of C-RADIOv4-SO400M's files (waste_vlm, read 2026-12-01)"
HOLDER_B = "a holder of C-RADIOv3-B's files, revision 44653a04 (an MLX port, read 2026-12-01)"
COUNTS = "numbers in each file, by a loader of five of them: 98,254,854; 319,934,470; 651,642,886; 1,159,618,566"
SOURCES = {
    "archive": COMMON,
    "archive_in": COMMON,
    "version": HF_MODEL,
    "fields of config.json": HF_MODEL,
    "C-RADIOv4: names of teachers, heads named by them": HOLDER_SO400M + "; RADIO-GS for C-RADIOv4-H",
    "C-RADIOv4: `model` of siglip2-g": HOLDER_SO400M + "; radio/siglip2_adaptor.py of NVlabs/RADIO",
    "C-RADIOv4: 330 tensors, no adaptors in the folder": HOLDER_SO400M,
    "C-RADIOv4: the dense head of siglip2-g has attention, all others are v2": HOLDER_SO400M,
    "C-RADIOv3: `siglip2` in place of README's `siglip2-g`": "NVlabs/RADIO#163; RADSeg 05ec86f; six programs",
    "C-RADIOv3: clip, dino_v2, sam": "README of NVlabs/RADIO c0f3701",
    "C-RADIOv3: no adaptors in the folder": COUNTS,
    "C-RADIOv3-B, -L: reg_token (1, 4, width)": COUNTS + "; " + HOLDER_B,
    "C-RADIOv3-B: LayerScale under `grandma`, 8 prefix tokens, 128 x 128 positions": HOLDER_B,
    "C-RADIOv3-H, -g: neither": COUNTS,
    "RADIOv2.5: clip, siglip, dino_v2, sam; RADIOv2: without siglip": "README of NVlabs/RADIO c0f3701",
    "preprocessor_config.json": "file lists of the Hub, and the text of four of them (facts of the project, 2026-08)",
    "C-RADIOv4-1D-H: tokens, sharded weights in float32": "a user of the release; its file list",
}
"""By fact, who says so."""
ASSUMED = (
    "C-RADIOv4: 3 class tokens and 7 registers of the 10 prefix tokens",
    "`args.model` of every release, but that C-RADIOv3-B and -L have LayerScale and reg_token",
    "RADIOv2.5: all four adaptors are in the folder; heads in archives are named by position",
    "C-RADIOv2: the teachers; no adaptors in the folder",
    "C-RADIOv4-1D-H: the teachers, the blocks that merge; here one file of weights in place of several",
    "data types: float32 in folders, float16 in archives named so",
    "archives: `state_dict` alone, folded; epoch",
)
"""What no source says; it must not stand in a table of evidence."""


def serve_twin(hub: LocalHub, *names: str) -> None:
    """Put repositories of NVIDIA's, and those of its teachers' text towers and SAM3, on a local Hub; all by default."""
    for name in names or (*TWINS, *TOWERS, "facebook/sam3"):
        hub.repositories[f"models/{name}"] = Repository(private=False)
        hub.repositories[f"models/{name}"].commit(_contents(name))


def write_repository(name: str, folder: Path) -> Path:
    """Write the files of a repository into a new folder."""
    folder.mkdir(parents=True)
    for file, content in _contents(name).items():
        (folder / file).write_bytes(content)
    return folder


@functools.cache
def _contents(name: str) -> dict[str, bytes]:
    """Return the files of a repository; built once in a process."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        _write(name, Path(folder))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _write(name: str, folder: Path) -> None:
    if name in TOWERS:
        kind, width = TOWERS[name]
        build_dual_encoder(kind, width).save_pretrained(folder)
        build_word_tokenizer().save_pretrained(folder)
    elif name == "facebook/sam3":
        build_sam3().save_pretrained(folder)
        Sam3ImageProcessor().save_pretrained(folder)
    else:
        _write_release(name, TWINS[name], folder)
    for other, twin in TWINS.items():
        if twin.archive is not None and (twin.archive_in or other) == name:
            _write_archive(folder / twin.archive, twin)


def _write_release(name: str, twin: Twin, folder: Path) -> None:
    content = training_state(twin)
    args = {
        key: str(value).removeprefix("torch.") if _is_dtype(value) else value
        for key, value in vars(content["args"]).items()
    }
    descriptions = {name: _described(twin, name) for name in twin.hub_adaptors}
    resource = {
        "patch_size": twin.fields.get("patch_size", 16),
        "max_resolution": RELEASES[twin.version].max_px,
        "preferred_resolution": [RELEASES[twin.version].preferred_px] * 2,
    }
    config = {
        "adaptor_configs": descriptions,
        "adaptor_names": None,
        "architectures": ["RADIOModel"],
        "args": args,
        "auto_map": {"AutoConfig": "hf_model.RADIOConfig", "AutoModel": "hf_model.RADIOModel"},
        "feature_normalizer_config": None,
        "inter_feature_normalizer_config": None,
        **resource,
        "torch_dtype": "float32",
        "transformers_version": "4.47.1",
        "version": twin.version,
        "vitdet_window_size": None,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = hub_tensors(content["state_dict"], args["teachers"], twin.hub_adaptors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    license_name = "nvidia-open-model-license" if name.startswith("nvidia/C-") else "nvidia-source-code-license-nc"
    (folder / "README.md").write_text(f"---\nlicense: other\nlicense_name: {license_name}\n---\n# {name}\n")
    if twin.has_processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(_processor(RELEASES[twin.version].preferred_px)))
    for file in STAND_IN.glob("*.py"):
        shutil.copy(file, folder)


def _write_archive(path: Path, twin: Twin) -> None:
    content = training_state(twin)
    if HALF in path.name:
        content["state_dict"] = {key: _halved(tensor) for key, tensor in content["state_dict"].items()}
    torch.save(content, path)


def _halved(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


@functools.cache
def _state(version: str) -> Callable[[], dict[str, Any]]:
    twin = next(twin for twin in TWINS.values() if twin.version == version)
    content = training_file_content(RadioModel(twin_config(twin)))
    if twin.reg_token:
        content["state_dict"]["base_model.reg_token"] = torch.randn(1, 4, WIDTH)
    args = {name: value for name, value in vars(content["args"]).items() if name not in MATTERING}  # those are ours
    return lambda: {**content, "state_dict": dict(content["state_dict"]), "args": Namespace(**args)}


def training_state(twin: Twin) -> dict[str, Any]:
    """Return what a release's archive holds, in float32."""
    return _state(twin.version)()


def twin_config(twin: Twin) -> RadioConfig:
    """Return our configuration of a release, in the size of the twin."""
    is_elastic = "downscale_levels" in twin.fields
    per_teacher = twin.model != "dino_v2_g_student"
    tokens = {"num_cls_tokens": len(twin.teachers) if per_teacher else 1}
    tokens["num_registers"] = (twin.args.get("register_multiple") or 4) - tokens["num_cls_tokens"] if per_teacher else 4
    if twin.args.get("register_multiple", 0) is None and per_teacher:
        tokens["num_registers"] = 0
    summaries = [index for index, teacher in enumerate(twin.teachers) if teacher.options.get("use_summary", True)]
    shape = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "mlp_ratio": 4.0,
        "max_img_size": twin.args.get("cpe_max_size", 2048),
        "use_layer_scale": twin.layer_scale,
    }
    adaptors = [] if is_elastic else [_adaptor(twin, index) for index in range(len(twin.teachers))]
    fields = {**shape, **tokens, "summary_idxs": summaries if per_teacher else [0], **twin.fields}
    heads = {
        teacher.name: str(index) if twin.positions else teacher.name for index, teacher in enumerate(twin.teachers)
    }
    source = (
        None
        if is_elastic
        else {
            "args": _arguments(twin),
            "arch": twin.model,
            "epoch": 299,
            "heads": heads,
            "layer_scale": twin.layer_scale,
        }
    )
    return RadioConfig(**fields, adaptors=adaptors, nvidia_source=source)


def _arguments(twin: Twin) -> dict[str, Any]:
    kwargs = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 4.0}
    return {
        "model": twin.model,
        "model_kwargs": kwargs,
        "cls_token_per_teacher": twin.model != "dino_v2_g_student",
        "cpe_max_size": 2048,
        "cpe_num_registers": None,
        "mlp_version": "v2",
        "mlp_hidden_size": 40,
        "mlp_num_inner": 1,
        "teachers": [
            {"name": each.name, "type": each.type, "model": each.model, "use_summary": True, **each.options}
            for each in twin.teachers
        ],
        **twin.args,
    }


def _adaptor(twin: Twin, index: int) -> dict[str, Any]:
    teacher = twin.teachers[index]
    is_old = twin.args.get("mlp_version") == "v1"
    attention = {"feature_head": "attention"} if teacher.options.get("spatial_mlp_version") == "attn" else {}
    return {
        "name": teacher.name,
        "token_index": index if twin.model != "dino_v2_g_student" else 0,
        "summary_dim": teacher.summary_dim or teacher.feature_dim,
        "feature_dim": teacher.feature_dim,
        "hidden_size": 40,
        "num_inner_blocks": 0 if is_old else 1,
        "mlp_version": "v1" if is_old else "v2",
        **attention,
    }


def _described(twin: Twin, name: str) -> dict[str, Any]:
    """Return an adaptor's entry of `adaptor_configs`."""
    adaptor = next(adaptor for adaptor in twin_config(twin).adaptor_configs if adaptor.name == name)
    head = {"hidden_dim": adaptor.hidden_size, "input_dim": WIDTH, "num_inner": adaptor.num_inner_blocks}
    return {
        "head_idx": adaptor.token_index,
        "summary": {**head, "output_dim": adaptor.summary_dim},
        "feature": {**head, "output_dim": adaptor.feature_dim, "upsample_factor": 1, "upsample_rank": None},
    }


def _processor(side: int) -> dict[str, Any]:
    return {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": False,
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": False,
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "resample": 3,
        "size": {"shortest_edge": side},
    }


def _is_dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype)
