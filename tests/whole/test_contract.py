"""What every public model keeps, whatever its task and its network.

Shapes, rows of a batch, types, saving and opening, devices, gradients, tuples, graphs of torch, and refused input.
What one class alone does is tested in the file of that class.
"""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparisons import assert_same_weights
from documentation import PROJECT
from releases import needs_compiler, needs_exporter
from task_models import EVERY_MODEL, NETWORKS, SIZE, build, build_network, images, tensors_of
from tiny_eradio import build_eradio
from tiny_networks import build_wrapped
from tiny_texts import build_dual_encoder
from torch import Tensor
from torch.export import Dim

import modeling_radio
from modeling_radio import (
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioForUniversalSegmentation,
    RadioForZeroShotImageClassification,
    RadioModel,
    RadioPreTrainedModel,
)


pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
]

TOKENS = torch.tensor([[4, 5, 6, 3] * 4, [4, 9, 3, 0] * 4])


def build_zero_shot(tower: str) -> RadioForZeroShotImageClassification:
    """Return a model of words: its adaptor has a dense half, which words are not compared with."""
    adaptors = [{"name": {"clip": "clip"}.get(tower, "siglip2-g"), "summary_dim": 12, "hidden_size": 24}]
    adaptors[0]["feature_dim"] = 12
    radio = RadioModel(RadioConfig.from_preset("radio-test", adaptors=adaptors))
    return RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder(tower, 12)).eval()


CASES: dict[str, Callable[[], RadioPreTrainedModel]] = {
    **{name: lambda name=name: build(name) for name in EVERY_MODEL},
    **{name: lambda name=name: build_network(name) for name in NETWORKS},
    "windows": lambda: build_network("c-radio_v4", vitdet_window_size=2),
    "E-RADIO": build_eradio,
    "ResNet": lambda: build_wrapped("ResNet"),
    **{f"zero-shot {tower}": lambda tower=tower: build_zero_shot(tower) for tower in ("siglip", "siglip2", "clip")},
}
IS_OF_BLOCKS = [name for name in CASES if name not in ("E-RADIO", "ResNet", "c-radio_v4-1d")]
"""Networks whose blocks all have one width, each one a state."""
IS_DETECTOR = ["detector", "instance segmenter", "universal segmenter"]
"""Models with RF-DETR's decoder, which stays in float32 and writes the size of its maps into a graph."""


@pytest.fixture(params=CASES)
def case(request) -> str:
    return request.param


@pytest.fixture
def model(case) -> RadioPreTrainedModel:
    torch.manual_seed(0)
    return CASES[case]()


def inputs_of(model: RadioPreTrainedModel, batch_size: int = 2) -> dict[str, Tensor]:
    """Return noise of odd numbers of patches, where the network takes those, and texts for models of words."""
    step = model.config.resolution_step
    size = (128, 256) if model.config.eradio else (3 * step, 5 * step)
    texts = {"input_ids": TOKENS} if isinstance(model, RadioForZeroShotImageClassification) else {}
    return {**texts, "pixel_values": images(batch_size, size)}


