"""The content of a page, its network, and the positions that are kept."""

import copy

import pytest
import torch
from tiny_networks import NETWORKS
from tiny_sentences import build_sentence_tower
from tiny_site import build_radio, build_tokenizer
from tiny_texts import build_dual_encoder
from torch.nn import functional as F

from modeling_radio import RadioConfig, RadioForImageClassification, RadioForZeroShotImageClassification
from modeling_radio.conversion.graphs.files import open_graph
from modeling_radio.conversion.web.plan import (
    LOGITS,
    PATCH_LOGITS,
    TEXT_PATCHES,
    WebRadio,
    find_spaces,
    keep_offered_positions,
    plan_page,
    write_graphs,
)
from modeling_radio.conversion.web.texts import Texts
from modeling_radio.radseg_radio import SCALING


def test_spaces_are_those_with_dense_features():
    without = {"name": "words-only", "summary_dim": 12, "feature_dim": None, "hidden_size": 16}
    model = build_radio(adaptors=[without, {**without, "name": "dense", "feature_dim": 6, "upsample_factor": 2}])
    spaces = find_spaces(model, ["words-only", "dense"])
    assert [(each.name, each.output, each.width, each.scale) for each in spaces] == [
        ("backbone", "features", 32, 1),
        ("dense", "dense_features", 6, 2),
    ]
    with pytest.raises(ValueError, match="'nothing'"):
        find_spaces(model, ["nothing"])


@pytest.mark.parametrize("pooling", ["summary", "summary_and_features"])
def test_logits_are_the_classifiers(pooling):
    tuned = RadioForImageClassification(RadioConfig.from_preset("radio-test", classifier_pooling=pooling)).eval()
    wrapped = WebRadio(tuned.base_model, [], None, classifier=tuned.classifier)
    assert wrapped.names == ["features", LOGITS]
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(wrapped(images)[1], tuned(images).logits)


