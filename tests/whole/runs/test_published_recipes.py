"""Recipes for real teachers: full-size on the meta device, and a few real steps of every stage with tiny ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from comparisons import assert_close_by_name
from PIL import Image
from tiny_distillation import last_state, leave_progress_undrawn, share_noise
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Sam3ViTConfig,
    Sam3ViTModel,
    SamVisionConfig,
    SamVisionModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from two_processes import run_two_processes

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.layers_radio import AttentionLayout, ImagePack
from modeling_radio.training.distillation.stages import run_recipe
from modeling_radio.training.recipes.recipe import Recipe, list_recipes, load_recipe, stage_recipes
from modeling_radio.training.student.build import build_student
from modeling_radio.training.teachers.registry import teacher_of_recipe


pytestmark = pytest.mark.usefixtures("one_thread")


STAGES = ["low_256", "low_432", "low_and_high"]


class Shipped(NamedTuple):
    """What is known of a recipe.

    Attributes:
        widths: Widths of the teachers, summary and features.
        num_parameters: Parameters of the student without its adaptors.
        mosaics: The teachers that see many images in a pass, and the cells of their canvas along a side.
        stages: Their names.
    """

    widths: dict[str, tuple[int | None, int]]
    num_parameters: int
    mosaics: dict[str, int]
    stages: list[str] = STAGES


SAM, SAM3 = {"sam": 1024 // 16}, {"sam3": 1008 // 14}
CLIP, SIGLIP2, DINO_V2, DINO_V3 = (1024, 1280), (1536, 1536), (1536, 1536), (4096, 4096)
V4 = {"siglip2-g": SIGLIP2, "dino_v3_7b": DINO_V3, "sam3": (None, 1024)}
PERMISSIVE = {"siglip2-g": SIGLIP2, "dino_v2": DINO_V2, "sam": (None, 1280)}
FROM_RADIO = {"c-radio": (2560, 1280), **V4}

SHIPPED = {
    "radio_v2.5": Shipped(
        {"clip": CLIP, "siglip": (1152, 1152), "dino_v2": DINO_V2, "sam": (None, 1280)}, 651_642_880, SAM
    ),
    "c_radio_v3": Shipped(
        {"clip": CLIP, "siglip2": (1152, 1152), "dino_v2": DINO_V2, "sam": (None, 1280)}, 651_642_880, SAM
    ),
    "c_radio_v4_so400m": Shipped(V4, 431_237_232, SAM3),
    "c_radio_v4_h": Shipped(V4, 651_645_440, SAM3),
    "c_radio_v4_1d_h": Shipped(V4, 1_454_087_680, SAM3, []),
    "permissive": Shipped(PERMISSIVE, 431_237_232, SAM),
    "radio_s": Shipped(FROM_RADIO, 27_884_160, {}),
    "radio_ti": Shipped(FROM_RADIO, 8_633_664, {}),
    "radio_s_permissive": Shipped(PERMISSIVE, 27_883_776, SAM),
    "radio_ti_permissive": Shipped(PERMISSIVE, 8_633_472, SAM),
    "radio_mobile": Shipped(PERMISSIVE, 8_357_376, SAM, ["low_224", "low_many"]),
    "convnext_tiny": Shipped(FROM_RADIO, 30_482_784, {}, []),
    "mobilenet_v4": Shipped(FROM_RADIO, 12_285_072, {}, []),
    "efficientvit": Shipped(FROM_RADIO, 47_270_336, {}, []),
    "resnet50": Shipped(FROM_RADIO, 29_810_752, {}, []),
}


def test_all_but_those_of_the_demo_are_known_here() -> None:
    assert {name for name in list_recipes() if not name.startswith("demo")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_recipe_builds_at_full_size_on_the_meta_device(name: str) -> None:
    widths, num_parameters, *_ = SHIPPED[name]
    recipe = load_recipe(name, ["data.source=images"])
    with torch.device("meta"):
        teachers = {}
        for entry in recipe.teachers:
            entry.options["weights"] = "random"
            teachers[entry.name] = teacher_of_recipe(entry)
        student = build_student(recipe, teachers)
    assert {key: (teacher.summary_dim, teacher.feature_dim) for key, teacher in teachers.items()} == widths
    adaptors = {entry["name"]: (entry["summary_dim"], entry["feature_dim"]) for entry in student.config.adaptors}
    assert adaptors == widths
    assert sum(parameter.numel() for parameter in student.radio_model.model.parameters()) == num_parameters


@pytest.mark.parametrize("name", SHIPPED)
def test_every_size_of_every_stage_suits_the_teachers(name: str) -> None:
    recipe = load_recipe(name, ["data.source=images"])
    stages = stage_recipes(recipe)
    assert [stage.name for stage in stages] == SHIPPED[name].stages
    sizes = {size for stage in stages or [recipe] for partition in stage.partitions for size in partition.sizes_px}
    assert all(size % 16 == 0 for size in sizes)
    mosaics = SHIPPED[name].mosaics
    assert {entry.name for entry in recipe.teachers if entry.run_mode == "mosaic"} == mosaics.keys()
    assert all(max(sizes) // 16 <= cells for cells in mosaics.values())


# The others differ from these in sizes only, which all small ones share.
DIFFERENT = ("radio_v2.5", "c_radio_v3", "c_radio_v4_h", "permissive", "radio_s", "radio_mobile")
NUM_STEPS = 2  # the trunk is frozen in the first
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def sam_sizes() -> dict:
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    return {**sizes, "mlp_dim": 24, "output_channels": 8, "initializer_range": 0.02, "window_size": 2}


def build_radio() -> RadioModel:
    """Return a RADIO model with the adaptors of C-RADIOv4, narrow and shallow."""
    adaptors = [
        {"name": name, "summary_dim": summary and 12, "feature_dim": 10, "hidden_size": 16, "token_index": index}
        for index, (name, (summary, _)) in enumerate(V4.items())
    ]
    return RadioModel(
        RadioConfig.from_preset("radio-test", num_hidden_layers=2, vitdet_num_global=1, adaptors=adaptors)
    )


# Each as its namesake: one with a size of its own is as coarse as two cells a side, one for mosaics six.
TINY_TEACHERS = {
    "clip": lambda: CLIPVisionModelWithProjection(
        CLIPVisionConfig(**SIZES, patch_size=14, image_size=28, projection_dim=12)
    ),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, patch_size=14, image_size=30)),
    "siglip2": lambda: Siglip2VisionModel(Siglip2VisionConfig(**SIZES, patch_size=16, num_patches=4)),
    "siglip2-g": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, patch_size=16, image_size=32)),
    "dino_v2": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=56
        )
    ),
    "dino_v3_7b": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, patch_size=16, num_register_tokens=4)),
    "c-radio": build_radio,
    "sam": lambda: SamVisionModel(SamVisionConfig(**sam_sizes(), image_size=96, global_attn_indexes=[1])),
    "sam3": lambda: Sam3ViTModel(
        Sam3ViTConfig(
            **SIZES, image_size=84, pretrain_image_size=56, patch_size=14, window_size=3, global_attn_indexes=[1]
        )
    ),
}


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random model for each teacher, and some images."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("world")
    for name, build in TINY_TEACHERS.items():
        build().save_pretrained(folder / name)
    (folder / "images").mkdir()
    for number in range(6):
        pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).resize((160, 160)).save(folder / "images" / f"{number}.png")
    return folder


def shrink(recipe: dict, world: Path) -> dict:
    """Make a published recipe small, keeping what it does: its kinds, run modes, partitions, stages and losses."""
    for teacher in recipe["teachers"]:
        teacher["source"] = str(world / ("c-radio" if teacher["kind"] == "radio" else teacher["name"]))
    for part in (recipe, *recipe["stages"]):
        for partition in part.get("partitions", []):
            is_high = partition["name"] == "high"
            partition["sizes_px"] = sorted({_small(size) for size in partition["sizes_px"]})
            if partition.get("token_budget"):  # an image of the largest size for each part of two ranks, and more
                partition["token_budget"] = 120 if is_high else 80
            else:
                partition["batch_size"] = 2 if is_high else 4
            partition["accumulation_steps"] = 1 if is_high else 2
            partition |= {"vitdet_windows": [2] if is_high else [1], "vitdet_probability": 1}
    recipe["student"] |= {"preset": "radio-test", "config": {"num_hidden_layers": 2, "vitdet_num_global": 1}}
    recipe["student"]["adaptor"] = {"hidden_size": 16, "num_inner_blocks": 0}
    recipe["data"] |= {"source": str(world / "images"), "num_workers": 0}
    recipe["standardization"] |= {"estimation_steps": 2}
    recipe["optimizer"] |= {"trunk_frozen_steps": 1, "max_bad_steps": 1}
    recipe["schedule"] = {"num_steps": NUM_STEPS, "warmup_steps": 1}
    recipe["mesa"]["start_step"] = 1
    recipe["checkpoints"]["every_steps"] = NUM_STEPS
    recipe["logging"] = {"trackers": []}
    return recipe


def _small(size_px: int) -> int:
    return next(small for limit, small in ((256, 32), (432, 48), (768, 64), (1152, 96)) if size_px <= limit)


def write_small(name: str, world: Path) -> str:
    """Write a published recipe, small, to the working directory; return the file's name."""
    small = shrink(load_recipe(name, ["data.source=images"]).to_dict(), world)
    Path(f"{name}.yaml").write_text(yaml.safe_dump(small))
    return f"{name}.yaml"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Note the shorter side of the grid, of a pack the longest of them, and the window of each pass that has one."""
    noted = []
    for_grid, layout = AttentionLayout.for_grid, ImagePack.layout

    def note(rows: int, cols: int, num_prefix: int, window_size: int | None, device: torch.device) -> AttentionLayout:
        if window_size is not None:
            noted.append((min(rows, cols), window_size))
        return for_grid(rows, cols, num_prefix, window_size, device)

    def note_pack(pack: ImagePack, window_size: int | None, device: torch.device) -> AttentionLayout:
        if window_size is not None:
            noted.append((max(min(grid) for grid in pack.grids), window_size))
        return layout(pack, window_size, device)

    monkeypatch.setattr(AttentionLayout, "for_grid", note)
    monkeypatch.setattr(ImagePack, "layout", note_pack)
    return noted


# Merged tokens have no windows: `tests/training/student/test_packing.py` has runs with them.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in DIFFERENT else pytest.mark.slow)
        for name, shipped in SHIPPED.items()
        if shipped.stages
    ],
)
def test_two_windowed_steps_of_every_stage_with_the_real_teacher_classes(
    name: str, tiny_world: Path, tmp_path: Path, passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    leave_progress_undrawn(monkeypatch)
    final = run_recipe(load_recipe(write_small(name, tiny_world)), Path("run"))
    assert final is not None
    assert all(window < cells for cells, window in passes)
    stages, has_high = SHIPPED[name].stages, "low_and_high" in SHIPPED[name].stages
    assert len(passes) == (2 * len(stages) + has_high) * NUM_STEPS  # two parts of "low" in each stage
    assert sorted(path.name for path in Path("run/stages").iterdir()) == sorted(stages)
    student = RadioModel.from_pretrained(final)
    output = student(torch.rand(1, 3, 32, 48))
    assert output.adaptors.keys() == SHIPPED[name].widths.keys()
    assert all(adaptor.features.isfinite().all() for adaptor in output.adaptors.values())
    first, last = (
        RadioModel.from_pretrained(Path("run/stages") / stage / "final") for stage in (stages[0], stages[-1])
    )
    weights = "radio_model.model.blocks.0.attn.qkv.weight"
    assert not torch.equal(first.state_dict()[weights], last.state_dict()[weights])


# The precision of a recipe would hide what two processes do otherwise; the run above has it, and its measurements. A
# small epsilon would turn the rounding of a gradient that should be zero into a full step.
FLOAT32 = (
    "mixed_precision=no",
    "optimizer.eps=1",
    "logging.metrics_every_steps=null",
    "stages=[]",
)


def in_float32(name: str) -> Recipe:
    """Return the last stage, exact: without mosaics too, where an image's place depends on the rest of its batch."""
    recipe = load_recipe(f"{name}.yaml", FLOAT32)
    teachers = [
        entry.replace(
            dtype="float32",
            options={key: value for key, value in entry.options.items() if key != "weights_dtype"},
            run_mode="fixed" if entry.run_mode == "mosaic" else entry.run_mode,
        )
        for entry in recipe.teachers
    ]
    return recipe.replace(teachers=teachers)


