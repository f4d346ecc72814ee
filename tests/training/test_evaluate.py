import numpy as np
import pytest
from PIL import Image
from tiny_radio1d import build_radio1d

from model_cards.results import Results
from modeling_radio import RadioImageProcessor
from training.evaluate import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "`checkpoint` must be a folder with a config.json, got 'missing'."),
        (["missing", "--tasks", "knn,segmentation_prob"], "Did you mean 'segmentation_probe'?"),
        (["missing", "--recipe", "dmo"], "Did you mean 'demo'?"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("evaluate: error: ")
    assert errors.count("\n") == 1
    assert message in errors


@pytest.mark.parametrize("frames", [None, 2])
def test_measurements_over_tokens_are_drawn_beside_the_results(frames, tmp_path, capsys):
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            folder = tmp_path / "insects" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                image = noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{index}.png")
    model = build_radio1d(video_temporal_patch_size=frames)
    model.save_pretrained(tmp_path / "model")
    RadioImageProcessor.from_model_config(model.config, size={"shortest_edge": 64}).save_pretrained(tmp_path / "model")
    data, results = tmp_path / "insects", tmp_path / "RESULT.json"
    words = ["--tasks", "knn_over_tokens", "--data", str(data), "--num-workers", "0", "--baselines", "[]"]
    words += ["--cache", str(tmp_path / "features"), "--output", str(results)]
    assert main([str(tmp_path / "model"), *words]) == 0, capsys.readouterr().err
    found = Results.load(results).measurements
    assert [each.metric for each in found if "mean" not in each.metric] == [f"{n} tokens, accuracy" for n in (1, 2, 4)]
    assert (tmp_path / "RESULT.tokens.png").read_bytes().startswith(b"\x89PNG")
