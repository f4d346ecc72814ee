"""Clips of every kind become the frames that `RadioImageProcessor` makes of them, and files open with Auto classes."""

import numpy as np
import pytest
import torch
from PIL import Image
from reference_cases import REFERENCE
from transformers import AutoVideoProcessor, pipeline
from transformers.video_utils import VideoMetadata

from modeling_radio import (
    RadioConfig,
    RadioForImageClassification,
    RadioImageProcessor,
    RadioModel,
    RadioVideoProcessor,
    video_processing_radio,
)
from modeling_radio.conversion.convert import main as from_nvidia
from modeling_radio.pipelines_radio import RadioVideoClassificationPipeline
from modeling_radio.post_processing_radio import class_scores, tempered


FRAMES = np.random.default_rng(0).integers(0, 256, (7, 80, 100, 3), dtype=np.uint8)


@pytest.fixture
def processor():
    return RadioVideoProcessor.from_model_config(RadioConfig.from_preset("radio-test"))


def pixels(processor, videos, **options):
    return processor(videos, return_tensors="pt", **options)["pixel_values_videos"]


def test_frames_have_the_pixels_that_they_have_as_images(processor):
    images = RadioImageProcessor.from_model_config(RadioConfig.from_preset("radio-test"))
    expected = images(list(FRAMES), return_tensors="pt")["pixel_values"]
    assert expected.shape == (7, 3, 64, 80)
    clips = [
        FRAMES,
        torch.from_numpy(FRAMES),
        torch.from_numpy(FRAMES).permute(0, 3, 1, 2),
        [Image.fromarray(frame) for frame in FRAMES],
        [FRAMES],
    ]
    for clip in clips:
        assert torch.equal(pixels(processor, clip), expected[None])
    floats = {"do_rescale": False, "return_tensors": "pt"}
    expected = images(list(FRAMES / 255), **floats)["pixel_values"]
    assert torch.equal(processor(FRAMES / 255, **floats)["pixel_values_videos"], expected[None])


@pytest.mark.parametrize(
    ("options", "chosen"), [({"num_frames": 3}, [0, 2, 4]), ({"num_frames": 20}, range(7)), ({}, range(7))]
)
def test_frames_are_spread_evenly(options, chosen, processor):
    found = pixels(processor, FRAMES, do_sample_frames=True, **options)
    assert torch.equal(found, pixels(processor, FRAMES[list(chosen)]))


def test_frames_per_second_need_the_clips_own(processor):
    metadata = {"total_num_frames": 7, "fps": 7.0}
    found = pixels(processor, FRAMES, do_sample_frames=True, fps=3, video_metadata=[metadata])
    assert found.shape[1] == 3
    with pytest.raises(ValueError, match="`fps`"):
        pixels(processor, FRAMES, do_sample_frames=True, fps=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"do_normalize": True}, ValueError, "`do_normalize`"),
        ({"do_center_crop": True}, ValueError, "`do_center_crop`"),
        ({"size": {"height": 65, "width": 64}}, ValueError, "nearest valid size is 64 x 64"),
        ({"num_frames": 0, "do_sample_frames": True}, ValueError, "`num_frames`"),
        ({"do_resize": 1}, ValueError, "`do_resize`"),
        ({"num_frame": 3}, TypeError, "'num_frame'"),
    ],
)
def test_options_that_cannot_be_right_are_refused(options, error, message, processor):
    with pytest.raises(error, match=message):
        processor(FRAMES, return_tensors="pt", **options)


def test_clips_of_different_lengths_fit_no_batch(processor):
    with pytest.raises(ValueError, match=r"one number of frames .*\[\(3, 64, 80\), \(7, 64, 80\)\]"):
        processor([FRAMES, FRAMES[:3]], return_tensors="pt")
    clips = processor([FRAMES, FRAMES[:3]])["pixel_values_videos"]
    assert [len(clip) for clip in clips] == [7, 3]


def test_settings_are_saved_and_a_folder_of_images_lends_its_own(processor, tmp_path):
    processor.num_frames = 5
    processor.save_pretrained(tmp_path / "clips")
    again = AutoVideoProcessor.from_pretrained(tmp_path / "clips")
    assert isinstance(again, RadioVideoProcessor)
    assert (again.num_frames, again.size["shortest_edge"], again.max_img_size) == (5, 64, 256)
    with pytest.raises(ValueError, match="'num_frames'"):
        RadioVideoProcessor(num_frmes=3)
    config = RadioConfig.from_preset("radio-test")
    config.save_pretrained(tmp_path / "images")
    RadioImageProcessor.from_model_config(config, size=96).save_pretrained(tmp_path / "images")
    lent = AutoVideoProcessor.from_pretrained(tmp_path / "images")
    assert isinstance(lent, RadioVideoProcessor)
    assert pixels(lent, FRAMES).shape == (1, 7, 3, 96, 128)


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test", video_temporal_patch_size=2, num_labels=3, num_hidden_layers=2)
    model = RadioForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "classifier")
    RadioVideoProcessor.from_model_config(config).save_pretrained(tmp_path / "classifier")
    return model, tmp_path / "classifier"