def labels_of(model: RadioPreTrainedModel) -> dict[str, Any]:
    """Return what makes a model return a loss, for two images of `SIZE`; nothing for models without one."""
    boxes = {"class_labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.4, 0.4]])}
    match model:
        case RadioForImageClassification():
            return {"labels": torch.tensor([2, 0])}
        case RadioForSemanticSegmentation():
            return {"labels": torch.randint(0, 3, (2, *SIZE))}
        case RadioForDepthEstimation():
            return {"labels": 5 * torch.rand(2, *SIZE)}
        case RadioForUniversalSegmentation():
            return {"mask_labels": [torch.ones(1, *SIZE)] * 2, "class_labels": [torch.tensor([1])] * 2}
        case RadioForObjectDetection() | RadioForInstanceSegmentation():
            return {"labels": [{**boxes, "masks": torch.ones(2, *SIZE)}] * 2}
        case RadioForZeroShotImageClassification():
            return {"return_loss": True}
    return {}


def loss_of(model: RadioPreTrainedModel, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """Return the loss of a seeded pass; of a model without one the mean square of all its outputs."""
    torch.manual_seed(0)
    labels = labels_of(model)
    output = model(**inputs, **labels, **options)
    return output.loss if labels else sum(tensor.float().square().mean() for tensor in tensors_of(output))


def gradients_of(model: RadioPreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss_of(model, inputs).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def of_images(output: Any) -> list[Tensor]:
    """Return the tensors whose rows are images: of a model of words those are the embeddings of the images."""
    return tensors_of([output["image_embeds"]] if "image_embeds" in output else output)


def assert_close(output: Any, expected: Any, atol: float = 0.0) -> None:
    pairs = zip(tensors_of(output), tensors_of(expected), strict=True)
    for tensor, other in pairs:
        torch.testing.assert_close(tensor, other, rtol=0, atol=atol)


def test_every_public_class_is_here():
    public = [getattr(modeling_radio, name) for name in modeling_radio.__all__]
    models = {each for each in public if isinstance(each, type) and issubclass(each, RadioPreTrainedModel)}
    assert {type(make()) for make in CASES.values()} == models - {RadioPreTrainedModel}


# Shapes


@torch.no_grad()
def test_a_row_of_a_batch_is_the_answer_to_its_image(model):
    inputs = inputs_of(model)
    both = of_images(model(**inputs))
    first = of_images(model(**{**inputs, "pixel_values": inputs["pixel_values"][:1]}))
    assert both
    for tensor, alone in zip(both, first, strict=True):
        assert tensor.shape[0] == 2
        torch.testing.assert_close(tensor[:1], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_tuples_hold_what_the_names_hold(model):
    inputs, options = inputs_of(model), {}
    if isinstance(model, RadioModel):
        options = {"adaptor_names": []}  # with adaptors it is a dictionary of pairs, as NVIDIA's model returns
    named = model(**inputs, **options)
    answer = model(**inputs, **options, return_dict=False)
    model.config.return_dict = False
    by_configuration = model(**inputs, **options)
    expected = (named.summary, named.features) if isinstance(model, RadioModel) else named.to_tuple()
    for each in (answer, by_configuration):
        assert isinstance(each, tuple)
        assert_close(each, expected, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("case", IS_OF_BLOCKS, indirect=True)
def test_hidden_states_and_attentions_come_on_request(model):
    inputs = inputs_of(model)
    plain = model(**inputs)
    full = model(**inputs, output_hidden_states=True, output_attentions=True)
    if isinstance(model, RadioForZeroShotImageClassification):
        assert plain.get("vision_model_output") is None
        full = full.vision_model_output
    else:
        assert (plain.hidden_states, plain.attentions) == (None, None)
    assert len(full.hidden_states) == model.config.num_hidden_layers + 1
    assert len(full.attentions) == model.config.num_hidden_layers


# Types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_answers_and_learns(case, model, dtype, tmp_path):
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert half.dtype == next(half.radio_model.parameters()).dtype == dtype
    inputs = inputs_of(half)
    output = half(**inputs)
    kinds = {tensor.dtype for tensor in tensors_of(output) if tensor.is_floating_point()}
    assert kinds == ({torch.float32} if case in IS_DETECTOR else {dtype})
    assert all(tensor.isfinite().all() for tensor in tensors_of(output))
    if dtype == torch.bfloat16:  # float16 is trained with a scaled loss
        gradients = gradients_of(half.train(), inputs)
        assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)


# Saving and opening


@torch.no_grad()
def test_a_saved_folder_opens_as_the_same_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    opened, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(opened, model)
    assert not opened.training
    # A tower's configuration that was read says with which version it was written.
    fields, expected = (each.config.to_diff_dict() | {"text_tower": None} for each in (opened, model))
    assert fields == expected
    inputs = inputs_of(model)
    assert_close(opened(**inputs), model(**inputs), atol=1e-6)


def test_the_given_configuration_stays_as_it_is(model):
    config = copy.deepcopy(model.config)
    config.adaptors = [*config.adaptors, {"name": "dino_v3", "feature_dim": 8, "hidden_size": 8}][:1]
    config.adaptor_names = [adaptor["name"] for adaptor in config.adaptors]
    before = copy.deepcopy(config.to_dict())
    type(model)(config)
    assert config.to_dict() == before


# Devices


@torch.no_grad()
def test_no_value_is_looked_at_without_labels(case, model):
    if case == "c-radio_v4-1d" or case in IS_DETECTOR:
        pytest.skip("its tokens are counted, its queries are chosen on the host")
    inputs = {name: value.to("meta") for name, value in inputs_of(model).items()}
    assert all(tensor.is_meta for tensor in tensors_of(model.to("meta")(**inputs)))


@torch.no_grad()
def test_all_that_a_model_holds_is_in_its_state(case, model):
    """Parts that are built on the meta device and filled from a state answer as the model."""
    if case in IS_DETECTOR or case.startswith("zero-shot"):
        pytest.skip("parts of transformers compute constants where they are built")
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    inputs = inputs_of(model)
    assert_close(empty.eval()(**inputs), model(**inputs), atol=1e-6)


def test_a_model_of_inference_mode_can_be_trained_and_moved(case):
    made = CASES[case]()
    with torch.inference_mode():
        model = type(made)(made.config)
        model(**inputs_of(model))
    gradients = gradients_of(model.train(), inputs_of(model))
    assert any(gradient is not None for gradient in gradients.values())
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs_of(model).items()}
    assert all(tensor.isfinite().all() for tensor in tensors_of(model.double().eval()(**inputs)))


# Gradients and attention


def test_every_parameter_gets_a_gradient(model):
    gradients = gradients_of(model.train(), inputs_of(model))
    without = [name for name, gradient in gradients.items() if gradient is None]
    if isinstance(model, RadioForZeroShotImageClassification):
        assert all(".feat_mlp." in name for name in without)  # words are compared with summaries alone
    else:
        assert without == []


@pytest.mark.parametrize("window_size", ["global", 2])
@pytest.mark.parametrize("case", [name for name in CASES if name not in ("E-RADIO", "ResNet")], indirect=True)
def test_gradient_checkpointing_changes_no_gradient(model, window_size):
    if model.config.num_mergings == 0:
        model.config.vitdet_window_size = None if window_size == "global" else window_size
    inputs = inputs_of(model)
    plain = {
        name: gradient.clone() for name, gradient in gradients_of(model.train(), inputs).items() if gradient is not None
    }
    model.gradient_checkpointing_enable()
    checkpointed = gradients_of(model, inputs)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
@pytest.mark.parametrize("case", [name for name in CASES if name not in ("E-RADIO", "ResNet")], indirect=True)
def test_eager_attention_gives_the_same_answer(model):
    inputs = inputs_of(model)
    expected = model(**inputs)
    model.set_attn_implementation("eager")
    assert_close(model(**inputs), expected, atol=1e-5)


# Graphs of torch


@needs_compiler
@pytest.mark.slow
@torch.no_grad()
def test_compiles_without_a_graph_break(model):
    torch.compiler.reset()
    inputs = inputs_of(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**inputs), model(**inputs), atol=1e-5)


@needs_exporter
@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("case", [*EVERY_MODEL, "windows"], indirect=True)
def test_exports_for_any_batch_and_size(case, model):
    step, shape = model.config.resolution_step, {0: Dim("batch", min=1, max=8)}
    if case not in IS_DETECTOR:
        shape |= {2: step * Dim("rows", min=3, max=16), 3: step * Dim("cols", min=3, max=16)}
    program = torch.export.export(model, (), inputs_of(model), dynamic_shapes={"pixel_values": shape})
    batch = images(3, (3 * step, 5 * step) if case in IS_DETECTOR else (4 * step, 7 * step))
    assert_close(program.module()(pixel_values=batch), model(batch), atol=1e-5)


# Refused input


@pytest.mark.parametrize(
    ("pixel_values", "argument"),
    [
        (torch.rand(3, 64, 64), "pixel_values"),
        (torch.rand(1, 4, 64, 64), "pixel_values"),
        (torch.rand(1, 3, 63, 64), "pixel_values"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "pixel_values"),
    ],
    ids=["three axes", "four channels", "no multiple of a patch", "integers"],
)
def test_images_that_it_cannot_take_are_refused_by_name(model, pixel_values, argument):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        model(**{**inputs_of(model), "pixel_values": pixel_values})


def test_arguments_that_it_does_not_know_are_refused_by_name(model):
    assert inspect.Parameter.VAR_KEYWORD in {each.kind for each in inspect.signature(model.forward).parameters.values()}
    with pytest.raises(TypeError, match="window_sizes"):
        model(**inputs_of(model), window_sizes=2)


def test_the_version_is_that_of_the_project() -> None:
    assert modeling_radio.__version__ == PROJECT["version"]
