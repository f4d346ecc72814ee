"""The contract that the classification, segmentation and depth models share."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from comparisons import assert_same_weights
from releases import needs_exporter
from task_models import SIZE, images, tiny_config
from torch import nn
from transformers.models.radio import RadioModel as NativeRadioModel

from modeling_radio import (
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForSemanticSegmentation,
    RadioModel,
    RadioPreTrainedModel,
)
from modeling_radio.checks_radio import Resolution
from modeling_radio.heads_radio import weighted_cross_entropy
from modeling_radio.outputs_radio import NetworkPass


NUM_LABELS = 5
ADAPTORS = [{"name": "dino_v3", "summary_dim": 8, "feature_dim": 8, "hidden_size": 8}]


@dataclass
class Head:
    model_class: type[RadioPreTrainedModel]
    output: str
    module: str
    fields: dict[str, Any] = field(default_factory=dict)

    def config(self, **overrides):
        return tiny_config(**{"num_labels": NUM_LABELS, **self.fields, **overrides})

    def build(self, **overrides):
        return self.model_class(self.config(**overrides)).eval()

    def labels(self, batch_size=2):
        if self.model_class is RadioForImageClassification:
            return torch.randint(0, NUM_LABELS, (batch_size,))
        if self.model_class is RadioForSemanticSegmentation:
            return torch.randint(0, NUM_LABELS, (batch_size, *SIZE))
        return torch.rand(batch_size, *SIZE) * 5


HEADS = {
    "classification": Head(RadioForImageClassification, "logits", "classifier"),
    "classification_with_features": Head(
        RadioForImageClassification, "logits", "classifier", {"classifier_pooling": "summary_and_features"}
    ),
    "segmentation": Head(RadioForSemanticSegmentation, "logits", "decode_head"),
    "segmentation_dpt": Head(RadioForSemanticSegmentation, "logits", "decode_head", {"segmentation_head": "dpt"}),
    "depth": Head(RadioForDepthEstimation, "predicted_depth", "depth_head"),
}


@pytest.fixture(params=HEADS)
def head(request) -> Head:
    return HEADS[request.param]


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbone")
    RadioModel(RadioConfig.from_preset("radio-test", adaptors=ADAPTORS)).save_pretrained(folder)
    return folder


def test_save_and_load_give_equal_outputs(head, tmp_path):
    model = head.build()
    model.save_pretrained(tmp_path)
    loaded, info = head.model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(loaded, model)
    batch = images()
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch)[head.output], model(batch)[head.output], rtol=1e-6, atol=1e-6)


def test_opens_the_folder_of_a_backbone_with_adaptors(head, backbone_folder):
    options = {"num_labels": NUM_LABELS, "dpt_hidden_size": 16, **head.fields}
    model, info = head.model_class.from_pretrained(backbone_folder, output_loading_info=True, **options)
    assert all(name.startswith(head.module + ".") for name in info["missing_keys"])
    assert not info["unexpected_keys"]
    backbone = {
        k: v for k, v in RadioModel.from_pretrained(backbone_folder).state_dict().items() if "adaptors" not in k
    }
    state = model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in backbone.items())
    assert set(state) - set(backbone) == set(info["missing_keys"])


def test_new_heads_start_as_those_built_directly(head, backbone_folder):
    options = {"num_labels": NUM_LABELS, "dpt_hidden_size": 16, **head.fields}
    opened = head.model_class.from_pretrained(backbone_folder, **options).get_submodule(head.module).state_dict()
    for name, built in head.build().get_submodule(head.module).state_dict().items():
        if built.is_floating_point() and built.numel() > 1 and built.std() > 0:
            assert opened[name].std().item() == pytest.approx(built.std().item(), rel=0.5), name
        else:
            torch.testing.assert_close(opened[name], built, rtol=0, atol=0.03 if built.numel() == 1 else 0)


@pytest.mark.parametrize("width", [8, 32, 256])
@pytest.mark.parametrize("name", ["segmentation_dpt", "depth"])
def test_new_decoders_answer_with_the_variance_that_they_get_at_any_width(name, width, backbone_folder):
    """With transformers' fixed deviation the last map of 32 channels had a thousandth, and hardly learned."""
    head = HEADS[name]
    options = {"num_labels": NUM_LABELS, "dpt_hidden_size": width, **head.fields}
    for model in (head.build(dpt_hidden_size=width), head.model_class.from_pretrained(backbone_folder, **options)):
        decoder = model.get_submodule(head.module)
        stds = {}

        def keep(module, _, maps, stds=stds):
            stds[module] = maps[-1].std().item()

        decoder.neck.register_forward_hook(keep)
        decoder.head.head[0].register_forward_hook(keep)
        with torch.no_grad():
            model.eval()(images())
        assert len(stds) == 2
        assert all(0.2 < std < 10 for std in stds.values()), stds


