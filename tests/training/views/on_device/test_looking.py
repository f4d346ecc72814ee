"""The code that decodes on a GPU, run on a CPU device, beside what the data workers do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from photographs import encode, picture
from PIL import Image
from small_recipes import small_recipe

from training.data.decoding import SkippedImages, decode_rgb, to_tensor
from training.recipe import Recipe, RecipeError, ViewsRecipe
from training.views.batches import Batch, BatchPlan
from training.views.images import build_training_images
from training.views.loading.build import build_view_loader
from training.views.loading.numbered import NumberedViewLoader
from training.views.loading.streamed import PartitionStreams, StreamedViewLoader
from training.views.on_device.looking import UnseenImage, look_on_device, read_jpeg, see_on_device
from training.views.regions import STUDENT, SeenBatch, Sight, look
from training.views.shapes import Grid


CPU = torch.device("cpu")
VIEWS = ViewsRecipe(crop_scale=(0.3, 0.8))


def sight_of(numbers: tuple[float, float, float, float], is_flipped: bool = False) -> Sight:
    return Sight(
        numbers, Grid(4, 4), is_flipped, {STUDENT: (0, 0), "t": (1, -1)}, {STUDENT: ((64, 64),), "t": ((48, 80),)}
    )


def difference(first: SeenBatch, second: SeenBatch) -> float:
    assert torch.equal(first.places, second.places)
    return (first.pixels.int() - second.pixels.int()).abs().float().mean().item()


@pytest.mark.parametrize("is_flipped", [False, True])
def test_a_device_sees_what_data_workers_see(is_flipped: bool) -> None:
    image = to_tensor(picture(0, 480, 320))
    sight = sight_of((0.3, 0.7, 0.2, 0.9), is_flipped)
    assert (
        difference(SeenBatch.of([look(image, sight, VIEWS)]), SeenBatch.of([look_on_device(image, sight, VIEWS)]))
        < 0.25
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_are_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(picture(1, 96, 64), "JPEG", exif=exif, quality=95)
    jpeg = read_jpeg(file)
    assert jpeg is not None
    sight = Sight((1.0, 0.5, 0.0, 0.0), Grid(4, 4), False, {STUDENT: (0, 0)}, {STUDENT: ((64, 64),)})
    views = ViewsRecipe(crop_scale=(1.0, 1.0))
    expected = SeenBatch.of([look(to_tensor(decode_rgb(file)), sight, views)])
    seen = see_on_device([UnseenImage(jpeg, sight)], views, CPU, SkippedImages())
    assert difference(expected, seen) < 0.5


def test_what_a_device_cannot_read_is_left_to_the_workers() -> None:
    assert read_jpeg(encode(picture(0))) is None
    assert read_jpeg(encode(picture(0).convert("CMYK"), "JPEG")) is None
    assert read_jpeg(encode(picture(0).convert("L"), "JPEG")) is not None


def test_broken_files_are_counted_and_replaced_by_the_next_image() -> None:
    good, skipped = encode(picture(0), "JPEG"), SkippedImages()
    content = bytes(good.content)
    broken = read_jpeg(good)._replace(content=torch.frombuffer(bytearray(content[:20]), dtype=torch.uint8))
    pixels = to_tensor(picture(2))
    sight = sight_of((0.5, 0.5, 0.5, 0.5))
    seen = see_on_device([UnseenImage(each, sight) for each in (broken, pixels, read_jpeg(good))], VIEWS, CPU, skipped)
    alone = see_on_device([UnseenImage(pixels, sight)] * 2, VIEWS, CPU, skipped)
    assert torch.equal(seen.split()[0].pixels[STUDENT][0][:2], alone.split()[0].pixels[STUDENT][0])
    assert len(skipped) == 1
    with pytest.raises(ValueError, match="1 images in a row could not be decoded"):
        see_on_device([UnseenImage(broken, sight)], VIEWS, CPU, skipped)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(8):
        picture(number, 240, 160).save(folder / (f"{number}.png" if number % 4 == 3 else f"{number}.jpg"), quality=95)
    return str(folder)


def recipe_of(source: str, **data: Any) -> Recipe:
    data = {"source": source, "num_workers": 0, "jpeg_drafts": False, "shuffle_buffer": 8, **data}
    return small_recipe(data=data, views={"crop_scale": [0.5, 1.0]}, partitions=[{"sizes_px": [64], "batch_size": 4}])


def sights(batch: Batch) -> list[Sight]:
    return [
        Sight(tuple(numbers), batch.shapes[0].grid, False, {STUDENT: (0, 0)}, {STUDENT: ((64, 64),)})
        for numbers in batch.uniform("region", 4).tolist()
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_give_the_same_images_either_way(source: str, streaming: bool, num_workers: int) -> None:
    recipe = recipe_of(source, streaming=streaming, num_workers=num_workers)
    seen, states = [], []
    for device in (None, CPU):
        if streaming:
            loader: Any = StreamedViewLoader(PartitionStreams.open(recipe), recipe, device=device)
            plan = BatchPlan(recipe, None, patch_size=16)
        else:
            images = build_training_images(recipe.data, is_square=False)
            loader, plan = NumberedViewLoader(images, recipe, device=device), BatchPlan(recipe, 7, patch_size=16)
        batches = loader.views(lambda plan=plan: plan.steps(0, 3), sights)
        seen.append(torch.cat([groups[0].pixels[STUDENT][0] for _, groups in batches]).int())
        states.append(loader.state_dict())
    assert seen[0].shape == (12, 3, 64, 64)
    assert 0 < (seen[0] - seen[1]).abs().float().mean() < 0.5
    assert states[0] == states[1]


def test_a_gpu_that_is_not_there_is_an_error(source: str) -> None:
    recipe = recipe_of(source, decode_on="cuda")
    images = build_training_images(recipe.data, is_square=False)
    with pytest.raises(RecipeError, match=r"`data.decode_on` must be 'cpu' where the run is on 'cpu', got 'cuda'\."):
        build_view_loader(images, recipe)


@pytest.mark.parametrize("views", [{"teachers": "cached"}])
def test_decoding_on_a_gpu_is_for_plain_online_views(source: str, views: dict) -> None:
    with pytest.raises(RecipeError, match=r"`data.decode_on` must be 'cpu' with cached teachers"):
        small_recipe(data={"source": source, "decode_on": "cuda"}, views=views)


@pytest.mark.gpu
@pytest.mark.parametrize("streaming", [False, True])
def test_a_gpu_decodes_as_a_cpu_does(source: str, streaming: bool) -> None:
    recipe = recipe_of(source, streaming=streaming, decode_on="cuda")
    seen = []
    for device in (CPU, torch.device("cuda")):
        own = recipe.replace(data=recipe.data.replace(decode_on="cpu" if device == CPU else "cuda"))
        images = PartitionStreams.open(own) if streaming else build_training_images(own.data, is_square=False)
        plan = BatchPlan(own, None if streaming else len(images), patch_size=16)
        batches = build_view_loader(images, own, device).views(lambda plan=plan: plan.steps(0, 2), sights)
        seen.append(torch.cat([groups[0].pixels[STUDENT][0].cpu() for _, groups in batches]).int())
    assert (seen[0] - seen[1]).abs().float().mean() < 2
