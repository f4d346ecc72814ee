import pytest
import torch
from tiny_folders import save_with_processor

from modeling_radio import RadioConfig, RadioModel, RadioVideoProcessor
from modeling_radio.figures.features import pca_colors


av = pytest.importorskip("av")
pytestmark = pytest.mark.tour


def write_clip(path):
    """A bright square goes to the right over a gray ground, 5 frames at 4 in a second."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for place in range(5):
            frame = torch.full((48, 64, 3), 90, dtype=torch.uint8)
            frame[16:32, 8 * place : 8 * place + 16] = 250
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
        file.mux(stream.encode())
    return path


def read_film(path):
    with av.open(str(path)) as file:
        rate = file.streams.video[0].average_rate
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
    return torch.stack(frames) / 255, rate


def test_each_frame_stands_beside_its_features(output_of, radio, model, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    printed = output_of("film_features", model, clip, "film.mp4", "--size", 96, "--adaptor", "dense")
    assert "5 frames, 5 maps of (6, 8)" in printed
    film, rate = read_film(tmp_path / "film.mp4")
    assert (film.shape, rate) == ((5, 96, 256, 3), 4)
    frames = RadioVideoProcessor.from_pretrained(model)(str(clip), size=96, return_tensors="pt")["pixel_values_videos"]
    assert (film[:, :, :128] - frames[0].movedim(1, -1)).abs().mean() < 0.02
    with torch.inference_mode():
        features = radio(frames[0], adaptor_names=["dense"], feature_format="NCHW").adaptors["dense"].features
    colors = film[:, :, 128:].unflatten(1, (6, 16)).unflatten(3, (8, 16)).mean((2, 4))
    for actual, expected in zip(colors.unbind(-1), pca_colors(features).unbind(-1), strict=True):
        assert min((actual - expected).abs().mean(), (actual + expected - 1).abs().mean()) < 0.03  # of either sign
    printed = output_of("film_features", model, clip, "film.mp4", "--size", 96, "--num-frames", 2)
    assert "2 frames, 2 maps" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "film.mp4"]


def test_frames_of_a_temporal_patch_have_one_map(output_of, tmp_path):
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test", video_temporal_patch_size=2)
    folder = save_with_processor(RadioModel(config), tmp_path / "model")
    printed = output_of("film_features", folder, write_clip(tmp_path / "clip.mp4"), "film.mp4", "--size", 48)
    assert "5 frames, 3 maps of (3, 4)" in printed
    colors = read_film(tmp_path / "film.mp4")[0][:, :, 64:]
    assert (colors[1] - colors[0]).abs().mean() < (colors[2] - colors[1]).abs().mean()


def test_what_cannot_be_is_told(run_script, model, tmp_path):
    write_clip(tmp_path / "clip.mp4")
    for clip, adaptor, message in (("none.mp4", "dense", "no file none.mp4"), ("clip.mp4", "cat", "words, dense")):
        done = run_script("film_features", model, clip, "film.mp4", "--adaptor", adaptor)
        assert done.returncode == 2
        assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
