"""Students of every kind learn from tiny teachers, and their exports open in all ways."""

from pathlib import Path

import pytest
import torch
from tiny_distillation import assert_same_tensors, distil, last_state
from tiny_networks import STUDENTS, TinyNetwork, build_wrapped

from modeling_radio import RadioBackbone, RadioModel
from modeling_radio.conversion.to_network import main as to_network
from modeling_radio.conversion.to_network import save_network
from modeling_radio.training.distillation import trainer
from modeling_radio.training.recipes.recipe import load_recipe
from modeling_radio.training.student.ema import running_statistics


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

USUAL = {"ConvNeXt", "ResNet", "class", "E-RADIO"}
"""What every suite trains; the others only the tour. `test_wrapped_radio.py` saves and opens all."""
LEARNING = ("optimizer.learning_rate=1e-2", "optimizer.weight_decay=0", "ema.decay=0.5")


class Elsewhere:
    """Code that a stranger runs on an exported folder."""

    CODE = """
import torch
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, pipeline

images = torch.load("images.pt")
model = AutoModel.from_pretrained("final", trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
with torch.no_grad():
    output = model(images, return_dict=True)
    config = AutoConfig.from_pretrained("final", trust_remote_code=True)
    (maps,) = AutoBackbone.from_config(config, trust_remote_code=True)(images).feature_maps
assert len(maps) == len(images)
extract = pipeline("image-feature-extraction", model="final", trust_remote_code=True)
AutoImageProcessor.from_pretrained("final", trust_remote_code=True)
from torchvision.transforms.functional import to_pil_image
extract(to_pil_image(images[0]), return_tensors=True)
torch.save({"features": output.features, "summary": output.summary}, "outputs.pt")
"""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.tour) for name in STUDENTS]
)
def test_a_student_learns_more_than_the_mean_and_its_export_opens(name, recipe_file, run_elsewhere, tmp_path) -> None:
    steps = f"schedule.num_steps={60 if name in USUAL else 120}"  # the others learn more slowly
    distiller = trainer.Distiller(load_recipe(recipe_file, [*STUDENTS[name].overrides, *LEARNING, steps]), Path("run"))
    seen: list[float] = []
    train_step = distiller.train_step

    def recorded(examples):
        losses = train_step(examples)
        seen.append(losses["features/semantic"].item())
        return losses

    distiller.train_step = recorded
    final = distiller.run()
    # Targets are standardized: the mean of all features has a loss of 1.
    assert sum(seen[-10:]) / 10 < 0.9

    model = RadioModel.from_pretrained(final).eval()
    images = torch.rand(2, 3, 64, 96 if name != "DINOv2" else 64)
    with torch.no_grad():
        expected = model(images)
    if name == "class":  # which only its author can open
        assert to_network([str(final), "network"]) == 0
        return
    torch.save(images, tmp_path / "run" / "images.pt")
    run_elsewhere(Elsewhere.CODE, tmp_path / "run")
    found = torch.load(tmp_path / "run" / "outputs.pt", weights_only=True)
    torch.testing.assert_close(found["features"], expected.features, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["summary"], expected.summary, rtol=0, atol=1e-5)
    with torch.no_grad():
        (maps,) = RadioBackbone.from_pretrained(final).eval()(images).feature_maps
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), expected.features, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "middle"), [("ResNet", 2), ("EfficientViT", 7), ("E-RADIO", 7)])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(name, middle, recipe_file) -> None:
    own = [*STUDENTS[name].overrides, "mesa={weight: 0.5, start_step: 1}"]
    own += ["student.arguments.drop_path_rate=0.2"] if name == "ResNet" else []
    distil(recipe_file, "whole", *own)
    assert distil(recipe_file, "parts", *own, stop_at=middle) is None
    assert distil(recipe_file, "parts", *own) == Path("parts/final")
    assert_same_tensors(last_state("whole"), last_state("parts"))


def test_the_export_has_the_averaged_running_statistics_and_levels_with_channels_of_their_own(recipe_file) -> None:
    Path("start").mkdir()
    save_network(build_wrapped("ResNet"), Path("start"))
    settings = [*STUDENTS["ResNet"].overrides, "student.init_from=timm:local-dir:start", "optimizer.learning_rate=1e-4"]
    distiller = trainer.Distiller(load_recipe(recipe_file, settings), Path("run"))
    final = distiller.run()
    fine, coarse = (each.weight.detach() for each in distiller.parts.model.radio_model.model.projections)
    half = len(fine) // 2
    assert fine[half:].norm() < 0.1 * fine[:half].norm()
    assert coarse[:half].norm() < 0.1 * coarse[half:].norm()
    student, average = running_statistics(distiller.parts.model), running_statistics(distiller.parts.average)
    assert not any(map(torch.equal, student, average))
    assert all(map(torch.equal, running_statistics(RadioModel.from_pretrained(final)), average))


def test_frozen_stages_stay_as_they_are_in_a_run(recipe_file) -> None:
    student = TinyNetwork("timm:lcnet_035", {}, [-1])  # norms with modules in them, as EfficientNets have
    own = [*student.overrides, "student.frozen_stages=3", "optimizer.learning_rate=1e-2", "ema.decay=0"]
    states = []
    for steps in (1, 3):
        final = distil(recipe_file, f"steps{steps}", *own, f"schedule.num_steps={steps}")
        states.append(RadioModel.from_pretrained(final).radio_model.model.network.state_dict())
    first, later = states
    moved = {name.rsplit(".", 1)[0] for name in first if not torch.equal(first[name], later[name])}
    assert {"blocks.3.0.bn1", "blocks.3.0.conv_dw"} <= moved
    assert not [name for name in moved if name.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"))]
