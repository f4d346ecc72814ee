"""What an extra lacks is told by names and versions; what cannot be loaded or reached is printed."""

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from modeling_radio.core import doctor


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("", ["absent-always"]),
        ("train", ["absent-train"]),
        ("tasks", ["absent-train", "torch<1 (has {torch})"]),
        ("export", []),
    ],
)
def test_an_extra_lacks_what_it_and_those_that_it_names_lack(extra, expected):
    texts = [
        "torch>=1",
        "absent-always",
        "absent-train>=2; extra == 'train'",
        "modeling-radio[train]; extra == 'tasks'",
        "torch<1; extra == 'tasks'",
        "absent-elsewhere; sys_platform == 'nothing' and extra == 'train'",
        "pytest; extra == 'export'",
    ]
    version = doctor.installed_version("torch")
    requirements = [Requirement(text) for text in texts]
    assert doctor.lacking(requirements, extra) == [name.format(torch=version) for name in expected]


def test_it_prints_all_sections_where_torch_and_the_hub_are_out_of_reach(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('no libcudart')")
    words = ["-c", "import sys; from modeling_radio_cli import main; sys.exit(main(['doctor', '--timeout', '1']))"]
    root = Path(doctor.__file__).parents[1]
    variables = {
        "PYTHONPATH": f"{tmp_path}:{root}",
        "HF_ENDPOINT": "http://localhost:9",
        "RADIO_CACHE": str(tmp_path / "c"),
    }
    done = subprocess.run([sys.executable, *words], env=variables, capture_output=True, text=True, check=True)
    titles = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert titles == ["Versions:", "Devices:", "Extras:", "Folders:", "Hub:"]
    assert "OSError: no libcudart" in done.stdout
    assert str(tmp_path / "c") in done.stdout
    assert "http://localhost:9 cannot be reached" in done.stdout
