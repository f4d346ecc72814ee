"""Cases, processes and measures of a comparison of two models."""

import json
import shutil

import pytest
import torch
from tiny_eradio import build_eradio
from tiny_radio1d import FIELDS

from modeling_radio import RadioConfig
from modeling_radio.conversion.release.comparison import (
    NOISE,
    PHOTOGRAPH,
    ParityError,
    Question,
    ask,
    compare_outputs,
    open_images,
    pixels_of,
    plan_cases,
    read_size,
)


THEIRS = {"32x48/None/backbone/summary": torch.tensor([[3.0, 4.0]]), "32x48/8/sam3/features": torch.eye(2)[None]}


def test_three_measures_by_hand():
    ours = {"32x48/None/backbone/summary": torch.tensor([[4.0, 3.0]]), "32x48/8/sam3/features": torch.eye(2)[None]}
    summary, features = compare_outputs(THEIRS, ours)
    assert (summary.size, summary.window, summary.output) == ("32x48", None, "summary")
    assert summary.max_abs == pytest.approx(1)
    assert summary.relative == pytest.approx(2**0.5 / 5)
    assert summary.cosine == pytest.approx(24 / 25)
    assert (features.window, features.output) == (8, "sam3 features")
    assert (features.max_abs, features.relative, features.cosine) == (0, 0, pytest.approx(1))
    turned = THEIRS | {"32x48/8/sam3/features": torch.tensor([[[1.0, 0.0], [0.0, -1.0]]])}
    assert compare_outputs(THEIRS, turned)[1].cosine == pytest.approx(-1)  # of one token
    for wrong, named in (
        ({"32x48/8/sam3/features": torch.eye(3)[None]}, r"\(1, 3, 3\)"),
        ({"32x48/8/sam3/features": torch.full((1, 2, 2), torch.nan)}, "Ours 32x48/8/sam3/features"),
        ({"32x48/8/more/features": torch.eye(2)}, "32x48/8/more/features"),
    ):
        with pytest.raises(ParityError, match=named):
            compare_outputs(THEIRS, THEIRS | wrong)


CONFIG = RadioConfig.from_preset("c-radio_v4-h")


def test_pictures_are_the_same_on_every_machine():
    images = open_images()
    assert list(images) == [PHOTOGRAPH.name, NOISE]
    pixels = pixels_of(images.values(), [(None, ["32x48"]), (2, ["32x48", "64x64"])])
    assert {size: tuple(tensor.shape) for size, tensor in pixels.items()} == {
        "32x48": (2, 3, 32, 48),
        "64x64": (2, 3, 64, 64),
    }
    assert pixels["32x48"].dtype == torch.uint8
    assert torch.equal(pixels["32x48"], pixels_of(open_images().values(), [(None, ["32x48"])])["32x48"])


IMAGES = {"32x32": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}
pytestmark = pytest.mark.usefixtures("quick_processes")


@pytest.fixture
def spoiled(release, tmp_path):
    """Return a copy of the repository that a test may spoil, and a function that asks it."""
    folder = shutil.copytree(release, tmp_path / "C-RADIOv4-H")

    def call(adaptors=()):
        question = Question(
            "nvidia/C-RADIOv4-H", str(folder), True, list(adaptors), "cpu", "float32", 1, [(None, ["32x32"])]
        )
        return ask(question, IMAGES)

    return folder, call


def test_packages_that_their_code_needs_are_named_with_what_installs_them(spoiled):
    folder, call = spoiled
    code = (folder / "hf_model.py").read_text()
    (folder / "hf_model.py").write_text(
        code.replace("import torch\n", "import torch\nimport nobodys_timm, nobodys_einops\n", 1)
    )
    with pytest.raises(ParityError, match=r"nvidia/C-RADIOv4-H .*`pip install ") as caught:
        call()
    assert {"nobodys_timm", "nobodys_einops"} <= set(str(caught.value).rstrip(".`").split())


def test_cases_are_sizes_that_patches_and_windows_divide():
    rounded = [(None, ["496x496", "384x640"]), (8, ["512x512", "384x640"])]
    assert plan_cases(CONFIG, ["500", "384x641"], [8]) == rounded
    assert plan_cases(CONFIG, ["500", "384x641"]) == rounded  # 8 by default
    assert plan_cases(CONFIG, ["512", "510"], []) == [(None, ["512x512"])]
    ((_, sizes),) = plan_cases(CONFIG, [], [])
    assert sizes[0] == "{}x{}".format(*CONFIG.preferred_resolution)
    assert len(set(sizes)) == 3
    assert plan_cases(build_eradio().config, ["500", "48x80"]) == [(None, ["512x512", "64x64"])]
    assert plan_cases(RadioConfig(**FIELDS), ["50", "48x80"], []) == [(None, ["48x48", "48x80"])]
    for config, windows in ((build_eradio().config, [8]), (CONFIG, [129])):
        with pytest.raises(ValueError, match="`windows`"):
            plan_cases(config, ["512"], windows)
    for text in ("", "0", "0x16", "16x", "x16", "-5", "16x16x16", "1.5"):
        with pytest.raises(ValueError, match="`sizes`"):
            read_size(text)


def test_errors_and_notes_of_their_code_are_handed_on(spoiled):
    """Weights that a file lacks are random, and transformers' own class is not NVIDIA's."""
    folder, call = spoiled
    config = json.loads((folder / "config.json").read_text())
    config["adaptor_configs"]["siglip2-g"] = config["adaptor_configs"]["sam3"]
    (folder / "config.json").write_text(json.dumps(config))
    (note,) = call(["siglip2-g"]).notes
    assert note.startswith("NVIDIA's class has 20 weights that its file lacks, such as radio_model.adaptors.siglip2-g.")
    assert call(["sam3"]).notes == []
    code = (folder / "hf_model.py").read_text()
    (folder / "hf_model.py").write_text(code.replace("self.post_init()", "self.no_such_name()"))
    with pytest.raises(ParityError, match="no_such_name") as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "Traceback" in str(caught.value.__cause__)
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "radio"}))
    with pytest.raises(ParityError, match=r"transformers\.models\.radio"):
        call()
