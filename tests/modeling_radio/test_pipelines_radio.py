"""Options of our pipelines by which they look at an image several times."""

import pytest
import torch
from PIL import Image
from refusals import refused
from task_models import build, tiny_config
from transformers.modeling_outputs import SemanticSegmenterOutput

from modeling_radio import (
    RadioConfig,
    RadioForImageClassification,
    RadioForZeroShotImageClassification,
    RadioImageProcessor,
    RadioModel,
)
from modeling_radio.pipelines_radio import (
    VIEW_OPTIONS,
    RadioDepthEstimationPipeline,
    RadioImageClassificationPipeline,
    RadioImageFeatureExtractionPipeline,
    RadioImageSegmentationPipeline,
    RadioInstanceSegmentationPipeline,
    RadioObjectDetectionPipeline,
    RadioWordSegmentationPipeline,
    RadioZeroShotObjectDetectionPipeline,
)
from modeling_radio.views_radio import ViewOptions, encode_tiles


PIPELINES = {
    "classifier": RadioImageClassificationPipeline,
    "linear segmenter": RadioImageSegmentationPipeline,
    "depth": RadioDepthEstimationPipeline,
    "detector": RadioObjectDetectionPipeline,
    "instance segmenter": RadioInstanceSegmentationPipeline,
}


TILES = {"tile_size": 96}


@pytest.fixture
def photo():
    torch.manual_seed(3)
    return Image.fromarray((torch.rand(90, 130, 3) * 255).byte().numpy())


def pipeline_of(name):
    processor = RadioImageProcessor(size={"height": 64, "width": 64})
    return PIPELINES[name](model=build(name), image_processor=processor)


@pytest.mark.parametrize(
    ("name", "options", "seen"),
    [
        ("classifier", {"flip": True, "scales": (1, 0.5)}, [(64, 64), (64, 64), (32, 32), (32, 32)]),
        ("linear segmenter", {"tile_size": 64, "tile_overlap": 0}, [(64, 64)] * 4),
        ("depth", {"tile_size": 96, "flip": True}, [(96, 96)] * 4),
        ("detector", {"tile_size": 96, "threshold": 0.0}, [(96, 96)] * 2 + [(80, 112)]),
    ],
)
def test_options_reach_the_model_and_tiles_are_of_the_image_as_it_is(name, options, seen, photo):
    pipe = pipeline_of(name)
    sizes = []
    handle = pipe.model.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[-2:])))
    found = pipe(photo, **options)
    handle.remove()
    assert sizes == seen
    if name == "linear segmenter":
        assert found[0]["mask"].size == photo.size
    if name == "depth":
        assert found["depth"].size == photo.size


@pytest.mark.parametrize("name", ["detector", "instance segmenter"])
def test_tuned_thresholds_count_where_none_is_given(name, photo):
    pipe = pipeline_of(name)
    every = pipe(photo, threshold=0.0)
    assert len({found["label"] for found in every}) > 1
    assert len(pipe(photo)) == len(pipe(photo, threshold=0.5))
    pipe.model.config.score_thresholds = [0.0, 1.0, 1.0]
    assert [found for found in every if found["label"] == "LABEL_0"] == pipe(photo)
    pipe.model.config.score_thresholds = [0.0]
    with pytest.raises(ValueError, match="`threshold`"):
        pipe(photo)


