"""Films of features: what is written can be read again, and a color means the same in all frames."""

import pytest
import torch

from training.pictures.clips import TITLE_PX, clip_colors, film_frames, read_frames, write_clip


pytest.importorskip("av")


def moving_square(count=6, size=(48, 64)):
    """White on a gray that is the same everywhere, one place further in each frame."""
    frames = torch.full((count, 3, *size), 90, dtype=torch.uint8)
    for place, frame in enumerate(frames):
        frame[:, 16:32, 8 * place : 8 * place + 16] = 250
    return frames


def test_a_clip_is_read_as_it_was_written(tmp_path):
    frames = moving_square()
    write_clip(tmp_path / "clip.mp4", frames.permute(0, 2, 3, 1), 5)
    read, rate = read_frames(tmp_path / "clip.mp4")
    assert rate == pytest.approx(5)
    assert read.shape == frames.shape
    assert (read.float() - frames.float()).abs().mean() < 4  # compressed
    some, slower = read_frames(tmp_path / "clip.mp4", num_frames=3)
    assert torch.equal(some, read[::2])
    assert slower == pytest.approx(2.5)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_what_is_no_film_is_refused(tmp_path):
    (tmp_path / "clip.mp4").write_text("no film")
    with pytest.raises(ValueError, match="`clip` must be a film that FFmpeg reads"):
        read_frames(tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match="must have even sides, got 5 x 4"):
        write_clip(tmp_path / "odd.mp4", [torch.zeros(5, 4, 3, dtype=torch.uint8)], 5)
    assert not (tmp_path / "odd.mp4").exists()


def test_a_color_means_the_same_in_all_frames():
    torch.manual_seed(0)
    kinds = torch.randn(3, 8)
    places = torch.randint(0, 3, (5, 4, 6))
    colors = clip_colors(kinds[places].movedim(-1, 1))
    assert colors.shape == (5, 4, 6, 3)
    for kind in range(3):
        of_kind = colors[places == kind]
        torch.testing.assert_close(of_kind, of_kind[:1].expand_as(of_kind))
    assert not torch.allclose(colors[places == 0][0], colors[places == 1][0], atol=0.1)


def test_groups_stand_beside_their_frames():
    torch.manual_seed(0)
    frames, groups = moving_square(count=5, size=(33, 48)), torch.randn(3, 4, 2, 3)
    film = list(film_frames(frames, {"backbone": groups, "dino": torch.randn(5, 6, 4, 6)}))
    assert len(film) == 5
    assert all(frame.shape == (TITLE_PX + 32, 3 * 48, 3) and frame.dtype == torch.uint8 for frame in film)
    assert torch.equal(film[2][TITLE_PX:, :48], frames[2, :, :32].permute(1, 2, 0))
    backbone = [frame[TITLE_PX:, 48:96] for frame in film]
    assert torch.equal(backbone[0], backbone[1])  # frames of one group
    assert not torch.equal(backbone[1], backbone[2])
    assert (film[0][:TITLE_PX] < 128).any()  # titles
