"""Our metrics as modules of `evaluate`: opened here, from a copy and from a Space, and beside our functions."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from local_server import serve


evaluate = pytest.importorskip("evaluate")

METRICS = Path(__file__).parents[3] / "metrics"
PAIR = {"predictions": [[1.0, 0.0], [0.0, 1.0]], "references": [[3.0, 0.0], [0.0, 3.0]]}
GALLERY = {"gallery": [[1.0, 0.1], [0.2, 1.0], [1.0, 0.3], [1.0, 0.9]], "gallery_labels": [0, 1, 1, 1]}
FOUND = {"mAP": 1.0, "hit rate@1": 1.0, "recall@1": 2 / 3, "hit rate@2": 1.0, "recall@2": 5 / 6}
VOTES = {"gallery": [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], "gallery_labels": [0, 0, 1], "k": 1}
DEPTHS = {"predictions": [[[1.0, 2.0]], [[5.0], [3.0]]], "references": [[[1.0, 4.0]], [[4.0], [0.0]]]}
MASKS = {"predictions": [[[0, 0, 1, 1]], [[1], [1]]], "references": [[[0, 1, 1, 255]], [[1], [0]]], "num_classes": 3}
EXAMPLES = {
    "accuracy": (
        {"predictions": [0, 0, 0, 1], "references": [0, 0, 1, 1]},
        {"accuracy": 0.75, "balanced_accuracy": 0.75},
    ),
    "depth_errors": (DEPTHS, {"abs_rel": 0.25, "rmse": 1.2909944, "delta1": 0.3333333}),
    "effective_rank": ({"data": [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]}, {"effective_rank": 2.0}),
    "feature_cosine": (PAIR, {"cosine": 1.0, "centered_cosine": 0.4472136}),
    "image_retrieval": ({"predictions": PAIR["predictions"], "references": [0, 1], **GALLERY, "ranks": [1, 2]}, FOUND),
    "knn_accuracy": (
        {"predictions": [[1.0, 0.2], [0.1, 1.0], [1.0, 0.9]], "references": [0, 1, 1], **VOTES},
        {"knn_accuracy": 2 / 3},
    ),
    "mean_iou": (MASKS, {"mean_iou": 5 / 12, "pixel_accuracy": 0.6}),
}
"""Arguments of each module's `compute` and its answer, by hand."""


def load(name):
    return evaluate.load(str(METRICS / f"{name}.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_answers_are_those_by_hand(name):
    arguments, expected = EXAMPLES[name]
    assert load(name).compute(**arguments) == pytest.approx(expected)


def test_every_module_has_an_example():
    texts = {path.stem: path.read_text() for path in METRICS.glob("*.py")}
    assert {name for name, text in texts.items() if "import evaluate\n" in text} == set(EXAMPLES)


STRANGER = """
import json, os, sys
os.environ.update(HF_ENDPOINT=sys.argv[1], HF_UPDATE_DOWNLOAD_COUNTS="0", HF_MODULES_CACHE="modules", HF_HOME="home")
import evaluate
for name, arguments in json.loads(sys.argv[2]).items():
    answers = []
    for module in (evaluate.load(f"alone/{name}"), evaluate.load(f"me/{name}")):
        answers.append(module.compute(**arguments))
        rows = {each: arguments.pop(each) for each in module.features}
        module.add_batch(**rows)
        answers.append(module.compute(**arguments))
        arguments |= rows
    print(json.dumps([name, answers]))
"""


def copy_module(name, folder):
    """Copy a module and the file that it imports."""
    folder.mkdir(parents=True)
    imported = re.findall(r"^from \.(\w+) import", (METRICS / f"{name}.py").read_text(), re.MULTILINE)
    for each in (name, *imported):
        shutil.copy(METRICS / f"{each}.py", folder)


@pytest.mark.tour
def test_copies_and_spaces_open_in_a_process_without_this_repository(run_elsewhere, tmp_path):
    served = tmp_path / "served"
    for name in EXAMPLES:
        copy_module(name, tmp_path / "alone" / name)
        copy_module(name, served / "spaces" / "me" / name / "resolve" / "main")
    given = json.dumps({name: arguments for name, (arguments, _) in EXAMPLES.items()})
    with serve(served) as address:
        printed = run_elsewhere(STRANGER, tmp_path, address, given).splitlines()
    answers = dict(json.loads(line) for line in printed if line.startswith("["))
    assert sorted(answers) == sorted(EXAMPLES)
    for name, (_, expected) in EXAMPLES.items():
        assert len(answers[name]) == 4
        assert all(answer == pytest.approx(expected) for answer in answers[name])


@pytest.fixture
def features():
    """Features of 30 queries, 40 gallery images, and a teacher's of the queries; labels of both."""
    labels = torch.arange(30) % 5
    return torch.randn(30, 8), labels, torch.randn(40, 8), torch.arange(40) % 5, torch.randn(30, 8)
