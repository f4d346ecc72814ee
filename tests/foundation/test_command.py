import pytest

from foundation.command import TASK_PACKAGES, run_command


def fail_to_import(name):
    def run():
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return run


@pytest.mark.parametrize("name", TASK_PACKAGES)
def test_missing_extra_is_one_line(name, capsys):
    assert run_command("finetune", fail_to_import(name)) == 1
    expected = f'finetune: error: the package {name} is not installed: run `pip install -e ".[tasks]"`\n'
    assert capsys.readouterr().err == expected


def test_other_missing_modules_are_bugs():
    with pytest.raises(ModuleNotFoundError):
        run_command("finetune", fail_to_import("training.missing"))
