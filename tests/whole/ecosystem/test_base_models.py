"""The backbone of a model with a head: `base_model`."""

import pytest
import torch
from comparisons import assert_same_weights
from task_models import THREE_MODELS, build, images

from modeling_radio import RadioModel


pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
@pytest.mark.parametrize("name", THREE_MODELS)
def test_base_model_is_the_backbone_with_the_same_weights(name, tmp_path):
    model, batch = build(name), images()
    base = model.base_model
    assert type(base) is RadioModel
    assert base.base_model is base
    assert base.radio_model is model.radio_model
    assert (base.dtype, base.device, base.training) == (model.dtype, model.device, False)
    assert base.get_input_embeddings() is model.get_input_embeddings()
    base.save_pretrained(tmp_path)
    assert base is model or model.config.architectures == []
    alone = RadioModel.from_pretrained(tmp_path).eval()
    assert_same_weights(alone.radio_model, model.radio_model)
    assert torch.equal(alone(batch).summary, base(batch).summary)
    _, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    own = {key for key in model.state_dict() if not key.startswith("radio_model.")}
    assert set(info["missing_keys"]) >= {name for name, _ in model.named_parameters() if name in own}
    assert set(info["missing_keys"]) <= own


def test_freezing_the_base_freezes_the_model():
    model = build("classifier")
    for weight in model.base_model.parameters():
        weight.requires_grad = False
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == [
        name for name, _ in model.named_parameters() if name.startswith("classifier.")
    ]