def test_one_image_at_a_time(photo):
    with pytest.raises(ValueError, match="`batch_size`"):
        pipeline_of("classifier")([photo, photo], batch_size=2, flip=True)
    assert len(pipeline_of("classifier")([photo, photo], flip=True)) == 2


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("classifier", "tile_size"),
        ("depth", "scales"),
        *[("instance segmenter", option) for option in (*VIEW_OPTIONS, "overlap_mask_area_threshold")],
    ],
)
def test_options_without_meaning_are_refused(name, option, photo):
    refused(option, lambda: pipeline_of(name)(photo, **{option: 64}))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear segmenter", {}),
        ("depth", {}),
        ("instance segmenter", {}),
        ("detector", {"flip": True}),
        ("depth", TILES),
    ],
)
def test_padding_of_a_saved_processor_moves_nothing(name, options, photo):
    model = build(name)
    found = []
    for settings in ({}, {"do_pad": True, "pad_size": {"height": 128, "width": 128}}):
        processor = RadioImageProcessor(size={"height": 64, "width": 96}, **settings)
        found.append(PIPELINES[name](model=model, image_processor=processor)(photo, **options))
    plain, padded = found
    if name == "depth":
        assert torch.equal(plain["predicted_depth"], padded["predicted_depth"])
        return
    assert [answer["label"] for answer in plain] == [answer["label"] for answer in padded]
    parts = [[answer.get("box") or answer["mask"].tobytes() for answer in answers] for answers in found]
    assert parts[0] == parts[1]


def test_thresholds_count_for_all_labels_of_a_classifier(photo):
    config = tiny_config(num_labels=9, problem_type="multi_label_classification", score_thresholds=[0.0] * 9)
    model = RadioForImageClassification(config).eval()
    pipe = RadioImageClassificationPipeline(model=model, image_processor=RadioImageProcessor(size=(64, 64)))
    assert len(pipe(photo)) == 5
    assert len(pipe(photo, threshold="tuned")) == len(pipe(photo, threshold=0.0)) == 9
    assert len(pipe(photo, threshold="tuned", top_k=2)) == 2


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    config = tiny_config()
    processor = RadioImageProcessor.from_model_config(config)
    return RadioImageFeatureExtractionPipeline(model=RadioModel(config).eval(), image_processor=processor)


@pytest.mark.parametrize(
    ("options", "name", "feature_format"),
    [
        ({}, "summary", "NLC"),
        ({"pool": True}, "summary", "NLC"),
        ({"pool": False}, "features", "NLC"),
        ({"pool": False, "feature_format": "NLC"}, "features", "NLC"),
        ({"feature_format": "NCHW"}, "features", "NCHW"),
    ],
)
def test_features_are_pooled_or_dense(options, name, feature_format, extractor, photo):
    images = [photo, photo.resize((64, 40)), photo]
    found = extractor(images, batch_size=3, return_tensors=True, **options)
    for image, features in zip(images, found, strict=True):
        pixels = extractor.image_processor(image, return_tensors="pt").pixel_values
        with torch.no_grad():
            expected = extractor.model(pixels, feature_format=feature_format)[name]
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(extractor(photo, **options)), found[0], atol=1e-5, rtol=1e-5)


def test_features_of_large_images_are_those_of_tiles(extractor, photo):
    found = extractor(photo, tile_size=64, feature_format="NCHW", return_tensors=True)
    pixels = extractor.image_processor(photo, size=(96, 128), return_tensors="pt").pixel_values
    expected = encode_tiles(
        extractor.model.config, pixels, lambda crop: extractor.model(crop, feature_format="NCHW"), ViewOptions(64)
    )
    torch.testing.assert_close(found, expected.features)
    listed = extractor(photo, tile_size=64, pool=False, return_tensors=True)
    torch.testing.assert_close(listed, found.flatten(2).transpose(1, 2))
    torch.testing.assert_close(extractor(photo, tile_size=64, return_tensors=True), expected.summary)


def test_unknown_options_are_refused_by_name(extractor, photo):
    for options, name in (({"output": "features"}, "output"), ({"pool": True, "feature_format": "NCHW"}, "format")):
        with pytest.raises(ValueError, match=name):
            extractor(photo, **options)
    for name in PIPELINES:
        refused("tresh", lambda name=name: pipeline_of(name)(photo, tresh=0.1))