@torch.no_grad()
@pytest.mark.parametrize("num_labels", [1, 3])
def test_scores_of_clips_are_those_of_the_configuration(processor, num_labels):
    fields = {"num_labels": num_labels, "temperature": 2.0, "num_hidden_layers": 1}
    model = RadioForImageClassification(RadioConfig.from_preset("radio-test", **fields)).eval()
    model.classifier[1].weight.normal_()
    run = RadioVideoClassificationPipeline(model=model, video_processor=processor)
    logits = model(**processor(FRAMES, num_frames=4, do_sample_frames=True, return_tensors="pt")).logits[0]
    for options, expected in (
        ({}, class_scores(logits, model.config)),
        ({"function_to_apply": "none"}, tempered(logits, model.config)),
    ):
        found = torch.tensor([entry["score"] for entry in run(FRAMES, num_frames=4, **options)])
        torch.testing.assert_close(found, expected.sort(descending=True).values)


@torch.no_grad()
def test_pipeline_classifies_frames_and_files(classifier, processor, tmp_path):
    model, folder = classifier
    run = pipeline("video-classification", model=str(folder), trust_remote_code=True)
    assert type(run).__name__ == "RadioVideoClassificationPipeline"
    inputs = processor(FRAMES, num_frames=4, do_sample_frames=True, return_tensors="pt")
    expected = model(**inputs).logits.softmax(dim=-1)[0]
    found = run(FRAMES, num_frames=4)
    assert [entry["label"] for entry in found] == [f"LABEL_{index}" for index in expected.argsort(descending=True)]
    torch.testing.assert_close(torch.tensor([entry["score"] for entry in found]), expected.sort(descending=True).values)
    with pytest.raises(ValueError, match="`frame_sampling_rate`"):
        run(FRAMES, frame_sampling_rate=2)
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 100, 80, "yuv420p"
        for frame in FRAMES:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    assert pixels(processor, str(tmp_path / "clip.mp4")).shape == (1, 7, 3, 64, 80)
    inputs = processor(str(tmp_path / "clip.mp4"), num_frames=4, do_sample_frames=True, return_tensors="pt")
    expected = model(**inputs).logits.softmax(dim=-1)[0]
    for found in run([str(tmp_path / "clip.mp4")] * 2, num_frames=4, top_k=1):
        assert found[0]["score"] == pytest.approx(expected.max().item(), abs=1e-5)


def test_files_that_cannot_be_read_are_refused(processor, monkeypatch):
    monkeypatch.setattr(video_processing_radio, "_READERS", {"pyav": lambda: False})
    with pytest.raises(ValueError, match="needs torchcodec or PyAV"):
        processor("clip.mp4", return_tensors="pt")
    with pytest.raises(ValueError, match="how many frames"):
        processor.sample_frames(VideoMetadata(total_num_frames=0))


def test_a_converted_folder_has_settings_for_clips_and_a_card_that_says_so(tmp_path):
    source = REFERENCE / "radio_video_tiny" / "checkpoint.pth.tar"
    for _ in range(2):  # its own files may be replaced
        assert from_nvidia([str(source), str(tmp_path / "ours"), "--overwrite"]) == 0
    assert (tmp_path / "ours" / "video_preprocessor_config.json").is_file()
    inputs = AutoVideoProcessor.from_pretrained(tmp_path / "ours", size=32)(FRAMES, return_tensors="pt")
    with torch.no_grad():
        assert RadioModel.from_pretrained(tmp_path / "ours")(**inputs).summary.shape == (1, 4, 64)
    assert "2 frames make a group" in (tmp_path / "ours" / "README.md").read_text()


@pytest.mark.parametrize("mode", ["L", "P", "LA", "CMYK", "RGBA"])
def test_frames_of_any_mode_are_read_as_images_are(mode, processor):
    torch.manual_seed(0)
    pixels = (torch.rand(2, 32, 48, 4) * 255).byte().numpy()
    frames = [Image.fromarray(frame).convert(mode) for frame in pixels]
    clip = processor(frames, size=(32, 48), return_tensors="pt")["pixel_values_videos"]
    images = RadioImageProcessor()(frames, size=(32, 48), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(clip[0], images, rtol=0, atol=1e-6)


def test_frames_of_one_clip_must_be_of_one_size(processor):
    frames = [Image.new("RGB", (32, 32)), Image.new("RGB", (48, 32))]
    with pytest.raises(ValueError, match="`videos`"):
        processor(frames, return_tensors="pt")
