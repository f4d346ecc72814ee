"""Several looks at an image: which tiles there are, and that joint answers are what they say."""

import pytest
import torch
from task_models import build, images, tiny_config

from modeling_radio import RadioImageProcessor
from modeling_radio.checks_radio import Resolution
from modeling_radio.heads_radio import ObjectsOfViews, View, ViewOptions, average_maps, fit_whole, mean_of_probabilities


WHOLE = (0.0, 0.0, 1.0, 1.0)
BEST_OBJECTS = 4  # as many as every way to look leaves


def places(size, **options):
    views = ViewOptions(**options).take(tiny_config(), images(1, size))
    height, width = size
    return [
        (round(left * width), round(top * height), round(right * width), round(bottom * height))
        for _, (left, top, right, bottom), _ in views
    ]


def test_tiles_cover_the_image_and_the_last_ones_end_with_it():
    found = places((64, 112), tile_size=64, tile_overlap=0.5)
    assert found == [(0, 0, 64, 64), (32, 0, 96, 64), (48, 0, 112, 64)]
    assert places((48, 64), tile_size=64) == [(0, 0, 64, 48)]  # a side that is shorter is one tile


def test_scales_and_mirror_images_are_looks_of_their_own():
    views = list(ViewOptions(scales=(0.5, 1), flip=True).take(tiny_config(), images(1, (64, 96))))
    assert [(tuple(view.pixel_values.shape[-2:]), view.is_flipped) for view in views] == [
        ((32, 48), False),
        ((32, 48), True),
        ((64, 96), False),
        ((64, 96), True),
    ]
    assert torch.equal(views[3].pixel_values, views[2].pixel_values.flip(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_of_less_precision_are_resized_as_in_float32(dtype):
    config, pixels = tiny_config(), images(1, (64, 96)).to(dtype)
    resized = [next(ViewOptions(scales=(0.5,)).take(config, each)).pixel_values for each in (pixels, pixels.float())]
    whole = [fit_whole(config, each, 48) for each in (pixels, pixels.float())]
    for small, expected in (resized, whole):
        assert small.dtype == dtype
        assert torch.equal(small, expected.to(dtype))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 0}, "`tile_size` must be a number of pixels or None, got 0"),
        ({"tile_size": 50}, "`tile_size` must be a multiple of 16 and at most .*, got 50. The nearest is 48"),
        ({"tile_overlap": 1.0}, r"`tile_overlap` must be in \[0, 1\), got 1.0"),
        ({"scales": ()}, r"`scales` must be numbers in \(0, 16\], got \(\)"),
        ({"scales": (1, -1)}, r"`scales` must be numbers in"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        list(ViewOptions(**options).take(tiny_config(), images(1, (64, 96))))


def test_maps_of_views_are_averaged_where_they_overlap():
    left = View(torch.zeros(1, 3, 4, 4), (0.0, 0.0, 2 / 3, 1.0), is_flipped=False)
    right = View(torch.zeros(1, 3, 4, 4), (1 / 3, 0.0, 1.0, 1.0), is_flipped=True)
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    found = average_maps(iter([(left, ramp), (right, ramp)]), Resolution(4, 6))
    assert found[0, 0, 0].tolist() == [0, 1, (2 + 3) / 2, (3 + 2) / 2, 1, 0]


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
    ("problem_type", "normalize"),
    [("single_label_classification", lambda x: x.softmax(-1)), ("multi_label_classification", torch.sigmoid)],
)
def test_probabilities_are_averaged(problem_type, normalize):
    logits = [torch.randn(2, 3), torch.randn(2, 3)]
    mean = mean_of_probabilities(logits, tiny_config(num_labels=3, problem_type=problem_type))
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
        ("detector", {"tile_size": 64}),
        ("detector", {"flip": True}),
        ("detector", {"scales": (1.0, 1.5)}),
    ],
)
def test_each_option_changes_the_answer(name, options):
    model, pixels = lively(name), images(1, (64, 96))
    found, plain = answer_of(name, model.predict(pixels, **options)), answer_of(name, model.predict(pixels))
    assert found.shape == plain.shape
    assert not torch.allclose(found, plain, atol=1e-4)


def test_two_equal_looks_are_one_unless_the_threshold_keeps_both():
    model, pixels = lively("detector"), images(1, (64, 96))
    once, merged, both = (
        answer_of("detector", model.predict(pixels, **options))
        for options in ({}, {"scales": (1.0, 1.0)}, {"scales": (1.0, 1.0), "nms_threshold": 1.0})
    )
    torch.testing.assert_close(merged, once, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[::2], both[1::2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[::2], once[: BEST_OBJECTS // 2], atol=1e-5, rtol=1e-4)


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
        ((32, 80), (32, 80)),
        ((16, 800), (16, 256)),
    ],
)
def test_whole_images_beside_tiles_have_as_many_pixels_as_a_tile(size, expected):
    config = tiny_config(max_img_size=256)
    assert fit_whole(config, images(1, size), 64).shape[-2:] == expected


def test_a_long_image_beside_its_tiles_has_patches_for_all_queries():
    """As wide as a tile it would be 16 x 64 pixels, four patches for twelve queries."""
    model = build("detector")
    tiles, queries = 5, model.config.detection_num_queries
    assert model.predict(images(1, (48, 240)), tile_size=64).logits.shape[1] == (tiles + 1) * queries


def test_images_beyond_the_largest_size_are_seen_in_tiles():
    model = build("linear segmenter")
    large = model.max_resolution + 16
    with pytest.raises(ValueError, match="multiples of 16 and at most"):
        model.predict(images(1, (32, large)))
    assert model.predict(images(1, (32, large)), tile_size=128).logits.shape[-1] == large


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("classifier", {"tile_size": 48}, "`tile_size` must be None, got 48: a class is that of a whole image"),
        ("depth", {"scales": (0.5,)}, r"`scales` must be \(1.0,\), got \(0.5,\): an image of another scale"),
        ("detector", {"nms_threshold": 2}, r"`nms_threshold` must be in \[0, 1\], got 2"),
    ],
)
def test_options_without_meaning_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name).predict(images(1, (64, 96)), **options)


def test_one_logit_of_no_stated_problem_is_a_yes_or_no():
    logits = [torch.tensor([[2.0]]), torch.tensor([[-1.0]])]
    mean = mean_of_probabilities(logits, tiny_config(num_labels=1))
    torch.testing.assert_close(mean.sigmoid(), (logits[0].sigmoid() + logits[1].sigmoid()) / 2)
