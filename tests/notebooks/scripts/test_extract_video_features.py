import re

import numpy as np
import pytest
from safetensors.torch import load_file


av = pytest.importorskip("av", reason="needs the extra `video`")
pytestmark = pytest.mark.tour


def write_clip(path, colors, frames_each: int) -> None:
    """Write frames of each color in turn, ten a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for color in colors:
            for _ in range(frames_each):
                picture = np.full((64, 96, 3), color, dtype=np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_frames_are_encoded_and_the_cut_is_told(output_of, model, tmp_path):
    write_clip(tmp_path / "clip.mp4", [(250, 20, 20), (10, 10, 60)], frames_each=6)
    printed = output_of("extract_video_features", model, "clip.mp4", "clip.safetensors", "--every", 2, "--size", 48)
    alike = [float(cosine) for cosine in re.findall(r"s  (-?\d\.\d{3})", printed)]
    assert len(alike) == 6
    assert np.argmin(alike) == 3  # the first frame of the second color
    tensors = load_file(tmp_path / "clip.safetensors")
    assert tensors["seconds"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert tensors["features"].shape == (6, 32, 2, 3)
    told = output_of("extract_video_features", model, "clip.mp4", "again.safetensors", "--every", 2, "--cut", "1.1")
    assert told.count("cut") == 6


def test_a_file_without_frames_is_refused(run_script, model, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no film")
    done = run_script("extract_video_features", model, "clip.mp4", "clip.safetensors")
    assert done.returncode != 0
    assert not (tmp_path / "clip.safetensors").exists()
