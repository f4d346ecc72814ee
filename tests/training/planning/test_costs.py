"""Cards, and costs of student, teachers and steps on the meta device."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from modeling_radio import RadioModel
from modeling_radio.core.packages import PackageUnavailableError
from modeling_radio.core.settings import SettingsError
from modeling_radio.training.planning.costs import (
    CARDS,
    Card,
    Networks,
    TeacherCost,
    at_size,
    choose_cards,
    plan_stage,
    with_split_teachers,
)
from modeling_radio.training.recipes.recipe import Recipe, TeacherRecipe
from modeling_radio.training.student.build import build_student, checkpoint_blocks
from modeling_radio.training.teachers.registry import TEACHER_KINDS, build_teacher


DEMO_KINDS = [kind for kind, entry in TEACHER_KINDS.items() if str(entry).startswith("modeling_radio.demo.")]
SIGLIP2_PARAMETERS = 1_163_659_776  # C-RADIOv4, https://arxiv.org/abs/2601.17237, counts 1.16 billion


def test_cards_by_name_and_by_numbers() -> None:
    assert choose_cards(None) == list(CARDS.values())
    assert choose_cards("L40S") == [CARDS["L40S"]]
    assert choose_cards("RTX-5090:209.5:32") == [Card("RTX-5090", 209.5e12, 32, "given")]


@pytest.mark.parametrize("gpu", ["H10", "Mine:100", "Mine:100:0", "Mine:nan:10", "Mine:100:10:1", "A100:fast:80"])
def test_a_missing_number_or_unknown_card_is_refused(gpu: str) -> None:
    with pytest.raises(SettingsError, match=r"^`gpu`"):
        choose_cards(gpu)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_kept_bytes_equal_those_of_autocast(networks: Networks, recipe: Recipe, is_checkpointed: bool) -> None:
    """On a CPU, which keeps heads' norms in bfloat16; and a copy of each matrix, whatever the number of images."""
    student = build_student(recipe, networks.teachers).train()
    if is_checkpointed:
        checkpoint_blocks(student)
    one, two = (kept_bytes(student, num_images) for num_images in (1, 2))
    cost = networks.student_cost(128)
    assert two - one == pytest.approx(cost.kept_checkpointed if is_checkpointed else cost.kept, rel=0.1)
    if not is_checkpointed:
        first = student.radio_model.model.patch_generator.embedder  # images need no gradient
        layers = [each for each in student.modules() if isinstance(each, nn.Linear) and each is not first]
        assert one - (two - one) == 2 * sum(layer.weight.numel() for layer in layers)
        # Without attention weights, which would grow with the square of the number of tokens.
        assert networks.student_cost(256).kept < 16 * networks.student_cost(64).kept


def test_attention_weights_of_heads_are_not_kept_either(recipe: Recipe) -> None:
    """They would grow with the fourth power of the image's side, all else with the second."""
    first, *others = recipe.teachers
    head = {"feature_head": "attention", "feature_num_attention_heads": 8}
    own = Networks(recipe.replace(teachers=[first.replace(adaptor=head), *others]))
    small, large = (own.student_cost(side) for side in (64, 256))
    assert large.kept < 17 * small.kept
    assert large.kept_checkpointed < 17 * small.kept_checkpointed


def kept_bytes(student: RadioModel, num_images: int) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autocast("cpu", torch.bfloat16), saved_tensors_hooks(note, lambda tensor: tensor):
        output = student(torch.rand(num_images, 3, 128, 128), window_size="global", return_dict=True)
        outputs = [tensor for each in output.adaptors.values() for tensor in (each.summary, each.features)]
        torch.stack([tensor.sum() for tensor in outputs if tensor is not None]).sum()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_student_whose_configuration_returns_tuples(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks.student.config, "return_dict", False)
    assert networks.student_cost(32).flops < networks.student_cost(48).flops < networks.student_cost(64).flops


