import pytest

from training.evaluate import main
from training.evaluation.checkpoint import TASKS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing is no checkpoint folder: it has no config.json"),
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


def test_the_promised_tasks_exist():
    assert {"knn", "zero_shot", "segmentation_probe", "adaptor_fidelity", "resolution_consistency"} <= set(TASKS)