@pytest.mark.parametrize("kind", [RadioWordSegmentationPipeline, RadioZeroShotObjectDetectionPipeline])
def test_words_must_be_given_and_options_known(words, photo, kind):
    for labels in (None, []):
        refused("candidate_labels", lambda labels=labels: words(kind)(photo, labels))
    refused("tile_size", lambda: words(kind)(photo, WORDS, tile_size=64))
    assert words(kind, candidate_labels=WORDS)(photo)


WORDS = ["cat", "dog", "grass"]


class Seen(RadioForZeroShotImageClassification):
    """Sees a square of dogs in the left half, one of cats at the right edge, and grass around, whatever the image."""

    asked: dict

    def segment(self, pixel_values, text_embeds, **options):
        self.asked = {**options, "classes": len(text_embeds)}
        logits = torch.zeros(len(pixel_values), 3, 4, 8)
        logits[:, 2] = 3.0
        logits[:, 1, 1:3, 1:3] = 9.0
        logits[:, 0, 2:4, 6:8] = 6.0
        return SemanticSegmenterOutput(logits=logits)


@pytest.fixture
def words(build_dual_encoder, word_tokenizer):
    """Return a function that builds a pipeline of words."""
    head = {"summary_dim": 12, "feature_dim": 12, "hidden_size": 24}
    radio = RadioModel(RadioConfig.from_preset("radio-test", adaptors=[{"name": "clip", **head}])).eval()
    model = Seen.from_parts(radio, build_dual_encoder("clip", 12))
    processor = RadioImageProcessor(size={"height": 64, "width": 128})
    return lambda kind, **options: kind(model=model, tokenizer=word_tokenizer, image_processor=processor, **options)


def test_masks_of_words_are_those_of_the_map(words, photo):
    pipe = words(RadioWordSegmentationPipeline)
    found = pipe(photo, candidate_labels="cat, dog,grass", scga=None, templates=["a {}"])
    assert pipe.model.asked == {"scga": None, "source": "summary_head", "classes": 3}
    assert [each["label"] for each in found] == WORDS
    assert all(each["mask"].size == photo.size for each in found)
    areas = [each["mask"].histogram()[255] for each in found]
    assert sum(areas) == photo.width * photo.height
    assert areas[1] == pytest.approx(photo.width * photo.height * 4 / 32, rel=0.5)
    assert found[1]["score"] > found[0]["score"]
    assert all(0 < each["score"] < 1 for each in found)
    sure = pipe(photo, candidate_labels=WORDS, threshold=0.99)
    assert sum(each["mask"].histogram()[255] for each in sure) < sum(areas)


def test_boxes_are_those_of_connected_regions(words, photo):
    pipe = words(RadioZeroShotObjectDetectionPipeline)
    found = pipe(photo, candidate_labels=WORDS)
    boxes = {each["label"]: each["box"] for each in found}
    assert [each["score"] for each in found] == sorted((each["score"] for each in found), reverse=True)
    assert len(found) == 3
    assert boxes["grass"] == {"xmin": 0, "ymin": 0, "xmax": photo.width, "ymax": photo.height}
    left, top, right, bottom = (boxes["dog"][name] for name in ("xmin", "ymin", "xmax", "ymax"))
    width, height = photo.width / 8, photo.height / 4
    assert (left, right) == pytest.approx((width, 3 * width), abs=width / 2)
    assert (top, bottom) == pytest.approx((height, 3 * height), abs=height / 2)
    assert (boxes["cat"]["xmax"], boxes["cat"]["ymax"]) == photo.size
    assert pipe(photo, WORDS, top_k=1) == found[:1]
    assert len(pipe(photo, WORDS, threshold=found[1]["score"])) == 2
    as_dictionary = {"image": photo, "candidate_labels": WORDS}
    assert pipe(as_dictionary) == found
    assert pipe([as_dictionary, as_dictionary]) == [found, found]
    assert pipe([photo, photo.resize((64, 80))], WORDS, batch_size=2)[0] == found