def test_a_teacher_takes_two_operations_per_weight_and_token(networks: Networks) -> None:
    siglip2, sam3 = networks.teachers["siglip2-g"], networks.teachers["sam3"]
    assert siglip2.num_parameters == SIGLIP2_PARAMETERS
    assert siglip2.flops(128, 1) == pytest.approx(2 * SIGLIP2_PARAMETERS * (128 // 16) ** 2, rel=0.05)
    assert siglip2.flops(128, 3) == 3 * siglip2.flops(128, 1)
    assert sam3.flops(64, 300) == sam3.flops(64, 1)  # a mosaic of 18 x 18 images of 4 x 4 patches
    assert sam3.flops(64, 325) == 2 * sam3.flops(64, 1)
    half = TeacherCost(siglip2.entry.replace(options={"weights_dtype": "bfloat16"}), 16)
    assert siglip2.weight_bytes == 4 * SIGLIP2_PARAMETERS == 2 * half.weight_bytes


@pytest.mark.parametrize("kind", DEMO_KINDS)
def test_a_packaged_teacher_is_counted_without_its_package(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_radio.demo.assets.fetch_package", None)
    cost = TeacherCost(TeacherRecipe(name=kind, kind=kind), 16)
    assert cost.flops(128, 2) == 2 * cost.flops(128, 1) > 0
    assert cost.flops(256, 1) >= 4 * cost.flops(128, 1)
    assert 1e6 < cost.download_bytes < 1e9


@pytest.mark.packages
@pytest.mark.parametrize("kind", DEMO_KINDS)
def test_packaged_costs_are_those_of_the_real_network(kind: str) -> None:
    try:
        teacher = build_teacher(kind, kind=kind)
    except PackageUnavailableError as error:
        pytest.skip(str(error))
    cost, patches = TeacherCost(TeacherRecipe(name=kind, kind=kind), 16), 8 * 8
    assert (teacher.summary_dim, teacher.feature_dim) == (cost.summary_dim, cost.feature_dim)
    numbers = [*teacher.network.parameters(), *teacher.network.buffers()]
    assert sum(number.numel() for number in numbers) == pytest.approx(cost.num_parameters, rel=1e-3)
    with FlopCounterMode(display=False) as counter:
        teacher.extract_features(torch.rand(1, 3, 128, 128))
    stated = type(teacher).stated_cost
    assert stated is not None
    attention = patches**2 * stated.flops_per_pair  # which a CPU's kernel does not count
    assert counter.get_total_flops() == pytest.approx(cost.flops(128, 1) - attention, rel=0.01)


def test_a_step_averages_over_sizes_and_counts_each_partitions_teachers(networks: Networks, recipe: Recipe) -> None:
    low, high = plan_stage(networks, recipe, 2)
    assert low.student_flops == pytest.approx(
        8 * (0.25 * networks.student_cost(32).flops + 0.75 * networks.student_cost(64).flops)
    )
    assert (low.images_per_pass, high.images_per_pass) == (4, 1)
    assert low.teacher_flops.keys() == {"siglip2-g", "sam3"}
    assert high.teacher_flops == {"siglip2-g": pytest.approx(2 * networks.teachers["siglip2-g"].flops(128, 1))}
    assert high.flops == high.student_flops + high.teacher_flops["siglip2-g"]
    cost = networks.student_cost(64)  # 4 images of this size
    assert (low.memory.activations, low.memory.checkpointed) == (4 * cost.kept, 4 * cost.kept_checkpointed)
    assert low.memory.targets == 4 * 4 * 16 * (1536 + 1024)  # 4 bytes a number, 4 images of 16 patches


def test_a_token_budget_costs_as_much_as_its_images(networks: Networks, recipe: Recipe) -> None:
    """Images are of one size, so that their number is known."""
    low = recipe.partitions[0]
    patches = (low.sizes_px[0] // 16) ** 2
    by_images = recipe.replace(partitions=[low.replace(sizes_px=low.sizes_px[:1], probabilities=None)])
    budget = {"batch_size": None, "token_budget": low.batch_size * patches}
    by_tokens = recipe.replace(partitions=[by_images.partitions[0].replace(**budget)])
    (expected,), (cost,) = plan_stage(networks, by_images, 1), plan_stage(networks, by_tokens, 1)
    assert (cost.images, cost.student_flops) == (expected.images, expected.student_flops)
    assert cost.memory == pytest.approx(expected.memory)
    assert cost.teacher_flops == expected.teacher_flops


def test_changed_stages_keep_their_number_of_images(networks: Networks, recipe: Recipe) -> None:
    low, _ = plan_stage(networks, recipe, 2)
    split, _ = plan_stage(networks, with_split_teachers(recipe), 2)
    assert (split.images, split.student_flops) == (low.images, low.student_flops)
    assert split.memory.targets == low.memory.targets / 2
    assert split.teacher_flops["siglip2-g"] == pytest.approx(low.teacher_flops["siglip2-g"] / 2)
    by_part, halved = (
        networks.operations_by_part(each)["low"]["siglip2-g"] for each in (recipe, with_split_teachers(recipe))
    )
    assert halved == {count: flops / 2 for count, flops in by_part.items()}
    smallest, _ = plan_stage(networks, at_size(recipe, min), 1)
    assert smallest.images == low.images
    assert smallest.student_flops == pytest.approx(8 * networks.student_cost(32).flops)


def test_targets_of_parts_that_are_computed_at_once_add_up(networks: Networks, recipe: Recipe) -> None:
    low = recipe.partitions[0].replace(accumulation_steps=2)
    sizes = [
        plan_stage(networks, recipe.replace(partitions=[low], views={"parts_at_once": parts}), 1)[0].memory.targets
        for parts in (1, 2, 4)
    ]
    assert sizes == [sizes[0], 2 * sizes[0], 2 * sizes[0]]  # there are but two parts


def test_weights_in_bfloat16_take_two_bytes(recipe: Recipe) -> None:
    full, half = (
        TeacherCost(recipe.teachers[0].replace(options={"weights_dtype": dtype}), 16)
        for dtype in ("float32", "bfloat16")
    )
    assert full.num_parameters == half.num_parameters == full.weight_bytes / 4 == half.weight_bytes / 2


def test_a_shared_network_is_counted_once(recipe: Recipe) -> None:
    options = {"whole": {}, "text": {"adaptor_name": "siglip2"}, "dense": {"adaptor_name": "dino_v2"}}
    names = list(options)
    teachers = [
        {"name": name, "kind": "radio", "source": "nvidia/C-RADIOv3-B", "options": own} for name, own in options.items()
    ]
    low, high = recipe.partitions
    shared = recipe.replace(teachers=teachers, partitions=[low, high.replace(teachers=["text", "dense"])])
    networks = Networks(shared)
    alone = {name: networks.teachers[name].flops(128, 2) for name in names}
    of_low, of_high = (networks.teacher_flops(each, 128, 2) for each in (names, names[1:]))
    assert (of_low["whole"], of_high["text"]) == (alone["whole"], alone["text"])
    assert {name: of_low[name] for name in names[1:]} == {name: alone[name] - alone["whole"] for name in names[1:]}
    assert of_high["dense"] == of_low["dense"] < 0.1 * alone["dense"]
    assert plan_stage(networks, shared, 1)[1].teacher_flops == of_high
    assert networks.teachers["dense"].num_parameters < 0.2 * networks.teachers["whole"].num_parameters
