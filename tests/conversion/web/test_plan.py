"""What a page offers of a model, and what is refused."""

import pytest
import torch
from tiny_sentences import build_sentence_tower
from tiny_site import build_radio, build_tokenizer
from tiny_texts import build_dual_encoder

from conversion.web.plan import TEXT_PATCHES, plan_page
from conversion.web.texts import Texts
from modeling_radio import RadioForZeroShotImageClassification


def texts_of(radio, source):
    return Texts(RadioForZeroShotImageClassification.from_parts(radio, source, "clip-a"), build_tokenizer())


def test_sizes_windows_and_spaces_by_default():
    model = build_radio(max_img_size=256)
    plan = plan_page(model)
    assert (plan.sizes, plan.step, plan.window, plan.window_step) == ([128, 192, 256], 16, 4, 64)
    assert [(space.name, space.width, space.scale) for space in plan.spaces] == [
        *(("backbone", model.config.hidden_size, 1), ("clip-a", 12, 1), ("sam-b", 8, 2)),
    ]
    assert list(plan.wrap(model)) == ["global", "windows"]
    assert plan.text_space is None


def test_what_is_asked_for_is_taken():
    plan = plan_page(build_radio(max_img_size=256), adaptors=["sam-b"], sizes=[96, 64, 96], window_size=0)
    assert ([space.name for space in plan.spaces], plan.sizes, plan.window) == (["backbone", "sam-b"], [64, 96], None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [100]}, "`sizes` must have sides that are multiples of 64 .* nearest valid size is 128 x 128"),
        ({"sizes": [1024]}, "`sizes` must have sides .* at most 768 pixels"),
        ({"sizes": []}, "`sizes` must have at least one"),
        ({"adaptors": ["sam"]}, "'sam'"),
        ({"window_size": 9}, "`window_size` must leave two windows in 256 px, got 9"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan_page(build_radio(max_img_size=256), **options)


def test_sizes_beyond_those_of_training_are_taken_with_a_warning():
    with pytest.warns(UserWarning, match="512 px: the model was made for 256 px"):
        assert plan_page(build_radio(max_img_size=256), sizes=[512, 256]).sizes == [256, 512]
    with pytest.raises(ValueError, match="at most 256 pixels"):
        plan_page(build_radio(max_img_size=256, use_cropped_positions=False), sizes=[512])


def test_windows_of_a_network_that_has_none_are_refused():
    with pytest.raises(ValueError, match="`window_size` must be 0 for this model"):
        plan_page(build_radio(vitdet_num_global=3), window_size=2)
    with pytest.raises(ValueError, match="must take RGB pictures, got 4"):
        plan_page(build_radio(num_channels=4, norm_mean=[0.5] * 4, norm_std=[0.5] * 4))


def test_words_meet_the_features_of_a_sentence_encoder_and_the_summary_head_of_others():
    radio = build_radio(adaptor_names=[])
    plan = plan_page(radio, texts_of(radio, build_sentence_tower(12)))
    assert (plan.text_space.output, plan.text_head, plan.adaptors) == ("clip-a_features", None, ["clip-a"])
    assert [space.name for space in plan.spaces] == ["backbone"]
    of_clip = texts_of(radio, build_dual_encoder("clip", 12))
    plan = plan_page(radio, of_clip)
    (wrapped, *_) = plan.wrap(radio).values()
    assert plan.text_space.output == TEXT_PATCHES == wrapped.names[-1]
    images = torch.rand(1, 3, 64, 32)
    with torch.no_grad():
        patches = of_clip.model.aligned_patches(images)
        torch.testing.assert_close(wrapped(images)[-1], patches.flatten(2).transpose(1, 2))
    assert plan_page(radio, of_clip, dense_source="features").text_head is None


def test_features_that_are_not_as_wide_as_the_texts_are_refused():
    adaptor = {"name": "clip-a", "summary_dim": 12, "feature_dim": 8, "hidden_size": 16}
    radio = build_radio(adaptors=[adaptor])
    with pytest.raises(ValueError, match="`feature_dim` of adaptor 'clip-a' must be 12"):
        plan_page(radio, texts_of(radio, build_sentence_tower(12)))
