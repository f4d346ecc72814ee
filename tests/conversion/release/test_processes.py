import json
import shutil

import pytest
import torch

from conversion.release.comparison import ParityError, Question, ask


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
    message = "needs packages that are not installed: run `pip install "
    with pytest.raises(ParityError, match=message) as caught:
        call()
    assert str(caught.value).startswith("NVIDIA's code of nvidia/C-RADIOv4-H")
    assert {"nobodys_timm", "nobodys_einops"} <= set(str(caught.value).rstrip(".`").split())


def test_an_error_of_their_code_is_one_line_and_its_traceback_is_kept(spoiled):
    folder, call = spoiled
    code = (folder / "hf_model.py").read_text()
    (folder / "hf_model.py").write_text(code.replace("self.post_init()", "self.no_such_name()"))
    with pytest.raises(ParityError, match=r"failed in its process: .*no_such_name.* Another `revision` may") as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "Traceback" in str(caught.value.__cause__)


def test_weights_that_the_file_lacks_are_noted(spoiled):
    """They are random there, and the outputs differ: whoever looks for the reason must be told."""
    folder, call = spoiled
    config = json.loads((folder / "config.json").read_text())
    config["adaptor_configs"]["siglip2-g"] = config["adaptor_configs"]["sam3"]
    (folder / "config.json").write_text(json.dumps(config))
    (note,) = call(["siglip2-g"]).notes
    assert note.startswith("NVIDIA's class has 20 weights that its file lacks, such as radio_model.adaptors.siglip2-g.")
    assert call(["sam3"]).notes == []


def test_a_repository_without_code_is_not_compared_with_transformers_own_class(spoiled):
    folder, call = spoiled
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "radio"}))
    with pytest.raises(ParityError, match=r"it brings no code, and would be opened as transformers\.models\.radio"):
        call()
