"""The contract that the classification, segmentation and depth models share."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from task_models import SIZE, build, images, tiny_config
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.models.radio import RadioModel as NativeRadioModel

from modeling_radio import (
    RadioBackbone,
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioImageProcessor,
    RadioModel,
    RadioPreTrainedModel,
)
from modeling_radio.heads_radio import (
    ObjectsOfViews,
    fit_whole,
    mean_of_probabilities,
    scale_invariant_loss,
    weighted_cross_entropy,
)
from modeling_radio.views_radio import View


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


def test_windows(head):
    model, batch = head.build(vitdet_num_global=2), images()
    with torch.no_grad():
        plain, windowed = model(batch)[head.output], model(batch, window_size=2)[head.output]
        model.config.vitdet_window_size = 2
        torch.testing.assert_close(model(batch)[head.output], windowed, rtol=0, atol=0)
    assert plain.shape == windowed.shape
    assert not torch.equal(plain, windowed)


@pytest.mark.parametrize(
    ("model_class", "fields", "blocks"),
    [
        (RadioForImageClassification, {}, []),
        (RadioForSemanticSegmentation, {}, []),
        (RadioForSemanticSegmentation, {"segmentation_head": "dpt", "dpt_indices": [1, 2, 4, 5]}, [1, 2, 4, 5]),
        (RadioForDepthEstimation, {"dpt_indices": [1, 2, 4, 5]}, [1, 2, 4, 5]),
        (RadioBackbone, {"out_indices": [0, 2, 6]}, [1]),
        (RadioForObjectDetection, {"detection_indices": [1, 3]}, [1, 3]),
    ],
)
def test_no_more_blocks_are_kept_than_the_head_reads(model_class, fields, blocks):
    model = model_class(tiny_config(num_hidden_layers=6, **fields)).eval()
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
    with pytest.raises(ValueError, match="`class_weights`"):
        model(images(), labels=torch.tensor([0, 1]))


WHOLE = (0.0, 0.0, 1.0, 1.0)
BEST_OBJECTS = 4  # as many as every way to look leaves


def test_boxes_of_flipped_and_cut_views_come_back_to_the_whole_image():
    found = ObjectsOfViews(0.5)
    box = torch.tensor([[[0.25, 0.5, 0.2, 0.4]]])
    found.add(View(torch.zeros(1, 3, 4, 4), WHOLE, is_flipped=True), torch.ones(1, 1, 1), box)
    left_tile = View(torch.zeros(1, 3, 4, 4), (0.0, 0.0, 0.5, 1.0), is_flipped=False)
    cut = torch.tensor([[[0.9, 0.5, 0.2, 0.4]]])  # ends at the tile's inner edge
    found.add(left_tile, torch.ones(1, 1, 1), cut)
    at_border = torch.tensor([[[0.1, 0.5, 0.2, 0.4]]])  # ends at the image's own
    found.add(left_tile, torch.ones(1, 1, 1), at_border)
    logits, boxes = found.merge()
    torch.testing.assert_close(boxes[0, 0], torch.tensor([0.75, 0.5, 0.2, 0.4]))
    torch.testing.assert_close(boxes[0, 2], torch.tensor([0.05, 0.5, 0.1, 0.4]))
    assert logits.flatten().tolist() == [1, -torch.inf, 1]


def test_of_overlapping_boxes_of_one_class_the_best_is_kept():
    found = ObjectsOfViews(0.5)
    view = View(torch.zeros(1, 3, 4, 4), WHOLE, is_flipped=False)
    idle = [-torch.inf, -torch.inf]
    found.add(view, torch.tensor([[[1.0, -1.0], idle]]), torch.tensor([[[0.5, 0.5, 0.4, 0.4]] * 2]))
    found.add(view, torch.tensor([[[2.0, -9.0]]]), torch.tensor([[[0.52, 0.5, 0.4, 0.4]]]))
    logits, _ = found.merge()
    assert logits[0].tolist() == [[-torch.inf, -1.0], idle, [2.0, -torch.inf]]  # another class is another object


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "normalize"),
    [
        (3, "single_label_classification", lambda x: x.softmax(-1)),
        (3, "multi_label_classification", torch.sigmoid),
        (1, None, torch.sigmoid),
    ],
)
def test_probabilities_are_averaged(num_labels, problem_type, normalize):
    logits = [torch.randn(2, num_labels), torch.randn(2, num_labels)]
    mean = mean_of_probabilities(logits, tiny_config(num_labels=num_labels, problem_type=problem_type))
    torch.testing.assert_close(normalize(mean), (normalize(logits[0]) + normalize(logits[1])) / 2)


def lively(name):
    """Return a model whose head has weights that are large enough for its answers to differ."""
    model = build(name)
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if weight.ndim > 1 and not part.startswith("radio_model."):
                weight.normal_(std=weight[0].numel() ** -0.5)
    return model


def answer_of(name, output):
    """Return what is compared: of a detector the best objects, best first, with score, class and corners in a row."""
    if name == "detector":
        (found,) = RadioImageProcessor().post_process_object_detection(output, threshold=0.0)
        rows = torch.cat([found["scores"][:, None], found["labels"][:, None], found["boxes"]], dim=1)
        return rows[:BEST_OBJECTS]
    return output.predicted_depth if name == "depth" else output.logits


@pytest.mark.parametrize("name", ["classifier", "linear segmenter", "depth", "detector"])
def test_one_look_at_the_whole_image_is_the_plain_answer(name):
    model, pixels = build(name), images(2, (64, 96))
    with torch.no_grad():
        plain = model(pixels)
        found = model.predict(pixels)
    if name == "linear segmenter":
        assert found.logits.shape == (2, 3, 64, 96)
        torch.testing.assert_close(found.logits.exp().sum(dim=1), torch.ones(2, 64, 96))
        return
    if name == "detector":
        expected = plain.logits.where(found.logits > -torch.inf, -torch.inf)  # boxes that overlap are merged
        assert (found.logits > -torch.inf).any()
        torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-4)
        return
    actual, expected = answer_of(name, found), answer_of(name, plain)
    if name == "classifier":
        actual, expected = actual.softmax(-1), expected.softmax(-1)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("classifier", {"scales": (0.5, 1.0)}),
        ("linear segmenter", {"tile_size": 48}),
        ("DPT segmenter", {"scales": (1.0, 1.5)}),
        ("depth", {"tile_size": 48}),
        ("detector", {"tile_size": 64, "scales": (1.0, 1.5)}),
    ],
)
def test_each_option_changes_the_answer(name, options):
    model, pixels = lively(name), images(1, (64, 96))
    found, plain = answer_of(name, model.predict(pixels, **options)), answer_of(name, model.predict(pixels))
    assert found.shape == plain.shape
    assert not torch.allclose(found, plain, atol=1e-4)


MIRRORED_TILES = {"tile_size": 64, "tile_overlap": 0.5}  # of 96 pixels two, each the other's mirror image


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("classifier", {}),
        ("linear segmenter", {}),
        ("linear segmenter", MIRRORED_TILES),
        ("depth", {}),
        ("depth", MIRRORED_TILES),
        ("detector", {}),
        ("detector", MIRRORED_TILES),
    ],
)
def test_with_flip_an_image_and_its_mirror_image_have_one_answer(name, options):
    model, pixels = lively(name), images(1, (64, 96))
    found, mirrored = (
        answer_of(name, model.predict(image, flip=True, **options)) for image in (pixels, pixels.flip(-1))
    )
    if name == "detector":
        left, right = mirrored[:, 2].clone(), mirrored[:, 4].clone()
        mirrored[:, 2], mirrored[:, 4] = 1 - right, 1 - left
    elif name != "classifier":
        mirrored = mirrored.flip(-1)
    torch.testing.assert_close(found, mirrored, atol=1e-4, rtol=1e-4)
    without = answer_of(name, model.predict(pixels, **options))
    assert found.shape == without.shape
    assert not torch.allclose(without, found, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((96, 96), (64, 64)),
        ((48, 240), (32, 144)),
        ((240, 48), (144, 32)),
        ((32, 80), (32, 96)),  # a patch for each query
        ((16, 800), (16, 256)),
    ],
)
def test_whole_images_beside_tiles_have_as_many_pixels_as_a_tile(size, expected):
    config = tiny_config(max_img_size=256)
    assert fit_whole(config, images(1, size), 64).shape[-2:] == expected


def test_images_beyond_the_largest_size_are_seen_in_tiles():
    model = build("linear segmenter")
    large = model.max_resolution + 16
    with pytest.raises(ValueError, match=f"at most {model.max_resolution}"):
        model.predict(images(1, (32, large)))
    assert model.predict(images(1, (32, large)), tile_size=128).logits.shape[-1] == large


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("classifier", {"tile_size": 48}, "`tile_size`"),
        ("depth", {"scales": (0.5,)}, "`scales`"),
        ("detector", {"nms_threshold": 2}, "`nms_threshold`"),
    ],
)
def test_options_without_meaning_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name).predict(images(1, (64, 96)), **options)


def classification_build(num_labels=3, **overrides):
    return RadioForImageClassification(tiny_config(num_labels=num_labels, **overrides)).eval()


@pytest.mark.parametrize("pooling", ["summary", "summary_and_features"])
def test_reads_the_summary_and_if_wanted_the_mean_features(pooling):
    model, batch = classification_build(classifier_pooling=pooling), images()
    radio = RadioModel(model.config).eval()
    radio.radio_model = model.radio_model
    with torch.no_grad():
        out = radio(batch)
        pooled = [out.summary] if pooling == "summary" else [out.summary, out.features.mean(dim=1)]
        expected = model.classifier(torch.cat(pooled, dim=1))
        torch.testing.assert_close(model(batch).logits, expected, rtol=0, atol=1e-6)
    width = 32 * (2 if pooling == "summary" else 3)
    assert model.classifier.in_features == model.classifier[1].in_features == width
    assert model.classifier.out_features == 3


@pytest.mark.parametrize(
    ("labels", "fields", "problem_type", "loss"),
    [
        (torch.tensor([2, 0]), {}, "single_label_classification", F.cross_entropy),
        (torch.rand(2, 3).round(), {}, "multi_label_classification", F.binary_cross_entropy_with_logits),
        (torch.rand(2), {"num_labels": 1}, "regression", F.mse_loss),
        (torch.rand(2, 1), {"num_labels": 1}, "regression", F.mse_loss),
        (torch.rand(2, 3), {"problem_type": "regression"}, "regression", F.mse_loss),
    ],
)
def test_the_labels_tell_the_problem(labels, fields, problem_type, loss):
    model = classification_build(**fields)
    out = model(images(), labels=labels)
    torch.testing.assert_close(out.loss, loss(out.logits, labels.view(2, 1) if fields.get("num_labels") else labels))
    assert model.config.problem_type == problem_type


def test_a_label_of_minus_100_does_not_count():
    model, batch = classification_build(), images()
    both = model(batch, labels=torch.tensor([2, -100])).loss
    torch.testing.assert_close(both, model(batch[:1], labels=torch.tensor([2])).loss, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("classification", torch.tensor([0, NUM_LABELS]), "`labels`"),
        ("classification", torch.tensor([0, -1]), "`labels`"),
        ("classification", torch.tensor([0]), "`labels`"),
        ("classification", torch.ones(2, NUM_LABELS, dtype=torch.long), "`problem_type`"),
        ("classification", torch.rand(2, 4), "`labels`"),
        *(("segmentation", torch.full((2, *SIZE), label), f"`labels` .* got {label}") for label in (5, -1, 254)),
        ("segmentation", torch.zeros(2, *SIZE), "`labels`"),
        ("depth", torch.rand(2, 24, 40), "`labels`"),
        ("depth", torch.ones(2, *SIZE).int(), "`labels`"),
    ],
)
def test_labels_that_cannot_be_right(name, labels, message):
    model = HEADS[name].build()
    with pytest.raises(ValueError, match=message):
        model(images(), labels=labels)
    assert model.config.problem_type is None  # labels that were refused decide nothing


LABELS = {
    "single_label_classification": torch.tensor([2, -100]),
    "multi_label_classification": torch.tensor([[1.0, 0, 1], [0, 0, 0]]),
    "regression": torch.rand(2, 3),
}


@pytest.mark.parametrize("problem_type", list(LABELS))
def test_the_loss_of_a_step_of_several_batches_is_a_sum(problem_type):
    model, batch, labels = classification_build(problem_type=problem_type), images(), LABELS[problem_type]
    mean = model(batch, labels=labels).loss
    counted = labels.ne(-100).sum()
    torch.testing.assert_close(model(batch, labels=labels, num_items_in_batch=counted).loss, mean)
    torch.testing.assert_close(model(batch, labels=labels, num_items_in_batch=2 * int(counted)).loss, mean / 2)


def weights_after_a_step(folder, batch_size, **fields):
    """Train on four images, of which one has no label, in one step of one or several batches."""
    torch.manual_seed(0)
    model = classification_build(use_cropped_positions=False, **fields)
    examples = [
        {"pixel_values": image, "labels": label} for image, label in zip(images(4), [2, -100, 0, 1], strict=True)
    ]
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=4 // batch_size,
        max_steps=1,
        learning_rate=1.0,
        optim="sgd",
        max_grad_norm=0,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=examples)
    trainer.train()
    return trainer, model.classifier[1].weight.detach()


def test_trainer_learns_the_same_from_several_batches_as_from_one(tmp_path):
    trainer, several = weights_after_a_step(tmp_path, batch_size=2)
    assert trainer.model_accepts_loss_kwargs
    _, one = weights_after_a_step(tmp_path, batch_size=4)
    torch.testing.assert_close(several, one, rtol=0, atol=1e-5)


def test_trainer_divides_weighted_losses_itself():
    """It counts labels, and not what they weigh."""
    assert classification_build().accepts_loss_kwargs
    assert not classification_build(class_weights=[1.0, 2.0, 3.0]).accepts_loss_kwargs
    assert not RadioModel(tiny_config()).accepts_loss_kwargs


def segmentation_build(**overrides):
    return RadioForSemanticSegmentation(tiny_config(**overrides)).eval()


def test_linear_head_is_batch_norm_and_one_linear_layer_on_the_features():
    model, batch = segmentation_build(), images()
    norm, classifier = model.decode_head.norm, model.decode_head.classifier
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    radio = RadioModel(model.config).eval()
    radio.radio_model = model.radio_model
    with torch.no_grad():
        features = radio(batch).features
        normed = (features - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        expected = F.linear(normed, classifier.weight[:, :, 0, 0], classifier.bias)
        logits = model(batch).logits
    assert logits.shape == (2, 3, 3, 5)
    torch.testing.assert_close(logits.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-5)


def test_dpt_head_reads_the_chosen_blocks():
    model, batch = segmentation_build(segmentation_head="dpt", dpt_indices=[0, 1, 1, 2]), images()
    with torch.no_grad():
        before = model(batch).logits
        model.radio_model.model.blocks[3].mlp.fc2.weight.normal_()
        torch.testing.assert_close(model(batch).logits, before, rtol=0, atol=0)
        model.radio_model.model.blocks[2].mlp.fc2.weight.normal_()
        assert not torch.equal(model(batch).logits, before)
    assert before.shape == (2, 3, 64, 96)  # 16 for each patch, the 3 x 5 patches rounded up to even


@pytest.mark.parametrize("ignored", [255, 0])
def test_loss_is_the_cross_entropy_of_resized_logits_without_ignored_pixels(ignored):
    model, batch = segmentation_build(semantic_loss_ignore_index=ignored), images()
    labels = torch.randint(0, 3, (2, *SIZE))
    labels[:, :20] = ignored
    out = model(batch, labels=labels)
    logits = F.interpolate(out.logits, SIZE, mode="bilinear")
    torch.testing.assert_close(out.loss, F.cross_entropy(logits, labels, ignore_index=ignored))
    small = model(batch, labels=labels.to(torch.uint8)).loss
    torch.testing.assert_close(small, out.loss)


def test_labels_may_have_a_size_of_their_own():
    model, batch, labels = segmentation_build(), images(), torch.randint(0, 3, (2, 30, 61))
    out = model(batch, labels=labels)
    logits = F.interpolate(out.logits, (30, 61), mode="bilinear", align_corners=False)
    torch.testing.assert_close(out.loss, F.cross_entropy(logits, labels))


def test_the_ignored_label_is_no_class():
    config = RadioConfig.from_preset("radio-test", num_labels=300)
    with pytest.raises(ValueError, match="`semantic_loss_ignore_index`"):
        RadioForSemanticSegmentation(config)
    config.semantic_loss_ignore_index = -100
    RadioForSemanticSegmentation(config)


def depth_build(**overrides):
    return RadioForDepthEstimation(tiny_config(**overrides)).eval()


@pytest.mark.parametrize("fields", [{}, {"patch_size": 14, "max_img_size": 224}])
def test_one_positive_depth_for_each_pixel(fields):
    model = depth_build(**fields)
    batch = torch.rand(2, 3, 3 * model.patch_size, 4 * model.patch_size)
    depth = model(batch).predicted_depth
    assert depth.shape == (2, *batch.shape[-2:])
    assert (depth > 0).all()


def test_pixels_that_start_at_depth_zero_still_learn():
    model = depth_build()
    with torch.no_grad():
        model.depth_head.head.head[-2].bias.fill_(-30)
    out = model(images(), labels=torch.ones(2, *SIZE))
    out.loss.backward()
    assert out.loss.isfinite()
    assert model.depth_head.head.head[-2].bias.grad.abs().item() > 0


def test_loss_by_hand():
    predicted = torch.tensor([[[math.e, math.e**3], [1.0, 7.0]]])
    true = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    # log differences 1, 3, 0: mean square 10 / 3, half the squared mean 8 / 9
    assert scale_invariant_loss(predicted, true).item() == pytest.approx(10 / 3 - 8 / 9, abs=1e-5)


@pytest.mark.parametrize("unknown", [0.0, -1.0, math.nan, math.inf])
def test_pixels_of_unknown_depth_do_not_count(unknown):
    predicted, true = torch.rand(2, 4, 4) + 0.5, torch.rand(2, 4, 4) + 0.5
    predicted.requires_grad_()
    true[:, 2:] = unknown
    loss = scale_invariant_loss(predicted, true)
    torch.testing.assert_close(loss, scale_invariant_loss(predicted[:, :2], true[:, :2]))
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert gradient.isfinite().all()
    assert (gradient[:, 2:] == 0).all()


def test_images_without_any_depth_leave_the_others_loss_alone():
    predicted, true = torch.rand(2, 4, 4) + 0.5, torch.rand(2, 4, 4) + 0.5
    true[1] = 0
    torch.testing.assert_close(scale_invariant_loss(predicted, true), scale_invariant_loss(predicted[:1], true[:1]))
    assert scale_invariant_loss(predicted, torch.zeros(2, 4, 4)).item() == 0
