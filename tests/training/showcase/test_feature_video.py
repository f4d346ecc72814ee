"""The command: an MP4 of a clip beside its features, and what is refused in one line."""

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from training.pictures.clips import TITLE_PX, read_frames, write_clip
from training.showcase.feature_video import clip_features, main


pytest.importorskip("av")
HEADS = [
    {"name": "dino", "hidden_size": 8, "feature_dim": 5},
    {"name": "clip", "hidden_size": 8, "summary_dim": 4},
]


@pytest.fixture
def world(tmp_path):
    torch.manual_seed(0)
    fields = {"video_temporal_patch_size": 2, "num_hidden_layers": 2, "adaptors": HEADS}
    RadioModel(RadioConfig.from_preset("radio-test", **fields)).save_pretrained(tmp_path / "model")
    write_clip(tmp_path / "clip.mp4", torch.randint(0, 256, (5, 48, 64, 3), dtype=torch.uint8), 4)
    return tmp_path


def test_a_clip_beside_its_features(world, capsys):
    arguments = [str(world / "model"), str(world / "clip.mp4"), str(world / "film.mp4")]
    assert main([*arguments, "--size", "32"]) == 0
    assert f"{world / 'film.mp4'}: 5 frames in 3 groups, backbone, dino." in capsys.readouterr().out
    film, rate = read_frames(world / "film.mp4")
    assert film.shape == (5, 3, TITLE_PX + 32, 3 * 48)
    assert rate == pytest.approx(4)
    assert main([*arguments, "--size", "32"]) == 1
    assert "exists already" in capsys.readouterr().err
    few = ["--overwrite", "--size", "64", "--num-frames", "2", "--adaptors", "[]", "--images"]
    assert main([*arguments, *few]) == 0
    assert "2 frames in 2 groups, backbone." in capsys.readouterr().out
    assert read_frames(world / "film.mp4")[0].shape == (2, 3, TITLE_PX + 64, 2 * 80)


@torch.no_grad()
def test_features_are_those_of_one_pass(world):
    model = RadioModel.from_pretrained(world / "model").eval()
    clip = torch.rand(11, 3, 32, 32)
    whole = model(pixel_values_videos=clip[None], feature_format="NCHW")
    found = clip_features(model, clip, ["dino"])
    torch.testing.assert_close(found["backbone"].float(), whole.features[0], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(found["dino"].float(), whole.adaptors["dino"].features[0], atol=1e-2, rtol=1e-2)
    images = clip_features(model, clip, as_images=True)
    torch.testing.assert_close(
        images["backbone"].float(), model(clip, feature_format="NCHW").features, atol=1e-2, rtol=1e-2
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "film.avi"}, "`output` must end in .mp4"),
        ({"clip": "missing.mp4"}, "`clip` must be a file"),
        ({"checkpoint": "missing"}, "`checkpoint` must be"),
        ({"adaptors": "clip"}, "`adaptors` must be one of ['dino'], got 'clip'"),
        ({"size": "30"}, "`size` must have sides that are multiples of 16"),
    ],
)
def test_bad_input_is_one_line(changes, message, world, capsys):
    paths = {"checkpoint": "model", "clip": "clip.mp4", "output": "film.mp4", **changes}
    flags = [word for name in ("adaptors", "size") if name in paths for word in (f"--{name}", paths[name])]
    assert main([*(str(world / paths[name]) for name in ("checkpoint", "clip", "output")), *flags]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (world / "film.mp4").exists()
