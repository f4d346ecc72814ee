"""Keyword arguments of other models' callers are taken where they ask for nothing else; misspelt ones are refused."""

import inspect

import peft
import pytest
import torch
from task_models import EVERY_MODEL, build, images, tensors_of
from transformers.utils.generic import TransformersKwargs

from modeling_radio.inputs_radio import FOREIGN_ARGUMENTS


OF_PEFT = {"input_ids": None, "attention_mask": None, "inputs_embeds": None}
OF_TRANSFORMERS = {
    **dict.fromkeys(TransformersKwargs.__annotations__),
    "num_items_in_batch": torch.tensor(4),
    "is_causal": False,
    "cu_seq_lens_q": torch.tensor([0, 4]),
    "max_length_q": 4,
    "seq_idx": torch.zeros(1, 4),
}


CLASSES = {
    "backbone with adaptors",
    "maps",
    "classifier",
    "DPT segmenter",
    "depth",
    "detector",
    "instance segmenter",
    "universal segmenter",
}


@pytest.fixture(params=sorted(CLASSES))
def model(request):
    return build(request.param)


def test_every_class_is_here():
    assert {EVERY_MODEL[name][0] for name in CLASSES} == {model_class for model_class, _ in EVERY_MODEL.values()}


@torch.no_grad()
def test_what_others_add_changes_nothing(model):
    batch = images()
    found = tensors_of(model(batch, interpolate_pos_encoding=True, **{**OF_PEFT, **OF_TRANSFORMERS}))
    assert all(map(torch.equal, found, tensors_of(model(batch))))
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD in kinds


def test_every_argument_of_transformers_has_its_place():
    ours = {"output_hidden_states", "output_attentions"}
    assert set(TransformersKwargs.__annotations__) - ours <= set(FOREIGN_ARGUMENTS)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("adaptor_name", "adaptor_names"),
        ("output_hidden_state", "output_hidden_states"),
        ("return_dicts", "return_dict"),
        ("interpolate_pos_encodings", "interpolate_pos_encoding"),
    ],
)
def test_misspelt_arguments_are_refused(misspelt, meant):
    message = rf"Unknown argument '{misspelt}' of RadioModel.forward. Did you mean '{meant}'\?"
    with pytest.raises(TypeError, match=message):
        build("backbone with adaptors")(images(), **{misspelt: None})


def test_every_model_refuses_misspelt_arguments(model):
    message = rf"Unknown argument 'windowsize' of {type(model).__name__}.forward. Did you mean 'window_size'\?"
    with pytest.raises(TypeError, match=message):
        model(images(), windowsize=2)


def test_labels_are_no_argument_of_a_model_without_a_loss():
    model = build("backbone with adaptors")
    with pytest.raises(TypeError, match=r"Unknown argument 'labels' of RadioModel.forward\.$"):
        model(images(), labels=torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.tensor([[1]])}, "`input_ids` must be None, got a Tensor. Radio.* does not read it."),
        ({"position_ids": torch.tensor([[1]])}, "`position_ids` must be None, got a Tensor"),
        ({"is_causal": True}, "`is_causal` must be False or None, got True"),
    ],
)
def test_what_would_not_be_heeded_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build("maps")(images(), **arguments)


# peft asks a model for `is_gradient_checkpointing`, which transformers is renaming.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@torch.no_grad()
def test_peft_extracts_features(model):
    batch = images()
    expected = tensors_of(model(batch))
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["qkv"])
    adapted = peft.get_peft_model(model, config).eval()  # adapters start at zero
    for actual, tensor in zip(tensors_of(adapted(pixel_values=batch)), expected, strict=True):
        torch.testing.assert_close(actual, tensor, rtol=0, atol=1e-5)