@pytest.mark.parametrize("pooling", ["summary", "summary_and_features"])
def test_a_patch_is_named_as_an_image_of_it_alone(pooling):
    fields = {**NETWORKS["class"].fields, "classifier_pooling": pooling, "num_cls_tokens": 2, "summary_idxs": [1]}
    tuned = RadioForImageClassification(RadioConfig(**fields, num_labels=5)).eval()
    wrapped = WebRadio(tuned.base_model, [], None, classifier=tuned.classifier)
    assert wrapped.names == ["features", LOGITS, PATCH_LOGITS]
    with torch.no_grad():
        _, logits, patches = wrapped(torch.rand(1, 3, 64, 96))
        _, even, even_patches = wrapped(torch.full((1, 3, 64, 64), 0.3))  # all patches are one
    assert patches.shape == (1, (64 // 8) * (96 // 8), 5)
    assert not torch.allclose(patches, logits[:, None].expand_as(patches), atol=1e-3)
    torch.testing.assert_close(even_patches, even[:, None].expand_as(even_patches))


@pytest.mark.slow
@pytest.mark.parametrize(("source", "window"), [("summary_head", None), ("features", 2)])
def test_a_graph_answers_as_the_model_and_finds_words_as_segment_does(source, window, tmp_path):
    pytest.importorskip("onnxscript")
    radio = build_radio()
    model, classes = texts_of(radio, build_dual_encoder("clip", 12)).model, torch.randn(3, 12)
    wrapped = WebRadio(radio, ["clip-a"], window, "clip-a", source)
    assert wrapped.names == ["features", "clip-a_features", TEXT_PATCHES]
    run = open_graph(write_graphs({"graph": wrapped}, tmp_path)["graph"])
    for size in ((64, 96), (96, 32)):
        images, as_here = torch.rand(1, 3, *size), window or "global"
        with torch.no_grad():
            plain = radio(images, window_size=as_here, adaptor_names=["clip-a"])
            logits = model.segment(images, classes, source, as_here, sliding=None, denoising=None).logits
        features, of_adaptor, patches = run({"pixel_values": images})
        torch.testing.assert_close(features, plain.features, rtol=0, atol=1e-4)
        torch.testing.assert_close(of_adaptor, plain.adaptors["clip-a"].features, rtol=0, atol=1e-4)
        cosines = F.normalize(patches, dim=-1) @ F.normalize(classes, dim=-1).T
        wanted = logits.flatten(2).mT / model.logit_scale.exp()
        torch.testing.assert_close(cosines, wanted.detach(), rtol=0, atol=1e-5)  # 5e-5 without SCRA


def texts_of(radio, source):
    return Texts(RadioForZeroShotImageClassification.from_parts(radio, source, "clip-a"), build_tokenizer())


def test_sizes_windows_and_spaces_by_default():
    model = build_radio(max_img_size=256)
    plan = plan_page(model)
    assert (plan.sizes, plan.step, plan.window, plan.window_step) == ([128, 192, 256], 16, 4, 64)
    assert [(space.name, space.width, space.scale) for space in plan.spaces] == [
        *(("backbone", model.config.hidden_size, 1), ("clip-a", 12, 1), ("sam-b", 8, 2))
    ]
    assert list(plan.wrap(model)) == ["global", "windows"]
    assert plan.text_space is None


def test_words_meet_the_features_of_a_sentence_encoder_and_the_summary_head_of_others():
    radio = build_radio(adaptor_names=[])
    plan = plan_page(radio, texts_of(radio, build_sentence_tower(12)))
    assert (plan.text_space.output, plan.text_source, plan.adaptors) == (TEXT_PATCHES, "features", [])
    assert [space.name for space in plan.spaces] == ["backbone"]
    of_clip = texts_of(radio, build_dual_encoder("clip", 12))
    plan = plan_page(radio, of_clip)
    (wrapped, *_) = plan.wrap(radio).values()
    assert (plan.text_source, wrapped.names[-1]) == ("summary_head", TEXT_PATCHES)
    images = torch.rand(1, 3, 64, 32)
    with torch.no_grad():
        patches = of_clip.model.aligned_patches(images, scra=SCALING, scga=SCALING)
        torch.testing.assert_close(wrapped(images)[-1], patches.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("fields", [{}, {"use_cropped_positions": False}, {"pos_embed_align_corners": True}])
def test_offered_sizes_give_the_same_features(fields):
    model = build_radio(**fields)
    cropped = copy.deepcopy(model)
    keep_offered_positions(cropped, [2, 4])
    for height, width in ((64, 48), (32, 64), (32, 32), (16, 32)):
        images = torch.rand(1, 3, height, width)
        with torch.no_grad():
            assert torch.equal(cropped(images).features, model(images).features)


def test_what_is_asked_for_is_taken_also_beyond_the_sizes_of_training():
    plan = plan_page(build_radio(max_img_size=256), adaptors=["sam-b"], sizes=[96, 64, 96], window_size=0)
    assert ([space.name for space in plan.spaces], plan.sizes, plan.window) == (["backbone", "sam-b"], [64, 96], None)
    with pytest.warns(UserWarning, match="`sizes` of 512 px"):
        assert plan_page(build_radio(max_img_size=256), sizes=[512, 256]).sizes == [256, 512]


FOUR = {"num_channels": 4, "norm_mean": [0.5] * 4, "norm_std": [0.5] * 4}


@pytest.mark.parametrize(
    ("fields", "options", "named"),
    [
        ({}, {"sizes": [100]}, "`sizes`.* 128 x 128"),
        ({}, {"sizes": [1024]}, "`sizes`.* 768"),
        ({"use_cropped_positions": False}, {"sizes": [512]}, "`sizes`.* 256"),
        ({}, {"sizes": []}, "`sizes`"),
        ({}, {"adaptors": ["sam"]}, "'sam'"),
        ({}, {"window_size": 9}, "`window_size`"),
        ({"vitdet_num_global": 3}, {"window_size": 2}, "`window_size` must be 0"),
        (FOUR, {}, "`checkpoint`"),
    ],
)
def test_what_cannot_be_is_refused(fields, options, named):
    with pytest.raises(ValueError, match=named):
        plan_page(build_radio(max_img_size=256, **fields), **options)


def test_features_that_are_not_as_wide_as_the_texts_are_refused():
    adaptor = {"name": "clip-a", "summary_dim": 12, "feature_dim": 8, "hidden_size": 16}
    radio = build_radio(adaptors=[adaptor])
    with pytest.raises(ValueError, match="`feature_dim` of adaptor 'clip-a'"):
        plan_page(radio, texts_of(radio, build_sentence_tower(12)))
