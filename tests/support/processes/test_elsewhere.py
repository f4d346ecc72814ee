"""The processes that stand for a stranger's: apart from this repository, and from each other."""

import pytest


@pytest.mark.parametrize("package", ["modeling_radio", "core", "training", "conversion", "elsewhere"])
def test_nothing_of_this_repository_can_be_imported(elsewhere, tmp_path, package):
    result = elsewhere.run(f"import {package}", tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("ModuleNotFoundError")
