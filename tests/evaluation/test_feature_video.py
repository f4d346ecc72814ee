"""Videos of features: an MP4 of a clip beside them in constant colors, and refused input in one line."""

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.evaluation.feature_video import (
    TITLE_PX,
    clip_colors,
    clip_features,
    film_frames,
    main,
    read_frames,
    write_clip,
)


pytest.importorskip("av")


@pytest.fixture
def world(tmp_path):
    torch.manual_seed(0)
    heads = [{"name": "dino", "hidden_size": 8, "feature_dim": 5}, {"name": "clip", "hidden_size": 8, "summary_dim": 4}]
    fields = {"video_temporal_patch_size": 2, "num_hidden_layers": 2, "adaptors": heads}
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
    images = clip_features(model, clip, as_images=True)["backbone"]
    for actual, expected in (
        (found["backbone"], whole.features[0]),
        (found["dino"], whole.adaptors["dino"].features[0]),
        (images, model(clip, feature_format="NCHW").features),
    ):
        torch.testing.assert_close(actual.float(), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"output": "film.avi"}, "`output`"),
        ({"clip": "missing.mp4"}, "`clip`"),
        ({"clip": "model/config.json"}, "`clip`"),
        ({"checkpoint": "missing"}, "`checkpoint`"),
        ({"adaptors": "clip"}, "`adaptors`"),
        ({"size": "30"}, "`size`"),
    ],
)
def test_bad_input_is_one_line(changes, named, world, capsys):
    paths = {"checkpoint": "model", "clip": "clip.mp4", "output": "film.mp4", **changes}
    flags = [word for name in ("adaptors", "size") if name in paths for word in (f"--{name}", paths[name])]
    assert main([*(str(world / paths[name]) for name in ("checkpoint", "clip", "output")), *flags]) == 1
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not (world / "film.mp4").exists()


def test_a_clip_is_read_as_it_was_written(tmp_path):
    frames = torch.full((6, 3, 48, 64), 90, dtype=torch.uint8)
    for place, frame in enumerate(frames):  # a moving square
        frame[:, 16:32, 8 * place : 8 * place + 16] = 250
    write_clip(tmp_path / "clip.mp4", frames.permute(0, 2, 3, 1), 5)
    read, rate = read_frames(tmp_path / "clip.mp4")
    assert rate == pytest.approx(5)
    assert read.shape == frames.shape
    assert (read.float() - frames.float()).abs().mean() < 4  # compressed
    some, slower = read_frames(tmp_path / "clip.mp4", num_frames=3)
    assert torch.equal(some, read[::2])
    assert slower == pytest.approx(2.5)
    with pytest.raises(ValueError, match="even sides, got 5 x 4"):
        write_clip(tmp_path / "odd.mp4", [torch.zeros(5, 4, 3, dtype=torch.uint8)], 5)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_color_means_the_same_in_all_frames():
    torch.manual_seed(0)
    kinds, places = torch.randn(3, 8), torch.randint(0, 3, (5, 4, 6))
    colors = clip_colors(kinds[places].movedim(-1, 1))
    assert colors.shape == (5, 4, 6, 3)
    for kind in range(3):
        torch.testing.assert_close(colors[places == kind], colors[places == kind][:1].expand_as(colors[places == kind]))
    assert not torch.allclose(colors[places == 0][0], colors[places == 1][0], atol=0.1)


def test_groups_stand_beside_their_frames():
    torch.manual_seed(0)
    frames, groups = torch.randint(0, 256, (5, 3, 33, 48), dtype=torch.uint8), torch.randn(3, 4, 2, 3)
    film = list(film_frames(frames, {"backbone": groups, "dino": torch.randn(5, 6, 4, 6)}))
    assert len(film) == 5
    assert all(frame.shape == (TITLE_PX + 32, 3 * 48, 3) and frame.dtype == torch.uint8 for frame in film)
    assert torch.equal(film[2][TITLE_PX:, :48], frames[2, :, :32].permute(1, 2, 0))
    backbone = [frame[TITLE_PX:, 48:96] for frame in film]
    assert torch.equal(backbone[0], backbone[1])  # frames of one group
    assert not torch.equal(backbone[1], backbone[2])
    assert (film[0][:TITLE_PX] < 128).any()  # titles