def test_a_plain_model_opens_the_folder_of_a_head(head, backbone_folder, tmp_path):
    model = head.model_class.from_pretrained(backbone_folder, num_labels=NUM_LABELS, **head.fields)
    model.save_pretrained(tmp_path)
    opened, info = RadioModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert opened.config.adaptors == []
    batch = images()
    with torch.no_grad():
        expected = RadioModel.from_pretrained(backbone_folder)(batch).features
        torch.testing.assert_close(opened(batch).features, expected, rtol=0, atol=0)
        native, info = NativeRadioModel.from_pretrained(tmp_path, output_loading_info=True)
        torch.testing.assert_close(native(batch).features, expected, rtol=0, atol=1e-5)
    assert not info["missing_keys"]


def test_the_given_configuration_stays_as_it_is(head):
    config = head.config(adaptors=ADAPTORS)
    assert head.model_class(config).config.adaptors == []
    assert [adaptor["name"] for adaptor in config.adaptors] == ["dino_v3"]


def test_every_parameter_gets_a_gradient(head):
    model = head.build(use_final_norm=True).train()
    model(images(), labels=head.labels()).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("window_size", [None, 2])
def test_gradient_checkpointing_changes_nothing(head, window_size):
    model, batch, labels = head.build(vitdet_num_global=2).train(), images(), head.labels()
    gradients = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)
        model(batch, labels=labels, window_size=window_size).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_bfloat16_is_finite(head):
    model = head.build().to(torch.bfloat16)
    out = model(images().to(torch.bfloat16), labels=head.labels())
    assert out[head.output].dtype == torch.bfloat16
    assert out[head.output].isfinite().all()
    assert out.loss.isfinite()
    out.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_model_of_inference_mode_can_be_trained_moved_and_saved(head, backbone_folder, tmp_path):
    with torch.inference_mode():
        built = head.build()
        opened = head.model_class.from_pretrained(backbone_folder, **head.fields)
        built(images())
    for model in (built, opened):
        model.train()(images())[head.output].sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        model.to(torch.float64).save_pretrained(tmp_path)
        assert model.eval()(images().double())[head.output].isfinite().all()


def test_windows(head):
    model, batch = head.build(vitdet_num_global=2), images()
    with torch.no_grad():
        plain, windowed = model(batch)[head.output], model(batch, window_size=2)[head.output]
        model.config.vitdet_window_size = 2
        torch.testing.assert_close(model(batch)[head.output], windowed, rtol=0, atol=0)
    assert plain.shape == windowed.shape
    assert not torch.equal(plain, windowed)


def test_batch_row_equals_single_row(head):
    model, batch = head.build(), images()
    with torch.no_grad():
        torch.testing.assert_close(model(batch)[head.output][:1], model(batch[:1])[head.output], rtol=0, atol=1e-5)


def test_hidden_states_and_attentions_only_on_request(head):
    model, batch = head.build(), images()
    model.set_attn_implementation("eager")
    plain = model(batch)
    assert plain.hidden_states is None
    assert plain.attentions is None
    full = model(batch, output_hidden_states=True, output_attentions=True)
    assert len(full.hidden_states) == 5
    assert len(full.attentions) == 4
    torch.testing.assert_close(model(batch, return_dict=False)[0], plain[head.output], rtol=0, atol=1e-6)


@torch.no_grad()
def test_no_value_is_looked_at_without_labels(head):
    model = head.build().to("meta")
    assert model(images().to("meta"), window_size=2)[head.output].is_meta


def test_the_configuration_can_ask_for_tuples(head):
    model, batch = head.build(return_dict=False), images()
    with torch.no_grad():
        (output,) = model(batch)
        loss, again = model(batch, labels=head.labels())
        expected = model(batch, return_dict=True)[head.output]
    assert loss.ndim == 0
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "fields", "blocks"),
    [
        ("classification", {}, []),
        ("segmentation", {}, []),
        ("segmentation_dpt", {"dpt_indices": [1, 2, 4, 5]}, [1, 2, 4, 5]),
        ("depth", {"dpt_indices": [1, 2, 4, 5]}, [1, 2, 4, 5]),
    ],
)
def test_no_more_blocks_are_kept_than_the_head_reads(name, fields, blocks):
    model = HEADS[name].build(num_hidden_layers=6, **fields)
    passes = []
    model.radio_model.register_forward_hook(lambda _module, _inputs, output: passes.append(output))
    with torch.no_grad():
        model(images())
        model(images(), output_hidden_states=True)
    assert [list(passed.kept) for passed in passes] == [blocks, list(range(6))]


