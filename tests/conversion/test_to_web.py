"""The command writes a folder that a browser runs, or says in one line why not; `tests/whole/web` opens it in one."""

import json
import shutil

import pytest
from tiny_eradio import build_eradio
from tiny_site import save_image, save_plain, save_runtime, save_words

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.graphs import files, parity
from modeling_radio.conversion.to_web import main
from modeling_radio.conversion.web import build
from modeling_radio.conversion.web.build import first_size


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys):
    source, site = save_plain(tmp_path / "in", max_img_size=256), tmp_path / "site"
    runtime = save_runtime(tmp_path / "runtime")
    (tmp_path / "note.txt").write_text("no picture")
    capsys.readouterr()
    for flags, message in (
        (["--adaptors", "clip"], "got 'clip'. Did you mean 'clip-a'?"),
        (["--sizes", "100"], "`sizes` must have sides that are multiples of 64"),
        (["--sizes", "big"], "`sizes` must be"),
        (["--window-size", "40"], "`window_size` must leave two windows in 256 px, got 40"),
        (["--precision", "int4"], "got 'int4'. Did you mean 'int8'?"),
        (["--pictures", str(tmp_path / "note.txt")], "`pictures` must be image files"),
        (["--runtime", str(source)], "`runtime` must be a folder with ort.wasm.min.mjs"),
    ):
        assert main([str(source), str(site), "--runtime", str(runtime), *flags]) == 1
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert not site.exists()
    assert main([str(source), str(source / ".."), "--runtime", str(runtime), "--overwrite"]) == 1
    assert "`site` must not be or contain" in capsys.readouterr().err


def test_a_graph_that_is_not_the_model_is_refused_and_nothing_is_left(tmp_path, capsys, monkeypatch):
    def write(wrapped, folder):
        (folder / "global.onnx").write_text("")
        return {"global": folder / "global.onnx"}

    monkeypatch.setattr(build, "write_graphs", write)
    monkeypatch.setattr(
        build, "open_graph", lambda path: lambda feed: [feed["pixel_values"].mean(1).reshape(1, -1, 32)] * 3
    )
    monkeypatch.setattr(parity, "compare", lambda output, expected: parity.OutputParity(0.1, 1.0, 1, 1.0))
    source, runtime = save_plain(tmp_path / "in"), save_runtime(tmp_path / "runtime")
    assert main([str(source), str(tmp_path / "site"), "--runtime", str(runtime)]) == 1
    assert "differs from PyTorch by up to 1.00e-01, more than 0.001" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "runtime"]


@pytest.mark.parametrize(
    ("milliseconds", "size"), [(None, 192), (100, 256), (499, 256), (800, 192), (1500, 128), (9000, 128)]
)
def test_a_picture_is_first_seen_at_the_largest_size_that_is_quick(milliseconds, size):
    assert first_size([128, 192, 256], milliseconds) == size


@pytest.mark.tour
@pytest.mark.parametrize(
    ("model", "size"),
    [
        (build_eradio(), 128),
        pytest.param(
            RadioModel(RadioConfig.from_preset("radio-test", downscale_levels=[3], decoder_depth=2)),
            64,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["E-RADIO", "RADIO1D"],
)
def test_other_networks_have_pages_without_windows(model, size, tmp_path):
    model.save_pretrained(tmp_path / "in")
    flags = ["--runtime", str(save_runtime(tmp_path / "runtime")), "--sizes", str(size), "--precision", "fp32"]
    assert main([str(tmp_path / "in"), str(tmp_path / "site"), *flags]) == 0  # which compares features with PyTorch's
    told = json.loads((tmp_path / "site" / "site.json").read_text())
    assert told["window"] is None
    assert list(told["models"]["wasm"]["graphs"]) == ["global"]


@pytest.mark.slow
def test_a_site_is_whole_and_its_position_table_cropped(tmp_path, capsys, monkeypatch):
    onnx = pytest.importorskip("onnx")
    source, runtime = save_words(tmp_path / "in"), save_runtime(tmp_path / "runtime")
    picture, site = save_image(tmp_path / "my_otter.png"), tmp_path / "site"
    flags = ["--runtime", str(runtime), "--sizes", "64,96", "--window-size", "2", "--pictures", str(picture)]
    assert main([str(source), str(site), *flags, "--precision", "fp16"]) == 0
    assert "not measured" in capsys.readouterr().out  # the stand-ins run nothing
    told = json.loads((site / "site.json").read_text())
    assert (told["sizes"], told["default_size"], told["step"]) == ([64, 96], 64, 16)
    assert told["window"] == {"size": 2, "step": 32, "windowed_blocks": 2, "blocks": 3}
    assert [space["name"] for space in told["spaces"]] == ["backbone", "clip-a", "sam-b"]
    assert told["samples"] == [{"file": "samples/1.png", "title": "my otter"}]
    assert [model["precision"] for model in told["models"].values()] == ["fp16", "fp16"]
    model = told["models"]["wasm"]
    names = [model["weights"], *model["graphs"].values(), told["texts"]["graph"]]
    assert all((site / name).is_file() for name in names)
    tables = [
        tuple(tensor.dims)
        for name in model["graphs"].values()
        for tensor in onnx.load(site / name, load_external_data=False).graph.initializer
        if len(tensor.dims) == 3 and tensor.dims[1] > 20
    ]
    assert set(tables) == {(1, 4 * 4 + 6 * 6, 32)}  # of two sides alone, and in both graphs
    weights = (site / model["weights"]).stat().st_size
    assert weights < 0.6 * sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert main([str(source), str(site), *flags]) == 1
    assert "exists already" in capsys.readouterr().err
    shutil.rmtree(site / "model")
    monkeypatch.setattr(files, "EXTERNAL_DATA_BYTES", 1.3 * weights)  # float32 is too large, float16 is not
    assert main([str(source), str(site), *flags, "--overwrite", "--no-words", "--precision", "fp32"]) == 1
    assert "`precision` must give weights" in capsys.readouterr().err
    assert main([str(source), str(site), *flags, "--overwrite", "--no-words"]) == 0
    models = json.loads((site / "site.json").read_text())["models"]
    assert {name: model["precision"] for name, model in models.items()} == {"wasm": "int8", "webgpu": "fp16"}
    monkeypatch.undo()
    assert main([str(source), str(site), *flags, "--overwrite", "--no-words", "--precision", "fp32"]) == 0
    assert json.loads((site / "site.json").read_text())["texts"] is None
    assert not list(tmp_path.glob(".*"))
