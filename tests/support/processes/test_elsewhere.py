"""The processes that stand for a stranger's: apart from this repository, and from each other."""

import pytest


@pytest.mark.parametrize("package", ["modeling_radio", "core", "training", "conversion", "elsewhere"])
def test_nothing_of_this_repository_can_be_imported(elsewhere, tmp_path, package):
    result = elsewhere.run(f"import {package}", tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("ModuleNotFoundError")


def test_processes_share_nothing_but_what_was_imported_before(elsewhere, tmp_path):
    code = """
import os, pathlib, sys, transformers
from transformers.dynamic_module_utils import init_hf_modules
assert not hasattr(transformers, "mark")
transformers.mark = True
init_hf_modules()
print(os.getcwd(), sys.argv[1:], sys.stdin.read(), sys.path[-1], sep="|")
"""
    outputs = [elsewhere.run(code, tmp_path, 1, "two") for _ in range(2)]
    assert [result.stderr for result in outputs] == ["", ""]
    first, second = (result.stdout.strip().split("|") for result in outputs)
    assert first[:3] == second[:3] == [str(tmp_path), "['1', 'two']", ""]
    assert first[3] != second[3]


def test_exit_statuses_come_back(elsewhere, tmp_path):
    assert elsewhere.run("raise SystemExit(3)", tmp_path).returncode == 3
    assert elsewhere.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", tmp_path).returncode == -9