def run_generations(names: Sequence[str]) -> None:
    """Run by each of the two processes: the last stage of each recipe."""
    share_noise(pytest.MonkeyPatch())
    for name in names:
        run_recipe(in_float32(name), Path(f"two-{name}"))


@pytest.fixture(scope="module")
def two_ranks(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have run the last stage of every generation."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in DIFFERENT:
            write_small(name, tiny_world)
    run_two_processes(lambda: run_generations(DIFFERENT), folder)
    return folder


@pytest.mark.tour
@pytest.mark.parametrize("name", DIFFERENT)
def test_two_windowed_steps_on_two_processes_equal_those_on_one(
    name: str, two_ranks: Path, passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two_ranks)
    share_noise(monkeypatch)
    run_recipe(in_float32(name), Path(f"one-{name}"))
    assert len(passes) == (3 if "low_and_high" in SHIPPED[name].stages else 2) * NUM_STEPS
    one, two = (trained(f"{count}-{name}") for count in ("one", "two"))
    # Eigenvectors of PHI-S enlarge what other batches are rounded to otherwise: 2e-6 on an Intel Xeon with AMX.
    assert_close_by_name(two, one, rtol=1e-5, atol=1e-5, what=name)


def trained(output: str) -> dict[str, torch.Tensor]:
    """Return student, average and statistics; the gradients in the optimizer's moments go up to a thousand."""
    state = last_state(output, NUM_STEPS)
    return {name: tensor for name, tensor in state.items() if not name.startswith("optimizer/")}
