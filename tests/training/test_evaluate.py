import pytest

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