def test_learns_its_labels(head):
    model, batch, labels = head.build(), images(), head.labels()
    if head.output == "predicted_depth":
        labels = batch.mean(dim=1) + torch.tensor([1.0, 4.0])[:, None, None]
    elif labels.ndim == 3:
        labels = labels[:, :1, :1].expand(-1, *SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model(batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_weighted_loss_is_torchs_mean_where_there_are_labels():
    logits, weights = torch.randn(4, 3, 2), torch.tensor([1.0, 0.5, 2.0])
    labels = torch.tensor([[0, 1], [2, 255], [1, 1], [255, 0]])
    expected = nn.functional.cross_entropy(logits, labels, weight=weights, ignore_index=255)
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights, 255), expected)


def test_a_loss_without_labels_is_zero_and_trains():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.tensor([-100, -100]), torch.ones(3), -100)
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(logits.grad, torch.zeros(2, 3), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["classification", "segmentation"])
def test_class_weights_scale_the_classes(name):
    head = HEADS[name]
    batch, labels = images(), head.labels()
    model = head.build()
    plain = model(batch, labels=labels).loss
    model.config.class_weights = [2.0] * NUM_LABELS
    torch.testing.assert_close(model(batch, labels=labels).loss, plain)  # a common factor cancels
    labels = torch.zeros_like(labels)
    labels[1] = 1
    model.config.class_weights = [1.0, 0.0, 1.0, 1.0, 1.0]
    first = model(batch[:1], labels=labels[:1]).loss
    torch.testing.assert_close(model(batch, labels=labels).loss, first, rtol=1e-4, atol=1e-5)


def test_class_weights_that_cannot_be_right():
    model = HEADS["classification"].build(class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"`class_weights` must have one weight for each of the 5 .* got \[1.0, 2.0\]"):
        model(images(), labels=torch.tensor([0, 1]))


def test_dpt_reads_some_blocks_twice_in_shallow_networks():
    assert RadioConfig.from_preset("radio-test", num_hidden_layers=2).dpt_blocks == [0, 0, 0, 1]
    batch = images()
    model = HEADS["depth"].build(num_hidden_layers=2)
    assert model(batch).predicted_depth.shape == (2, *SIZE)


class NeckOfMaps(nn.Module):
    """DPT's neck, given one map for all blocks."""

    def __init__(self):
        super().__init__()
        self.neck = HEADS["depth"].build().eval().depth_head.neck

    def forward(self, maps):
        prefix = maps.new_zeros(maps.shape[0], self.neck.first_token + 1, maps.shape[1])
        tokens = torch.cat([prefix, maps.flatten(2).transpose(1, 2)], dim=1)
        kept = dict.fromkeys(self.neck.blocks, tokens)
        return self.neck(NetworkPass(tokens, tokens, kept, None, None, Resolution(*maps.shape[-2:]), None))


@needs_exporter
@torch.no_grad()
def test_dpt_exports_for_odd_and_even_numbers_of_patches():
    neck = NeckOfMaps()
    dims = {"maps": {2: torch.export.Dim("rows", min=3, max=16)}}
    program = torch.export.export(neck, (torch.rand(2, 32, 3, 4),), dynamic_shapes=dims)
    for rows in (3, 4, 7):
        maps = torch.rand(2, 32, rows, 4)
        for exported, expected in zip(program.module()(maps), neck(maps), strict=True):
            torch.testing.assert_close(exported, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classifier_pooling": "sumary"}, "`classifier_pooling` must be one of .* Did you mean 'summary'"),
        ({"segmentation_head": "upernet"}, r"`segmentation_head` must be one of \['linear', 'dpt'\], got 'upernet'"),
        ({"dpt_hidden_size": 31}, "`dpt_hidden_size` must be an even number, got 31. The nearest is 32"),
        ({"dpt_indices": [0, 1, 3]}, r"`dpt_indices` must be 4 ascending blocks in \[0, 4\), got"),
        ({"dpt_indices": [0, 1, 2, 4]}, r"`dpt_indices` .* got \[0, 1, 2, 4\]"),
    ],
)
def test_fields_that_cannot_be_right(fields, message, backbone_folder):
    with pytest.raises(ValueError, match=message):
        RadioConfig.from_preset("radio-test", **fields)
    with pytest.raises(ValueError, match=message):
        RadioForImageClassification.from_pretrained(backbone_folder, **fields)


def test_dpt_on_too_narrow_a_trunk_is_refused():
    with pytest.raises(ValueError, match=r"`hidden_size` must be at least 8 for DPT, .*, got 4"):
        HEADS["depth"].build(hidden_size=4)
