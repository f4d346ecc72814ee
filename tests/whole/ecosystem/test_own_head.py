"""The head of `docs/how-to/own_head.md`, two files outside of the package, is tuned, saved and opened as ours are."""

import json
import re
import sys

import pytest
import torch
from documentation import blocks
from huggingface_hub import ModelCard
from PIL import Image

from modeling_radio import RadioConfig, RadioForImageClassification
from modeling_radio.core.imports import import_object
from modeling_radio.model_cards.build import build_card
from modeling_radio.model_cards.card import main as card
from modeling_radio.publishing.checks import UnfitError, check_code
from modeling_radio.publishing.publication import read_folder
from modeling_radio.saving_radio import own_classes
from modeling_radio.tuning.finetune import main as finetune


MODULES = ("grades", "grades_task")

OPEN_ELSEWHERE = """
import sys
import torch
from transformers import AutoModel, AutoModelForImageClassification, pipeline

folder, again = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
model.save_pretrained(again)
models = {
    "merged": model,
    "saved again": AutoModelForImageClassification.from_pretrained(again, trust_remote_code=True).eval(),
    "pipeline": pipeline(model=folder, trust_remote_code=True).model,
}
assert all(type(each).__name__ == "RadioForGrades" for each in models.values())
assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "RadioModel"
with torch.no_grad():
    torch.save({name: each(torch.load("pixels.pt")).logits for name, each in models.items()}, "answers.pt")
"""


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """The page's two files in the working directory, known to this process for one test."""
    page = [block.text for block in blocks("python") if block.page == "docs/how-to/own_head.md"]
    for name, text in zip(MODULES, page, strict=True):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    yield
    own_classes.pop("RadioForGrades", None)
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.tour
@pytest.mark.usefixtures("own_files", "one_thread", "own_datasets_cache", "one_figure_image")
def test_a_head_outside_of_the_package_is_tuned_measured_saved_opened_and_described(
    base, class_folders, tmp_path, elsewhere, capsys
):
    quick = [
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--num-workers",
        "0",
        "--validation-share",
        "0.34",
        "--lora",
        "2",
        "--merge",
    ]
    words = ["--task", "grades_task:GradesTask", "--data", str(class_folders), *quick, "--output", "run"]
    assert finetune([str(base), *words, "config.classifier_pooling=summary_and_features"]) == 0
    measured = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert set(measured) == {"quadratic_kappa", "accuracy"}

    merged = tmp_path / "run" / "merged"
    model = sys.modules["grades"].RadioForGrades.from_pretrained(merged).eval()
    pixels = torch.rand(2, 3, 32, 48)
    torch.save(pixels, "pixels.pt")
    with torch.no_grad():
        expected = model(pixels).logits
    assert torch.allclose(expected.exp().sum(1), torch.ones(2), atol=1e-4)
    done = elsewhere.run(OPEN_ELSEWHERE, tmp_path, merged, "again")
    assert done.returncode == 0, done.stderr
    for found in torch.load("answers.pt").values():
        assert torch.equal(found, expected)

    own_classes.clear()  # as in a process that has not imported the head
    assert card([str(merged), "--license", "apache-2.0"]) != 0
    assert "grades.RadioForGrades" in capsys.readouterr().err
    assert card([str(merged), "--license", "apache-2.0", "--trust-remote-code"]) == 0
    written = ModelCard.load(merged / "README.md")
    assert written.data.pipeline_tag == "image-classification"
    assert "quadratic_kappa" in written.text
    Image.new("RGB", (48, 32)).save("photo.jpg")
    code = "\n".join(re.findall(r"```python\n(.*?)```", written.text.replace("ORG/NAME", str(merged)), re.DOTALL))
    done = elsewhere.run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cat" in done.stdout

    with pytest.raises(ValueError, match=r"grades\.py"):
        read_folder(merged, "org/grades")
    publication = read_folder(merged, "org/grades", trusts_remote_code=True)
    assert "grades.py" in publication.files
    with pytest.raises(UnfitError, match=r"grades\.RadioForGrades"):
        check_code(publication)
    check_code(publication, trusts_remote_code=True)


@pytest.mark.parametrize(
    ("module", "name"),
    [("__main__", "RadioForGrades"), ("my.heads_radio", "RadioForGrades"), ("grades", "RadioForImageClassification")],
)
def test_a_class_whose_file_or_name_is_taken_is_refused(module, name):
    own = type(name, (RadioForImageClassification,), {"__module__": module})
    with pytest.raises(ValueError, match=f"^`{name}`"):
        own.register_for_auto_class("AutoModelForImageClassification")
    assert name not in own_classes


@pytest.mark.usefixtures("own_files")
@pytest.mark.parametrize("line", ["from modeling_radio import RadioConfig", "import modeling_radio.tuning.run"])
def test_a_file_that_could_not_be_imported_beside_a_checkpoint_is_refused(line, tmp_path, base, class_folders, capsys):
    path = tmp_path / "grades.py"
    path.write_text(f"{line}\n{path.read_text()}")
    words = ["--task", "grades_task:GradesTask", "--data", str(class_folders), "--output", "run"]
    assert finetune([str(base), *words]) != 0
    assert line in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("own_files")
def test_a_head_that_no_folder_could_name_is_refused(tmp_path, base, class_folders, capsys):
    path = tmp_path / "grades.py"
    path.write_text(path.read_text().partition("RadioForGrades.register")[0])
    words = ["--task", "grades_task:GradesTask", "--data", str(class_folders), "--output", "run"]
    assert finetune([str(base), *words]) != 0
    assert "register_for_auto_class" in capsys.readouterr().err


POINTS = """
from torch import nn
from transformers.utils import ModelOutput

from modeling_radio.heads_radio import RadioTaskModel


class RadioForPoints(RadioTaskModel):
    def __init__(self, config):
        super().__init__(config)
        self.points = nn.Linear(config.hidden_size, 4)
        self.post_init()

    def forward(self, pixel_values, **options):
        output = self.radio_model.make_output(self.radio_model(pixel_values))
        return ModelOutput(points=self.points(output.features.mean(1)))


RadioForPoints.register_for_auto_class("AutoModelForKeypointDetection")
"""


def test_a_head_for_a_task_that_we_have_none_for_gets_a_card_too(tmp_path, monkeypatch):
    (tmp_path / "points.py").write_text(POINTS)
    monkeypatch.chdir(tmp_path)
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=1)
    model = import_object("points:RadioForPoints", "task")(config)
    model.save_pretrained("head")
    text = build_card(tmp_path / "head").text
    own_classes.pop("RadioForPoints")
    sys.modules.pop("points")
    assert "RadioForPoints" in text
    assert 'AutoModelForKeypointDetection.from_pretrained("ORG/NAME", trust_remote_code=True)' in text
    assert "pipeline(" not in text
