"""The command prints its tables, and writes results, figures and a page."""

import numpy as np
import pytest
from PIL import Image
from tiny_adaptors import build_model_with_adaptors
from tiny_networks import build_wrapped
from tiny_radio1d import build_radio1d

from modeling_radio import RadioImageProcessor
from modeling_radio.evaluation.evaluate import main
from modeling_radio.metrics.results import Results


@pytest.fixture
def insects(tmp_path):
    """Noise in two classes and two splits."""
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            folder = tmp_path / "insects" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "insects"


@pytest.fixture
def words(insects, tmp_path, own_datasets_cache):
    """Save a model, and return the command's words for it."""

    def save(model, *more):
        model.save_pretrained(tmp_path / "model")
        processor = RadioImageProcessor.from_model_config(model.config, size={"shortest_edge": 64})
        processor.save_pretrained(tmp_path / "model")
        words = [tmp_path / "model", "--data", insects, "--num-workers", 0, "--cache", tmp_path / "features"]
        return [str(word) for word in [*words, "--output", tmp_path / "out" / "RESULT.json", *more]]

    return save


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "`checkpoint`"),
        (["missing", "--tasks", "knn,segmentation_prob"], "'segmentation_probe'"),
        (["missing", "--recipe", "dmo"], "'demo'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("radio evaluate: error: ")
    assert errors.count("\n") == 1
    assert message in errors


def test_numbers_are_printed_and_written_with_a_page(words, tmp_path, capsys):
    model = build_model_with_adaptors("teacher_b")
    command = words(model, "--neighbors", 3, "--compare", "timm-random:test_vit")
    output = tmp_path / "out" / "RESULT.json"
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "| student" in printed
    assert " images measured, " in printed
    assert printed.endswith(f"\n\nWrote {output} and {output.with_suffix('.html')}.\n")
    results = Results.load(output)
    assert results.run["settings"]["neighbors"] == 3
    assert {found.task for found in results.measurements} == {"knn"}  # there are no masks
    page = output.with_suffix(".html").read_text()
    assert page.count("<img ") == 4 * (1 + 3) + 4 * 3 * (1 + 5)  # colors and neighbors of three models
    assert main(command) == 0  # replaces its own page
    output.with_suffix(".html").write_text("precious")
    assert main(command) == 1
    assert output.with_suffix(".html").read_text() == "precious"
    output.with_suffix(".html").unlink()
    assert main([*command, "--no-report"]) == 0
    assert not output.with_suffix(".html").exists()
    capsys.readouterr()
    assert main([*command, "--label-column", "lable"]) == 1
    assert "no column 'lable'. Did you mean 'label'?" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_network_of_a_library_is_measured(words, tmp_path, capsys):
    assert main(words(build_wrapped("ResNet"), "--no-report")) == 0, capsys.readouterr().err
    assert {found.task for found in Results.load(tmp_path / "out" / "RESULT.json").measurements} == {"knn"}


@pytest.mark.parametrize("frames", [None, 2])
def test_measurements_over_tokens_are_drawn_beside_the_results(words, frames, tmp_path, capsys):
    model = build_radio1d(video_temporal_patch_size=frames)
    assert main(words(model, "--tasks", "knn_over_tokens", "--baselines", "[]")) == 0, capsys.readouterr().err
    found = Results.load(tmp_path / "out" / "RESULT.json").measurements
    assert [each.metric for each in found if "mean" not in each.metric] == [f"{n} tokens, accuracy" for n in (1, 2, 4)]
    assert (tmp_path / "out" / "RESULT.tokens.png").read_bytes().startswith(b"\x89PNG")
